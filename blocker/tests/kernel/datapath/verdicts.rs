//! One packet on every hook, in every mode: its verdict, the replies, the counters.
//!
//! One rule names the remote, both ways. Each row is a packet from the remote, and on egress the
//! same packet to the remote. What is expected is written once for all hooks: XDP drops what
//! needs no reply and leaves the rest to TC, and replies go to whoever sent the packet.

use Fate::{Malformed, Passes, PassesReset, Reported, ReportedByReject, Reset, Silence};
use anyhow::Result;
use blocker::datapath::{HookTotals, Totals};

use crate::packets::packet::*;
use crate::packets::{Bench, Counted, Program, SETTINGS, Seen, echo, icmp, other, rule, tcp, udp};

/// What is done with a packet in the modes that block.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// `reset`: a RST of these flags and numbers to the sender, and to the receiver one at each
    /// of these numbers, the last of which is the packet itself. `reject`: reported.
    Reset((u8, u32, u32), &'static [u32]),
    /// `reset`: port unreachable to the sender. `reject`: administratively prohibited.
    Reported,
    /// `reset`: dropped without a reply. `reject`: reported.
    ReportedByReject,
    /// Dropped without a reply.
    Silence,
    /// A RST: passes in `reset`, dropped without a reply in others.
    PassesReset,
    /// No rule takes it.
    Passes,
    /// No rule takes it, and it is counted as malformed.
    Malformed,
}

/// RFC 9293 3.5.2: a segment without ACK is answered at 0, and acknowledged.
const fn refused(ack: u32) -> Fate {
    Reset((RST | ACK, 0, ack), &[])
}

/// RFC 9293 3.5.2: a segment with ACK is answered at the number that it acknowledges. It goes on
/// as a RST at its own.
const fn killed(receiver: &'static [u32]) -> Fate {
    Reset((RST, ACKED, 0), receiver)
}

type Row = (&'static str, Packet, Fate);

/// Rows that hold for IPv4 and IPv6 alike.
#[rustfmt::skip] // a row is a line
fn either() -> Vec<Row> {
    vec![
        ("SYN", tcp(SYN), refused(SEQ + 1)),
        ("SYN with data", tcp(SYN).payload(b"early"), refused(SEQ + 6)),
        ("SYN with ECN", tcp(SYN | ECE | CWR), refused(SEQ + 1)),
        ("SYN at the last number", tcp(SYN).seq(u32::MAX), refused(0)),
        ("SYN with options", tcp(SYN).tcp_options(&[2, 4, 5, 180]), refused(SEQ + 1)),
        ("SYN, padded by Ethernet", tcp(SYN).trailer(6), refused(SEQ + 1)),
        ("SYN, ACK", tcp(SYN | ACK), killed(&[SEQ])),
        ("ACK, perhaps a keepalive", tcp(ACK), killed(&[SEQ + 1, SEQ])),
        ("keepalive with a byte", tcp(ACK).payload(b"?"), killed(&[SEQ + 1, SEQ])),
        ("keepalive at the last number", tcp(ACK).seq(u32::MAX), killed(&[0, u32::MAX])),
        ("ACK, padded by Ethernet", tcp(ACK).trailer(6), killed(&[SEQ + 1, SEQ])),
        ("two bytes", tcp(ACK).payload(b"ok"), killed(&[SEQ])),
        ("data", tcp(PSH | ACK).payload(b"GET / HTTP/1.1\r\n\r\n"), killed(&[SEQ])),
        ("an odd number of bytes", tcp(PSH | ACK).payload(b"odds!"), killed(&[SEQ])),
        ("a full segment", tcp(ACK).payload(&[0xa5; 1_400]), killed(&[SEQ])),
        ("data behind options", tcp(ACK).payload(b"data").tcp_options(&[1; 12]), killed(&[SEQ])),
        ("all options there can be", tcp(ACK).tcp_options(&[1; 40]), killed(&[SEQ + 1, SEQ])),
        ("urgent data", tcp(URG | ACK).payload(b"now").transport_byte(19, 1), killed(&[SEQ])),
        ("FIN, ACK", tcp(FIN | ACK), killed(&[SEQ])),
        ("FIN without ACK", tcp(FIN), refused(SEQ + 1)),
        ("SYN, FIN", tcp(SYN | FIN), refused(SEQ + 2)),
        ("no flag at all", tcp(0).payload(b"abc"), refused(SEQ + 3)),
        ("RST", tcp(RST), PassesReset),
        ("RST, ACK", tcp(RST | ACK), PassesReset),
        ("RST with data", tcp(RST | ACK).payload(b"why"), PassesReset),
        ("TCP header too short", tcp(ACK).transport_byte(12, 4 << 4), ReportedByReject),
        ("TCP header past the end", tcp(ACK).transport_byte(12, 6 << 4), ReportedByReject),
        ("UDP", udp(b"hello"), Reported),
        ("UDP without data", udp(b""), Reported),
        ("UDP, padded by Ethernet", udp(b"").trailer(18), Reported),
        ("UDP, all but quoted whole", udp(&[0x5a; 521]), Reported),
        ("UDP, 1,400 bytes", udp(&[0x5a; 1_400]), Reported),
        ("UDP on its last hop", udp(b"hello").hop_limit(1), Reported),
        ("echo request", echo(), Reported),
        ("echo reply", icmp(0, 0, [0x12, 0x34, 0, 1]), Reported),
        ("destination unreachable", icmp(3, 1, [0; 4]).payload(&tcp(ACK).ip()[..28]), Silence),
        ("GRE", other(47), Reported),
        ("SCTP", other(132), Reported),
        ("a protocol for experiments", other(253), Reported),
        ("first fragment of UDP", udp(&[1; 64]).fragment(0, true), Reported),
        ("first fragment of a SYN", tcp(SYN).fragment(0, true), ReportedByReject),
        ("first fragment of data", tcp(ACK).payload(&[1; 44]).fragment(0, true), killed(&[SEQ])),
        ("later fragment of UDP", udp(&[1; 64]).fragment(9, true), Silence),
        ("last fragment of TCP", tcp(ACK).fragment(185, false), Silence),
        ("last fragment of echo", echo().fragment(8_191, false), Silence),
        ("802.1Q", tcp(SYN).tag(0x8100, 5), refused(SEQ + 1)),
        ("802.1Q, data", tcp(ACK).payload(b"data").tag(0x8100, 0xa005), killed(&[SEQ])),
        ("802.1Q, keepalive", tcp(ACK).tag(0x8100, 5), killed(&[SEQ + 1, SEQ])),
        ("802.1Q, UDP", udp(b"hello").tag(0x8100, 5), Reported),
        ("QinQ", tcp(SYN).tag(0x88a8, 7).tag(0x8100, 5), refused(SEQ + 1)),
        ("QinQ, keepalive", tcp(ACK).tag(0x88a8, 7).tag(0x8100, 5), killed(&[SEQ + 1, SEQ])),
        ("QinQ, UDP", udp(b"hello").tag(0x88a8, 7).tag(0x8100, 5), Reported),
        ("QinQ, RST", tcp(RST).tag(0x88a8, 7).tag(0x8100, 5), PassesReset),
        ("three tags", tcp(SYN).tag(0x88a8, 7).tag(0x8100, 6).tag(0x8100, 5), Passes),
    ]
}

#[rustfmt::skip]
fn v4_only() -> Vec<Row> {
    vec![
        ("UDP without a checksum", udp(b"hello").unsummed(), Reported),
        ("timestamp request", icmp(13, 0, [0; 4]).payload(&[0; 12]), Reported),
        ("time exceeded", icmp(11, 0, [0; 4]).payload(&tcp(ACK).ip()[..28]), Silence),
        ("redirect", icmp(5, 1, [8, 0, 0, 3]).payload(&tcp(ACK).ip()[..28]), Silence),
        ("parameter problem", icmp(12, 0, [0; 4]).payload(&tcp(ACK).ip()[..28]), Silence),
        ("an unknown type", icmp(200, 0, [0; 4]), Silence),
        ("ICMPv6 over IPv4", other(58), Reported),
        ("IPv4 options", tcp(SYN).options(&[1; 4]), refused(SEQ + 1)),
        ("IPv4 options, data", tcp(ACK).payload(b"data").options(&[1; 36]), killed(&[SEQ])),
        ("IPv4 options, UDP", udp(b"hello").options(&[0x94, 4, 0, 0]), Reported),
        ("all options there can be", tcp(ACK).options(&[1; 40]), killed(&[SEQ + 1, SEQ])),
        ("to a multicast group", udp(b"hello").local([224, 0, 0, 251]), Silence),
        ("to everybody", udp(b"hello").local([255; 4]), Silence),
        ("from a multicast group", udp(b"hello").remote([224, 0, 0, 251]), Silence),
        ("from nobody", udp(b"hello").remote([0, 0, 0, 0]), Silence),
        ("from everybody", udp(b"hello").remote([255; 4]), Silence),
        ("another version", tcp(SYN).ip_byte(0, 0x56), Malformed),
        ("header of four words", tcp(SYN).ip_byte(0, 0x44), Malformed),
        ("shorter than its header", tcp(SYN).ip_byte(3, 19), Malformed),
    ]
}

#[rustfmt::skip]
fn v6_only() -> Vec<Row> {
    let discovery = |kind| icmp(kind, 0, [0; 4]).v6().payload(&[0; 16]).hop_limit(255);
    vec![
        ("neighbour solicitation", discovery(135), Passes),
        ("neighbour advertisement", discovery(136), Passes),
        ("solicitation from afar", discovery(135).hop_limit(254), Silence),
        ("advertisement from afar", discovery(136).hop_limit(64), Silence),
        ("router advertisement", discovery(134), Silence),
        ("redirect", discovery(137), Silence),
        ("packet too big", icmp(2, 0, [0, 0, 5, 0]).v6().payload(&tcp(ACK).v6().ip()), Silence),
        ("time exceeded", icmp(3, 0, [0; 4]).payload(&tcp(ACK).v6().ip()).v6().transport_byte(0, 3), Silence),
        ("an unknown type", icmp(200, 0, [0; 4]).v6(), Silence),
        ("ICMP over IPv6", other(1).transport(&[8, 0, 0, 0, 0, 0, 0, 0]).remote(REMOTE6).local(LOCAL6), Reported),
        ("UDP, more than is quoted", udp(&[0x5a; 1_185]).v6(), Reported),
        ("UDP, just quoted whole", udp(&[0x5a; 1_184]).v6(), Reported),
        ("hop-by-hop options", tcp(SYN).v6().extension(0, 8), refused(SEQ + 1)),
        ("routing header", tcp(ACK).v6().extension(43, 24), killed(&[SEQ + 1, SEQ])),
        ("destination options", udp(b"hello").v6().extension(60, 16), Reported),
        ("authentication header", tcp(SYN).v6().extension(51, 24), refused(SEQ + 1)),
        ("mobility header", tcp(SYN).v6().extension(135, 8), refused(SEQ + 1)),
        ("several", tcp(SYN).v6().extension(0, 8).extension(60, 8).extension(43, 24).extension(51, 12).extension(60, 8), refused(SEQ + 1)),
        ("fragment header behind others", udp(&[1; 64]).v6().extension(0, 8).fragment(0, true), Reported),
        ("an atomic fragment", tcp(SYN).v6().fragment(0, false), refused(SEQ + 1)),
        ("later fragment behind others", tcp(ACK).v6().extension(60, 8).fragment(100, true), Silence),
        ("as many headers as are walked", (0..8).fold(tcp(SYN).v6(), |p, _| p.extension(60, 8)), refused(SEQ + 1)),
        ("one more than is walked", (0..9).fold(tcp(SYN).v6(), |p, _| p.extension(60, 8)), Silence),
        ("headers longer than are walked", tcp(SYN).v6().extension(60, 256), Silence),
        ("no next header", other(59).transport(&[]).remote(REMOTE6).local(LOCAL6), Reported),
        ("a header cut short", other(60).transport(&[6]).remote(REMOTE6).local(LOCAL6), Silence),
        ("to a multicast group", udp(b"hello").v6().local([0xff02, 0, 0, 0, 0, 0, 0, 0xfb]), Silence),
        ("from a multicast group", udp(b"hello").v6().remote([0xff02, 0, 0, 0, 0, 0, 0, 0xfb]), Silence),
        ("from nobody", udp(b"hello").v6().remote([0_u16; 8]), Silence),
        ("another version", tcp(SYN).v6().ip_byte(0, 0x40), Malformed),
    ]
}

/// Rows that hold for IPv4 and IPv6 alike, but not on ingress and egress: what comes in is
/// answered only if it is whole and was meant for this host; what goes out is this host's own,
/// and its checksum may be left to the device.
#[rustfmt::skip]
fn by_way(egress: bool) -> Vec<Row> {
    let out = |fate| if egress { fate } else { Silence };
    let mut rows = vec![
        ("SYN, bad checksum", tcp(SYN).spoilt(), out(refused(SEQ + 1))),
        ("data, bad checksum", tcp(ACK).payload(b"odds!").spoilt(), out(killed(&[SEQ]))),
        ("a full segment, bad checksum", tcp(ACK).payload(&[7; 1_401]).spoilt(), out(killed(&[SEQ]))),
        ("UDP, bad checksum", udp(b"hello").spoilt(), out(Reported)),
        ("echo request, bad checksum", echo().spoilt(), out(Reported)),
        ("UDP without the end of its header", udp(b"").transport(&[0x9c, 0x40, 0, 80, 0]), out(Reported)),
        ("TCP without the end of its header", tcp(ACK).transport(&[0x9c, 0x40, 0, 80, 0, 0, 0, 1]), out(ReportedByReject)),
        ("TCP without ports", tcp(ACK).transport(&[0x9c, 0x40, 0]), out(ReportedByReject)),
        ("nothing behind the IP header", tcp(ACK).transport(&[]), out(ReportedByReject)),
    ];
    if !egress {
        rows.push(("to a broadcast MAC", udp(b"hello").addressed([0xff; 6]), Silence));
        rows.push(("to a multicast MAC", tcp(SYN).addressed([1, 0, 0x5e, 0, 0, 1]), Silence));
    }
    rows
}

fn rows(egress: bool) -> Vec<Row> {
    let mut rows = either();
    rows.extend(by_way(egress));
    let v6 = rows.clone().into_iter();
    rows.extend(v6.map(|(what, packet, fate)| (what, packet.v6(), fate)));
    rows.extend(v4_only().into_iter().chain(v6_only()));
    rows
}

/// What is expected of a program that meets a packet under a rule of this mode.
fn expected(program: Program, mode: &str, packet: &Packet, fate: Fate) -> Seen {
    let bytes = packet.bytes();
    let mut seen = Seen {
        verdict: program.pass(),
        packet: bytes.clone(),
        mark: 0,
        sent: Vec::new(),
        received: Vec::new(),
        counted: Counted {
            rules: vec![Totals::default()],
            hook: HookTotals {
                seen: 1,
                ..HookTotals::default()
            },
        },
    };
    let spared = match fate {
        Passes | Malformed => true,
        PassesReset => mode == "reset",
        _ => false,
    };
    if spared || (program == Program::Xdp && mode != "drop") {
        seen.counted.hook.passed = 1;
        seen.counted.hook.malformed = u64::from(matches!(fate, Malformed));
        return seen;
    }
    seen.counted.rules[0].packets = 1;
    seen.counted.rules[0].bytes = bytes.len() as u64;
    if mode == "audit" {
        return seen;
    }
    seen.verdict = program.drop();
    let back = packet.clone().outgoing();
    let (mut to_sender, mut to_receiver) = (Vec::new(), Vec::new());
    match (mode, fate) {
        ("reset", Reset((flags, seq, ack), receiver)) => {
            to_sender.push(back.rst(flags, seq, ack).bytes());
            let onward = |seq: &u32| packet.rst(RST | ACK, *seq, ACKED).bytes();
            to_receiver.extend(receiver.iter().map(onward));
            // The last is the packet itself, unless VLAN tags in it were in the way.
            if !packet.is_tagged()
                && let Some(itself) = to_receiver.pop()
            {
                seen.verdict = program.pass();
                seen.packet = itself;
            }
            seen.counted.rules[0].replies = (1 + receiver.len()) as u64;
        }
        ("reset", Reported) | ("reject", Reset(..) | Reported | ReportedByReject) => {
            let code = match (mode, packet.is_v6()) {
                ("reset", false) => 3,
                ("reset", true) => 4,
                (_, false) => 13,
                (_, true) => 1,
            };
            to_sender.push(back.unreachable(code, packet).bytes());
            seen.counted.rules[0].replies = 1;
        }
        _ => {}
    }
    (seen.sent, seen.received) = if program.is_egress() {
        (to_receiver, to_sender)
    } else {
        (to_sender, to_receiver)
    };
    seen
}

/// A rule on everything that the rows call the remote.
fn remotes(mode: &str) -> blocker::rule::Rule {
    rule(
        "remotes",
        &format!("{REMOTE} {REMOTE6} 0.0.0.0 224.0.0.251 255.255.255.255 ff02::fb ::"),
        &format!("{{mode: {mode}}}"),
    )
}

fn check(mode: &str) -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        bench.enforce(&[remotes(mode)], &[])?;
        let mut wrong = Vec::new();
        let mut runs = 0;
        for program in Program::ALL {
            for (what, packet, fate) in rows(program.is_egress()) {
                if program.is_l3() && !packet.can_be_bare() {
                    continue;
                }
                let packet = program.meets(&packet);
                let mut seen = bench.run(program, &packet)?;
                let expected = expected(program, mode, &packet, fate);
                if seen.verdict == expected.verdict && seen.verdict != program.pass() {
                    // What a dropped packet's buffer holds is nobody's business.
                    seen.packet.clone_from(&expected.packet);
                }
                runs += 1;
                if seen != expected {
                    wrong.push(difference(program, what, &packet, &seen, &expected));
                }
            }
        }
        assert!(
            wrong.is_empty(),
            "mode {mode}, {} of {runs} runs:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        assert!(runs > 4 * rows(false).len());
        Ok(())
    })
}

/// The fields that differ, in a readable form.
fn difference(
    program: Program,
    what: &str,
    packet: &Packet,
    seen: &Seen,
    expected: &Seen,
) -> String {
    let family = if packet.is_v6() { "IPv6" } else { "IPv4" };
    let mut text = format!("{program:?}, {family}: {what}");
    let hex = |frames: &[Vec<u8>]| {
        let line = |frame: &Vec<u8>| frame.iter().map(|byte| format!("{byte:02x}")).collect();
        frames.iter().map(line).collect::<Vec<String>>()
    };
    let mut part = |name: &str, found: String, wanted: String| {
        if found != wanted {
            text += &format!("\n  {name}: {found}\n  not    {wanted}");
        }
    };
    part(
        "verdict",
        seen.verdict.to_string(),
        expected.verdict.to_string(),
    );
    part("mark", seen.mark.to_string(), expected.mark.to_string());
    part(
        "packet",
        format!("{:?}", hex(std::slice::from_ref(&seen.packet))),
        format!("{:?}", hex(std::slice::from_ref(&expected.packet))),
    );
    part(
        "sent",
        format!("{:?}", hex(&seen.sent)),
        format!("{:?}", hex(&expected.sent)),
    );
    part(
        "received",
        format!("{:?}", hex(&seen.received)),
        format!("{:?}", hex(&expected.received)),
    );
    part(
        "counted",
        format!("{:?}", seen.counted),
        format!("{:?}", expected.counted),
    );
    text
}

#[test]
fn drop_is_silent_on_every_hook() -> Result<()> {
    check("drop")
}

#[test]
fn reset_answers_to_both_ends() -> Result<()> {
    check("reset")
}

#[test]
fn reject_answers_to_the_sender() -> Result<()> {
    check("reject")
}

#[test]
fn audit_counts_and_passes() -> Result<()> {
    check("audit")
}

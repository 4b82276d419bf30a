//! Packets cut short at every byte, and packets as they come from a wire: with a VLAN tag in the
//! buffer's metadata.
//!
//! A test run refuses frames that end within the IP header, and knows no metadata. So here the TC
//! programs are attached, and frames come from the peer or leave by the device.

use anyhow::Result;
use blocker::datapath::HookTotals;

use crate::packets::packet::*;
use crate::packets::{Bench, Counted, Packet, Program, SETTINGS, echo, rule, tcp, udp};

const REMOTES: &str = "8.0.0.1 2001:db8:86dd::1";
/// The shortest frame that the kernel lets into a device: an Ethernet header.
const SHORTEST: usize = 14;

/// Whether a rule took a frame, which passed otherwise, malformed or not.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Taken,
    Passed,
    Malformed,
}

fn outcome(counted: &Counted) -> Outcome {
    let HookTotals {
        seen,
        passed,
        malformed,
        own,
    } = counted.hook;
    match (counted.rules[0].packets, seen, passed, malformed, own) {
        (1, 1, 0, 0, 0) => Outcome::Taken,
        (0, 1, 1, 0, 0) => Outcome::Passed,
        (0, 1, 1, 1, 0) => Outcome::Malformed,
        other => panic!("counted {other:?}"),
    }
}

/// Sends a frame through a program in the way that it needs, and gives the outcome.
fn see(
    bench: &mut Bench,
    program: Program,
    frame: &[u8],
    tagged: bool,
) -> Result<(Outcome, usize)> {
    let counted = if program == Program::Xdp || tagged {
        let seen = bench.run_on(program, frame, crate::packets::Sight::default())?;
        let taken = seen.counted.rules[0].packets == 1;
        assert_eq!(
            seen.verdict,
            if taken {
                program.drop()
            } else {
                program.pass()
            }
        );
        seen.counted
    } else {
        bench.cross(program, frame)?.counted
    };
    Ok((outcome(&counted), counted.rules[0].replies as usize))
}

fn shapes() -> Vec<(&'static str, Packet)> {
    let mut shapes = Vec::new();
    for (what, packet) in [
        ("TCP", tcp(PSH | ACK).payload(b"data").tcp_options(&[1; 8])),
        ("UDP", udp(b"data")),
        ("echo", echo()),
        ("TCP in 802.1Q", tcp(ACK).tag(0x8100, 5)),
        ("UDP in QinQ", udp(b"data").tag(0x88a8, 7).tag(0x8100, 5)),
        ("a first fragment", udp(&[7; 16]).fragment(0, true)),
    ] {
        shapes.push((what, packet.clone()));
        shapes.push((what, packet.v6()));
    }
    shapes.push(("IPv4 options", tcp(SYN).options(&[1; 8])));
    shapes.push((
        "IPv6 extensions",
        tcp(SYN)
            .v6()
            .extension(0, 8)
            .extension(43, 24)
            .extension(51, 12)
            .extension(60, 8),
    ));
    shapes
}

/// Without a whole IP header the packet passes as malformed; with one the rule takes it, whatever
/// is missing behind it.
#[test]
fn a_packet_cut_short_is_taken_if_its_ip_header_is_there() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        bench.attach()?;
        for mode in ["drop", "audit"] {
            bench.enforce(&[rule("r", REMOTES, &format!("{{mode: {mode}}}"))], &[])?;
            for (what, packet) in shapes() {
                let header = packet.headers_length();
                let full = packet.bytes().len();
                for program in [Program::Xdp, Program::Ingress, Program::Egress] {
                    if mode == "audit" && program == Program::Xdp {
                        continue; // it leaves audit to TC
                    }
                    let frame = program.meets(&packet).bytes();
                    for length in SHORTEST..=full {
                        let expected = if length < header {
                            Outcome::Malformed
                        } else {
                            Outcome::Taken
                        };
                        let (outcome, replies) = match mode {
                            "audit" if packet.is_tagged() => {
                                let seen = bench.run_on(
                                    program,
                                    &frame[..length],
                                    crate::packets::Sight::default(),
                                )?;
                                assert_eq!(seen.verdict, program.pass());
                                (outcome(&seen.counted), 0)
                            }
                            _ => see(bench, program, &frame[..length], packet.is_tagged())?,
                        };
                        assert_eq!(
                            outcome, expected,
                            "{mode}, {program:?}: {length} of {full} bytes of {what}"
                        );
                        assert_eq!(replies, 0);
                    }
                }
            }
        }
        Ok(())
    })
}

/// A rule with ports takes a packet whose ports are cut off, and of the others its own.
#[test]
fn a_packet_without_its_ports_is_taken_by_rules_with_ports() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        bench.attach()?;
        for (port, fits) in [(LOCAL_PORT, true), (LOCAL_PORT + 1, false)] {
            let fields = format!("{{mode: drop, ports: [{port}]}}");
            bench.enforce(&[rule("r", REMOTES, &fields)], &[])?;
            for (what, packet) in shapes() {
                if what == "echo" {
                    continue; // it has none
                }
                let header = packet.headers_length();
                let ports = packet.link_length() + packet.transport_offset() + 4;
                for program in [Program::Xdp, Program::Ingress, Program::Egress] {
                    let frame = program.meets(&packet).bytes();
                    for length in header..=frame.len() {
                        let taken = fits || length < ports;
                        let expected = if taken {
                            Outcome::Taken
                        } else {
                            Outcome::Passed
                        };
                        let (outcome, _) =
                            see(bench, program, &frame[..length], packet.is_tagged())?;
                        assert_eq!(
                            outcome, expected,
                            "port {port}, {program:?}: {length} bytes of {what}"
                        );
                    }
                }
            }
        }
        Ok(())
    })
}

/// A truncated packet has a bad checksum, or none: it gets no reply.
#[test]
fn nobody_is_answered_for_a_packet_cut_short() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        bench.attach()?;
        bench.enforce(&[rule("r", REMOTES, "{mode: reset}")], &[])?;
        for packet in [
            tcp(PSH | ACK).payload(b"data, more of it"),
            udp(b"data, more of it"),
        ] {
            for packet in [packet.clone(), packet.v6()] {
                let frame = packet.bytes();
                for length in SHORTEST..frame.len() {
                    let crossed = bench.cross(Program::Ingress, &frame[..length])?;
                    assert_eq!(crossed.counted.rules[0].replies, 0, "{length} bytes");
                    assert!(crossed.sent.is_empty(), "{length} bytes");
                }
                let crossed = bench.cross(Program::Ingress, &frame)?;
                assert_eq!(crossed.sent.len(), 1, "all of it");
            }
        }
        Ok(())
    })
}

#[test]
fn what_carries_no_address_passes() -> Result<()> {
    let frame = |ethertype: u16, payload: &[u8]| {
        let mut frame = [LOCAL_MAC, REMOTE_MAC].concat();
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    };
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &REMOTE_MAC,
        &REMOTE.octets(),
        &[0; 6],
        &LOCAL.octets(),
    ]
    .concat();
    let ip = tcp(SYN).ip();
    Bench::with(SETTINGS, |bench| {
        bench.attach()?;
        for mode in ["drop", "reset", "audit"] {
            bench.enforce(
                &[rule("all", "0.0.0.0/0 ::/0", &format!("{{mode: {mode}}}"))],
                &[],
            )?;
            for (what, frame) in [
                ("ARP", frame(0x0806, &arp)),
                ("LLDP", frame(0x88cc, &[2, 7, 4])),
                ("an unknown EtherType", frame(0x88b6, &ip)),
                ("802.3 with a length", frame(46, &[0x42, 0x42, 3, 0])),
                ("PPPoE", frame(0x8864, &ip)),
                ("MPLS", frame(0x8847, &ip)),
                (
                    "ARP in 802.1Q",
                    frame(0x8100, &[&[0, 5, 8, 6][..], &arp].concat()),
                ),
            ] {
                for program in [Program::Ingress, Program::Egress] {
                    let crossed = bench.cross(program, &frame)?;
                    assert_eq!(
                        outcome(&crossed.counted),
                        Outcome::Passed,
                        "{program:?}: {what}"
                    );
                }
                let seen = bench.run_on(Program::Xdp, &frame, crate::packets::Sight::default())?;
                assert_eq!(seen.verdict, Program::Xdp.pass(), "{what}");
                assert_eq!(outcome(&seen.counted), Outcome::Passed, "{what}");
            }
        }
        Ok(())
    })
}

/// From a wire the outermost tag is in the buffer's metadata, the others are in the packet.
#[test]
fn vlan_tags_are_kept_wherever_they_are() -> Result<()> {
    type Tagged = fn(Packet) -> Packet;
    let tags: [(&str, Tagged); 4] = [
        ("untagged", |packet| packet),
        ("802.1Q", |packet| packet.tag(0x8100, 0xa005)),
        ("QinQ", |packet| packet.tag(0x88a8, 7).tag(0x8100, 5)),
        ("three tags", |packet| {
            packet.tag(0x88a8, 7).tag(0x8100, 6).tag(0x8100, 5)
        }),
    ];
    Bench::with(SETTINGS, |bench| {
        bench.attach()?;
        for (what, tagged) in tags {
            for v6 in [false, true] {
                for program in [Program::Ingress, Program::Egress] {
                    if what == "three tags" && program == Program::Egress {
                        continue; // a raw socket leaves all of them in the packet
                    }
                    let version = |packet: Packet| if v6 { packet.v6() } else { packet };
                    let met = |packet: Packet| program.meets(&tagged(version(packet)));
                    let what = format!("{program:?}, {what}, IPv6 {v6}");

                    bench.enforce(&[rule("r", REMOTES, "{mode: reset}")], &[])?;
                    let packet = met(tcp(ACK));
                    let back = packet.clone().outgoing().rst(RST, ACKED, 0).bytes();
                    let onward =
                        [SEQ + 1, SEQ].map(|seq| packet.rst(RST | ACK, seq, ACKED).bytes());
                    let crossed = bench.cross(program, &packet.bytes())?;
                    assert_eq!(crossed.counted.rules[0].replies, 3, "{what}");
                    let length = packet.bytes().len() as u64;
                    assert_eq!(crossed.counted.rules[0].bytes, length, "{what}");
                    if program.is_egress() {
                        assert_eq!(crossed.received, [back], "{what}");
                        assert_eq!(crossed.sent, onward, "{what}");
                    } else {
                        assert_eq!(crossed.sent, [back], "{what}");
                        // The frame itself; copies; but not itself as the last RST, on its way up.
                        assert_eq!(
                            crossed.received[..2],
                            [packet.bytes(), onward[0].clone()],
                            "{what}"
                        );
                        assert!(
                            crossed.received[2..].iter().all(|last| *last == onward[1]),
                            "{what}"
                        );
                    }

                    bench.enforce(&[rule("r", REMOTES, "{mode: reject}")], &[])?;
                    let packet = met(udp(b"hello"));
                    let back = packet.clone().outgoing();
                    let report = back.unreachable(if v6 { 1 } else { 13 }, &packet).bytes();
                    let crossed = bench.cross(program, &packet.bytes())?;
                    let to_sender = if program.is_egress() {
                        crossed.received
                    } else {
                        crossed.sent
                    };
                    assert_eq!(to_sender, [report], "{what}");
                }
            }
        }
        Ok(())
    })
}

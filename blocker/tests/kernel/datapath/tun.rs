//! Packets on a real device without a link-layer header, as WireGuard's: replies and lengths.
//!
//! In test runs such packets must look as if they had one (see [`Packet::bare`]); here nothing
//! is made up. The programs are attached to a tun device, whose wire is a file.

use anyhow::{Context, Result};
use aya::programs::TcAttachType;
use blocker::datapath::HookTotals;
use blocker_ebpf::Hook;

use crate::packets::packet::*;
use crate::packets::tun::Tun;
use crate::packets::wire::Tap;
use crate::packets::{Bench, Packet, Program, SETTINGS, echo, rule, tcp, udp};

type Packets = Vec<Vec<u8>>;

struct BlockingPair<'b> {
    bench: &'b mut Bench,
    wire: Tun,
    stack: Tap,
    ifindex: u32,
}

impl<'b> BlockingPair<'b> {
    fn new(bench: &'b mut Bench) -> Result<Self> {
        let wire = Tun::new("tun0").context("no tun device")?;
        let up = std::process::Command::new("ip")
            .args(["link", "set", "tun0", "up"])
            .status()?;
        assert!(up.success());
        for (program, way) in [
            (Program::IngressL3, TcAttachType::Ingress),
            (Program::EgressL3, TcAttachType::Egress),
        ] {
            let classifier = bench.datapath.object().classifier(program.name())?;
            classifier.attach("tun0", way)?;
        }
        let ifindex = nix::net::if_::if_nametoindex("tun0")?;
        Ok(Self {
            bench,
            wire,
            stack: Tap::open(ifindex)?,
            ifindex,
        })
    }

    fn enforce(&mut self, mode: &str) -> Result<()> {
        let fields = format!("{{mode: {mode}}}");
        let rules = [rule("r", "8.0.0.1 2001:db8:86dd::1", &fields)];
        self.bench.enforce(&rules, &[])
    }

    /// Lets a packet come from the wire, or go to it, and gives what came out: on the wire, and
    /// in the stack. How many of each is awaited is told, so that nothing is waited for in vain.
    fn cross(
        &mut self,
        egress: bool,
        packet: &[u8],
        sent: usize,
        received: usize,
    ) -> Result<(Packets, Packets)> {
        if egress {
            match self.stack.send(packet) {
                // So a sender is told of a packet that egress drops (NET_XMIT_DROP).
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                sent => sent?,
            }
        } else {
            self.wire.send(packet)?;
        }
        Ok((self.wire.receive(sent)?, self.stack.receive_all(received)?))
    }

    fn hook(&self, hook: Hook) -> Result<HookTotals> {
        Ok(self.bench.datapath.hook_counters(hook, self.ifindex)?)
    }
}

fn met(packet: &Packet, egress: bool) -> Packet {
    let packet = packet.clone().without_link();
    if egress { packet.outgoing() } else { packet }
}

#[test]
fn both_ends_are_answered_without_a_link_layer() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        let mut hosts = BlockingPair::new(bench)?;
        for egress in [false, true] {
            for v6 in [false, true] {
                let version = |packet: Packet| if v6 { packet.v6() } else { packet };

                hosts.enforce("reset")?;
                let packet = met(&version(tcp(ACK)), egress);
                let back = packet.clone().outgoing().rst(RST, ACKED, 0).bytes();
                let [copy, itself] =
                    [SEQ + 1, SEQ].map(|seq| packet.rst(RST | ACK, seq, ACKED).bytes());
                if egress {
                    let (sent, received) = hosts.cross(egress, &packet.bytes(), 2, 1)?;
                    assert_eq!(sent, [copy, itself], "egress, IPv6 {v6}");
                    assert_eq!(received, [back], "egress, IPv6 {v6}");
                } else {
                    // The packet itself becomes the second RST where no tap sees it.
                    let (sent, received) = hosts.cross(egress, &packet.bytes(), 1, 2)?;
                    assert_eq!(sent, [back], "ingress, IPv6 {v6}");
                    assert_eq!(received, [packet.bytes(), copy], "ingress, IPv6 {v6}");
                }

                for (mode, code) in [("reset", [3, 4]), ("reject", [13, 1])] {
                    hosts.enforce(mode)?;
                    for packet in [udp(&[0x5a; 1_300]), echo()] {
                        let packet = met(&version(packet), egress);
                        let back = packet.clone().outgoing();
                        let report = back.unreachable(code[usize::from(v6)], &packet).bytes();
                        let (awaited_out, awaited_in) = if egress { (0, 1) } else { (1, 1) };
                        let (sent, received) =
                            hosts.cross(egress, &packet.bytes(), awaited_out, awaited_in)?;
                        if egress {
                            assert_eq!(
                                (sent, received),
                                (vec![], vec![report]),
                                "{mode}, IPv6 {v6}"
                            );
                        } else {
                            assert_eq!(
                                (sent, received),
                                (vec![report], vec![packet.bytes()]),
                                "{mode}, IPv6 {v6}"
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn packets_cut_short_are_taken_if_their_ip_header_is_there() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        let mut hosts = BlockingPair::new(bench)?;
        hosts.enforce("drop")?;
        for packet in [
            tcp(SYN),
            tcp(SYN).v6().extension(60, 16),
            udp(b"hello").options(&[1; 8]),
        ] {
            let packet = met(&packet, false);
            let bytes = packet.bytes();
            // Of fewer bytes a tun device cannot tell what they are.
            for length in 1..=bytes.len() {
                let before = (
                    hosts.bench.datapath.rule_counters(0)?,
                    hosts.hook(Hook::Ingress)?,
                );
                let (sent, received) = hosts.cross(false, &bytes[..length], 0, 1)?;
                assert_eq!((sent.len(), received.len()), (0, 1));
                let after = (
                    hosts.bench.datapath.rule_counters(0)?,
                    hosts.hook(Hook::Ingress)?,
                );
                let taken = after.0.ingress.packets - before.0.ingress.packets;
                let malformed = after.1.malformed - before.1.malformed;
                let expected = if length < packet.headers_length() {
                    (0, 1)
                } else {
                    (1, 0)
                };
                assert_eq!((taken, malformed), expected, "{length} bytes of {packet:?}");
            }
        }
        Ok(())
    })
}

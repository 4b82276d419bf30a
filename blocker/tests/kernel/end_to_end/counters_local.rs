//! Counters of what this host itself sends and receives: of its sockets' own account where a block
//! lets nothing out that a capture could see, and of packets that are segments merged into one.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use xtask::hosts::{Capture, Connection, End, poll};

use crate::blocking_pair::{BlockingPair, FAMILIES, PATIENCE, settle, udp};
use crate::traffic_counts;
use crate::traffic_counts::{Frame, Sum};

const RULE: &str = "counted";
/// The longest frame on the wire.
const FRAME: u64 = 14 + 1500;

/// What a TCP socket sent: segments, and bytes of payload in them; sent again, both count again.
fn sent(end: &End) -> Result<(u64, u64)> {
    // Offsets in `struct tcp_info` (include/uapi/linux/tcp.h) of `tcpi_segs_out` and
    // `tcpi_bytes_sent` (Linux 4.19).
    const SEGMENTS: usize = 136;
    const BYTES: usize = 200;
    let mut info = [0_u8; BYTES + 8];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the buffer is as long as said, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            end.stream().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    ensure!(
        length as usize == info.len(),
        "the kernel knows {length} bytes of tcp_info"
    );
    let mut segments = [0; 4];
    segments.copy_from_slice(&info[SEGMENTS..SEGMENTS + 4]);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&info[BYTES..]);
    Ok((
        u64::from(u32::from_ne_bytes(segments)),
        u64::from_ne_bytes(bytes),
    ))
}

#[test]
fn what_is_kept_from_the_wire_is_what_the_sockets_sent() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    for (a, b) in FAMILIES {
        let ip = if a.is_ipv4() { 20 } else { 40 };
        let counted =
            || Ok::<_, anyhow::Error>(traffic_counts::rule(&hosts.daemon, RULE)?[1].decided);
        for mode in ["drop", "reset", "reject"] {
            let target = b.to_string();
            hosts.add(&[&target, "--mode", mode, "--protocol", "udp", "--id", RULE])?;
            let socket = udp(&pair.a, a, None)?;
            let mut sum = Sum::default();
            for length in (0..1400).step_by(7) {
                socket.send_to(&vec![7; length], SocketAddr::from((b, 9)))?;
                sum.packets += 1;
                sum.bytes += 14 + ip + 8 + length as u64;
            }
            assert_eq!(counted()?, sum, "{mode}, UDP to {b}");
            hosts.del(&[RULE])?;
        }

        let mut flow = Connection::open(&pair.b, &pair.a, a)?;
        flow.check_alive()?;
        settle(&flow)?;
        let before = sent(&flow.server)?;
        hosts.add(&[&b.to_string(), "--mode", "drop", "--id", RULE])?;
        // All together no more than a segment, so that none leaves TCP as several in one packet.
        for length in [1, 700, 30, 500] {
            flow.server.send(&vec![7; length])?;
        }
        // What was sent at once, and then again.
        let at_least = sent(&flow.server)?.0 - before.0 + 2;
        let (socket, rule) = poll("socket and rule to agree", PATIENCE, || {
            let rule = counted().ok()?;
            let after = sent(&flow.server).ok()?;
            let segments = after.0 - before.0;
            // TCP has its timestamps option on each segment.
            let headers = segments * (14 + ip + 32);
            let socket = Sum {
                packets: segments,
                bytes: headers + after.1 - before.1,
            };
            (segments >= at_least && socket == rule).then_some((socket, rule))
        })?;
        assert_eq!(socket, rule, "TCP to {b}");
        hosts.del(&[RULE])?;
    }
    Ok(())
}

/// XDP in the driver meets segments, which GRO then merges; without it, they stay as the sender's
/// TSO left them. Either way TC counts what a capture on its device shows.
#[test]
fn segments_merged_into_one_are_one_packet_with_all_its_bytes() -> Result<()> {
    const PARTS: usize = 4;
    const PART: usize = 1 << 15;
    for hook in ["auto", "tc"] {
        let hosts = BlockingPair::new(&format!("hook: {hook}\n"))?;
        let pair = &hosts.pair;
        let gro = if hook == "auto" { "on" } else { "off" };
        pair.a.run(&["ethtool", "-K", "eth0", "gro", gro])?;
        for (a, b) in FAMILIES {
            let what = format!("hook {hook}, from {b}");
            let mut flow = Connection::open(&pair.b, &pair.a, a)?;
            flow.check_alive()?;
            settle(&flow)?;
            let filter = format!("tcp and src host {b}");
            let wires = [
                Capture::start(&pair.b, "eth0", &filter)?,
                Capture::start(&pair.a, "eth0", &filter)?,
            ];
            hosts.add(&[&b.to_string(), "--mode", "audit", "--id", RULE])?;
            let read = |wire: &Capture| -> Option<Vec<Frame>> {
                let packets = wire.packets().ok()?;
                Some(packets.iter().map(|bytes| Frame::read(bytes)).collect())
            };
            let headers = 14 + if a.is_ipv4() { 20 } else { 40 } + 32;
            let mut all = None;
            for _ in 0..PARTS {
                flow.client.send(&[7; PART])?;
                let received = flow.server.receive(PART, PATIENCE)?.len();
                ensure!(received == PART, "{what}: {received} bytes");
                // No more at once than tcpdump keeps up with.
                all = Some(poll("the counters and the captures", PATIENCE, || {
                    let [sent, met] = [read(&wires[0])?, read(&wires[1])?];
                    let rule = traffic_counts::rule(&hosts.daemon, RULE).ok()?[0].decided;
                    let [on_wire, on_device]: [Sum; 2] =
                        [&sent, &met].map(|frames| frames.iter().collect());
                    let payload = |sum: Sum| sum.bytes - sum.packets * headers;
                    let same = rule == on_device && payload(rule) == payload(on_wire);
                    same.then_some((rule, on_wire, met))
                })?);
            }
            let (rule, on_wire, met) = all.expect("there are parts");
            let merged = met.iter().filter(|frame| frame.length > FRAME).count();
            assert!(merged > 0, "{what}: no segments were merged");
            println!("{what}: {rule:?} counted, {on_wire:?} sent, {merged} merged");
            assert!(rule.bytes > (PARTS * PART) as u64, "{what}: {rule:?}");
            if hook == "tc" {
                assert_eq!(rule, on_wire, "{what}: as the sender's device left them");
            } else {
                assert!(rule.packets < on_wire.packets, "{what}: {on_wire:?}");
            }
            hosts.del(&[RULE])?;
        }
    }
    Ok(())
}

//! Checksum and segmentation offload in all states: what blocker sends is accepted at both ends, and its
//! checksums are right on the wire.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use xtask::hosts::{Capture, Connection, Listener, Pair};

use crate::blocking_pair::{
    BlockingPair, FAMILIES, PATIENCE, connect_error, receive_until_dead, send_until_dead, soon, udp,
};

const SEGMENTATION: &[&str] = &["gro", "off", "gso", "off", "tso", "off"];

/// What `ethtool -K` is told at A and at B.
const STATES: &[(&[&str], &[&str])] = &[
    (&[], &[]),
    (&["tx", "off"], &[]),
    (&[], &["tx", "off"]),
    (&["tx", "off"], &["tx", "off"]),
    (&["rx", "off"], &[]),
    (&[], &["rx", "off"]),
    (&["tx", "off", "rx", "off"], &["tx", "off", "rx", "off"]),
    (SEGMENTATION, &[]),
    (&[], SEGMENTATION),
    (SEGMENTATION, SEGMENTATION),
    (&["gro", "on"], &["gro", "on"]),
];

/// What a veth has at first.
const PLAIN: &[&str] = &[
    "tx", "on", "rx", "on", "gro", "off", "gso", "on", "tso", "on",
];

/// Puts a pair into a state, whatever state it was in.
fn set(pair: &Pair, (a, b): (&[&str], &[&str])) -> Result<()> {
    for (host, words) in [(&pair.a, a), (&pair.b, b)] {
        host.run(&[&["ethtool", "-K", "eth0"], PLAIN].concat())?;
        if !words.is_empty() {
            host.run(&[&["ethtool", "-K", "eth0"], words].concat())?;
        }
    }
    Ok(())
}

#[test]
fn one_segment_kills_both_ends_in_every_state() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        for state in STATES {
            set(&hosts.pair, *state)?;
            let b = b.to_string();
            // One byte is what a keepalive carries, too; a large write is a super-packet where
            // segmentation is left to the device.
            for bytes in [1, 100, 1 << 15] {
                for from_b in [true, false] {
                    let what = format!("{state:?}, {bytes} bytes, from B: {from_b}, to {a}");
                    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, a)?;
                    flow.check_alive()?;
                    hosts.add(&[&b, "--mode", "reset", "--established", "keep"])?;
                    let sender = match from_b {
                        true => &mut flow.client,
                        false => &mut flow.server,
                    };
                    sender.send(&vec![7; bytes]).context(what.clone())?;
                    assert!(flow.wait_dead(soon())?, "{what}: {flow:?}");
                    for end in [&flow.client, &flow.server] {
                        let error = end.death().and_then(|death| death.error);
                        assert_eq!(error, Some(Errno::ECONNRESET), "{what}");
                    }
                    hosts.del(&[&b])?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn new_flows_are_refused_in_every_state() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        for state in STATES {
            set(pair, *state)?;
            let in_a = Listener::new(&pair.a, a, 0)?;
            let in_b = Listener::new(&pair.b, b, 0)?;
            hosts.add(&[&b.to_string(), "--mode", "reset"])?;
            for (host, listener) in [(&pair.a, &in_b), (&pair.b, &in_a)] {
                let error = connect_error(host, listener.address)?;
                assert_eq!(error, Some(Errno::ECONNREFUSED), "{state:?}");
            }
            for (host, from, to) in [(&pair.a, a, b), (&pair.b, b, a)] {
                let socket = udp(host, from, Some((to, 5300).into()))?;
                // Larger than a packet: what is quoted is a part of the first fragment's.
                for length in [1, 1000] {
                    socket.send(&vec![7; length])?;
                    let error = socket.recv(&mut [0; 8]).expect_err("no answer");
                    let error = error.raw_os_error().map(Errno::from_raw);
                    assert_eq!(error, Some(Errno::ECONNREFUSED), "{state:?}, {length}");
                }
            }
            hosts.del(&[&b.to_string()])?;
        }
    }
    Ok(())
}

#[test]
fn bulk_transfers_die_in_every_state() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        for state in STATES {
            set(&hosts.pair, *state)?;
            let b = b.to_string();
            for from_b in [true, false] {
                let what = format!("{state:?}, from B: {from_b}, to {a}");
                let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, a)?;
                let (sender, receiver) = match from_b {
                    true => (&mut flow.client, &mut flow.server),
                    false => (&mut flow.server, &mut flow.client),
                };
                let deadline = soon();
                let (sent, received) = std::thread::scope(|scope| {
                    let sending = scope
                        .spawn(|| send_until_dead(sender, &[7; 1 << 17], Duration::ZERO, deadline));
                    let receiving = scope.spawn(|| {
                        let first = receiver.receive(1 << 20, PATIENCE)?;
                        assert_eq!(first.len(), 1 << 20, "the transfer runs");
                        Ok::<_, std::io::Error>(receive_until_dead(receiver, deadline))
                    });
                    // No help from teardown: the segments alone must do it.
                    let added = hosts.add(&[&b, "--mode", "reset", "--established", "keep"]);
                    let ends = (
                        sending.join().expect("no panic"),
                        receiving.join().expect("no panic"),
                    );
                    added.map(|_| ends)
                })?;
                assert!(sent.is_some(), "{what}: the sender lives on");
                assert!(
                    !matches!(received, Ok(None)),
                    "{what}: the receiver lives on"
                );
                hosts.del(&[&b])?;
            }
        }
    }
    Ok(())
}

#[test]
fn checksums_are_right_on_the_wire() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        for state in STATES {
            set(pair, *state)?;
            let mut flow = Connection::open(&pair.b, &pair.a, a)?;
            flow.check_alive()?;
            let mut other = Connection::open(&pair.b, &pair.a, a)?;
            other.check_alive()?;
            // pcap-filter has no byte offsets into TCP over IPv6.
            let resets = "(tcp[tcpflags] & tcp-rst != 0 or (ip6[6] == 6 and ip6[53] & 4 != 0))";
            let errors = "(icmp[0] == 3 or (icmp6 and ip6[40] == 1))";
            let wire = Capture::start(
                &pair.b,
                "eth0",
                &format!("src host {a} and ({resets} or {errors})"),
            )?;
            let b = b.to_string();
            hosts.add(&[&b, "--mode", "reset", "--established", "keep"])?;
            flow.client.send(&[7; 99])?; // the RST to its sender
            other.server.send(&[7; 99])?; // the RST onward
            assert!(flow.wait_dead(soon())? && other.wait_dead(soon())?);
            assert!(connect_error(&pair.b, (a, 9).into())?.is_some());
            udp(&pair.b, b.parse()?, Some((a, 9).into()))?.send(&[7; 99])?;
            let packets = wire.wait_for(4, PATIENCE)?;
            for packet in &packets {
                assert!(is_right(&packet[14..], a), "{state:?}: {packet:02x?}");
            }
            hosts.del(&[&b])?;
        }
    }
    Ok(())
}

/// Whether the sums of a packet over its pseudo-header and, for IPv4, over its own header are
/// what RFC 1071 has them be.
fn is_right(packet: &[u8], from: IpAddr) -> bool {
    let (addresses, protocol, payload) = match from {
        IpAddr::V4(_) => {
            let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            if sum(&[&packet[..20]]) != 0xffff {
                return false;
            }
            (&packet[12..20], packet[9], &packet[20..length])
        }
        IpAddr::V6(_) => {
            let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            (&packet[8..40], packet[6], &packet[40..40 + length])
        }
    };
    let length = (payload.len() as u32).to_be_bytes();
    let pseudo = [addresses, &length, &[0, protocol], payload];
    let icmp = protocol == 1; // the only one without a pseudo-header
    sum(if icmp { &pseudo[3..] } else { &pseudo }) == 0xffff
}

/// The one's complement sum of parts, of which only the last may be of odd length.
fn sum(parts: &[&[u8]]) -> u32 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16)
}

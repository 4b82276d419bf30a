//! Counters against tcpdump: packet for packet and byte for byte, in each mode, on each hook, in
//! both directions, for both families.
//!
//! A client and a server, and blocker on the router between them, with a rule about the server:
//! so what comes from the server is ingress, what goes to it is egress, and both senders are hosts
//! on which a capture sees all that they sent, also of what blocker drops.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use xtask::hosts::{Capture, Connection, Daemon, Namespace, Routed, connect_timed, poll};

use crate::blocking_pair::{PATIENCE, settle, udp};
use crate::traffic_counts;
use crate::traffic_counts::{Frame, Hooks, Kind, Sum};

const RULE: &str = "counted";
/// The router's device towards the server, of which the hooks are looked at.
const DEVICE: &str = "right";
const FAMILIES: [(IpAddr, IpAddr); 2] = [
    (Routed::CLIENT, Routed::SERVER),
    (Routed::CLIENT6, Routed::SERVER6),
];
const MODES: [&str; 4] = ["drop", "reset", "reject", "audit"];
/// From nothing to more than a packet takes, which is sent as fragments.
const DATAGRAMS: [usize; 8] = [0, 1, 2, 63, 512, 1000, 1472, 4000];
/// Connection attempts.
const REQUESTS: u64 = 4;
/// From one byte, as a keepalive's, to what leaves the sender as one packet where the device
/// segments.
const SEGMENTS: [usize; 5] = [1, 2, 333, 1400, 20_000];

/// Who begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Server,
    Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Udp,
    /// Connection attempts to a port without a listener.
    Syn,
    /// Segments of established flows.
    Tcp,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
struct Row {
    mode: &'static str,
    sender: Sender,
    protocol: Protocol,
    client: IpAddr,
    server: IpAddr,
}

/// Both accounts of some traffic; each field must be the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    /// What the rule decided: of ingress, of egress.
    rule: [Sum; 2],
    /// Replies to either, on both wires.
    replies: u64,
    suppressed: u64,
    /// Packets that met the device's first ingress hook.
    came: u64,
    /// Packets that met TC ingress, replies injected there left out.
    came_to_tc: u64,
    /// Packets that the rule decided at XDP, at TC ingress, at TC egress.
    decided: [u64; 3],
    /// Packets that left by the device, replies left out.
    went: u64,
    malformed: u64,
}

struct BlockingPair {
    daemon: Daemon,
    /// All that either host sends and receives.
    at_server: Capture,
    at_client: Capture,
    macs: [[u8; 6]; 2],
    routed: Routed,
    hook: &'static str,
}

/// Where a row begins.
struct Start {
    hooks: Hooks,
    frames: [usize; 2],
}

impl BlockingPair {
    fn new(hook: &'static str, xdp: Option<&str>) -> Result<Self> {
        let routed = Routed::new()?;
        let programs = crate::programs();
        let daemon = Daemon::start(&routed.router, &programs, &format!("hook: {hook}\n"))?;
        for device in ["left", DEVICE] {
            // Else the router merges segments between XDP and TC, which then count one packet.
            routed
                .router
                .run(&["ethtool", "-K", device, "gro", "off"])?;
        }
        let (_, attached) = traffic_counts::hooks(&daemon, DEVICE)?;
        // The others are TC's two: of which kind is the kernel's matter.
        let by_xdp = attached
            .iter()
            .find(|mode| matches!(mode.as_str(), "native" | "generic"));
        assert_eq!(by_xdp.map(String::as_str), xdp, "hook: {hook}");
        Ok(Self {
            at_server: Capture::start(&routed.server, "eth0", "")?,
            at_client: Capture::start(&routed.client, "eth0", "")?,
            macs: [
                traffic_counts::mac(&routed.server)?,
                traffic_counts::mac(&routed.client)?,
            ],
            hook,
            daemon,
            routed,
        })
    }

    /// Waits until no counter changes any more.
    fn start(&self) -> Result<Start> {
        let mut since = Instant::now();
        let mut last = None;
        poll("the wires to be quiet", PATIENCE, || {
            let now = (
                traffic_counts::hooks(&self.daemon, DEVICE).ok()?.0,
                [&self.at_server, &self.at_client].map(|capture| capture.packets().ok()),
            );
            let frames = [now.1[0].as_ref()?.len(), now.1[1].as_ref()?.len()];
            let now = (now.0, frames);
            if last != Some(now) {
                last = Some(now);
                since = Instant::now();
            }
            let quiet = since.elapsed() > Duration::from_millis(60);
            quiet.then_some(Start {
                hooks: now.0,
                frames,
            })
        })
    }

    /// What blocker counted since then.
    fn counted(&self, start: &Start) -> Result<Account> {
        let [ingress, egress] = traffic_counts::rule(&self.daemon, RULE)?;
        let rule = [ingress.decided, egress.decided];
        let replies = ingress.replies + egress.replies;
        let suppressed = ingress.suppressed + egress.suppressed;
        let hooks = traffic_counts::hooks(&self.daemon, DEVICE)?.0 - start.hooks;
        let Hooks {
            xdp,
            ingress,
            egress,
        } = hooks;
        let came = match self.hook {
            "tc" => ingress.seen,
            // The kernel runs it on replies that are sent into the stack, too.
            "xdp-generic" => xdp.seen - ingress.own,
            _ => xdp.seen,
        };
        Ok(Account {
            rule,
            replies,
            suppressed,
            came,
            came_to_tc: ingress.seen,
            decided: [xdp, ingress, egress].map(|hook| hook.decided()),
            went: egress.seen,
            malformed: xdp.malformed + ingress.malformed + egress.malformed,
        })
    }

    /// What they must be, by what the hosts sent and received since then.
    fn captured(&self, start: &Start, row: Row) -> Result<Account> {
        let frames = |capture: &Capture, from: usize| -> Result<Vec<Frame>> {
            let packets = capture.packets()?;
            Ok(packets[from..]
                .iter()
                .map(|bytes| Frame::read(bytes))
                .collect())
        };
        let at_server = frames(&self.at_server, start.frames[0])?;
        let at_client = frames(&self.at_client, start.frames[1])?;
        let sent = |frame: &&Frame| self.macs.contains(&frame.from);
        let audit = row.mode == "audit";
        // What the rule takes: all but what always passes.
        let taken = |frame: &&Frame| {
            frame.kind != Kind::Neighbour && (row.mode != "reset" || frame.kind != Kind::Reset)
        };
        let came: Sum = at_server
            .iter()
            .filter(sent)
            .filter(taken)
            .filter(|frame| frame.addresses.is_some_and(|(from, _)| from == row.server))
            .collect();
        let went: Sum = at_client
            .iter()
            .filter(sent)
            .filter(taken)
            .filter(|frame| frame.addresses.is_some_and(|(_, to)| to == row.server))
            .collect();
        let replies = at_server
            .iter()
            .chain(&at_client)
            .filter(|frame| !sent(frame) && frame.is_reply())
            .count() as u64;
        let answers = matches!(row.mode, "reset" | "reject");
        let all = at_server.iter().filter(sent).count() as u64;
        let by_xdp = self.hook != "tc" && row.mode == "drop";
        let [at_xdp, at_tc] = if by_xdp {
            [came.packets, 0]
        } else {
            [0, came.packets]
        };
        // What reached the server without being a reply, and what blocker kept from it.
        let reached = at_server
            .iter()
            .filter(|frame| !(sent(frame) || answers && frame.is_reply()))
            .count() as u64;
        let kept = if audit { 0 } else { went.packets };
        Ok(Account {
            rule: [came, went],
            replies: if answers { replies } else { 0 },
            suppressed: 0,
            came: all,
            came_to_tc: all - at_xdp,
            decided: [at_xdp, at_tc, went.packets],
            went: reached + kept,
            malformed: 0,
        })
    }

    fn run(&self, row: Row) -> Result<Account> {
        let mut flows = Vec::new();
        let (from, to) = self.ends(row);
        if row.protocol == Protocol::Tcp {
            for _ in SEGMENTS {
                flows.push(Connection::open(from.0, to.0, to.1)?);
            }
            for flow in &mut flows {
                flow.check_alive()?;
                settle(flow)?;
            }
        }
        let sink = udp(to.0, to.1, None)?;
        let start = self.start()?;
        let server = row.server.to_string();
        let words = ["add", &server, "--mode", row.mode, "--id", RULE];
        self.daemon
            .json(&[&words[..], &["--established", "keep"]].concat())?;
        match row.protocol {
            Protocol::Udp => send_datagrams(&udp(from.0, from.1, None)?, &sink)?,
            Protocol::Syn => {
                // Shorter than a request takes to be sent again.
                let within = Duration::from_millis(30);
                for _ in 0..REQUESTS {
                    drop(connect_timed(from.0, (to.1, 9).into(), within)?);
                }
            }
            Protocol::Tcp => {
                for (flow, length) in flows.iter_mut().zip(SEGMENTS) {
                    flow.client.send(&vec![7; length])?;
                    if row.mode == "audit" {
                        let got = flow.server.receive(length, PATIENCE)?;
                        ensure!(got.len() == length, "{} of {length} bytes", got.len());
                    }
                }
            }
        }
        let last = std::cell::Cell::new(None);
        let agreed = poll("both accounts to agree", PATIENCE, || {
            let counted = self.counted(&start).ok()?;
            let captured = self.captured(&start, row).ok()?;
            last.set(Some((counted, captured)));
            let index = usize::from(row.sender == Sender::Client);
            let begun = captured.rule[index].packets >= least(row);
            (counted == captured && begun).then_some(counted)
        });
        if let Some((counted, captured)) = last.get() {
            assert_eq!(counted, captured, "{row:?}: counted, captured");
        }
        let agreed = agreed?;
        for flow in &flows {
            for end in [&flow.client, &flow.server] {
                // One RST and it is over: no FIN is sent again and again.
                let at_once = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(end.stream(), sockopt::Linger, &at_once)?;
            }
        }
        drop(flows);
        self.daemon.json(&["del", RULE])?;
        Ok(agreed)
    }

    /// Who sends and who receives.
    fn ends(&self, row: Row) -> ((&Namespace, IpAddr), (&Namespace, IpAddr)) {
        let client = (&self.routed.client, row.client);
        let server = (&self.routed.server, row.server);
        match row.sender {
            Sender::Server => (server, client),
            Sender::Client => (client, server),
        }
    }
}

/// How many packets a row has at least.
fn least(row: Row) -> u64 {
    match row.protocol {
        Protocol::Udp => DATAGRAMS.len() as u64 + 2,
        Protocol::Syn => REQUESTS,
        Protocol::Tcp => SEGMENTS.len() as u64,
    }
}

fn send_datagrams(from: &UdpSocket, to: &UdpSocket) -> Result<()> {
    let to = to.local_addr()?;
    for length in DATAGRAMS {
        let sent = from.send_to(&vec![7; length], to)?;
        ensure!(sent == length, "sent {sent} of {length} bytes");
    }
    Ok(())
}

/// The whole table with this `hook` in the configuration, which attaches XDP in this way.
fn table(hook: &'static str, xdp: Option<&str>) -> Result<()> {
    let hosts = BlockingPair::new(hook, xdp)?;
    let mut total = Sum::default();
    for (client, server) in FAMILIES {
        for sender in [Sender::Server, Sender::Client] {
            for protocol in [Protocol::Udp, Protocol::Syn, Protocol::Tcp] {
                let mut hit = Vec::new();
                for mode in MODES {
                    let row = Row {
                        mode,
                        sender,
                        protocol,
                        client,
                        server,
                    };
                    let account = hosts.run(row).with_context(|| format!("{row:?}"))?;
                    let [ingress, egress] = account.rule;
                    hit.push(match sender {
                        Sender::Server => ingress,
                        Sender::Client => egress,
                    });
                    total.packets += ingress.packets + egress.packets;
                    total.bytes += ingress.bytes + egress.bytes;
                }
                // Of the same traffic, audit counts what the others hit. What senders of an
                // established flow do next depends on what they got; and a SYN that nobody answers is
                // sent again after a second, which a busy machine may take.
                let [dropped, others @ ..] = &hit[..] else {
                    unreachable!("there are four modes");
                };
                let same = others.iter().all(|sum| *sum == others[0]);
                let again = protocol == Protocol::Syn && dropped.packets > others[0].packets;
                if protocol != Protocol::Tcp {
                    let same = same && (again || *dropped == others[0]);
                    assert!(same, "{protocol:?} by {sender:?}, {MODES:?}: {hit:?}");
                }
            }
        }
    }
    println!("hook: {hook}: {total:?}, all as captured");
    Ok(())
}

#[test]
fn they_are_what_tcpdump_saw_with_xdp_in_the_driver() -> Result<()> {
    table("auto", Some("native"))
}

#[test]
fn they_are_what_tcpdump_saw_with_generic_xdp() -> Result<()> {
    table("xdp-generic", Some("generic"))
}

#[test]
fn they_are_what_tcpdump_saw_with_tc_alone() -> Result<()> {
    table("tc", None)
}

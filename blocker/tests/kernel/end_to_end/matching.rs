//! Which rule decides where several match; and that a rule kills only flows that it decides.

use std::net::IpAddr;

use anyhow::{Context, Result};
use nix::errno::Errno;
use xtask::hosts::{Connection, Listener, Namespace, Pair, connect_timed, poll};

use crate::blocking_pair::{BlockingPair, FAMILIES, PATIENCE, connect_error, settle, soon};

/// A prefix that covers B, and how else it could be reached.
const WIDE: &str = "10.171.0.0/16";

/// A second address of B, which is a remote of its own.
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 171, 170, 105));

fn add_other(pair: &Pair) -> Result<()> {
    let other = OTHER.to_string();
    pair.b.run(&[
        "ip",
        "address",
        "add",
        &format!("{other}/32"),
        "dev",
        "eth0",
    ])?;
    pair.a.run(&["ip", "route", "add", &other, "dev", "eth0"])?;
    Ok(())
}

/// A second IPv6 address of A.
const SECOND6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9));

/// Gives A a second address, and B the way there.
fn add_second_local(pair: &Pair, second: IpAddr) -> Result<()> {
    let second = second.to_string();
    let add = ["ip", "address", "add", &second, "dev", "eth0"];
    let nodad: &[&str] = if second.contains(':') {
        &["nodad"]
    } else {
        &[]
    };
    pair.a.run(&[&add[..], nodad].concat())?;
    pair.b
        .run(&["ip", "route", "add", &second, "dev", "eth0"])?;
    Ok(())
}

/// Connects to a listener from a given address of its peer.
fn connect_from(host: &Namespace, from: IpAddr, to: &Listener) -> Result<Option<Errno>> {
    let source = from.to_string();
    let device = ["ip", "route", "replace"];
    let to_host = format!("{}/32", to.address.ip());
    host.run(&[&device[..], &[&to_host, "dev", "eth0", "src", &source]].concat())?;
    connect_error(host, to.address)
}

#[test]
fn the_most_specific_rule_decides_in_every_order() -> Result<()> {
    let b = Pair::B.to_string();
    let narrow = [&*b, "--mode", "audit", "--id", "narrow"];
    let wide = [WIDE, "--mode", "reset", "--id", "wide"];
    for order in [[&narrow[..], &wide[..]], [&wide[..], &narrow[..]]] {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        add_other(pair)?;
        let in_a = Listener::new(&pair.a, Pair::A, 0)?;
        for rule in order {
            hosts.add(rule)?;
        }
        in_a.connect(&pair.b)?.check_alive()?;
        assert_eq!(
            connect_from(&pair.b, OTHER, &in_a)?,
            Some(Errno::ECONNREFUSED)
        );
        assert_eq!(connect_from(&pair.b, Pair::B, &in_a)?, None);
        hosts.del(&["narrow"])?;
        assert_eq!(
            connect_from(&pair.b, Pair::B, &in_a)?,
            Some(Errno::ECONNREFUSED)
        );
        hosts.del(&["wide"])?;
        in_a.connect(&pair.b)?.check_alive()?;
    }
    Ok(())
}

#[test]
fn what_the_configuration_protects_no_rule_of_it_kills() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    let config = format!(
        "protect: [{}]\nrules: [{{id: wide, targets: [{WIDE}], mode: reset}}]\n",
        Pair::B
    );
    hosts.daemon.write_config(&config)?;
    hosts.daemon.reload()?;
    poll("the rule", PATIENCE, || hosts.counters("wide").ok())?;
    // The reload is over when the daemon has answered a change made after it.
    hosts.add(&["198.51.100.1"])?;
    flow.check_alive()?;
    Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?.check_alive()
}

#[test]
fn ports_narrow_what_is_killed_and_refused() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        let blocked = Listener::new(&pair.a, a, 0)?;
        let open = Listener::new(&pair.a, a, 0)?;
        let outward = Listener::new(&pair.b, b, 0)?;
        let mut dying = blocked.connect(&pair.b)?;
        let mut living = open.connect(&pair.b)?;
        let mut also = outward.connect(&pair.a)?;
        let port = blocked.address.port().to_string();
        let rule = ["--mode", "reset", "--local-port", &port, "--id", "dev01"];
        let added = hosts.add(&[&[b.to_string().as_str()], &rule[..]].concat())?;
        assert_eq!(added["teardown"]["found"], 1, "{added}");
        assert!(dying.wait_dead(soon())?);
        living.check_alive()?;
        also.check_alive()?;
        let error = connect_error(&pair.b, blocked.address)?;
        assert_eq!(error, Some(Errno::ECONNREFUSED));
        open.connect(&pair.b)?.check_alive()?;
        hosts.del(&["dev01"])?;

        let port = outward.address.port();
        settle(&also)?;
        let range = format!("{}-{port}", port.saturating_sub(1));
        let rule = ["--mode", "reset", "--remote-port", &range];
        let added = hosts.add(&[&[b.to_string().as_str()], &rule[..]].concat())?;
        assert_eq!(added["teardown"]["found"], 1, "{added}");
        assert!(also.wait_dead(soon())?);
        living.check_alive()?;
        let error = connect_error(&pair.a, outward.address)?;
        assert_eq!(error, Some(Errno::ECONNREFUSED));
    }
    Ok(())
}

#[test]
fn a_reset_of_one_direction_refuses_connects_of_both() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        let in_a = Listener::new(&pair.a, a, 0)?;
        let in_b = Listener::new(&pair.b, b, 0)?;
        for direction in ["ingress", "egress"] {
            let mut flow = in_a.connect(&pair.b)?;
            let rule = ["--mode", "reset", "--direction", direction, "--id", "one"];
            hosts.add(&[&[b.to_string().as_str()], &rule[..]].concat())?;
            assert!(flow.wait_dead(soon())?, "{direction}: {flow:?}");
            // The way that passes leads to an answer that does not.
            for (host, listener) in [(&pair.a, &in_b), (&pair.b, &in_a)] {
                let error = connect_error(host, listener.address)?;
                assert_eq!(error, Some(Errno::ECONNREFUSED), "{direction}, {a}");
            }
            hosts.del(&["one"])?;
        }
        in_b.connect(&pair.a)?.check_alive()?;
    }
    Ok(())
}

#[test]
fn a_part_of_the_flows_is_reset_and_the_same_part_every_time() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    let in_a = Listener::new(&pair.a, Pair::A, 0)?;
    let rule = ["--mode", "reset", "--percent", "50"];
    let mut before = in_a.connect(&pair.b)?;
    let added = hosts.add(&[&[Pair::B.to_string().as_str()], &rule[..]].concat())?;
    assert_eq!(
        added["teardown"]["found"], 0,
        "a part kills nothing: {added}"
    );
    assert_eq!(before.client.look()?, None);
    // By chance all of 40 go one way in one of 10^12 runs.
    let (mut refused, mut passed) = (0, 0);
    for _ in 0..40 {
        let (stream, _) = connect_timed(&pair.b, in_a.address, PATIENCE)?;
        match stream {
            Ok(_) => passed += 1,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => refused += 1,
            Err(error) => return Err(error).context("neither refused nor accepted"),
        }
    }
    assert!(
        refused > 0 && passed > 0,
        "{refused} refused, {passed} passed"
    );
    // A flow that passes once passes for good.
    let mut kept = None;
    for _ in 0..40 {
        if let Ok(flow) = Listener::new(&pair.a, Pair::A, 0)?.connect(&pair.b) {
            kept = Some(flow);
            break;
        }
    }
    let mut kept = kept.context("one of 40 passes")?;
    for _ in 0..100 {
        kept.check_alive()?;
    }
    Ok(())
}

#[test]
fn a_flow_that_a_more_specific_rule_decides_is_not_killed() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    hosts.add(&[&Pair::B.to_string(), "--mode", "audit"])?;
    let added = hosts.add(&[WIDE, "--mode", "reset"])?;
    assert_eq!(added["teardown"]["found"], 0, "{added}");
    flow.check_alive()
}

#[test]
fn of_two_local_addresses_only_the_one_is_cut() -> Result<()> {
    for (own, b, second) in [
        (Pair::A, Pair::B, "10.48.22.222".parse()?),
        (Pair::A6, Pair::B6, SECOND6),
    ] {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        add_second_local(pair, second)?;
        let (cut, open) = (
            Listener::new(&pair.a, own, 0)?,
            Listener::new(&pair.a, second, 0)?,
        );
        let mut dying = cut.connect(&pair.b)?;
        let mut living = open.connect(&pair.b)?;
        let rule = ["--mode", "reset", "--id", "one"];
        let (b, local) = (b.to_string(), own.to_string());
        let words = [&[&*b, "--local", &local], &rule[..]].concat();
        let added = hosts.add(&words)?;
        assert_eq!(added["rule"]["local"][0], *local, "{added}");
        assert_eq!(added["teardown"]["found"], 1, "{added}");
        assert!(dying.wait_dead(soon())?);
        living.check_alive()?;
        let refused = connect_error(&pair.b, cut.address)?;
        assert_eq!(refused, Some(Errno::ECONNREFUSED));
        open.connect(&pair.b)?.check_alive()?;
        hosts.del(&["one"])?;
        cut.connect(&pair.b)?.check_alive()?;
    }
    Ok(())
}

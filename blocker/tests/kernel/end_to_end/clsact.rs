//! Kernels before 6.6 have no TCX, so the programs are clsact filters. The datapath is told not to use
//! TCX here, as this kernel may have it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blocker::compile::{self, Input, RuleInput};
use blocker::config::HookChoice;
use blocker::datapath::{Datapath, Settings, devices};
use blocker::rule::{Defaults, RuleSpec};
use nix::errno::Errno;
use serde_json::json;
use xtask::hosts::{Connection, Daemon, Namespace, Pair, connect_timed};

use crate::blocking_pair::{FAMILIES, connect_error, soon};

/// A datapath of clsact filters on the devices of the namespace that we are in.
fn attach(daemon: &Daemon) -> Result<Datapath> {
    let settings = Settings::new(1000, 1000, 100, 1000, log::LevelFilter::Off)?;
    let mut datapath = Datapath::load_with(settings, daemon.pins(), HookChoice::Tc, false)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut devices = runtime.block_on(devices::list())?;
    devices.retain(|device| device.name == "eth0");
    if let Some(error) = datapath.attach(&devices).into_iter().next() {
        return Err(error.into());
    }
    Ok(datapath)
}

/// Makes a rule of this mode for this remote the only one.
fn block(datapath: &mut Datapath, remote: IpAddr, mode: &str) -> Result<()> {
    let spec: RuleSpec = serde_json::from_value(json!({"targets": [remote], "mode": mode}))?;
    let id = "dev01".parse().context("an id")?;
    let rule = spec.resolve(|| id, Defaults::default(), jiff::Timestamp::now())?;
    let rules = [RuleInput {
        rule: &rule,
        deadline: blocker_ebpf::NEVER,
        counter: 0,
        interfaces: None,
    }];
    put(datapath, &rules)
}

fn put(datapath: &mut Datapath, rules: &[RuleInput<'_>]) -> Result<()> {
    let input = Input {
        rules,
        protect: &[],
        generic_xdp: false,
    };
    let snapshot = compile::compile(&input, &datapath.settings().limits)?;
    Ok(datapath.switch(&snapshot)?)
}

/// Another program's clsact filter, which passes everything.
const FILTER: [&str; 15] = [
    "tc", "filter", "add", "dev", "eth0", "egress", "prio", "7", "u32", "match", "u32", "0", "0",
    "flowid", "1:1",
];

/// How many of our filters are on eth0, both directions.
fn filters(host: &Namespace) -> Result<usize> {
    let both =
        ["ingress", "egress"].map(|at| host.run(&["tc", "filter", "show", "dev", "eth0", at]));
    let mut count = 0;
    for shown in both {
        count += shown?.matches("handle 0xb10c").count();
    }
    Ok(count)
}

/// Whether eth0 has a clsact qdisc.
fn has_clsact(host: &Namespace) -> Result<bool> {
    let shown = host.run(&["tc", "qdisc", "show", "dev", "eth0"])?;
    Ok(shown.contains("clsact"))
}

#[test]
fn filters_drop_reset_and_let_go() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = Daemon::prepare(&pair.a, &crate::programs(), "")?; // for its files alone
    // To the end in there: filters are removed in the namespace that they are in.
    pair.a.enter(|| {
        let mut datapath = attach(&daemon)?;
        for attached in datapath.attached() {
            let modes: Vec<_> = attached.hooks.iter().map(|hook| hook.mode).collect();
            ensure!(modes == ["clsact", "clsact"], "{modes:?}");
        }
        for (a, b) in FAMILIES {
            let mut flow = Connection::open(&pair.b, &pair.a, a)?;
            flow.check_alive()?;
            block(&mut datapath, b, "drop")?;
            for (host, to) in [(&pair.a, b), (&pair.b, a)] {
                let within = Duration::from_millis(200);
                let (stream, _) = connect_timed(host, (to, 9).into(), within)?;
                let error = stream.expect_err("blocked").kind();
                ensure!(error == std::io::ErrorKind::TimedOut, "{a}: {error}");
            }
            ensure!(datapath.rule_counters(0)?.ingress.packets > 0);
            ensure!(datapath.rule_counters(0)?.egress.packets > 0);
            ensure!(flow.client.look()?.is_none() && flow.server.look()?.is_none());

            block(&mut datapath, b, "reset")?;
            for (host, to) in [(&pair.a, b), (&pair.b, a)] {
                let error = connect_error(host, (to, 9).into())?;
                ensure!(error == Some(Errno::ECONNREFUSED), "{a}: {error:?}");
            }
            flow.client.send(b"?")?;
            ensure!(flow.wait_dead(soon())?, "{flow:?}");
            put(&mut datapath, &[])?;
            Connection::open(&pair.b, &pair.a, a)?.check_alive()?;
        }
        ensure!(datapath.detach().is_empty());
        ensure!(filters(&pair.a)? == 0, "a filter is left");
        ensure!(!has_clsact(&pair.a)?, "a qdisc is left");
        Ok(())
    })?
}

#[test]
fn filters_stay_are_taken_over_and_are_unloaded() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = Daemon::prepare(&pair.a, &crate::programs(), "")?;
    pair.a.enter(|| {
        let mut first = attach(&daemon)?;
        block(&mut first, Pair::B, "reset")?;
        first.leave();
        drop(first);
        let refused = || connect_error(&pair.b, (Pair::A, 9).into());
        ensure!(filters(&pair.a)? == 2, "they stay");
        ensure!(refused()? == Some(Errno::ECONNREFUSED), "and block");
        let mut second = attach(&daemon)?;
        ensure!(filters(&pair.a)? == 2, "replaced in place, not added to");
        Connection::open(&pair.b, &pair.a, Pair::A)?.check_alive()?; // it has no rule
        block(&mut second, Pair::B, "reset")?;
        ensure!(refused()? == Some(Errno::ECONNREFUSED));
        second.leave();
        Ok(())
    })??;
    daemon.blocker(&pair.a, "unload")?.success()?;
    assert_eq!(filters(&pair.a)?, 0);
    assert!(!has_clsact(&pair.a)?, "a qdisc is left");
    assert!(!daemon.pins().exists());
    Connection::open(&pair.b, &pair.a, Pair::A)?.check_alive()
}

#[test]
fn a_qdisc_that_somebody_else_added_or_uses_stays() -> Result<()> {
    const REMOVE: [&str; 6] = ["tc", "qdisc", "del", "dev", "eth0", "clsact"];
    const ADD: [&str; 6] = ["tc", "qdisc", "add", "dev", "eth0", "clsact"];
    let pair = Pair::new()?;
    let daemon = Daemon::prepare(&pair.a, &crate::programs(), "")?;
    pair.a.enter(|| {
        let mut datapath = attach(&daemon)?;
        let devices: Vec<_> = datapath.attached().map(|at| at.device.clone()).collect();
        pair.a.run(&FILTER)?;
        ensure!(datapath.detach().is_empty());
        ensure!(filters(&pair.a)? == 0 && has_clsact(&pair.a)?);
        let shown = pair
            .a
            .run(&["tc", "filter", "show", "dev", "eth0", "egress"])?;
        ensure!(shown.contains("u32"), "{shown}");

        // From now on it is theirs, also without a filter.
        pair.a
            .run(&["tc", "filter", "del", "dev", "eth0", "egress"])?;
        ensure!(datapath.attach(&devices).is_empty());
        ensure!(datapath.detach().is_empty());
        ensure!(has_clsact(&pair.a)?);

        // Ours, that somebody replaced.
        pair.a.run(&REMOVE)?;
        ensure!(datapath.attach(&devices).is_empty());
        pair.a.run(&REMOVE)?;
        pair.a
            .run(&["tc", "qdisc", "add", "dev", "eth0", "ingress"])?;
        let _filters_are_gone = datapath.detach();
        let shown = pair.a.run(&["tc", "qdisc", "show", "dev", "eth0"])?;
        ensure!(shown.contains("ingress"), "{shown}");
        Ok(())
    })??;
    pair.a
        .run(&["tc", "qdisc", "del", "dev", "eth0", "ingress"])?;
    pair.a.run(&ADD)?;
    daemon.blocker(&pair.a, "unload")?.success()?;
    assert!(has_clsact(&pair.a)?);
    Ok(())
}

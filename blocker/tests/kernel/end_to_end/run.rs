//! Experiments from files: what they check, and what they say of it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::hosts::{Connection, Pair};

use super::experiment::{Experiment, report};
use super::load_balancer::Balancer;
use crate::blocking_pair::soon;

#[test]
fn an_experiment_that_passes_is_told_step_by_step() -> Result<()> {
    let experiment = Experiment::new()?;
    let _balancer = Balancer::start(&experiment.hosts.pair, 2)?;
    let mut flow = Connection::open(&experiment.hosts.pair.b, &experiment.hosts.pair.a, Pair::A)?;
    let file = experiment.path("evidence.json");
    let output = experiment.run(
        "
description: each kind of check
steps:
- {name: it answers, check: {http: {url: 'http://10.171.170.104:8080/', body: answer of client}}}
- block: {id: dev01, targets: [10.171.170.104], mode: reset}
- check: {tcp: {to: '10.171.170.104:8080', expect: refused}, timeout: 1s}
- wait: 100ms
- check: {command: {run: 'echo a > $BLOCKER_RUN_DIR/x; exit 3', exit: 3}}
- check: {command: {run: 'cat $BLOCKER_RUN_DIR/x', output: {equals: a}}}
- lift: dev01
- check: {tcp: {to: '10.171.170.104:8080'}, within: 5s}
",
        &["--report", &file.display().to_string()],
    )?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(
        output.stdout.starts_with("run: PASSED after "),
        "{output:?}"
    );
    assert!(
        !output.stdout.contains('\u{1b}'),
        "no colours in a pipe: {output:?}"
    );
    assert!(
        output
            .stderr
            .contains("[2/8] block 10.171.170.104 (rule dev01, reset): ok: blocked 10.171.170.104")
            && output.stderr.contains("killed 1 of 1 established flow"),
        "{output:?}"
    );
    assert!(
        output.stderr.contains("[1/8] it answers: ok: status 200"),
        "{output:?}"
    );
    assert!(
        !output.stderr.contains('\u{1b}'),
        "no colours in a pipe: {output:?}"
    );
    assert!(flow.wait_dead(soon())?, "{flow:?}");
    assert_eq!(experiment.rules()?, 0);

    let report = report(&file)?;
    assert_eq!(
        (&report["result"], &report["exit_code"]),
        (&json!("passed"), &json!(0))
    );
    assert_eq!(report["description"], "each kind of check");
    let steps = report["steps"].as_array().context("steps")?;
    assert!(
        steps.iter().all(|step| step["outcome"] == "passed"),
        "{report}"
    );
    assert_eq!(
        steps[0]["expected"],
        "status 200 and a body that contains \"answer of client\""
    );
    assert_eq!(steps[1]["rule"], "dev01");
    let block = &report["blocks"][0];
    assert_eq!(
        (&block["step"], &block["rule"]["id"]),
        (&json!(2), &json!("dev01"))
    );
    assert_eq!(
        block["before"]["flows"].as_array().map(Vec::len),
        Some(1),
        "{report}"
    );
    assert_eq!(block["teardown"]["killed"], 1, "{report}");
    assert_eq!(block["held_throughout"], true);
    ensure!(
        block["at_end"]["counters"]["packets"].as_u64() > Some(0),
        "{report}"
    );
    let time = |value: &Value| -> Result<jiff::Timestamp> {
        Ok(value.as_str().context("a time")?.parse()?)
    };
    let order = [
        &report["started"],
        &block["times"]["held"],
        &block["times"]["lifted"],
        &report["ended"],
    ];
    for pair in order.windows(2) {
        ensure!(time(pair[0])? <= time(pair[1])?, "{pair:?}: {report}");
    }
    Ok(())
}

#[test]
fn a_check_that_fails_ends_the_run_and_lifts_everything() -> Result<()> {
    let experiment = Experiment::new()?;
    let file = experiment.path("evidence.json");
    let marker = experiment.path("marker");
    let output = experiment.run(
        &format!(
            "
name: fails
steps:
- block: {{id: a, targets: [10.171.170.104], mode: reset}}
- block: {{id: b, targets: [192.0.2.0/24], mode: drop}}
- {{name: it connects, check: {{tcp: {{to: '10.171.170.104:80'}}, within: 1s, every: 100ms}}}}
- check: {{command: {{run: [touch, '{}']}}}}
",
            marker.display()
        ),
        &["--report", &file.display().to_string()],
    )?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(
        output.stdout.starts_with("fails: FAILED after "),
        "{output:?}"
    );
    assert!(
        output
            .stdout
            .contains("\nstep 3 of 4, it connects: expected connects; found Connection refused"),
        "{output:?}"
    );
    assert!(
        output
            .stderr
            .contains("[3/4] it connects: not yet: Connection refused"),
        "{output:?}"
    );
    assert!(output.stderr.contains("expected: connects"), "{output:?}");
    assert_eq!(experiment.rules()?, 0);
    assert!(!marker.exists(), "no step is done after one that failed");
    let report = report(&file)?;
    assert_eq!(report["result"], "failed");
    let outcomes: Vec<_> = report["steps"]
        .as_array()
        .context("steps")?
        .iter()
        .map(|step| step["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["passed", "passed", "failed", "skipped"]);
    ensure!(report["steps"][2]["tries"].as_u64() > Some(3), "{report}");
    for block in report["blocks"].as_array().context("blocks")? {
        assert!(block["times"]["lifted"].is_string(), "{report}");
    }
    Ok(())
}

#[test]
fn connections_are_told_apart_by_what_becomes_of_them() -> Result<()> {
    let experiment = Experiment::new()?;
    for (mode, outcome) in [
        ("drop", "times_out"),
        ("reset", "refused"),
        ("reject", "unreachable"),
    ] {
        let steps = |expect: &str| {
            format!(
                "
steps:
- block: {{targets: [10.171.170.104], mode: {mode}}}
- check: {{tcp: {{to: '10.171.170.104:80', expect: {expect}}}, timeout: 500ms}}
"
            )
        };
        let output = experiment.run(&steps(outcome), &[])?;
        assert_eq!(output.code, 0, "{mode}: {output:?}");
        let output = experiment.run(&steps("connects"), &[])?;
        assert_eq!(output.code, 1, "{mode}: {output:?}");
        let other = if mode == "drop" {
            "refused"
        } else {
            "times_out"
        };
        let output = experiment.run(&steps(other), &[])?;
        assert_eq!(output.code, 1, "{mode}: {output:?}");
    }
    assert_eq!(experiment.rules()?, 0);
    Ok(())
}

#[test]
fn https_is_checked_by_the_systems_trust_or_not_at_all() -> Result<()> {
    let experiment = Experiment::new()?;
    let balancer = Balancer::start(&experiment.hosts.pair, 2)?;
    let steps = |more: &str| {
        format!(
            "steps: [{{check: {{http: {{url: 'https://{}:8443/', body: answer{more}}}}}}}]",
            Pair::A
        )
    };
    let output = experiment.run(&steps(""), &[])?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("certificate"), "{output:?}");
    let output = experiment.run(&steps(", insecure: true"), &[])?;
    assert_eq!(output.code, 0, "{output:?}");
    let mut command = experiment.command(&steps(""))?;
    command.env("SSL_CERT_FILE", balancer.certificate()?);
    let output = experiment.hosts.pair.a.enter(|| command.output())??;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    Ok(())
}

#[test]
fn what_is_wrong_or_refused_is_so_before_the_first_step() -> Result<()> {
    let mut experiment = Experiment::new()?;
    let marker = experiment.path("marker");
    let steps = |block: &str| {
        format!(
            "steps:\n- check: {{command: {{run: [touch, '{}']}}}}\n- block: {block}\n",
            marker.display()
        )
    };
    let output = experiment.run(&steps("{targets: [10.171.170.300]}"), &[])?;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output
            .stderr
            .contains("run.yaml:3:21: target \"10.171.170.300\" is neither"),
        "{output:?}"
    );
    for words in [&[][..], &["--dry-run"]] {
        let output = experiment.run(&steps("{targets: [127.0.0.1], mode: reset}"), words)?;
        assert_eq!(output.code, 5, "{output:?}");
    }
    experiment.hosts.add(&["192.0.2.1", "--id", "dev01"])?;
    let output = experiment.run(&steps("{id: dev01, targets: [192.0.2.1]}"), &[])?;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.stderr.contains("the id dev01 is taken"),
        "{output:?}"
    );
    let output = experiment.run(
        &steps("{targets: [10.171.170.104]}"),
        &["--report", "/no/such/directory/x"],
    )?;
    assert_eq!(output.code, 1, "{output:?}");
    experiment.hosts.daemon.stop()?;
    for words in [&[][..], &["--dry-run"]] {
        let output = experiment.run(&steps("{targets: [10.171.170.104]}"), words)?;
        assert_eq!(output.code, 3, "{output:?}");
    }
    assert!(!marker.exists(), "nothing was done");
    Ok(())
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() -> Result<()> {
    let experiment = Experiment::new()?;
    let mut flow = Connection::open(&experiment.hosts.pair.b, &experiment.hosts.pair.a, Pair::A)?;
    let marker = experiment.path("marker");
    let text = format!(
        "
name: plan
steps:
- {{name: cut it off, block: {{id: dev01, targets: [10.171.170.104], mode: reset}}}}
- wait: 1h
- check: {{command: {{run: [touch, '{}']}}, within: 30s}}
- lift: all
deadline: 2h
",
        marker.display()
    );
    let output = experiment.run(&text, &["--dry-run"])?;
    assert_eq!(output.code, 0, "{output:?}");
    for part in [
        "plan: 4 steps in at most 2h; nothing is changed now",
        "1. cut it off",
        "would block 10.171.170.104",
        "1 established flow would die",
        "10.171.170.104:",
        "2. wait 1h",
        "expects exit code 0; tried within 30s, every 500ms, 1m each at most",
        "4. lift every block",
    ] {
        assert!(output.stdout.contains(part), "{part}: {output:?}");
    }
    let plan = experiment
        .run(&text, &["--dry-run", "-o", "json"])?
        .json()?;
    let would_kill = &plan["steps"][0]["answer"]["would_kill"];
    assert_eq!(would_kill.as_array().map(Vec::len), Some(1), "{plan}");
    assert!(!marker.exists());
    assert_eq!(experiment.rules()?, 0);
    flow.check_alive()
}

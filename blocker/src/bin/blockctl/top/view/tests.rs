use blocker::wire::{FlowView, Stats};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use serde_json::{Value, json};

use super::*;

fn rule(id: &str, mode: &str, packets: u64) -> Value {
    let counters = |packets: u64| json!({"packets": packets, "bytes": packets * 100, "replies": packets / 2, "suppressed": 0});
    json!({"id": id, "owner": "api", "mode": mode, "created": "2026-11-23T20:00:00Z",
        "ingress": counters(packets), "egress": counters(packets / 10)})
}

fn stats(seconds: u64, rules: &[Value]) -> Stats {
    serde_json::from_value(json!({
        "at": "2026-11-23T21:30:00Z", "boot_ns": seconds * 1_000_000_000, "rules": rules, "interfaces": [],
    }))
    .unwrap()
}

fn flow(remote: &str, packets: u64) -> FlowView {
    serde_json::from_value(json!({
        "rule": "dev01", "protocol": "tcp", "remote": remote, "remote_port": 40_112,
        "local": "10.48.22.7", "local_port": 80, "interface": "eth0", "hook": "xdp", "packets": packets, "bytes": packets * 60,
        "first_seen": "2026-11-23T20:00:00Z", "last_seen": "2026-11-23T21:00:00Z", "last_verdict": "dropped",
    }))
    .unwrap()
}

/// A model after some seconds of traffic that grows.
fn model(remotes: &[&str]) -> Model {
    let mut model = Model::default();
    for second in 0..12_u64 {
        let rules = [
            rule("dev01", "reset", 1_000 * second * second),
            rule(
                "a-rule-with-a-very-long-name-that-does-not-fit",
                "drop",
                7 * second,
            ),
            rule("idle", "audit", 50_000),
        ];
        let of = |(i, remote): (usize, &&str)| flow(remote, second * (i as u64 + 1) * 10);
        let flows = remotes.iter().enumerate().map(of).collect();
        model.take(stats(second, &rules), flows);
    }
    model
}

fn drawn(model: &Model, width: u16, height: u16, colours: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, model, Theme::new(colours)))
        .unwrap();
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    let lines = buffer.content().chunks(width);
    lines
        .map(|cells| {
            let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned()
        })
        .collect()
}

#[test]
fn eighty_columns_have_what_matters() {
    let remotes: &[&str] = &["10.1.2.3", "2001:db8:1111:2222:3333:4444:5555:6666"];
    let lines = lines(&drawn(&model(remotes), 80, 24, false));
    assert_eq!(lines.len(), 24);
    assert!(
        lines[0].starts_with("blocker  2026-11-23 21:30:00 UTC  3 rules  23.1k pkt/s"),
        "{lines:#?}"
    );
    let find = |what: &str| {
        lines
            .iter()
            .position(|line| line.contains(what))
            .unwrap_or_else(|| panic!("{what}: {lines:#?}"))
    };
    // The busiest first, each with its numbers and a history.
    let (head, dev01) = (find("RULE"), find("dev01"));
    assert_eq!(dev01, head + 1);
    assert!(
        lines[dev01].contains("23.1k") && lines[dev01].contains('█'),
        "{}",
        lines[dev01]
    );
    assert_eq!(find("a-rule-with-a-very-…"), dev01 + 1);
    assert!(lines[find("idle")].contains("55.0k"));
    // Flows below, the long address cut.
    assert!(lines[find("10.1.2.3:40112")].contains("10.48.22.7:80"));
    assert!(
        find("[2001:db8:") < find("10.1.2.3:40112"),
        "it has more packets: {lines:#?}"
    );
    assert!(
        lines[23].starts_with("q quit  s sort (pkt/s)  p pause"),
        "{}",
        lines[23]
    );
}

#[test]
fn two_hundred_columns_have_more() {
    let remotes: &[&str] = &["2001:db8:1111:2222:3333:4444:5555:6666"];
    let lines = lines(&drawn(&model(remotes), 200, 50, true)).join("\n");
    for more in [
        "IN PKT/S",
        "OUT PKT/S",
        "SUPPR/S",
        "OWNER",
        "[2001:db8:1111:2222:3333:4444:5555:6666]:40112",
        "a-rule-with-a-very-long-name-that-does-not-fit",
    ] {
        assert!(lines.contains(more), "{more}\n{lines}");
    }
}

#[test]
fn keys_change_the_order() {
    let mut model = model(&[]);
    let first = |model: &Model| model.rules()[0].id.clone();
    assert_eq!(first(&model), "dev01");
    model.sort = Sort::Rule;
    assert_eq!(
        first(&model),
        "a-rule-with-a-very-long-name-that-does-not-fit"
    );
    model.sort = Sort::Total;
    assert_eq!(first(&model), "dev01");
    assert_eq!(
        model.sort.next().next().next().next(),
        model.sort,
        "around in a circle"
    );
    model.scroll(100);
    assert_eq!(model.offset, 2, "the last rule stays");
    let shown = lines(&drawn(&model, 80, 24, false)).join("\n");
    assert!(
        !shown.contains("dev01") && shown.contains("sort (packets)"),
        "{shown}"
    );
    model.scroll(isize::MIN);
    assert_eq!(model.offset, 0);
    model.paused = true;
    let shown = lines(&drawn(&model, 80, 24, false)).join("\n");
    assert!(
        shown.contains("paused") && shown.contains("p resume"),
        "{shown}"
    );
}

#[test]
fn colours_are_there_only_if_they_are_wanted() {
    let painted = |colours| {
        let buffer = drawn(&model(&[]), 80, 24, colours);
        let cells = buffer.content().iter();
        cells
            .filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
            .count()
    };
    assert_eq!(painted(false), 0);
    assert!(painted(true) > 0);
}

#[test]
fn nothing_panics_whatever_the_size() {
    let model = model(&["10.1.2.3"]);
    for (width, height) in [(1, 1), (3, 2), (20, 5), (80, 3), (40, 24), (500, 200)] {
        drawn(&model, width, height, true);
    }
    let waiting = lines(&drawn(&Model::default(), 80, 24, false));
    assert!(waiting[0].starts_with("waiting"), "{waiting:?}");
    let mut none = Model::default();
    none.take(stats(1, &[]), Vec::new());
    none.take(stats(2, &[]), Vec::new());
    assert!(
        lines(&drawn(&none, 80, 24, false))
            .join("\n")
            .contains("nothing is blocked")
    );
}

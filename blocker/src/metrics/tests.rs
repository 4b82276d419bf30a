//! What a scraper reads, from the answers that the controller gives.

use prometheus_client::registry::Registry;
use serde_json::json;

use super::*;
use crate::wire::{Stats, Status};

fn status() -> Status {
    serde_json::from_value(json!({
        "version": "0.1.0", "abi": 3, "pid": 1, "kernel": "6.18.0", "started": "2026-11-23T18:17:31Z",
        "uptime_seconds": 5, "config": "/c",
        "last_reload": {"at": "2026-11-23T18:18:31Z", "in_force_since": "2026-11-23T18:17:31Z", "error": "no"},
        "interfaces": [], "rules": {"used": 2, "allowed": 4096},
        "prefixes": {"used": 7, "allowed": 1_000_000}, "prefixes_v6": {"used": 3, "allowed": 131_072},
        "maps": [{"name": "v4_ranges", "bytes": 4096, "entries": {"used": 9, "allowed": 100}},
                 {"name": "flows", "bytes": 512}],
        "map_bytes": 4608, "resident_bytes": 12_900_000, "lacks": [],
        "teardowns": {"found": 5, "killed": 4, "left": 1},
        "feeds": [
            {"name": "spamhaus", "type": "url", "source": "https://example.org/l", "state": "stale", "entries": 1500,
             "rules": 1, "left_out": 2, "failures": 3, "error": "x", "changed": "2026-11-23T18:17:31Z",
             "last_success": "2026-11-23T18:18:31Z"},
            {"name": "new", "type": "file", "source": "/l", "state": "waiting", "entries": 0, "rules": 0, "left_out": 0,
             "failures": 0}],
        "fleet": {"name": "web1", "labels": {}, "prefix": "/blocker", "state": "lost", "revision": 17,
                  "stale_seconds": 61.5, "rules": 1, "lifted_by_loss": false, "skewed": true,
                  "skew_seconds": -90.5, "changes": 4, "losses": 2,
                  "refused": [{"rule": "bad", "revision": 3, "why": "no"}]},
    }))
    .unwrap()
}

fn stats() -> Stats {
    serde_json::from_value(json!({
        "at": "2026-11-23T18:20:00Z", "boot_ns": 1,
        "rules": [
            {"id": "dev01", "owner": "api", "mode": "reset", "created": "2026-11-23T18:19:00Z",
             "expires": "2026-11-23T19:19:00Z",
             "ingress": {"packets": 10, "bytes": 600, "replies": 9, "suppressed": 1},
             "egress": {"packets": u64::MAX, "bytes": 0, "replies": 0, "suppressed": 0}},
            {"id": "net", "owner": "config", "mode": "drop", "created": "2026-11-23T18:17:31Z",
             "ingress": {"packets": 0, "bytes": 0, "replies": 0, "suppressed": 0},
             "egress": {"packets": 0, "bytes": 0, "replies": 0, "suppressed": 0}}],
        "interfaces": [{"name": "odd\"\\name", "index": 2, "hooks": [
            {"hook": "xdp", "mode": "native", "seen": 100, "passed": 80, "malformed": 2, "own": 3}]}],
    }))
    .unwrap()
}

fn text(form: Form) -> String {
    let mut registry = Registry::default();
    let series = Series {
        status: status(),
        stats: stats(),
    };
    registry.register_collector(Box::new(series));
    let mut out = String::new();
    match form {
        Form::OpenMetrics => text::encode(&mut out, &registry).unwrap(),
        Form::Prometheus => prometheus_text::encode(&mut out, &registry).unwrap(),
    }
    out
}

#[test]
fn every_value_is_in_its_series() {
    let text = text(Form::Prometheus);
    for line in [
        r#"blocker_build_info{version="0.1.0",abi="3",kernel="6.18.0"} 1"#,
        "blocker_teardown_flows_found_total 5",
        "blocker_teardown_flows_killed_total 4",
        "blocker_teardown_flows_left_total 1",
        "blocker_config_last_reload_successful 0",
        r#"blocker_rules{owner="config"} 1"#,
        r#"blocker_rules{owner="api"} 1"#,
        r#"blocker_rules{owner="feed:spamhaus"} 0"#,
        r#"blocker_feed_info{feed="spamhaus",type="url",source="https://example.org/l"} 1"#,
        r#"blocker_feed_entries{feed="spamhaus"} 1500"#,
        r#"blocker_feed_left_out{feed="spamhaus"} 2"#,
        r#"blocker_feed_stale{feed="spamhaus"} 1"#,
        r#"blocker_feed_stale{feed="new"} 0"#,
        r#"blocker_feed_failures_total{feed="spamhaus"} 3"#,
        r#"blocker_feed_last_success_timestamp_seconds{feed="spamhaus"} 1795457911"#,
        r#"blocker_feed_changed_timestamp_seconds{feed="spamhaus"} 1795457851"#,
        "blocker_rules_limit 4096",
        "blocker_prefixes 7",
        "blocker_prefixes_v6 3",
        r#"blocker_map_bytes{map="flows"} 512"#,
        r#"blocker_map_entries{map="v4_ranges"} 9"#,
        r#"blocker_map_entries_limit{map="v4_ranges"} 100"#,
        r#"blocker_rule_packets_total{rule="dev01",owner="api",mode="reset",direction="ingress"} 10"#,
        r#"blocker_rule_packets_total{rule="dev01",owner="api",mode="reset",direction="egress"} 18446744073709551615"#,
        r#"blocker_rule_bytes_total{rule="dev01",owner="api",mode="reset",direction="ingress"} 600"#,
        r#"blocker_rule_replies_total{rule="dev01",owner="api",mode="reset",direction="ingress"} 9"#,
        r#"blocker_rule_replies_suppressed_total{rule="dev01",owner="api",mode="reset",direction="ingress"} 1"#,
        r#"blocker_rule_packets_total{rule="net",owner="config",mode="drop",direction="egress"} 0"#,
        "blocker_fleet_following 0",
        "blocker_fleet_stale_seconds 61.5",
        "blocker_fleet_revision 17",
        "blocker_fleet_rules_refused 1",
        "blocker_fleet_rules_lifted_by_loss 0",
        "blocker_fleet_reporting 0",
        "blocker_fleet_clock_skew_seconds -90.5",
        "blocker_fleet_changes_total 4",
        "blocker_fleet_losses_total 2",
        r#"blocker_rules{owner="fleet"} 0"#,
        r#"blocker_hook_info{device="odd\"\\name",hook="xdp",mode="native"} 1"#,
        r#"blocker_hook_packets_total{device="odd\"\\name",hook="xdp"} 100"#,
        r#"blocker_hook_passed_packets_total{device="odd\"\\name",hook="xdp"} 80"#,
        r#"blocker_hook_malformed_packets_total{device="odd\"\\name",hook="xdp"} 2"#,
        r#"blocker_hook_own_packets_total{device="odd\"\\name",hook="xdp"} 3"#,
    ] {
        // A gauge is written as a float.
        let found = text
            .lines()
            .any(|other| other == line || other == format!("{line}.0"));
        assert!(found, "{line}\n{text}");
    }
    // Only what has a deadline, or can be counted, has such a series.
    let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(count("blocker_rule_expires_timestamp_seconds{"), 1);
    assert_eq!(count("blocker_rule_created_timestamp_seconds{"), 2);
    assert_eq!(count("blocker_map_entries{"), 1);
    assert_eq!(count("blocker_feed_last_success_timestamp_seconds{"), 1);
}

#[test]
fn a_family_stands_once_with_help_and_type() {
    for form in [Form::Prometheus, Form::OpenMetrics] {
        let text = text(form);
        let mut families: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .collect();
        let all = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), all, "{text}");
        let helps = text
            .lines()
            .filter(|line| line.starts_with("# HELP "))
            .count();
        assert_eq!(helps, all);
        assert_eq!(text.ends_with("# EOF\n"), form == Form::OpenMetrics);
    }
}

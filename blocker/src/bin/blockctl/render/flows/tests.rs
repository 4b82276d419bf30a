use serde_json::json;

use super::*;

fn view(width: Option<u16>) -> View {
    View {
        width,
        now: "2026-11-23T21:30:00Z".parse().unwrap(),
    }
}

fn bare(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

fn answer() -> FlowsResponse {
    let flow = |protocol, remote, local, packets: u64, verdict, rule| {
        json!({
            "rule": rule, "protocol": protocol, "remote": remote, "remote_port": 40_000,
            "local": local, "local_port": 443, "interface": "eth0", "hook": "tc-ingress",
            "packets": packets, "bytes": packets * 74, "last_verdict": verdict,
            "first_seen": "2026-11-23T21:25:00Z", "last_seen": "2026-11-23T21:29:57.9Z",
        })
    };
    serde_json::from_value(json!({
        "flows": [
            flow("tcp", "10.48.22.221", "10.48.22.7", 3, "reset", "dev01"),
            flow("udp", "2001:db8:1234:5678:9abc:def0:1234:5678", "2001:db8::7", 123_456, "dropped", "b7f3a2"),
            flow("icmp", "192.0.2.7", "10.48.22.7", 1, "audited", "watch-v4"),
        ],
        "recording": true, "truncated": 0, "evicted": 0, "not_recorded": 0,
    }))
    .unwrap()
}

#[test]
fn flows_at_80() {
    let text = bare(&flows(&answer(), view(Some(80))));
    insta::assert_snapshot!(text, @"
    PROTO  REMOTE                                          LOCAL              RULE
    tcp    10.48.22.221:40000                              10.48.22.7:443     dev01
    udp    [2001:db8:1234:5678:9abc:def0:1234:5678]:40000  [2001:db8::7]:443  b7f3a2
    icmp   192.0.2.7                                       10.48.22.7         watch-v4
    ");
}

#[test]
fn flows_in_a_pipe_cut_nothing() {
    let text = bare(&flows(&answer(), view(None)));
    insta::assert_snapshot!(text, @"
    PROTO  REMOTE                                          LOCAL              RULE      VERDICT  PACKETS    LAST     BYTES   FIRST  DEVICE  HOOK
    tcp    10.48.22.221:40000                              10.48.22.7:443     dev01     reset          3  2s ago     222 B  5m ago  eth0    tc-ingress
    udp    [2001:db8:1234:5678:9abc:def0:1234:5678]:40000  [2001:db8::7]:443  b7f3a2    dropped     123k  2s ago  8.71 MiB  5m ago  eth0    tc-ingress
    icmp   192.0.2.7                                       10.48.22.7         watch-v4  audited        1  2s ago      74 B  5m ago  eth0    tc-ingress
    ");
}

#[test]
fn what_is_not_there_is_said() {
    let answer = FlowsResponse {
        recording: true,
        flows: Vec::new(),
        truncated: 7,
        evicted: 12_345,
        not_recorded: 1,
    };
    insta::assert_snapshot!(bare(&flows(&answer, view(Some(80)))), @"
    no such flow was recorded
    7 more flows left out: --limit shows more
    12,345 flows replaced by newer ones (limits.flows)
    1 packet not recorded: too many new flows at once
    ");
}

#[test]
fn flows_that_nobody_records_are_no_empty_list() {
    let answer = FlowsResponse {
        recording: false,
        flows: Vec::new(),
        truncated: 0,
        evicted: 0,
        not_recorded: 0,
    };
    insta::assert_snapshot!(bare(&flows(&answer, view(Some(80)))), @"flows are not recorded: limits.flows is 0");
}

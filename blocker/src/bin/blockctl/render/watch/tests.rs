use serde_json::{Value, json};

use super::*;

fn event(time: &str, mut what: Value) -> Event {
    what["time"] = json!(format!("2026-11-23T{time}Z"));
    serde_json::from_value(what).unwrap()
}

fn packet(protocol: &str, remote: &str, local: &str, more: Value) -> Value {
    let mut packet = json!({
        "kind": "packet", "interface": "eth0", "direction": "ingress", "hook": "xdp",
        "protocol": protocol, "remote": remote, "remote_port": 40_000, "local": local,
        "local_port": 443, "length": 60, "verdict": "dropped", "rule": "dev01",
    });
    if let (Some(packet), Value::Object(more)) = (packet.as_object_mut(), more) {
        packet.extend(more);
    }
    packet
}

fn events() -> Vec<Event> {
    let b = "10.48.22.221";
    vec![
        event(
            "21:29:59.5",
            json!({"kind": "rule", "change": "added", "rule": "dev01", "owner": "api", "mode": "reset",
                "targets": [b, "10.171.0.0/16"], "targets_total": 1_234, "expires": "2026-11-23T22:00:00Z",
                "comment": "INC-1234", "by": "uid 0, pid 4711"}),
        ),
        event(
            "21:29:59.6",
            json!({"kind": "teardown", "rules": ["dev01"], "found": 3, "killed": 3, "left": 0, "elapsed_ms": 1.24}),
        ),
        event(
            "21:30:00.123456",
            packet(
                "tcp",
                b,
                "10.48.22.7",
                json!({"tcp_flags": ["syn"], "verdict": "reset"}),
            ),
        ),
        event(
            "21:30:01",
            packet(
                "udp",
                b,
                "10.48.22.7",
                json!({"direction": "egress", "rule": "a-longer-name"}),
            ),
        ),
        event(
            "21:30:02",
            packet(
                "icmpv6",
                "2001:db8:1234:5678:9abc:def0:1234:5678",
                "2001:db8::7",
                json!({"remote_port": 0, "local_port": 0, "icmp_type": 128, "verdict": "audited", "interface": "wg-backup0"}),
            ),
        ),
        event(
            "21:30:03",
            packet(
                "tcp",
                b,
                "10.48.22.7",
                json!({"tcp_flags": ["psh", "ack"], "verdict": "suppressed"}),
            ),
        ),
        event(
            "21:30:04",
            json!({"kind": "device", "change": "attached", "interface": "veth7", "index": 7, "hooks": ["xdp native", "tc-ingress tcx"]}),
        ),
        event(
            "21:30:05",
            json!({"kind": "device", "change": "detached", "interface": "veth7", "index": 7, "hooks": []}),
        ),
        event("21:30:06", json!({"kind": "reload"})),
        event(
            "21:30:07",
            json!({"kind": "reload", "error": "blocker.yaml:3:1: unknown key"}),
        ),
        event(
            "21:30:08",
            json!({"kind": "lost", "events": 12_345, "at": "datapath"}),
        ),
        event(
            "21:30:09",
            json!({"kind": "lost", "events": 1, "at": "watcher"}),
        ),
        event(
            "21:30:10",
            json!({"kind": "rule", "change": "expired", "rule": "dev01", "owner": "config", "mode": "drop",
                "targets": [b], "targets_total": 1, "expires": "2026-11-23T21:30:10Z"}),
        ),
    ]
}

fn text(width: Option<u16>) -> String {
    let mut lines = Lines::new(width);
    let mut text = lines.head();
    for event in events() {
        text += &lines.line(&event);
    }
    text
}

fn bare(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[test]
fn watch_in_a_pipe() {
    insta::assert_snapshot!(bare(&text(None)), @"
    TIME (UTC)    DEVICE  DIR  PROTO  REMOTE               LOCAL                FLAGS    VERDICT     RULE
    21:29:59.500  rule dev01 added: reset 10.48.22.221 (+1,233), owner api, until 2026-11-23 22:00:00 UTC, by uid 0, pid 4711 (INC-1234)
    21:29:59.600  killed 3 of 3 established flows of rule dev01 in 1.2 ms
    21:30:00.123  eth0    in   tcp    10.48.22.221:40000   10.48.22.7:443       SYN      reset       dev01
    21:30:01.000  eth0    out  udp    10.48.22.221:40000   10.48.22.7:443                dropped     a-longer-name
    21:30:02.000  wg-backup0  in   icmpv6  2001:db8:1234:5678:9abc:def0:1234:5678  2001:db8::7          type 128  audited     dev01
    21:30:03.000  eth0        in   tcp     10.48.22.221:40000                      10.48.22.7:443       PSH,ACK   suppressed  dev01
    21:30:04.000  device veth7 attached: xdp native, tc-ingress tcx
    21:30:05.000  device veth7 detached
    21:30:06.000  configuration reloaded
    21:30:07.000  configuration REFUSED: blocker.yaml:3:1: unknown key
    21:30:08.000  12,345 events lost: over the rate limit, or the daemon was too slow (limits.events_per_second)
    21:30:09.000  1 event lost: this watcher was too slow
    21:30:10.000  rule dev01 expired: drop 10.48.22.221, owner config
    ");
}

#[test]
fn watch_at_80() {
    insta::assert_snapshot!(bare(&text(Some(80))), @"
    TIME     DEVICE DIR PROTO REMOTE              LOCAL  FLAGS   VERDICT    RULE
    21:29:59 rule dev01 added: reset 10.48.22.221 (+1,233), owner api, until 2026-11-23 22:00:00 UTC, by uid 0, pid 4711 (INC-1234)
    21:29:59 killed 3 of 3 established flows of rule dev01 in 1.2 ms
    21:30:00 eth0   in  tcp   10.48.22.221:40000  :443   SYN     reset      dev01
    21:30:01 eth0   out udp   10.48.22.221:40000  :443           dropped    a-longer-name
    21:30:02 wg-backup0 in  icmpv6 2001:db8:1234:5678:9abc:def0:1234:5678        type 128 audited    dev01
    21:30:03 eth0   in  tcp   10.48.22.221:40000  :443   PSH,ACK suppressed dev01
    21:30:04 device veth7 attached: xdp native, tc-ingress tcx
    21:30:05 device veth7 detached
    21:30:06 configuration reloaded
    21:30:07 configuration REFUSED: blocker.yaml:3:1: unknown key
    21:30:08 12,345 events lost: over the rate limit, or the daemon was too slow (limits.events_per_second)
    21:30:09 1 event lost: this watcher was too slow
    21:30:10 rule dev01 expired: drop 10.48.22.221, owner config
    ");
}

#[test]
fn a_packet_of_ipv4_fits_80_columns() {
    let mut lines = Lines::new(Some(80));
    let packet = packet(
        "tcp",
        "10.48.22.221",
        "10.48.22.7",
        json!({"tcp_flags": ["psh", "ack"]}),
    );
    let line = bare(&lines.line(&event("21:30:00", packet)));
    assert!(line.trim_end().chars().count() <= 80, "{line}");
    assert!(line.contains("PSH,ACK") && line.contains(":443"), "{line}");
}

#[test]
fn verdicts_are_painted() {
    let text = text(None);
    for painted in [
        "\u{1b}[1m\u{1b}[31mreset",
        "\u{1b}[32maudited",
        "\u{1b}[33m12,345 events",
    ] {
        assert!(text.contains(painted), "{painted:?} in {text:?}");
    }
}

#[test]
fn nothing_steers_the_terminal() {
    let packet = packet(
        "tcp",
        "10.0.0.1",
        "10.0.0.2",
        json!({"interface": "a\u{1b}[2J"}),
    );
    let line = Lines::new(None).line(&event("21:30:00", packet));
    assert!(!line.contains("\u{1b}[2J"), "{line:?}");
}

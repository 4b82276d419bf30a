//! What people see, at the width of a small and of a large terminal.

use blocker::rule::RuleSpec;
use blocker::wire::{
    Account, AddResponse, DeleteResponse, Left, ListResponse, RuleView, RulesetResponse, Status,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-11-23T21:30:00Z".parse().unwrap()
}

fn view(width: u16) -> View {
    View {
        width: Some(width),
        now: now(),
    }
}

/// The text without colours.
fn bare(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

fn rule(id: &str, targets: &[&str], more: Value) -> Value {
    let mut rule = json!({
        "id": id, "targets": targets, "mode": "reset", "direction": "both", "protocol": "any",
        "percent": 100, "established": "kill", "on_lift": "resume",
    });
    merge(&mut rule, more);
    rule
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

fn seen(mut rule: Value, owner: &str, packets: u64, more: Value) -> RuleView {
    let counters =
        json!({"packets": packets, "bytes": packets * 74, "replies": packets / 2, "suppressed": 0});
    merge(
        &mut rule,
        json!({"owner": owner, "created": "2026-11-23T21:27:30Z", "counters": counters}),
    );
    merge(&mut rule, more);
    serde_json::from_value(rule).unwrap()
}

fn rules() -> ListResponse {
    let rules = vec![
        seen(
            rule("b7f3a2", &["10.48.22.221"], json!({})),
            "api",
            0,
            json!({}),
        ),
        seen(
            rule(
                "dev01",
                &["10.0.0.0/8", "10.171.0.0/16", "192.0.2.7", "2001:db8::/32"],
                json!({"mode": "drop", "established": "keep", "comment": "INC-1234, until the owner is found",
                    "expires": "2026-11-23T21:34:51Z", "protocol": "tcp", "remote_ports": ["443", "8080-8085"],
                    "direction": "ingress", "local": ["10.1.0.0/24", "fd00::/8"], "interfaces": ["eth0", "veth*"], "percent": 50, "except": ["10.0.0.1"]}),
            ),
            "config",
            123_456,
            json!({"remaining_seconds": 291}),
        ),
        seen(
            rule(
                "watch-v6",
                &["2001:db8:1234:5678:9abc:def0:1234:5678"],
                json!({"mode": "audit", "established": "keep"}),
            ),
            "api",
            9_876_543_210,
            json!({}),
        ),
    ];
    ListResponse { rules }
}

#[test]
fn list_at_80() {
    let text = bare(&list(&rules(), view(80)));
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    insta::assert_snapshot!(text, @"
    ID        TARGETS                                 MODE   MATCH       UNTIL
    b7f3a2    10.48.22.221                            reset              lifted
    dev01     10.0.0.0/8 (+3)                         drop   tcp,…       4m 51s left
    watch-v6  2001:db8:1234:5678:9abc:def0:1234:5678  audit              lifted
    ");
}

#[test]
fn list_at_200() {
    insta::assert_snapshot!(bare(&list(&rules(), view(200))), @"
    ID        TARGETS                                 MODE   MATCH                                                     UNTIL        PACKETS       BYTES  REPLIES  OWNER   COMMENT
    b7f3a2    10.48.22.221                            reset                                                            lifted             0         0 B        0  api
    dev01     10.0.0.0/8 (+3)                         drop   tcp, remote port 443,8080-8085, local 10.1.0.0/24 (+1),…  4m 51s left     123k    8.71 MiB    61.7k  config  INC-1234, until the owner is found
    watch-v6  2001:db8:1234:5678:9abc:def0:1234:5678  audit                                                            lifted         9.87G  680.67 GiB    4.93G  api
    ");
}

#[test]
fn list_in_a_pipe_cuts_nothing() {
    let piped = View {
        width: None,
        now: now(),
    };
    let text = bare(&list(&rules(), piped));
    assert!(!text.contains('…'), "{text}");
    assert!(
        text.contains("INC-1234, until the owner is found"),
        "{text}"
    );
}

#[test]
fn list_never_hides_id_and_target() {
    let text = bare(&list(&rules(), view(20)));
    assert!(text.contains("watch-v6"), "{text}");
    assert!(
        text.contains("2001:db8:1234:5678:9abc:def0:1234:5678"),
        "{text}"
    );
}

#[test]
fn list_paints_modes() {
    let text = list(&rules(), view(200));
    assert!(
        text.contains("\u{1b}[38;5;9m"),
        "red for reset and drop: {text:?}"
    );
    assert!(
        text.contains("\u{1b}[38;5;10m"),
        "green for audit: {text:?}"
    );
}

#[test]
fn list_of_nothing() {
    let empty = ListResponse { rules: Vec::new() };
    insta::assert_snapshot!(list(&empty, view(80)), @"no rules: nothing is blocked");
}

#[test]
fn show_everything() {
    let text = show(&rules().rules[1], view(80));
    insta::assert_snapshot!(text, @"
    id            dev01
    targets       10.0.0.0/8
                  10.171.0.0/16
                  192.0.2.7
                  2001:db8::/32
    except        10.0.0.1
    mode          drop
    direction     ingress
    protocol      tcp
    remote ports  443,8080-8085
    local         10.1.0.0/24
                  fd00::/8
    interfaces    eth0, veth*
    percent       50
    established   keep
    on lift       resume
    comment       INC-1234, until the owner is found
    owner         config
    created       2026-11-23 21:27:30 UTC (2m 30s ago)
    ends          2026-11-23 21:34:51 UTC (4m 51s left)
    packets       123k
    bytes         8.71 MiB
    replies       61.7k
    ");
}

#[test]
fn show_a_plain_rule_and_its_rate_limit() {
    let mut rule = rules().rules.remove(0);
    rule.counters.suppressed = 20_000;
    insta::assert_snapshot!(show(&rule, view(80)), @"
    id            b7f3a2
    targets       10.48.22.221
    mode          reset
    direction     both
    protocol      any
    percent       100
    established   kill
    on lift       resume
    owner         api
    created       2026-11-23 21:27:30 UTC (2m 30s ago)
    ends          when lifted
    packets       0
    bytes         0 B
    replies       0 (20.0k more left out by the rate limit)
    ");
}

fn flow(port: u16) -> Value {
    json!({"protocol": "tcp", "remote": "10.48.22.221", "remote_port": port, "local": "10.48.22.7",
        "local_port": 8080, "state": "ESTABLISHED", "process": "nginx", "pid": 4711})
}

fn left_one(port: u16, why: &str) -> Left {
    let mut left = flow(port);
    merge(&mut left, json!({"why": why}));
    serde_json::from_value(left).unwrap()
}

fn answer(rule: &Value, more: Value) -> AddResponse {
    let mut answer = json!({"rule": rule, "created": true,
        "teardown": {"found": 3, "killed": 3, "left": [], "elapsed_ms": 1.2}});
    merge(&mut answer, more);
    serde_json::from_value(answer).unwrap()
}

fn plain() -> Value {
    rule("b7f3a2", &["10.48.22.221"], json!({}))
}

fn no_flows() -> Value {
    json!({"found": 0, "killed": 0, "left": [], "elapsed_ms": 0.4})
}

fn added_text(answer: &AddResponse, dry_run: bool, width: u16) -> String {
    bare(&added(answer, &RuleSpec::default(), dry_run, view(width)))
}

#[test]
fn added_and_killed() {
    insta::assert_snapshot!(added_text(&answer(&plain(), json!({})), false, 80), @"
    blocked 10.48.22.221 (rule b7f3a2, reset, both directions, until lifted)
    killed 3 of 3 established flows in 1.2 ms
    ");
}

#[test]
fn added_with_nothing_to_kill() {
    let answer = answer(&plain(), json!({"teardown": no_flows()}));
    insta::assert_snapshot!(added_text(&answer, false, 80), @"
    blocked 10.48.22.221 (rule b7f3a2, reset, both directions, until lifted)
    no established flows to kill
    ");
}

#[test]
fn added_narrowed_with_a_deadline_and_carved() {
    let rule = rule(
        "wide",
        &["10.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24"],
        json!({"mode": "drop", "established": "keep", "protocol": "tcp", "remote_ports": ["443"],
            "expires": "2026-11-23T21:35:00.02Z", "except": ["10.0.0.1"]}),
    );
    let answer = answer(
        &rule,
        json!({"teardown": no_flows(), "carved": [{"target": "10.0.0.1", "why": "it is the default gateway on eth0"}]}),
    );
    insta::assert_snapshot!(added_text(&answer, false, 80), @"
    blocked 10.0.0.0/8 and 2 more (rule wide, drop, tcp, remote port 443, except 10.0.0.1, both directions, 5m left)
    spared 10.0.0.1: it is the default gateway on eth0
    ");
}

fn partly() -> AddResponse {
    let mut answer = answer(&plain(), json!({}));
    answer.teardown.found = 3;
    answer.teardown.killed = 1;
    answer.teardown.left = vec![
        left_one(
            40112,
            "the kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY), and no probe was answered",
        ),
        left_one(40113, "its state TIME_WAIT cannot be killed"),
    ];
    answer.teardown.notes =
        vec!["conntrack is not loaded: forwarded flows were not looked for".into()];
    answer
}

#[test]
fn added_with_flows_left_at_80() {
    insta::assert_snapshot!(added_text(&partly(), false, 80), @"
    blocked 10.48.22.221 (rule b7f3a2, reset, both directions, until lifted)
    killed 1 of 3 established flows in 1.2 ms
    note: conntrack is not loaded: forwarded flows were not looked for
    not killed, 2 flows:
    PROTO  REMOTE              LOCAL            PROCESS       WHY
    tcp    10.48.22.221:40112  10.48.22.7:8080  nginx (4711)  the kernel cannot
                                                              destroy sockets (CONFI
                                                              G_INET_DIAG_DESTROY),
                                                              and no probe was
                                                              answered
    tcp    10.48.22.221:40113  10.48.22.7:8080  nginx (4711)  its state TIME_WAIT
                                                              cannot be killed
    ");
}

#[test]
fn added_with_flows_left_at_200() {
    insta::assert_snapshot!(added_text(&partly(), false, 200), @"
    blocked 10.48.22.221 (rule b7f3a2, reset, both directions, until lifted)
    killed 1 of 3 established flows in 1.2 ms
    note: conntrack is not loaded: forwarded flows were not looked for
    not killed, 2 flows:
    PROTO  REMOTE              LOCAL            STATE        PROCESS       WHY
    tcp    10.48.22.221:40112  10.48.22.7:8080  ESTABLISHED  nginx (4711)  the kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY), and no probe was answered
    tcp    10.48.22.221:40113  10.48.22.7:8080  ESTABLISHED  nginx (4711)  its state TIME_WAIT cannot be killed
    ");
}

#[test]
fn left_in_a_line() {
    insta::assert_snapshot!(left(&partly().teardown), @"not killed, 2 flows: tcp 10.48.22.221:40112 to 10.48.22.7:8080: the kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY), and no probe was answered");
}

#[test]
fn added_what_was_there() {
    let answer = answer(&plain(), json!({"created": false, "teardown": no_flows()}));
    insta::assert_snapshot!(added_text(&answer, false, 80), @"already blocked by rule b7f3a2 (reset, both directions, until lifted): nothing to add");
    let asked = RuleSpec {
        lifetime: Some("5m".parse().unwrap()),
        ..RuleSpec::default()
    };
    insta::assert_snapshot!(bare(&added(&answer, &asked, false, view(80))), @"already blocked by rule b7f3a2 (reset, both directions, until lifted): its deadline is now as given");
}

#[test]
fn would_add() {
    let answer = answer(
        &plain(),
        json!({"teardown": no_flows(), "would_kill": [flow(40112), flow(40113)]}),
    );
    insta::assert_snapshot!(added_text(&answer, true, 80), @"
    would block 10.48.22.221 (reset, both directions, until lifted); nothing was changed
    2 established flows would die:
    PROTO  REMOTE              LOCAL            STATE        PROCESS
    tcp    10.48.22.221:40112  10.48.22.7:8080  ESTABLISHED  nginx (4711)
    tcp    10.48.22.221:40113  10.48.22.7:8080  ESTABLISHED  nginx (4711)
    ");
}

#[test]
fn would_add_and_kill_nothing() {
    let answer = answer(&plain(), json!({"teardown": no_flows(), "would_kill": []}));
    insta::assert_snapshot!(added_text(&answer, true, 80), @"
    would block 10.48.22.221 (reset, both directions, until lifted); nothing was changed
    no established flows would die
    ");
}

fn lift_of(ids: &[&str]) -> DeleteResponse {
    DeleteResponse {
        removed: ids.iter().map(|id| id.parse().unwrap()).collect(),
        narrowed: Vec::new(),
        teardown: Account::default(),
    }
}

#[test]
fn lifted_none_one_and_many() {
    let text = |ids: &[&str]| bare(&lifted(&lift_of(ids), view(80)));
    insta::assert_snapshot!(text(&[]), @"no rules to lift");
    insta::assert_snapshot!(text(&["dev01"]), @"lifted rule dev01");
    insta::assert_snapshot!(text(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]), @"lifted 10 rules: a, b, c, d, e, f, g, h and 2 more");
}

#[test]
fn narrowed_with_flows_reset() {
    let mut answer = lift_of(&[]);
    answer.narrowed = vec!["web".parse().unwrap()];
    answer.teardown.found = 1;
    answer.teardown.killed = 1;
    answer.teardown.elapsed_ms = 43.7;
    insta::assert_snapshot!(bare(&lifted(&answer, view(80))), @"
    narrowed rule web: it stays in force with its other targets
    killed 1 of 1 flow in 44 ms
    ");
}

fn diff(dry_run: bool) -> RulesetResponse {
    serde_json::from_value(json!({
        "added": [rule("dev02", &["10.0.0.2"], json!({}))],
        "removed": [rule("old", &["10.0.0.9"], json!({"mode": "drop"}))],
        "changed": [{
            "before": rule("dev01", &["10.0.0.1", "10.0.0.5"], json!({"comment": "x"})),
            "after": rule("dev01", &["10.0.0.1", "10.0.0.3"], json!({"mode": "drop", "established": "keep", "ports": ["80"]})),
        }],
        "unchanged": 5,
        "teardown": {"found": 2, "killed": 2, "left": [], "elapsed_ms": 12345.6},
        "dry_run": dry_run,
    }))
    .unwrap()
}

#[test]
fn applied_as_a_diff() {
    insta::assert_snapshot!(bare(&applied(&diff(false), view(80))), @"
    + dev02: 10.0.0.2 (reset, both directions, until lifted)
    - old: 10.0.0.9 (drop, both directions, until lifted)
    ~ dev01: comment x -> none; established kill -> keep; mode reset -> drop; ports +80; targets +10.0.0.3 -10.0.0.5
    1 added, 1 removed, 1 changed, 5 unchanged
    killed 2 of 2 established flows in 12.3 s
    ");
}

#[test]
fn would_apply() {
    insta::assert_snapshot!(bare(&applied(&diff(true), view(80))), @"
    + dev02: 10.0.0.2 (reset, both directions, until lifted)
    - old: 10.0.0.9 (drop, both directions, until lifted)
    ~ dev01: comment x -> none; established kill -> keep; mode reset -> drop; ports +80; targets +10.0.0.3 -10.0.0.5
    dry run: 1 added, 1 removed, 1 changed, 5 unchanged; nothing was changed
    ");
}

fn state(more: Value) -> Status {
    let mut status = json!({
        "version": "0.1.0", "abi": 1, "pid": 4711, "kernel": "6.18.0-1-amd64", "uptime_seconds": 11_549, "started": "2026-11-23T18:17:31Z",
        "config": "/etc/blocker/blocker.yaml", "last_reload": {"at": "2026-11-23T18:17:31Z", "in_force_since": "2026-11-23T18:17:31Z"},
        "interfaces": [{"name": "eth0", "index": 2, "hooks": [
            {"hook": "xdp", "mode": "native", "seen": 1_234_567, "passed": 1_200_000, "malformed": 0},
            {"hook": "tc-ingress", "mode": "tcx", "seen": 1_200_000, "passed": 1_199_000, "malformed": 3},
            {"hook": "tc-egress", "mode": "tcx", "seen": 800, "passed": 800, "malformed": 0}]}],
        "rules": {"used": 3, "allowed": 4096}, "prefixes": {"used": 4, "allowed": 1_000_000}, "prefixes_v6": {"used": 1, "allowed": 131_072},
        "maps": [{"name": "counters", "bytes": 131_072, "entries": {"used": 6, "allowed": 8192}},
            {"name": "flows", "bytes": 8_388_608},
            {"name": "v4_ranges", "bytes": 16_646_144, "entries": {"used": 1_900_000, "allowed": 2_000_000}}],
        "teardowns": {"found": 5, "killed": 5, "left": 0},
        "map_bytes": 25_165_824, "resident_bytes": 12_900_000, "lacks": [],
    });
    merge(&mut status, more);
    serde_json::from_value(status).unwrap()
}

#[test]
fn status_when_all_is_well() {
    insta::assert_snapshot!(bare(&status(&state(json!({})), view(80))), @"
    blocker   0.1.0 (map ABI 1)
    running   3h 12m, pid 4711
    kernel    6.18.0-1-amd64
    config    /etc/blocker/blocker.yaml
    loaded    2026-11-23 18:17:31 UTC (3h 12m ago)
    rules     3 of 4096
    prefixes  4 of 1000000; IPv6 1 of 131072
    memory    24.00 MiB of maps in the kernel, 12.30 MiB resident
    teardown  5 of 5 flows killed since the start
    lacks     nothing

    INTERFACE  HOOK        MODE     SEEN  PASSED  MALFORMED
    eth0       xdp         native  1.23M   1.20M          0
               tc-ingress  tcx     1.20M   1.19M          3
               tc-egress   tcx       800     800          0

    MAP            MEMORY   USED   ROOM   FILL
    v4_ranges   15.88 MiB  1.90M  2.00M  95.0%
    flows        8.00 MiB
    counters   128.00 KiB      6   8192   0.1%
    ");
}

#[test]
fn status_when_all_is_not() {
    let state = state(json!({
        "teardowns": {"found": 9, "killed": 7, "left": 2},
        "last_reload": {"at": "2026-11-23T21:25:00Z", "in_force_since": "2026-11-23T18:17:31Z", "error": "blocker.yaml:7:3: unknown key \"tragets\", expected \"targets\""},
        "interfaces": [
            {"name": "eth0", "index": 2, "hooks": [
                {"hook": "tc-ingress", "mode": "clsact", "seen": 1, "passed": 1, "malformed": 0}],
             "notes": ["xdp: the slot is held by program 42 (xdp_firewall); TC serves there"]},
            {"name": "wg0", "index": 7, "hooks": [], "notes": ["operation not supported"]}],
        "prefixes": {"used": 950_000, "allowed": 1_000_000},
        "lacks": ["CONFIG_INET_DIAG_DESTROY: local flows are killed by probes", "TCX (6.6): clsact serves"],
    }));
    let text = status(&state, view(80));
    let refused = "REFUSED 2026-11-23 21:25:00 UTC (5m ago)";
    assert!(text.contains(&styled(BAD, refused)), "in red: {text:?}");
    insta::assert_snapshot!(bare(&text), @r#"
    blocker   0.1.0 (map ABI 1)
    running   3h 12m, pid 4711
    kernel    6.18.0-1-amd64
    config    /etc/blocker/blocker.yaml
    loaded    REFUSED 2026-11-23 21:25:00 UTC (5m ago)
              blocker.yaml:7:3: unknown key "tragets", expected "targets"
              the configuration of 2026-11-23 18:17:31 UTC is in force
    rules     3 of 4096
    prefixes  950000 of 1000000; IPv6 1 of 131072
    memory    24.00 MiB of maps in the kernel, 12.30 MiB resident
    teardown  7 of 9 flows killed since the start
              2 flows were left alive: the log says which
    lacks     CONFIG_INET_DIAG_DESTROY: local flows are killed by probes
              TCX (6.6): clsact serves

    INTERFACE  HOOK        MODE    SEEN  PASSED  MALFORMED
    eth0       tc-ingress  clsact     1       1          0
    eth0: xdp: the slot is held by program 42 (xdp_firewall); TC serves there
    wg0: no hook is attached
    wg0: operation not supported

    MAP            MEMORY   USED   ROOM   FILL
    v4_ranges   15.88 MiB  1.90M  2.00M  95.0%
    flows        8.00 MiB
    counters   128.00 KiB      6   8192   0.1%
    "#);
}

#[test]
fn status_of_feeds() {
    let state = state(json!({"feeds": [
        {"name": "spamhaus", "type": "url", "source": "https://example.org/drop_v4.json", "state": "current",
         "entries": 1_501, "rules": 1, "left_out": 3, "left_out_first": "10.0.0.0/8: private, RFC 1918",
         "failures": 1, "changed": "2026-11-23T18:30:00Z", "last_success": "2026-11-23T21:29:00Z"},
        {"name": "crowdsec", "type": "crowdsec", "source": "http://127.0.0.1:8080/", "state": "stale",
         "entries": 20_000, "rules": 31, "left_out": 0, "failures": 12, "error": "GET http://127.0.0.1:8080/: connection refused",
         "changed": "2026-11-23T21:20:00Z", "last_success": "2026-11-23T21:20:10Z"},
        {"name": "own", "type": "file", "source": "/etc/blocker/lists/own.txt", "state": "waiting",
         "entries": 0, "rules": 0, "left_out": 0, "failures": 1, "error": "cannot read /etc/blocker/lists/own.txt: No such file"},
    ]}));
    let text = bare(&status(&state, view(100)));
    let feeds = text.split("FEED").nth(1).unwrap();
    insta::assert_snapshot!(format!("FEED{}", feeds.split("\nMAP").next().unwrap()), @"
    FEED      TYPE      STATE    ENTRIES  CHANGED  CHECKED  FAILURES  SOURCE
    spamhaus  url       current     1501       3h       1m         1  https://example.org/drop_v4.json
    crowdsec  crowdsec  stale      20.0k      10m   9m 50s        12  http://127.0.0.1:8080/
    own       file      waiting        0    never    never         1  /etc/blocker/lists/own.txt
    spamhaus: left out 10.0.0.0/8: private, RFC 1918 and 2 more
    crowdsec: GET http://127.0.0.1:8080/: connection refused
    own: cannot read /etc/blocker/lists/own.txt: No such file
    ");
}

#[test]
fn status_without_an_interface() {
    let text = status(&state(json!({"interfaces": []})), view(80));
    assert!(
        bare(&text).contains("\nno interface is attached: nothing is enforced\n"),
        "{text}"
    );
}

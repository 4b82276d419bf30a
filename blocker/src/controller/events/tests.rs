use serde_json::{Value, json};

use super::*;
use crate::rule::Direction;
use crate::wire::Decision;
use crate::wire::event::Packet;

/// Nobody's flows and events.
struct Nothing(Mutex<bool>);

impl Observer for Nothing {
    fn is_recording(&self) -> bool {
        true
    }

    fn flows(&self, _see: &mut dyn FnMut(&blocker_ebpf::FlowId, &blocker_ebpf::FlowRecord)) -> u64 {
        0
    }

    fn tally(&self) -> Result<blocker_ebpf::Tally, crate::datapath::Error> {
        Ok(blocker_ebpf::Tally {
            created: 0,
            not_recorded: 0,
            lost: 0,
        })
    }

    fn watch(&self, on: bool) {
        *self.0.lock().unwrap() = on;
    }

    fn readiness(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn drain(&self, _see: &mut dyn FnMut(&blocker_ebpf::Event)) {}
}

fn scene() -> (Arc<Nothing>, Events) {
    let seen = Arc::new(Nothing(Mutex::new(false)));
    (Arc::clone(&seen), Events::new(seen))
}

fn packet(rule: &str, remote: &str, protocol: &str, verdict: Decision) -> What {
    What::Packet(Packet {
        interface: "eth0".to_owned(),
        direction: Direction::Ingress,
        hook: "xdp".to_owned(),
        protocol: protocol.to_owned(),
        remote: remote.parse().unwrap(),
        remote_port: 40_000,
        local: "10.0.0.1".parse().unwrap(),
        local_port: 80,
        tcp_flags: vec!["syn".to_owned()],
        icmp_type: None,
        fragment: false,
        length: 60,
        verdict,
        rule: Some(rule.parse().unwrap()),
    })
}

fn change(rule: &str) -> What {
    What::Rule(RuleChange {
        change: RuleFate::Added,
        rule: rule.parse().unwrap(),
        owner: Owner::Api,
        mode: crate::rule::Mode::Drop,
        targets: vec!["10.0.0.0/8".parse().unwrap()],
        targets_total: 1,
        expires: None,
        comment: None,
        by: Some("uid 0, pid 1".to_owned()),
    })
}

fn request(query: &str) -> EventsRequest {
    serde_urlencoded::from_str(query).unwrap()
}

/// The lines that a watcher gets, until there are no more.
async fn told(watcher: &mut Watcher) -> Vec<Value> {
    let lines = watcher.next().await.unwrap();
    lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

#[test]
fn an_event_is_what_was_asked_for_or_not() {
    let packet = packet("dev01", "192.0.2.7", "icmpv6", Decision::Reset);
    let rule = change("dev01");
    for (query, takes_packet, takes_rule) in [
        ("", true, true),
        ("kind=packet", true, false),
        ("kind=rule,device", false, true),
        ("rule=dev01", true, true),
        ("rule=b,dev01", true, true),
        ("rule=dev02", false, false),
        ("remote=192.0.2.0/24", true, false),
        ("remote=192.0.3.0/24,2001:db8::/32", false, false),
        ("protocol=icmp", true, false),
        ("protocol=tcp", false, false),
        ("verdict=reset", true, false),
        ("verdict=dropped,audited", false, false),
        ("rule=dev01&verdict=reset&remote=192.0.2.7", true, false),
    ] {
        let request = request(query);
        assert_eq!(takes(&request, &packet), takes_packet, "{query}");
        assert_eq!(takes(&request, &rule), takes_rule, "{query}");
        let lost = What::Lost(Lost {
            events: 1,
            at: LostAt::Datapath,
        });
        assert!(takes(&request, &lost), "losses are always told: {query}");
    }
}

#[tokio::test]
async fn a_watcher_is_told_in_order_and_until_the_end() {
    let (seen, events) = scene();
    events.publish(|| unreachable!("nobody watches"));
    let mut watcher = events.watch(request("rule=a,b")).unwrap();
    assert!(*seen.0.lock().unwrap());
    for rule in ["a", "c", "b"] {
        events.publish(|| change(rule));
    }
    let told = told(&mut watcher).await;
    let rules: Vec<&Value> = told.iter().map(|event| &event["rule"]).collect();
    assert_eq!(rules, [&json!("a"), &json!("b")]);
    assert_eq!(told[0]["kind"], "rule");
    assert_eq!(told[0]["by"], "uid 0, pid 1");
    events.publish(|| change("a"));
    events.close();
    assert!(watcher.next().await.is_some(), "what was before is told");
    assert!(watcher.next().await.is_none());
    assert!(events.watch(EventsRequest::default()).is_none());
    assert!(!*seen.0.lock().unwrap());
}

#[tokio::test]
async fn a_slow_watcher_is_told_what_it_missed_and_holds_nobody_up() {
    const MANY: usize = 3 * WAITING;
    let (_, events) = scene();
    let mut slow = events.watch(EventsRequest::default()).unwrap();
    let mut quick = events.watch(request("kind=packet")).unwrap();
    let mut seen = 0;
    for _ in 0..MANY / 1_024 {
        for _ in 0..1_024 {
            events.publish(|| packet("a", "192.0.2.7", "tcp", Decision::Dropped));
        }
        let mut batch = 0;
        while batch < 1_024 {
            batch += told(&mut quick).await.len();
        }
        seen += batch;
    }
    assert_eq!(seen, MANY, "the quick one misses nothing");
    let first = told(&mut slow).await;
    assert_eq!(first[0]["kind"], "lost");
    assert_eq!(first[0]["at"], "watcher");
    let missed = first[0]["events"].as_u64().unwrap();
    let mut rest = first.len() as u64 - 1;
    while rest + missed < MANY as u64 {
        rest += told(&mut slow).await.len() as u64;
    }
    assert_eq!((rest, missed), (WAITING as u64, (MANY - WAITING) as u64));
}

#[tokio::test]
async fn what_the_datapath_lost_is_told_even_if_the_event_that_tells_so_is_missed() {
    let (_, events) = scene();
    let mut slow = events.watch(EventsRequest::default()).unwrap();
    events.lost(5);
    for _ in 0..WAITING {
        events.publish(|| packet("a", "192.0.2.7", "tcp", Decision::Dropped));
    }
    events.lost(2);
    let mut lost = Vec::new();
    let mut packets = 0;
    while lost.len() + packets < WAITING + 1 {
        for event in told(&mut slow).await {
            if event["kind"] == "lost" {
                lost.push((event["at"].clone(), event["events"].clone()));
            } else {
                packets += 1;
            }
        }
    }
    let at_the_datapath: u64 = lost
        .iter()
        .filter(|(at, _)| at == "datapath")
        .filter_map(|(_, events)| events.as_u64())
        .sum();
    assert_eq!(at_the_datapath, 7, "{lost:?}");
}

#[test]
fn the_datapath_is_told_when_the_last_watcher_goes() {
    let (seen, events) = scene();
    let one = events.watch(EventsRequest::default());
    let two = events.watch(EventsRequest::default());
    drop(one);
    assert!(events.is_watched() && *seen.0.lock().unwrap());
    drop(two);
    assert!(!events.is_watched() && !*seen.0.lock().unwrap());
}

//! Whatever is fed to the parsers, they give a value or an error: no panic, and no long thought.
//!
//! Valid texts of every kind, damaged by chance, and bytes by chance.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use blocker::config::Config;
use blocker::lists::{Invalid, List};
use blocker::rule::{Defaults, RuleSpec};
use blocker::state::{FILE, Store};
use blocker::wire::{ExplainRequest, LeaseRequest, RulesetRequest};
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const RULE: &str = r#"{"id": "dev01", "targets": ["10.48.22.221", "2001:db8::/32"],
    "except": ["2001:db8::1"], "mode": "reset", "direction": "both", "protocol": "tcp",
    "ports": ["80", "8080-8085"], "local_ports": [], "remote_ports": [443], "local": ["10.0.0.1"],
    "interfaces": ["eth*"], "established": "kill", "on_lift": "reset", "for": "1h30m",
    "comment": "INC-1234"}"#;

const OTHER: &str = r#"{"targets": ["192.0.2.0/24"], "mode": "drop", "percent": 50,
    "expires": "2030-01-01T00:00:00Z", "confirm_within": "60s"}"#;

const EXPLAIN: &str = r#"{"address": "10.48.22.221", "protocol": "tcp", "port": 80}"#;

const LIST: &str = "# a list\n192.0.2.1\n198.51.100.0/24 ; SBL1\n\
    {\"cidr\":\"203.0.113.0/24\",\"sblid\":\"SBL2\",\"rir\":\"apnic\"}\n2001:db8::/32\n\
    {\"type\":\"metadata\",\"records\":2}\n";

/// What parsers stumble over.
const WORDS: [&str; 30] = [
    "",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    ":",
    ",",
    "\n",
    "\n  ",
    "- ",
    "&a ",
    "*a",
    "!!str ",
    "|",
    ">",
    "#",
    "null",
    "-1",
    "1e999",
    "18446744073709551616",
    "0.0.0.0/0",
    "::/129",
    "::ffff:1.2.3.4",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\u{0}",
    "99999999999999999h",
];

/// How a text is damaged.
#[derive(Debug, Clone)]
enum Damage {
    Remove(Index, Index),
    Insert(Index, &'static str),
    Byte(Index, u8),
    Repeat(Index, Index),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |index: &Index, bytes: &[u8]| index.index(bytes.len() + 1);
        match self {
            Self::Remove(from, to) => {
                let (from, to) = (at(from, bytes), at(to, bytes));
                bytes.drain(from.min(to)..from.max(to));
            }
            Self::Insert(place, word) => {
                let place = at(place, bytes);
                bytes.splice(place..place, word.bytes());
            }
            Self::Byte(place, byte) => {
                let place = at(place, bytes);
                if let Some(there) = bytes.get_mut(place) {
                    *there = *byte;
                }
            }
            Self::Repeat(from, to) => {
                let (from, to) = (at(from, bytes), at(to, bytes));
                let part = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(from.min(to)..from.min(to), part);
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Remove(from, to)),
        3 => (any::<Index>(), select(WORDS.to_vec())).prop_map(|(at, word)| Damage::Insert(at, word)),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

/// One of these texts, damaged; or bytes by chance.
fn damaged(texts: Vec<String>) -> impl Strategy<Value = Vec<u8>> {
    let damaged = (select(texts), vec(damage(), 0..5)).prop_map(|(text, damages)| {
        let mut bytes = text.into_bytes();
        for damage in damages {
            damage.apply(&mut bytes);
        }
        bytes
    });
    prop_oneof![5 => damaged, 1 => vec(any::<u8>(), 0..200)]
}

fn bodies() -> Vec<String> {
    vec![
        RULE.to_owned(),
        OTHER.to_owned(),
        format!("{{\"rules\": [{RULE}, {OTHER}]}}"),
        EXPLAIN.to_owned(),
    ]
}

fn configs() -> Vec<String> {
    let annotated = include_str!("../../../config/blocker.yaml");
    let effective = Config::default()
        .effective_yaml()
        .expect("the defaults can be written");
    vec![
        annotated.to_owned(),
        effective,
        format!("protect: [10.0.0.1, 192.0.2.0/24]\nlimits: {{rules: 10}}\nrules: [{RULE}]\n"),
    ]
}

/// So many of them, and none written down: what fails is to be a test of its own.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().expect("a time")
}

/// A state directory as the daemon writes it: a rule in the file, one with targets of its own.
fn saved(directory: &Path) {
    let resolve = |id: &str, text: &str| {
        let spec: RuleSpec = serde_json::from_str(text).expect("a rule");
        let id = id.parse().expect("an id");
        spec.resolve(|| id, Defaults::default(), now())
            .expect("a whole rule")
    };
    let small = resolve("dev01", RULE);
    let mut large = resolve("many", r#"{"targets": ["192.0.2.1"]}"#);
    large.targets = (0..2_000_u32)
        .map(|n| std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + 2 * n)).into())
        .collect();
    let (mut store, _) = Store::open(directory, now());
    store
        .save([(&small, now()), (&large, now())])
        .expect("saved");
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn bodies_of_requests(body in damaged(bodies())) {
        if let Ok(spec) = serde_json::from_slice::<RuleSpec>(&body) {
            let _rule = spec.resolve(|| "made-up".parse().expect("an id"), Defaults::default(), now());
        }
        let _ruleset = serde_json::from_slice::<RulesetRequest>(&body);
        let _lease = serde_json::from_slice::<LeaseRequest>(&body);
        let _explain = serde_json::from_slice::<ExplainRequest>(&body);
    }

    #[test]
    fn lists(text in damaged(vec![LIST.to_owned()])) {
        for invalid in [Invalid::Refuse, Invalid::Skip] {
            if let Err(error) = List::parse("list", &text, invalid) {
                prop_assert!(!error.messages().is_empty());
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn configurations(text in damaged(configs())) {
        let text = String::from_utf8_lossy(&text);
        match Config::parse(&text, "blocker.yaml") {
            Ok(config) => {
                let _rules = config.rules(now());
                let yaml = config.effective_yaml().expect("what was read can be written");
                let again = Config::parse(&yaml, "again.yaml");
                prop_assert_eq!(again.expect("what was written can be read"), config);
            }
            Err(error) => prop_assert!(error.to_string().contains("blocker.yaml"), "{}", error),
        }
    }
}

proptest! {
    #![proptest_config(cases(100))]

    /// What is read is whole, or it is put aside as it is, and told.
    #[test]
    fn state_files(damages in vec(damage(), 1..4), of_targets in any::<bool>()) {
        let directory = tempfile::tempdir().expect("a directory");
        saved(directory.path());
        let name = if of_targets { "targets-1.txt" } else { FILE };
        let path = directory.path().join(name);
        let mut bytes = fs::read(&path).expect("it was saved");
        for damage in damages {
            damage.apply(&mut bytes);
        }
        fs::write(&path, &bytes).expect("written");
        let rules = fs::read(directory.path().join(FILE)).expect("it was saved");
        let (_, loaded) = Store::open(directory.path(), now());
        if let Some(problem) = loaded.problem {
            prop_assert!(problem.contains(FILE), "{}", problem);
            prop_assert!(loaded.rules.is_empty() && loaded.expired.is_empty());
            let aside = fs::read_dir(directory.path()).expect("a directory").find_map(|entry| {
                let path = entry.expect("an entry").path();
                path.to_string_lossy().contains(".bad-").then_some(path)
            });
            let aside = aside.expect("it was put aside");
            prop_assert_eq!(fs::read(aside).expect("it is there"), rules);
        }
    }
}

/// Texts that are short to write and long to think about.
#[test]
fn deep_and_growing_texts_are_refused_soon() {
    let deep = |open: &str| open.repeat(200_000);
    let laughs = (1..30).fold(String::from("a0: &a0 [ha]\n"), |text, n| {
        let before = n - 1;
        format!("{text}a{n}: &a{n} [*a{before}, *a{before}, *a{before}, *a{before}]\n")
    });
    let start = Instant::now();
    for text in [
        deep("["),
        deep("{\"rules\":["),
        deep("{"),
        deep("- "),
        laughs,
    ] {
        assert!(serde_json::from_str::<RulesetRequest>(&text).is_err());
        assert!(Config::parse(&text, "blocker.yaml").is_err());
        assert!(List::parse("list", text.as_bytes(), Invalid::Refuse).is_err());
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
}

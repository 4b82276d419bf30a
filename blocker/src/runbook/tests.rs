//! Reading runbooks, good and bad, and their schema.

use std::time::Duration;

use serde_json::Value;

use super::*;

fn parse(text: &str) -> Result<Runbook, RunbookError> {
    Runbook::parse(text, "dir/run.yaml")
}

const EVERYTHING: &str = r#"
name: everything
description: each key, once
deadline: 10m
steps:
  - name: it answers
    check:
      http:
        url: http://192.0.2.1:8080/health
        status: [200, 204]
        body: {equals: ok, contains: o, lacks: bad, matches: "^o"}
        headers: {Host: example.org}
        insecure: true
      timeout: 2s
      within: 30s
      every: 100ms
  - block: {id: b, targets: [192.0.2.7], mode: reset, protocol: tcp, ports: [80, 8080-8085], percent: 50}
  - wait: 1s
  - check: {tcp: {to: "[2001:db8::7]:443", expect: times_out}, timeout: 1s, within: 5s}
  - check: {command: {run: "echo $HOME", exit: 1, output: x}}
  - check: {command: {run: [echo, 1]}}
  - lift: b
  - block: {targets: [192.0.2.8]}
  - lift: all
"#;

#[test]
fn every_key_is_read() {
    let runbook = parse(EVERYTHING).unwrap();
    assert_eq!(runbook.name, "everything");
    assert_eq!(runbook.description.as_deref(), Some("each key, once"));
    assert_eq!(runbook.deadline, Duration::from_secs(600));
    let words: Vec<&str> = runbook
        .steps
        .iter()
        .map(|step| step.action.word())
        .collect();
    assert_eq!(
        words,
        [
            "check", "block", "wait", "check", "check", "check", "lift", "block", "lift"
        ]
    );
    let lines: Vec<u64> = runbook.steps.iter().map(|step| step.line).collect();
    assert_eq!(lines, [6, 17, 18, 19, 20, 21, 22, 23, 24]);
    let checks: Vec<&Check> = runbook
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Check(check) => Some(&**check),
            _ => None,
        })
        .collect();
    assert_eq!(
        checks[0].probe.expected(),
        r#"status 200 or 204 and a body that is "ok" and contains "o" and lacks "bad" and matches "^o""#
    );
    assert_eq!(
        checks[0].probe.to_string(),
        "GET http://192.0.2.1:8080/health"
    );
    assert_eq!(checks[0].within, Some(Duration::from_secs(30)));
    assert_eq!(checks[0].every, Duration::from_millis(100));
    assert_eq!(checks[1].probe.to_string(), "connect to [2001:db8::7]:443");
    assert_eq!(checks[1].probe.expected(), "times_out");
    let Probe::Command(command) = &checks[2].probe else {
        panic!("{:?}", checks[2])
    };
    assert_eq!(command.words, ["sh", "-c", "echo $HOME"]);
    assert_eq!(
        (command.exit, checks[2].timeout),
        (1, Duration::from_secs(60))
    );
    assert_eq!(checks[3].probe.to_string(), "echo 1");
}

#[test]
fn what_is_left_out_has_a_default() {
    let runbook = parse("steps: [{check: {tcp: {to: 'db:5432'}}}]").unwrap();
    assert_eq!((runbook.name.as_str(), runbook.deadline), ("run", DEADLINE));
    let Action::Check(check) = &runbook.steps[0].action else {
        panic!("{runbook:?}")
    };
    assert_eq!(check.probe.expected(), "connects");
    assert_eq!(
        (check.timeout, check.within),
        (Duration::from_secs(5), None)
    );
    let runbook = parse("steps: [{check: {http: {url: 'http://x/'}}}]").unwrap();
    let Action::Check(check) = &runbook.steps[0].action else {
        panic!("{runbook:?}")
    };
    assert_eq!(check.probe.expected(), "status 200");
}

/// What is wrong, and what the error must say after the file's name.
const WRONG: &[(&str, &str)] = &[
    ("steps: []", ":1:8: found no steps"),
    ("", ":1:1: found nothing, expected steps"),
    (
        "step: []",
        ":1:1: unknown key \"step\", expected one of name, description, deadline, steps",
    ),
    (
        "steps: [{wait: soon}]",
        ":1:16: duration \"soon\" is not valid",
    ),
    ("steps: [{}]", ":1:9: found a step that does nothing"),
    (
        "steps: [{wait: 1s, lift: all}]",
        ":1:9: found a step that does several things",
    ),
    (
        "deadline: 1m\nsteps:\n- wait: 30s\n- wait: 30s",
        ":4:3: the waits up to here take 1m, and the run ends after 1m",
    ),
    ("steps: [{lift: all}]", ":1:16: there is no block to lift"),
    (
        "steps: [{lift: x}]",
        ":1:16: found x, but there is no block to lift",
    ),
    ("steps: [{lift: X}]", ":1:16: id \"X\" is not valid"),
    (
        "steps:\n- block: {id: a, targets: [192.0.2.1]}\n- lift: b",
        ":3:9: found b, expected the id of a block that is in force at this step (a), or all",
    ),
    (
        "steps:\n- block: {id: a, targets: [192.0.2.1]}\n- block: {id: a, targets: [192.0.2.2]}",
        ":3:10: the id a is that of the block at line 2, which is not lifted by then",
    ),
    (
        "steps: [{block: {id: all, targets: [192.0.2.1]}}]",
        ":1:17: the id all is taken",
    ),
    (
        "steps: [{block: {id: a}}]",
        ":1:17: a rule needs at least one target",
    ),
    (
        "steps: [{block: {targets: [192.0.2.300]}}]",
        ":1:28: target \"192.0.2.300\" is neither",
    ),
    (
        "steps: [{block: {targets: [192.0.2.1], for: 5m}}]",
        ":1:17: a block of a runbook has no \"for\"",
    ),
    (
        "steps: [{block: {targets_file: /no/such/list}}]",
        ":1:17: targets_file: ",
    ),
    (
        "steps: [{check: {}}]",
        ":1:17: a check is exactly one of http, tcp and command",
    ),
    (
        "steps: [{check: {http: {url: 'ftp://x/'}}}]",
        ":1:30: url \"ftp://x/\" is not valid: ftp is not HTTP",
    ),
    (
        "steps: [{check: {http: {url: '/health'}}}]",
        ":1:30: url \"/health\" is not valid",
    ),
    (
        "steps: [{check: {http: {url: 'http://x', status: 99}}}]",
        ": found 99, expected a status",
    ),
    (
        "steps: [{check: {http: {url: 'http://x', status: []}}}]",
        ": found an empty list",
    ),
    (
        "steps: [{check: {http: {url: 'http://x', body: {}}}}]",
        ": found nothing to expect",
    ),
    (
        "steps: [{check: {http: {url: 'http://x', body: {matches: '('}}}}]",
        ": \"(\" is not a valid regular expression",
    ),
    (
        "steps: [{check: {http: {url: 'http://x', body: {has: x}}}}]",
        ": unknown key \"has\", expected one of equals, contains, lacks, matches",
    ),
    (
        "steps: [{check: {http: {url: 'http://x', headers: {'a b': x}}}}]",
        ":1:17: the header \"a b\"",
    ),
    (
        "steps: [{check: {tcp: {to: 192.0.2.1}}}]",
        ":1:28: \"192.0.2.1\" is not a host and a port",
    ),
    (
        "steps: [{check: {tcp: {to: 'h:80', expect: refuses}}}]",
        ":1:44: expect \"refuses\" is not known: connects, refused, unreachable or times_out",
    ),
    (
        "steps: [{check: {tcp: {to: 'h:80', expect: times_out}, within: 1s}}]",
        ":1:17: a try takes 5s to time out, longer than the 1s of within",
    ),
    (
        "steps: [{check: {command: {run: []}}}]",
        ": found no program",
    ),
    (
        "steps: [{check: {command: {run: ' '}}}]",
        ": found no command",
    ),
    (
        "steps: [{check: {command: {run: x, exit: 256}}}]",
        ":1:42: ",
    ),
];

#[test]
fn errors_name_the_place_what_was_found_and_what_is_expected() {
    for (text, expected) in WRONG {
        let error = parse(text).unwrap_err().to_string();
        assert!(
            error.starts_with("dir/run.yaml:") && error.contains(expected),
            "{text}\n{error}\n{expected}"
        );
    }
}

#[test]
fn ids_may_come_again_once_they_are_lifted() {
    let twice = "
steps:
- block: {id: a, targets: [192.0.2.1]}
- lift: a
- block: {id: a, targets: [192.0.2.1]}
";
    assert_eq!(parse(twice).unwrap().steps.len(), 3);
}

#[test]
fn a_file_that_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.yaml");
    let error = Runbook::load(&path).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the runbook "), "{error}");
    std::fs::write(&path, b"steps:\n- \xe9").unwrap();
    let error = Runbook::load(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("x.yaml:2:3: byte 0xe9 is not UTF-8: a runbook must be UTF-8 text"),
        "{error}"
    );
}

#[test]
fn texts_are_as_expected_or_it_is_said_why_not() {
    let text = |yaml: &str| -> Text { serde_yaml::from_str(yaml).unwrap() };
    for (expected, found, unmet) in [
        ("ok", "all ok here", None),
        ("ok", "no", Some(r#"is "no""#)),
        ("{equals: ok}", "ok\n", None),
        ("{equals: ok}", "okay", Some(r#"is "okay""#)),
        ("{lacks: stale}", "fresh", None),
        (
            "{lacks: stale}",
            "a stale answer",
            Some(r#"contains "stale""#),
        ),
        ("{matches: '(?m)^b,UP$'}", "a,DOWN\nb,UP\n", None),
        ("{matches: '^b'}", "a\nb", Some(r#"is "a\nb""#)),
        ("{contains: a, lacks: b}", "ab", Some(r#"contains "b""#)),
    ] {
        let got = text(expected).unmet(found);
        assert_eq!(got.as_deref(), unmet, "{expected} {found:?}");
    }
    let long = text("x").unmet(&"é".repeat(300)).unwrap();
    assert!(
        long.ends_with("é\"…") && long.chars().count() < 210,
        "{long}"
    );
}

fn valid(text: &str) -> Result<(), String> {
    let schema = schema();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let document: Value = serde_yaml::from_str(text).unwrap();
    match validator.iter_errors(&document).next() {
        None => Ok(()),
        Some(error) => Err(error.to_string()),
    }
}

#[test]
fn the_schema_takes_what_is_right() {
    jsonschema::draft202012::meta::validate(&schema()).unwrap();
    valid(EVERYTHING).unwrap();
}

#[test]
fn the_schema_refuses_what_a_schema_can() {
    // What one value contradicts in another is beyond it, and what is read from a file.
    const BEYOND: &[&str] = &[
        "the waits",
        "no block to lift",
        "expected the id of a block",
        "is that of the block",
        "the id all",
        "a try takes",
        "is not a valid regular",
        "the header",
        "targets_file: ",
        "is neither",
    ];
    let mut refused = 0;
    for (text, error) in WRONG {
        if text.is_empty() || BEYOND.iter().any(|beyond| error.contains(beyond)) {
            continue;
        }
        assert!(valid(text).is_err(), "{text}");
        refused += 1;
    }
    assert!(refused > 15, "{refused}");
    assert!(valid("steps: [{block: {targets: [a b]}}]").is_err());
}

/// The runbooks that are shipped, by name.
fn shipped() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/runbooks");
    let paths = directory
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|end| end == "yaml"));
    paths
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn what_is_shipped_is_right_by_the_schema_too() {
    let shipped = shipped();
    assert_eq!(shipped.len(), 6);
    for (name, text) in shipped {
        let runbook = parse(&text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(runbook.name, name);
        valid(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        // With a slip of the pen it is not.
        let slip = text.replacen("targets:", "target:", 1);
        assert!(parse(&slip).is_err(), "{name}");
        assert!(valid(&slip).is_err(), "{name}");
    }
}

#[test]
fn the_documentation_names_every_key_and_its_examples_are_valid() {
    let text = include_str!("../../../docs/runbooks.md");
    let examples = crate::yaml::examples(text);
    assert!(!examples.is_empty());
    for example in examples {
        parse(example).unwrap_or_else(|error| panic!("{error}"));
        valid(example).unwrap();
    }
    // What an unknown key is told are the keys that there are.
    for (wrong, prefix) in [
        ("x: 1", ""),
        ("steps: [{x: 1}]", ""),
        ("steps: [{check: {x: 1}}]", ""),
        ("steps: [{check: {http: {x: 1}}}]", "http."),
        ("steps: [{check: {tcp: {x: 1}}}]", "tcp."),
        ("steps: [{check: {command: {x: 1}}}]", "command."),
    ] {
        let error = parse(wrong).unwrap_err().to_string();
        let keys = error.split("expected one of ").nth(1).unwrap();
        for key in keys.lines().next().unwrap().split(", ") {
            let named = [format!("`{prefix}{key}`"), format!("`{key}.")];
            assert!(
                named.iter().any(|name| text.contains(name)),
                "{prefix}{key}"
            );
        }
    }
}

//! Feeds as they are written, good and bad.

use std::fs;

use super::*;
use crate::feeds::ListChecks;
use crate::feeds::feed::{FeedName, Private};
use crate::feeds::source::Source;
use crate::feeds::source::crowdsec::{Crowdsec, Scope};
use crate::feeds::source::file::File;
use crate::feeds::source::url::Url;
use crate::lists::Invalid;

/// A directory with a key and a certificate.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), "abc123\n").unwrap();
    fs::write(dir.path().join("empty"), "\n").unwrap();
    fs::write(dir.path().join("list"), "198.51.100.1\n").unwrap();
    fs::write(dir.path().join("no.pem"), "hello\n").unwrap();
    dir
}

fn parse(dir: &tempfile::TempDir, text: &str) -> Result<Config, String> {
    let name = dir.path().join("c.yaml").display().to_string();
    Config::parse(text, &name).map_err(|error| {
        let error = error.to_string();
        error
            .strip_prefix(&format!("{name}:"))
            .unwrap_or(&error)
            .to_owned()
    })
}

#[test]
fn defaults_are_by_type() {
    let dir = files();
    let config = parse(
        &dir,
        "defaults: {mode: reset}
feeds:
  - {name: a, type: file, path: list}
  - {name: b, type: url, url: 'https://user:pw@example.org/l.netset?key=1', mode: drop}
  - {name: c, type: crowdsec, url: 'http://127.0.0.1:8080', api_key_file: key}
",
    )
    .unwrap();
    let [a, b, c] = config.feeds.as_slice() else {
        panic!("{:?}", config.feeds)
    };
    let list = ListChecks {
        invalid: Invalid::Refuse,
        shrink: 50,
    };
    let path = dir.path().join("list");
    assert_eq!(a.source, Source::File(File { path, list }));
    assert_eq!(a.private, Private::Skip);
    assert_eq!(
        (a.rule.mode, b.rule.mode),
        (Some(Mode::Reset), Some(Mode::Drop))
    );
    assert_eq!(b.source.shown(), "https://example.org/l.netset");
    assert!(b.source.key().contains("user:pw@"));
    let Source::Url(Url {
        interval, timeout, ..
    }) = &b.source
    else {
        panic!("{b:?}")
    };
    assert_eq!(
        (interval.to_string(), timeout.to_string()),
        ("1h".into(), "30s".into())
    );
    let Source::Crowdsec(Crowdsec {
        interval,
        scopes,
        types,
        ..
    }) = &c.source
    else {
        panic!("{c:?}")
    };
    assert_eq!(interval.to_string(), "10s");
    assert_eq!(scopes, &[Scope::Ip, Scope::Range]);
    assert_eq!(types["ban"], Mode::Reset, "the configuration's default");
    assert_eq!(c.private, Private::Block);
    assert_eq!(c.max_bytes, 64 << 20);

    // What is printed means the same.
    let yaml = config.effective_yaml().unwrap();
    let again = parse(&dir, &yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    assert_eq!(again.feeds, config.feeds, "{yaml}");
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let dir = files();
    let mut wrong = Vec::new();
    for (text, expected) in [
        (
            "feeds: [{name: a, type: ftp, url: 'ftp://a/'}]",
            "1:25: found \"ftp\", expected one of file, url, crowdsec",
        ),
        (
            "feeds: [{name: A, type: file, path: list}]",
            "1:16: feed name \"A\" is not valid: expected 1 to 32 of a-z, 0-9 and '-'",
        ),
        (
            "feeds:\n  - {name: a, type: url, url: 'ftp://example.org/l'}",
            "2:31: url \"ftp://example.org/l\" is not valid: expected an http or https address",
        ),
        (
            "feeds:\n  - {name: a, type: url, url: 'example.org/l'}",
            "2:31: url \"example.org/l\" is not valid: relative URL without a base",
        ),
        (
            "feeds: [{name: a, type: url}]",
            "1:9: the key \"url\" is missing here: a feed of type url has it",
        ),
        (
            "feeds: [{name: a, type: file, path: list, interval: 1h}]",
            "1:53: \"interval\" is a key of feeds of type url and crowdsec, and this one's type is file",
        ),
        (
            "feeds: [{name: a, type: file, path: list, targets: [1.2.3.4]}]",
            "1:43: unknown key \"targets\", expected one of name, type, path",
        ),
        (
            "feeds: [{name: a, type: crowdsec, url: 'http://a', api_key_file: none}]",
            "1:66: cannot read the key file",
        ),
        (
            "feeds: [{name: a, type: crowdsec, url: 'http://a', api_key_file: empty}]",
            "1:66: the key file",
        ),
        (
            "feeds: [{name: a, type: crowdsec, url: 'http://a', api_key_file: key, mode: drop}]",
            "1:77: \"mode\" is a key of feeds of type file and url, and this one's type is crowdsec: say it by type, as in types: {ban: drop}",
        ),
        (
            "feeds: [{name: a, type: crowdsec, url: 'http://a', api_key_file: key, types: {ban: kill}}]",
            "1:84: mode \"kill\" is not known: drop, reset, reject or audit",
        ),
        (
            "feeds: [{name: a, type: crowdsec, url: 'http://a', api_key_file: key, scopes: [country]}]",
            "1:80: found \"country\", expected one of ip, range",
        ),
        (
            "feeds: [{name: a, type: url, url: 'https://a/', ca: no.pem}]",
            "1:53: the CA file",
        ),
        (
            "feeds: [{name: a, type: url, url: 'https://a/', interval: 10ms}]",
            "1:59: interval 10ms is not valid: expected 1s to 7d",
        ),
        (
            "feeds: [{name: a, type: file, path: list, shrink: 101}]",
            "1:51: shrink 101 is not valid: expected a whole number from 0 to 100",
        ),
        (
            "feeds: [{name: a, type: file, path: list, mode: audit, on_lift: reset}]",
            "1:9: ",
        ),
        (
            "feeds:\n  - {name: a, type: file, path: list}\n  - {name: a, type: file, path: list}\n",
            "3:5: the name a is taken by the feed at line 2: every feed needs a name of its own",
        ),
        (
            "feeds: [{name: a, type: file, path: list}]\nrules: [{id: feed-a, targets: [198.51.100.9]}]\n",
            "2:9: the id feed-a is the feed a's: choose another id",
        ),
    ] {
        match parse(&dir, text) {
            Ok(_) => wrong.push(format!("accepted: {text}")),
            Err(error) if error.starts_with(expected) => {}
            Err(error) => wrong.push(format!("{text}\n  gives    {error}\n  not      {expected}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_feeds_rules_are_told_from_those_of_another() {
    let name = FeedName::parse("drop").unwrap();
    for (id, is_its) in [
        ("feed-drop", true),
        ("feed-drop.reset.x", true),
        ("feed-drop-v6", false),
        ("drop", false),
    ] {
        assert_eq!(name.has(&id.parse().unwrap()), is_its, "{id}");
    }
}

#[test]
fn the_documentation_names_every_key_and_its_examples_are_valid() {
    let dir = files();
    let text = include_str!("../../../../docs/feeds.md");
    let examples = yaml::examples(text);
    assert!(!examples.is_empty());
    for example in examples {
        let example = example.replace("/etc/blocker/crowdsec.key", "key");
        parse(&dir, &example).unwrap_or_else(|error| panic!("{error}"));
    }
    let error = parse(&dir, "feeds: [{x: 1}]").unwrap_err();
    let keys = error.split("expected one of ").nth(1).unwrap();
    for key in keys.lines().next().unwrap().split(", ") {
        assert!(text.contains(&format!("`{key}`")), "{key}");
    }
}

//! What is saved is loaded; what cannot be used is put aside.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::rule::Target;
use crate::rule::sample::rule;

const NOW: &str = "2026-06-01T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn stored(id: &str, fields: &str) -> Stored {
    Stored {
        rule: rule(id, "10.0.0.1 2001:db8::/32", fields),
        created: "2026-05-31T00:00:00.123456789Z".parse().unwrap(),
    }
}

fn load(dir: &Path, now: Timestamp) -> Loaded {
    Store::open(dir, now).1
}

fn save_all(dir: &Path, rules: &[Stored]) -> Result<(), StateError> {
    let (mut store, _) = Store::open(dir, now());
    save(&mut store, rules)
}

fn save(store: &mut Store, rules: &[Stored]) -> Result<(), StateError> {
    store.save(rules.iter().map(|s| (&s.rule, s.created)))
}

/// A rule with so many targets that they have a file of their own.
fn large(id: &str, first: u32) -> Stored {
    let mut large = stored(id, "{}");
    let targets: Vec<Target> = (0..=MANY as u32)
        .map(|n| IpAddr::from(Ipv4Addr::from(first + 2 * n)).into())
        .collect();
    large.rule.targets = targets.into();
    large
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn no_file_is_no_rules_and_no_problem() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(load(dir.path(), now()), Loaded::default());
    let missing = dir.path().join("missing");
    assert_eq!(load(&missing, now()), Loaded::default());
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("made/for/it");
    let rules = [
        stored("b", "{mode: reset, ports: [80, 90-99], protocol: tcp}"),
        stored(
            "a",
            "{expires: 2027-01-01T00:00:00Z, comment: \"x\", except: [10.0.0.1], interfaces: [\"veth*\"]}",
        ),
    ];
    save_all(&dir, &[]).unwrap();
    assert_eq!(load(&dir, now()), Loaded::default());
    save_all(&dir, &rules).unwrap();
    let loaded = load(&dir, now());
    assert_eq!(loaded.rules, rules);
    assert_eq!((loaded.expired.len(), loaded.problem), (0, None));
    assert_eq!(names(&dir), [FILE]);
}

#[test]
fn what_expired_meanwhile_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let rules = [
        stored("over", "{expires: 2026-06-01T12:00:00Z}"),
        stored("lives", "{expires: 2026-06-01T12:00:01Z}"),
    ];
    save_all(dir.path(), &rules).unwrap();
    let loaded = load(dir.path(), now());
    assert_eq!(loaded.expired, rules[..1]);
    assert_eq!(loaded.rules, rules[1..]);
}

#[test]
fn a_file_that_cannot_be_used_is_put_aside_and_told() {
    let dir = tempfile::tempdir().unwrap();
    save_all(dir.path(), &[stored("a", "{}")]).unwrap();
    let path = dir.path().join(FILE);
    let good = fs::read_to_string(&path).unwrap();
    let once = good.trim_end();
    let twice = once.replace("]}\n", "").replacen(
        "\"rules\":[",
        &format!(
            "\"rules\":[{},",
            &once[once.find("{\"rule\"").unwrap()..once.len() - 2]
        ),
        1,
    );
    let cases = [
        (String::new(), "it is torn"),
        (good[..good.len() / 2].to_owned(), "it is torn"),
        (format!("{good}x"), "it is torn"),
        ("\0".repeat(100), "it is torn"),
        (
            good.replace("\"version\":2", "\"version\":3"),
            "its format has version 3, this daemon knows versions 1 to 2",
        ),
        (
            good.replace("\"version\":2", "\"version\":2,\"more\":1"),
            "unknown field `more`",
        ),
        (
            good.replace("\"percent\":100", "\"percent\":0"),
            "percent 0 is not valid: a whole number from 1 to 100 at line 1 column",
        ),
        (
            good.replace(
                "\"percent\":100",
                "\"interfaces\":[\"a/b\"],\"percent\":100",
            ),
            "rule a: interface \"a/b\" is not valid",
        ),
        (
            good.replace("[\"10.0.0.1\",\"2001:db8::/32\"]", "[]"),
            "rule a: a rule needs at least one target",
        ),
        (twice, "the id a is there twice"),
    ];
    for (n, (text, why)) in cases.iter().enumerate() {
        fs::write(&path, text).unwrap();
        let loaded = load(dir.path(), now());
        let problem = loaded.problem.unwrap();
        assert!(problem.contains(why), "{problem}\nexpected: {why}");
        assert!(
            problem.contains(&format!(
                "put aside as {}.bad-20260601T120000Z",
                path.display()
            )),
            "{problem}"
        );
        assert!(loaded.rules.is_empty());
        // Nothing is lost: each has a name of its own.
        assert!(!path.exists());
        assert_eq!(names(dir.path()).len(), n + 1);
    }
    let first = dir.path().join("rules.json.bad-20260601T120000Z-2");
    assert_eq!(fs::read_to_string(first).unwrap(), cases[1].0);
    // And the next save works.
    save_all(dir.path(), &[stored("a", "{}")]).unwrap();
    assert_eq!(load(dir.path(), now()).rules, [stored("a", "{}")]);
}

#[test]
fn a_save_that_fails_leaves_what_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    save_all(dir.path(), &[stored("a", "{}")]).unwrap();
    // A directory in the new file's place makes writing it fail, for root, too.
    let new = dir.path().join("rules.json.new");
    fs::create_dir(&new).unwrap();
    let error = save_all(dir.path(), &[]).unwrap_err().to_string();
    let expected = format!("cannot save rules: writing {}: ", new.display());
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(load(dir.path(), now()).rules, [stored("a", "{}")]);
    // What is no directory can hold no state.
    let file = dir.path().join(FILE);
    assert!(save_all(&file, &[]).is_err());
}

#[test]
fn what_a_dying_daemon_was_writing_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let rules = [stored("a", "{}")];
    save_all(dir.path(), &rules).unwrap();
    fs::write(dir.path().join("rules.json.new"), "{\"version\": 2, \"ru").unwrap();
    assert_eq!(load(dir.path(), now()).rules, rules);
    assert_eq!(names(dir.path()), [FILE]);
}

#[test]
fn only_the_owner_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    save_all(dir.path(), &[]).unwrap();
    let mode = fs::metadata(dir.path().join(FILE))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_file_of_version_1_is_read() {
    let dir = tempfile::tempdir().unwrap();
    save_all(dir.path(), &[stored("a", "{}")]).unwrap();
    let path = dir.path().join(FILE);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"version\":2", "\"version\":1")).unwrap();
    assert_eq!(load(dir.path(), now()).rules, [stored("a", "{}")]);
}

#[test]
fn many_targets_are_written_once_and_go_with_their_rule() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path(), now());
    let (one, two) = (large("one", 0x0a00_0000), large("two", 0x0b00_0000));
    save(&mut store, &[one.clone(), two.clone()]).unwrap();
    assert_eq!(names(dir.path()), [FILE, "targets-1.txt", "targets-2.txt"]);
    let written = |name| {
        fs::metadata(dir.path().join(name))
            .unwrap()
            .modified()
            .unwrap()
    };
    let before = written("targets-2.txt");

    let (mut store, loaded) = Store::open(dir.path(), now());
    assert_eq!(loaded.problem, None);
    assert_eq!(loaded.rules, [one, two.clone()]);
    let [_, two] = loaded.rules.try_into().unwrap();
    save(&mut store, &[two.clone(), stored("small", "{}")]).unwrap();
    assert_eq!(names(dir.path()), [FILE, "targets-2.txt"]);
    assert_eq!(written("targets-2.txt"), before);
    assert_eq!(load(dir.path(), now()).rules, [two, stored("small", "{}")]);
}

#[test]
fn targets_that_are_not_what_was_written_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (path, list) = (dir.path().join(FILE), dir.path().join("targets-1.txt"));
    save_all(dir.path(), &[large("a", 0x0a00_0000)]).unwrap();
    let good = (fs::read(&path).unwrap(), fs::read_to_string(&list).unwrap());
    for (text, why) in [
        (
            good.1.replacen("10.0.0.2\n", "", 1),
            "it has 1024 targets, 1025 were written",
        ),
        (
            good.1.replacen("10.0.0.2\n", "10.0.0.0\n", 1),
            "it has 1024 targets, 1025 were written",
        ),
        (
            good.1.replacen("10.0.0.2\n", "10.0.0.\n", 1),
            "line 2: target \"10.0.0.\" is neither an address nor a prefix",
        ),
    ] {
        fs::write(&path, &good.0).unwrap();
        fs::write(&list, text).unwrap();
        let loaded = load(dir.path(), now());
        let problem = loaded.problem.unwrap();
        let expected = format!("the targets of rule a in {}: {why}", list.display());
        assert!(
            problem.contains(&expected),
            "{problem}\nexpected: {expected}"
        );
        assert!(loaded.rules.is_empty());
        // The file that was put aside names it still.
        assert!(list.exists());
    }
    let elsewhere = String::from_utf8(good.0)
        .unwrap()
        .replace("targets-1.txt", "../targets.txt");
    fs::write(&path, elsewhere).unwrap();
    let problem = load(dir.path(), now()).problem.unwrap();
    assert!(problem.contains("../targets.txt"), "{problem}");
}

#[test]
fn a_save_that_fails_leaves_the_targets_that_were_saved() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path(), now());
    let (one, two) = (large("one", 0x0a00_0000), large("two", 0x0b00_0000));
    save(&mut store, std::slice::from_ref(&one)).unwrap();
    fs::create_dir(dir.path().join("rules.json.new")).unwrap();
    save(&mut store, &[two]).unwrap_err();
    assert_eq!(load(dir.path(), now()).rules, [one]);
    assert_eq!(names(dir.path()), [FILE, "rules.json.new", "targets-1.txt"]);
}

#[test]
fn targets_that_were_taken_away_are_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (mut store, _) = Store::open(&state, now());
    let one = large("one", 0x0a00_0000);
    save(&mut store, std::slice::from_ref(&one)).unwrap();
    fs::remove_dir_all(&state).unwrap();
    let rules = [one, stored("small", "{}")];
    save(&mut store, &rules).unwrap();
    let loaded = load(&state, now());
    assert_eq!(loaded.problem, None);
    assert_eq!(loaded.rules, rules);
}

#[test]
fn targets_that_no_rule_has_are_cleared_away_unless_what_was_put_aside_may_name_them() {
    let dir = tempfile::tempdir().unwrap();
    save_all(dir.path(), &[large("a", 0x0a00_0000)]).unwrap();
    let orphan = dir.path().join("targets-7.txt");
    fs::write(&orphan, "10.0.0.1\n").unwrap();
    fs::write(dir.path().join("rules.json.bad-20260601T120000Z"), "").unwrap();
    load(dir.path(), now());
    assert!(orphan.exists());
    fs::remove_file(dir.path().join("rules.json.bad-20260601T120000Z")).unwrap();
    load(dir.path(), now());
    assert_eq!(names(dir.path()), [FILE, "targets-1.txt"]);
}

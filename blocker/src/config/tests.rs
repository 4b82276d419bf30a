//! Reading configurations, good and bad.

mod feeds;

use std::path::Path;

use super::*;
use crate::fleet::form::OnLoss;
use crate::rule::{Mode, Rule};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "blocker.yaml")
}

fn rules(text: &str) -> Vec<Rule> {
    let now = "2026-06-01T00:00:00Z".parse().unwrap();
    parse(text).unwrap().rules(now).unwrap()
}

#[test]
fn an_empty_file_gives_the_defaults() {
    for text in ["", "\n", "# nothing but a comment\n"] {
        assert_eq!(parse(text).unwrap(), Config::default());
    }
}

#[test]
fn the_annotated_example_is_valid_and_shows_every_key() {
    let text = include_str!("../../../config/blocker.yaml");
    let config = parse(text).unwrap();
    assert_eq!(config.state_dir, Path::new("/var/lib/blocker"));
    // What is commented out in it is valid, too: "#key" is an example, "# Text" is text.
    let mut all = String::new();
    let mut in_rules = false;
    for line in text.lines() {
        in_rules |= ["#feeds:", "#rules:"].contains(&line);
        in_rules &= !line.is_empty();
        let bare = line.trim_start();
        match bare.strip_prefix('#') {
            Some(example) if !cfg!(feature = "fleet") && example.starts_with("fleet:") => {}
            Some(example) if in_rules || example.starts_with(|c: char| c.is_ascii_lowercase()) => {
                all.extend([&line[..line.len() - bare.len()], example]);
            }
            _ if ["protect: []", "feeds: []", "rules: []"].contains(&line) => {}
            _ => all.push_str(line),
        }
        all.push('\n');
    }
    // The key is read; the list's file may come later.
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("crowdsec.key");
    std::fs::write(&key, "key").unwrap();
    let all = all.replace("/etc/blocker/crowdsec.key", &key.display().to_string());
    let config = parse(&all).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.feeds.len(), 3);
    assert!(!config.protect.is_empty());
    assert!(!config.rules.is_empty());
    let effective = Config::default().effective_yaml().unwrap();
    for key in effective.lines().filter_map(|line| line.split(':').next()) {
        assert!(
            all.contains(&format!("{key}:")),
            "{key} is not in the example"
        );
    }
}

#[test]
fn the_documentation_names_every_key_and_its_examples_are_valid() {
    let text = include_str!("../../../docs/configuration.md");
    let examples = yaml::examples(text);
    assert_eq!(examples.len(), 1);
    for example in examples {
        parse(example).unwrap_or_else(|error| panic!("{error}"));
    }
    let effective = Config::default().effective_yaml().unwrap();
    let mut section = String::new();
    for line in effective.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let name = match key.strip_prefix("  ") {
            Some(nested) => format!("{section}.{nested}"),
            None => {
                section = key.to_owned();
                key.to_owned()
            }
        };
        let row = match value.trim() {
            "" => continue,
            "null" => format!("| `{name}` | none |"),
            value => format!("| `{name}` | `{value}` |"),
        };
        assert!(text.contains(&row), "{row}");
    }
    let error = parse("rules: [{x: 1}]").unwrap_err().to_string();
    let keys = error.split("expected one of ").nth(1).unwrap();
    for key in keys.lines().next().unwrap().split(", ") {
        assert!(text.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
interfaces: [eth0, "veth*"]
hook: xdp-generic
namespaces: all
control: {socket: /tmp/s, group: wheel, mode: 0600, read: all}
metrics: {listen: "[::1]:9921"}
state_dir: /s
pin_dir: /p
on_stop: keep
limits: {prefixes: 5, prefixes_v6: 4, rules: 6, flows: 7, replies_per_second: 0, events_per_second: 8}
protect: [10.0.0.1, 192.0.2.0/24]
defaults: {mode: reset}
rules:
  - targets: [10.1.0.0/16]
"#,
    )
    .unwrap();
    let Interfaces::Named(names) = &config.interfaces else {
        panic!("{:?}", config.interfaces)
    };
    let names: Vec<&str> = names.iter().map(DeviceName::as_str).collect();
    assert_eq!(names, ["eth0", "veth*"]);
    assert_eq!(config.hook, HookChoice::XdpGeneric);
    assert_eq!(config.namespaces, Namespaces::All);
    assert_eq!(config.control.socket, Path::new("/tmp/s"));
    assert_eq!(config.control.group.as_deref(), Some("wheel"));
    assert_eq!(config.control.mode.bits(), 0o600);
    assert_eq!(config.control.read, ReadAccess::All);
    assert_eq!(config.state_dir, Path::new("/s"));
    assert_eq!(config.pin_dir, Path::new("/p"));
    assert_eq!(config.on_stop, OnStop::Keep);
    let limits = Limits {
        prefixes: 5,
        prefixes_v6: 4,
        rules: 6,
        flows: 7,
        replies_per_second: 0,
        events_per_second: 8,
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.protect.len(), 2);
    assert_eq!(config.defaults.mode, Mode::Reset);
    let rules = config
        .rules("2026-01-01T00:00:00Z".parse().unwrap())
        .unwrap();
    assert_eq!(rules[0].mode, Mode::Reset);
}

#[test]
fn the_effective_configuration_means_the_same() {
    let text = r##"
interfaces: ["veth*", "*", eth0]
control: {mode: "0600"}
protect: ["2001:db8::/32", "::1", 10.0.0.0/8]
rules:
  - {id: "1_000", targets: [10.1.0.0/16, "2001:db8::1"], comment: "yes: \"#1\" - it's", ports: [1-5, 80]}
  - {id: "12.50", targets: ["::/0"], mode: reset, expires: 2027-01-01T00:00:00Z, protocol: 47}
  - {id: null, targets: [10.9.9.9], interfaces: ["eth[0-3]"], percent: 7, direction: ingress}
"##;
    let config = parse(text).unwrap();
    let effective = config.effective_yaml().unwrap();
    let again = parse(&effective).unwrap_or_else(|error| panic!("{error}\n{effective}"));
    assert_eq!(again.effective_yaml().unwrap(), effective);
    assert_eq!(rules(text), rules(&effective));
    assert_eq!(again.interfaces, config.interfaces);
    assert_eq!(again.control, config.control);
    assert_eq!(again.metrics, config.metrics);
    assert_eq!(again.protect, config.protect);
    insta::assert_snapshot!(effective);
}

/// Line and column, and the words after them.
#[test]
fn an_error_names_the_place_what_was_found_and_what_is_expected() {
    let mut wrong = Vec::new();
    for (text, expected) in [
        (
            "interfaces: auto\nrulez: []\n",
            "2:1: unknown key \"rulez\", expected one of interfaces, hook, namespaces, control, metrics, state_dir, pin_dir, on_stop, limits, protect, fleet, defaults, feeds, rules",
        ),
        (
            "metrics: {listen: ':9'}",
            "1:19: listen \":9\" is not valid: expected an address and a port, such as 127.0.0.1:9921",
        ),
        (
            "metrics: {listen: '127.0.0.1:0'}",
            "1:19: listen \"127.0.0.1:0\" is not valid",
        ),
        ("metrics: {port: 9}", "1:11: unknown key \"port\""),
        (
            "limits: {events: 1}",
            "1:10: unknown key \"events\", expected one of prefixes, prefixes_v6, rules, flows, replies_per_second, events_per_second",
        ),
        (
            "interfaces: eth0",
            "1:13: found \"eth0\", expected auto, or a list of device names and globs such as [eth0, \"veth*\"]",
        ),
        (
            "interfaces: []",
            "1:13: found an empty list, expected auto, or a list",
        ),
        ("interfaces: [eth0, lo]", "1:20: lo is never attached"),
        (
            "interfaces: [eth0, a/b]",
            "1:20: interface \"a/b\" is not valid",
        ),
        (
            "hook: xdp",
            "1:7: found \"xdp\", expected one of auto, tc, xdp-native, xdp-generic",
        ),
        (
            "namespaces: mine",
            "1:13: found \"mine\", expected one of own, all",
        ),
        (
            "on_stop: drop",
            "1:10: found \"drop\", expected one of lift, keep",
        ),
        (
            "control: {read: some}",
            "1:17: found \"some\", expected one of none, all",
        ),
        (
            "control: {mode: 0668}",
            "1:17: mode \"0668\" is not valid: expected permissions in octal",
        ),
        ("control: {mode: 1777}", "1:17: mode \"1777\" is not valid"),
        ("control: {mode: rw}", "1:17: mode \"rw\" is not valid"),
        (
            "control: {socket: a.sock}",
            "1:19: path \"a.sock\" is not valid: expected an absolute path",
        ),
        (
            "control: /run/x",
            "1:10: found \"/run/x\", expected a mapping, such as key: value",
        ),
        ("state_dir: var", "1:12: path \"var\" is not valid"),
        (
            "limits:\n  prefixes: 4000001",
            "2:13: found \"4000001\", expected a whole number from 1 to 4000000",
        ),
        (
            "limits:\n  prefixes: 0",
            "2:13: found \"0\", expected a whole number from 1",
        ),
        (
            "limits:\n  rules: 65537",
            "2:10: found \"65537\", expected a whole number from 1 to 65536",
        ),
        (
            "limits:\n  rules: -1",
            "2:10: found \"-1\", expected a whole number",
        ),
        (
            "limits:\n  rules: many",
            "2:10: found \"many\", expected a whole number",
        ),
        (
            "limits:\n  replies_per_second: 1000001",
            "2:23: found \"1000001\", expected a whole number from 0 to 1000000",
        ),
        (
            "protect: [10.0.0.1/8]",
            "1:11: target \"10.0.0.1/8\" has bits set behind its prefix length: write 10.0.0.0/8 for the whole prefix, or 10.0.0.1 for the one address",
        ),
        (
            "defaults: {mode: block}",
            "1:18: mode \"block\" is not known: drop, reset, reject or audit",
        ),
        (
            "rules: 5",
            "1:8: found \"5\", expected a list, such as [one, two]",
        ),
        ("rules:\n- id: a", "2:3: a rule needs at least one target"),
        (
            "rules:\n- targets: 10.0.0.1",
            "2:12: found \"10.0.0.1\", expected a list",
        ),
        (
            "rules:\n- targets: [10.0.0.1, 10.0.0.256]",
            "2:23: target \"10.0.0.256\" is neither an address nor a prefix",
        ),
        (
            "rules:\n- targets: [10.0.0.1]\n  percent: 0",
            "3:12: percent 0 is not valid: a whole number from 1 to 100",
        ),
        (
            "rules:\n- targets: [10.0.0.1]\n  percent: half",
            "3:12: percent \"half\" is not valid: a whole number from 1 to 100",
        ),
        (
            "rules:\n- targets: [10.0.0.1]\n  ports: [80, 9-8]",
            "3:15: port range 9-8 runs backwards: write 8-9",
        ),
        ("rules:\n- targets: [10.0.0.1]\n  expires: soon", "3:12: "),
        (
            "rules:\n- {id: A, targets: [10.0.0.1]}",
            "2:8: id \"A\" is not valid",
        ),
        // Found only when the rule is seen as a whole: the rule's place.
        (
            "rules:\n- id: a\n  targets: []",
            "2:3: a rule needs at least one target",
        ),
        (
            "rules:\n\n  - {targets: [10.0.0.1], ports: [1], protocol: 47}",
            "3:5: ports match only tcp and udp, not protocol 47",
        ),
        (
            "rules:\n- {targets: [10.0.0.1], established: kill}\ndefaults: {mode: audit}",
            "2:3: established: kill makes no sense with mode: audit: audit only counts",
        ),
        (
            "rules:\n- {targets: [10.0.0.1], for: 5m}",
            "2:3: a rule of the configuration cannot end after a time ('for')",
        ),
        (
            "rules:\n- {id: a, targets: [10.0.0.1]}\n- {id: b, targets: [10.0.0.1]}\n- {id: a, targets: [10.0.0.2]}",
            "4:3: the id a is taken by the rule at line 2: every rule needs an id of its own",
        ),
        (
            "rules:\n- {targets: [10.0.0.1, 10.0.0.2]}\n- {targets: [10.0.0.2, 10.0.0.1], comment: again}",
            "3:3: the rule does the same as the one at line 2: remove one of them",
        ),
        // YAML itself.
        (
            "on_stop: lift\non_stop: keep",
            "2:1: duplicate mapping key `on_stop`",
        ),
        ("[a]", "1:1: found \"[\", expected a mapping"),
        (
            "on_stop: lift\n---\non_stop: keep",
            "3:1: found a second YAML document",
        ),
        ("rules: [", "1:8: "),
        ("on_stop: *nowhere", "1:10: "),
    ] {
        let error = parse(text).unwrap_err().to_string();
        if !error.starts_with(&format!("blocker.yaml:{expected}")) {
            wrong.push(format!("{text}\n{error}\nexpected: {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn an_error_shows_the_lines_around() {
    let text = "interfaces: auto\nrules:\n  - id: a\n    targets: [10.0.0.1, 10.0.0.256]\n";
    insta::assert_snapshot!(parse(text).unwrap_err());
}

#[test]
fn a_long_line_is_cropped_and_control_characters_are_blanked() {
    let mut text = "rules:\n- targets: [".to_owned();
    text.extend((0..5_000).map(|n| format!("10.0.{}.{}, ", n / 250, n % 250)));
    text.push_str("\"10.0.0.\\e[31m\"]\n  comment: \"\u{85}\"\n");
    let error = parse(&text).unwrap_err().to_string();
    assert!(
        !error.replace('\n', "").contains(char::is_control),
        "{error:?}"
    );
    assert!(
        error.lines().all(|line| line.chars().count() < 250),
        "{error}"
    );
    assert!(error.contains("^"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blocker.yaml");
    let message = |path: &Path| Config::load(path).unwrap_err().to_string();
    assert!(message(&path).contains("there is no such file: create it"));
    assert!(message(dir.path()).contains("it is a directory"));
    std::fs::write(&path, b"on_stop: lift\n# caf\xe9\n").unwrap();
    let error = message(&path);
    assert!(
        error.contains("blocker.yaml:2:6: byte 0xe9 is not UTF-8"),
        "{error}"
    );
    std::fs::write(&path, "on_stop: keep\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().on_stop, OnStop::Keep);
}

#[test]
fn a_rule_without_an_id_keeps_the_one_it_gets() {
    let id = |text: &str| rules(text)[0].id.to_string();
    let first = id("rules: [{targets: [10.0.0.1, 10.0.0.2]}]");
    // Other rules, the order of targets, comments and deadlines do not matter.
    for same in [
        "rules: [{targets: [10.0.0.2, 10.0.0.1]}, {targets: [10.9.9.9]}]",
        "rules: [{targets: [10.0.0.2, 10.0.0.1], comment: x, mode: drop}]",
        "rules: [{targets: [10.0.0.2, 10.0.0.1], expires: 2027-01-01T00:00:00Z}]",
    ] {
        assert_eq!(id(same), first);
    }
    for other in [
        "rules: [{targets: [10.0.0.1]}]",
        "rules: [{targets: [10.0.0.1, 10.0.0.2], mode: reset}]",
        "rules: [{targets: [10.0.0.1, 10.0.0.2], ports: [80]}]",
    ] {
        assert_ne!(id(other), first);
    }
    // A new release must not rename rules: their counters would be lost.
    assert_eq!(first, "config-e440eceaae48f96e");
}

#[test]
fn an_expired_rule_is_left_out_and_no_error() {
    let text = "rules:\n- {id: old, targets: [10.0.0.1], expires: 2026-01-01T00:00:00Z}\n- {id: new, targets: [10.0.0.1]}";
    let ids: Vec<String> = rules(text).iter().map(|r| r.id.to_string()).collect();
    assert_eq!(ids, ["new"]);
    let now = "2026-06-01T00:00:00Z".parse().unwrap();
    let expired = parse(text).unwrap().expired_rules(now).unwrap();
    assert_eq!(expired[0].id.as_str(), "old");
    // A rule ends at its date, not after it.
    let end = "2026-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(parse(text).unwrap().rules(end).unwrap().len(), 1);
}

#[test]
fn a_hundred_thousand_targets_are_read() {
    let mut text = "rules:\n- targets:\n".to_owned();
    text.extend((0..100_000_u32).map(|n| {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + n);
        format!("  - {address}\n")
    }));
    assert_eq!(rules(&text)[0].targets.len(), 100_000);
}

#[test]
fn interfaces_cover_what_they_name_but_never_loopback() {
    let covers = |text: &str, device: &str| parse(text).unwrap().interfaces.covers(device);
    for (text, device, expected) in [
        ("interfaces: auto", "eth0", true),
        ("interfaces: auto", "lo", false),
        ("interfaces: [eth0, 'veth*']", "eth0", true),
        ("interfaces: [eth0, 'veth*']", "eth01", false),
        ("interfaces: [eth0, 'veth*']", "veth1a2b", true),
        ("interfaces: [eth0, 'veth*']", "xveth1", false),
        ("interfaces: ['*']", "wg0", true),
        ("interfaces: ['*']", "lo", false),
        ("interfaces: ['eth[0-2]']", "eth2", true),
        ("interfaces: ['eth[0-2]']", "eth3", false),
    ] {
        assert_eq!(covers(text, device), expected, "{text}: {device}");
    }
}

/// A configuration beside a list, as files.
fn beside(list: &str, config: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("lists")).unwrap();
    std::fs::write(directory.path().join("lists/l.netset"), list).unwrap();
    let path = directory.path().join("blocker.yaml");
    std::fs::write(&path, config).unwrap();
    (directory, path)
}

#[test]
fn a_rule_takes_the_targets_of_a_list_beside_its_own() {
    let (_files, path) = beside(
        "# a list\n192.0.2.0/24\n198.51.100.7 # one\n",
        "rules:\n- {id: a, targets_file: lists/l.netset}\n- {id: b, targets: [\"2001:db8::1\"], targets_file: lists/l.netset}\n",
    );
    let config = Config::load(&path).unwrap();
    let rules = config.rules(jiff::Timestamp::now()).unwrap();
    let names = |rule: &Rule| {
        rule.targets
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&rules[0]), ["192.0.2.0/24", "198.51.100.7"]);
    assert_eq!(
        names(&rules[1]),
        ["192.0.2.0/24", "198.51.100.7", "2001:db8::1"]
    );
    let effective = config.effective_yaml().unwrap();
    assert!(effective.contains("198.51.100.7"), "{effective}");
    assert!(!effective.contains("targets_file"), "{effective}");
}

#[test]
fn a_bad_list_is_told_by_rule_list_and_line() {
    let config =
        "rules:\n- {id: a, targets: [192.0.2.1]}\n- id: b\n  targets_file: lists/l.netset\n";
    let (files, path) = beside("192.0.2.0/24\n192.0.2.0/44\n", config);
    let error = Config::load(&path).unwrap_err().to_string();
    let list = files.path().join("lists/l.netset");
    let start = format!(
        "{}:3:3: targets_file: {}:2: target \"192.0.2.0/44\" is neither",
        path.display(),
        list.display()
    );
    assert!(error.starts_with(&start), "{error}");
    std::fs::remove_file(&list).unwrap();
    let error = Config::load(&path).unwrap_err().to_string();
    let expected = format!(
        ":3:3: targets_file: cannot read the target list {}: No such file",
        list.display()
    );
    assert!(error.contains(&expected), "{error}");
}

const FLEET: &str = r#"
fleet:
  endpoints: ["https://etcd1.example:2379", "https://[2001:db8::7]:2379"]
  prefix: /prod/blocker
  tls: {ca: /etc/ca.pem, cert: /etc/cert.pem, key: /etc/key.pem}
  user: hosts
  password_file: /etc/password
  name: web1.example
  labels: {role: web, zone: eu-1}
  on_loss: lift
  loss_after: 10m
  max_skew: 2s
"#;

#[test]
#[cfg(feature = "fleet")]
fn every_key_of_the_fleet_is_read_and_printed() {
    let config = parse(FLEET).unwrap();
    let fleet = config.fleet.clone().unwrap();
    assert_eq!(fleet.endpoints.len(), 2);
    assert_eq!(fleet.prefix, "/prod/blocker");
    assert_eq!(fleet.tls.as_ref().unwrap().ca, Path::new("/etc/ca.pem"));
    assert_eq!(fleet.user.as_deref(), Some("hosts"));
    assert_eq!(fleet.identity().labels["zone"], "eu-1");
    assert_eq!(fleet.on_loss, OnLoss::Lift);
    assert_eq!(fleet.loss_after.to_string(), "10m");
    assert_eq!(fleet.max_skew.to_string(), "2s");
    let again = parse(&config.effective_yaml().unwrap()).unwrap();
    assert_eq!(again.fleet, config.fleet);
    let least = parse("fleet: {endpoints: [\"http://127.0.0.1:2379\"], name: a}").unwrap();
    let least = least.fleet.unwrap();
    assert_eq!(
        (least.prefix.as_str(), least.on_loss),
        ("/blocker", OnLoss::Keep)
    );
    assert!(parse("").unwrap().fleet.is_none());
}

#[test]
#[cfg(feature = "fleet")]
fn what_is_wrong_with_a_fleet_is_told_with_its_place() {
    for (from, to, place, said) in [
        (
            "https://etcd1.example:2379",
            "etcd1:2379",
            "3:14:",
            "expected a URL with a port",
        ),
        (
            "https://etcd1.example:2379",
            "https://etcd1",
            "3:14:",
            "expected a URL with a port",
        ),
        (
            "https://etcd1.example:2379",
            "http://etcd1:2379",
            "3:3:",
            "is not encrypted, but `tls` is set",
        ),
        (
            "  tls: {ca: /etc/ca.pem, cert: /etc/cert.pem, key: /etc/key.pem}\n",
            "",
            "3:3:",
            "needs `tls`",
        ),
        (
            ", key: /etc/key.pem",
            "",
            "3:3:",
            "`tls.cert` and `tls.key` go together",
        ),
        (
            "ca: /etc/ca.pem",
            "ca: ca.pem",
            "5:13:",
            "expected an absolute path",
        ),
        (
            "  user: hosts\n",
            "",
            "3:3:",
            "`user` and `password_file` go together",
        ),
        ("/prod/blocker", "prod", "4:11:", "beginning with '/'"),
        ("/prod/blocker", "/prod/", "4:11:", "not ending with it"),
        ("web1.example", "web*", "8:9:", "name \"web*\" is not valid"),
        (
            "{role: web",
            "{\"r o\": web",
            "9:11:",
            "label \"r o\" is not valid",
        ),
        ("{role: web", "{name: web", "9:11:", "is the host's name"),
        (
            "on_loss: lift",
            "on_loss: drop",
            "10:12:",
            "expected one of keep, lift",
        ),
        ("10m", "0s", "11:15:", "duration \"0s\" is not valid"),
        ("max_skew", "skew", "12:3:", "unknown key \"skew\""),
        (
            "endpoints: [\"https://etcd1.example:2379\", \"https://[2001:db8::7]:2379\"]",
            "endpoints: []",
            "3:14:",
            "found an empty list",
        ),
    ] {
        let text = FLEET.replacen(from, to, 1);
        assert_ne!(text, FLEET, "{from}");
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
        assert!(
            error.starts_with(&format!("blocker.yaml:{place}")),
            "{place}: {error}"
        );
    }
}

#[test]
#[cfg(not(feature = "fleet"))]
fn a_program_without_the_fleet_says_so() {
    let error = parse(FLEET).unwrap_err().to_string();
    assert!(error.contains("built without the fleet"), "{error}");
}

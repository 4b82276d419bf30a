//! `fleet`: results of changes, rules, hosts, and events.

use std::fmt::Write as _;

use blocker::fleet::client::News;
use blocker::wire::fleet::report::{HostReport, Killed};
use blocker::wire::fleet::value::Value;
use comfy_table::Color;
use jiff::Timestamp;
use serde::Serialize;

use super::View;
use super::change::{names, terms};
use super::table::{Cell, Column, Fit, draw};
use super::text::{
    BAD, GOOD, WARN, counted, printable, seconds_between, span, styled, targets, until,
};
use crate::fleet::wait::{HostResult, State};
use crate::fleet::{FleetChanged, FleetHost, FleetRule, FleetTried};

/// Up to this number all hosts are listed; of more, only those with problems.
const SHOWN: usize = 40;

const RESULTS: &[Column] = &[
    Column::new("HOST", Fit::Whole),
    Column::new("STATE", Fit::Whole),
    Column::filled("TOOK", Fit::Number),
    Column::filled("KILLED", Fit::Number),
    Column::filled("WHY", Fit::Wrap),
];

/// The result of an `add`.
pub(crate) fn added(changed: &FleetChanged, view: View) -> String {
    let id = changed.rules.first().map_or("", |id| id.as_str());
    let rule = changed.value.as_ref().and_then(|value| {
        let id = id.parse().ok()?;
        Some((value.rule(&id).ok()?, value.hosts.to_string()))
    });
    let what = rule.map_or_else(String::new, |(rule, hosts)| {
        format!(
            "{} (rule {id}, {}; hosts {hosts})",
            names(&rule.targets),
            terms(&rule, view)
        )
    });
    let again = if changed.created {
        ""
    } else {
        ", which existed already: its deadline and comment are now as given"
    };
    if changed.hosts.is_empty() {
        let hosts = counted(changed.meant, "host");
        return format!(
            "told {hosts} to block {what}{again}\nfor the result: blockctl fleet list, or --wait\n"
        );
    }
    let refused = |host: &HostResult| host.state == State::Refused;
    let mut out = if changed.hosts.iter().all(refused) {
        styled(BAD, &format!("every host refuses to block {what}")) + "\n"
    } else if !changed.hosts.iter().any(HostResult::is_well) {
        styled(
            BAD,
            &format!("no host has confirmed yet that it blocks {what}"),
        ) + "\n"
    } else {
        format!("blocked {what}{again}\n")
    };
    out += &results(changed, view);
    out
}

/// The result of a `del`.
pub(crate) fn lifted(changed: &FleetChanged, view: View) -> String {
    let ids: Vec<&str> = changed
        .rules
        .iter()
        .map(blocker::rule::RuleId::as_str)
        .collect();
    let ids = ids.join(", ");
    if changed.hosts.is_empty() {
        let hosts = counted(changed.meant, "host");
        return format!("told {hosts} to lift {ids}\n");
    }
    format!("lifted {ids}\n{}", results(changed, view))
}

/// The problems of a change, in a line.
pub(crate) fn problem(changed: &FleetChanged) -> String {
    let well = changed.hosts.iter().filter(|host| host.is_well()).count();
    let not = counted(changed.hosts.len() - well, "host");
    let first = changed.hosts.iter().find(|host| !host.is_well());
    let first = first.map_or_else(String::new, |host| {
        format!(": {}: {}", host.host, reason(host))
    });
    format!("not complete on {not}{}", printable(&first))
}

fn reason(host: &HostResult) -> String {
    match (&host.why, host.state) {
        (Some(why), _) => why.clone(),
        (None, State::Silent) => "no answer in time".to_owned(),
        (None, State::Gone) => "its report is gone: it stopped, or lost etcd".to_owned(),
        (None, State::Killing) => "established flows were still being killed".to_owned(),
        (None, _) => match host.teardown {
            Some(killed) if killed.left > 0 => {
                let left = usize::try_from(killed.left).unwrap_or(usize::MAX);
                format!("{} left alive: see its log", counted(left, "flow"))
            }
            _ => String::new(),
        },
    }
}

fn results(changed: &FleetChanged, view: View) -> String {
    let well = changed.hosts.iter().filter(|host| host.is_well());
    let mut times: Vec<f64> = well.filter_map(|host| host.took_ms).collect();
    times.sort_by(f64::total_cmp);
    let few = changed.hosts.len() <= SHOWN;
    let shown = changed.hosts.iter().filter(|host| few || !host.is_well());
    let rows: Vec<Vec<Cell>> = shown.take(SHOWN).map(result).collect();
    let mut out = if rows.is_empty() {
        String::new()
    } else {
        draw(RESULTS, rows, view.width)
    };
    let all = changed.hosts.len();
    let count = format!("{} of {} hosts", times.len(), all);
    let count = if times.len() == all {
        styled(GOOD, &count)
    } else {
        styled(BAD, &count)
    };
    let _ = match times.as_slice() {
        [] => writeln!(out, "{count}"),
        times => writeln!(
            out,
            "{count}; median {:.0} ms, the last after {:.0} ms",
            times[times.len() / 2],
            times[times.len() - 1]
        ),
    };
    out
}

fn result(host: &HostResult) -> Vec<Cell> {
    let (word, color) = match host.state {
        State::Applied => ("applied", Color::Green),
        State::Lifted => ("lifted", Color::Green),
        State::Killing => ("killing", Color::Yellow),
        State::Refused => ("refused", Color::Red),
        State::Silent => ("no answer", Color::Red),
        State::Gone => ("gone", Color::Red),
    };
    let took = host
        .took_ms
        .map_or_else(String::new, |ms| format!("{ms:.0} ms"));
    let killed = |killed: Killed| match killed.found {
        0 => String::new(),
        found => format!("{} of {found}", killed.killed),
    };
    vec![
        host.host.as_str().into(),
        Cell::from(word).color(color),
        took.into(),
        host.teardown.map_or_else(String::new, killed).into(),
        reason(host).into(),
    ]
}

const TRIED: &[Column] = &[
    Column::new("HOST", Fit::Whole),
    Column::new("LIVE FLOWS", Fit::Number),
    Column::filled("WOULD BE REFUSED", Fit::Wrap),
];

/// The result of a dry run.
pub(crate) fn tried(tried: &FleetTried, value: &Value, view: View) -> String {
    let row = |(host, answer): (&String, &Option<blocker::wire::fleet::report::Answer>)| {
        let (flows, refused) = match answer {
            None => ("no answer".to_owned(), String::new()),
            Some(answer) => (
                answer
                    .flows
                    .map_or_else(|| "-".to_owned(), |flows| flows.to_string()),
                answer.refused.clone().unwrap_or_default(),
            ),
        };
        vec![
            host.as_str().into(),
            flows.into(),
            Cell::from(refused).color(Color::Red),
        ]
    };
    let flows = tried
        .hosts
        .values()
        .flatten()
        .filter_map(|answer| answer.flows);
    let mut out = format!(
        "would block {} on {}, with {} live flows; nothing was changed\n",
        names(&value.rule.targets),
        counted(tried.hosts.len(), "host"),
        flows.sum::<u64>()
    );
    out += &draw(TRIED, tried.hosts.iter().map(row).collect(), view.width);
    out
}

const RULES: &[Column] = &[
    Column::new("ID", Fit::Whole),
    Column::new("TARGETS", Fit::Whole),
    Column::new("MODE", Fit::Whole),
    Column::new("HOSTS", Fit::Whole),
    Column::new("APPLIED", Fit::Number),
    Column::new("UNTIL", Fit::Whole),
    Column::optional("BY", Fit::Cut, 2),
    Column::optional("COMMENT", Fit::Cut, 1),
];

/// All rules, one a line, and the errors of those that every host refuses.
pub(crate) fn list(rules: &[FleetRule], view: View) -> String {
    if rules.is_empty() {
        return "no rules: nothing is blocked by the fleet\n".to_owned();
    }
    let mut rows = Vec::new();
    let mut wrong = String::new();
    for rule in rules {
        let Some(value) = &rule.value else {
            let error = rule.error.as_deref().unwrap_or_default();
            let text = format!("{}: every host refuses it: {error}", rule.id);
            let _ = writeln!(wrong, "{}", styled(BAD, &printable(&text)));
            continue;
        };
        let left = value.rule.expires.map(|at| seconds_between(view.now, at));
        let until = match (left, value.held) {
            (Some(0), _) => "over".to_owned(),
            (left, true) => format!("held, {}", until(left)),
            (left, false) => until(left),
        };
        let applied = Cell::from(format!("{}/{}", rule.applied, rule.meant));
        rows.push(vec![
            rule.id.as_str().into(),
            targets(&value.rule.targets).into(),
            value
                .rule
                .mode
                .map_or_else(String::new, |m| m.to_string())
                .into(),
            value.hosts.to_string().into(),
            if rule.applied < rule.meant {
                applied.color(Color::Red)
            } else {
                applied
            },
            until.into(),
            value.by.as_deref().unwrap_or_default().into(),
            value.rule.comment.as_deref().unwrap_or_default().into(),
        ]);
    }
    let table = if rows.is_empty() {
        String::new()
    } else {
        draw(RULES, rows, view.width)
    };
    table + &wrong
}

const HOSTS: &[Column] = &[
    Column::new("HOST", Fit::Whole),
    Column::filled("LABELS", Fit::Cut),
    Column::new("REVISION", Fit::Number),
    Column::new("REPORTED", Fit::Number),
    Column::new("RULES", Fit::Number),
    Column::new("REFUSED", Fit::Number),
    Column::optional("KILLED", Fit::Number, 1),
    Column::optional("CLOCK", Fit::Number, 2),
    Column::optional("LOSSES", Fit::Number, 3),
    Column::optional("VERSION", Fit::Whole, 4),
];

/// Every host, one a line, and what it refuses.
pub(crate) fn status(hosts: &[FleetHost], view: View) -> String {
    if hosts.is_empty() {
        return styled(WARN, "no host has reported") + "\n";
    }
    let mut rows = Vec::new();
    let mut notes = String::new();
    for FleetHost { report, behind } in hosts {
        let labels = report.host.labels.iter();
        let labels: Vec<String> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let revision = if *behind {
            Cell::from(format!("behind, {}", report.revision)).color(Color::Red)
        } else {
            report.revision.into()
        };
        let skew = report
            .skew_ms
            .map_or_else(String::new, |ms| format!("{ms:+} ms"));
        let killed = match report.teardowns.found {
            0 => String::new(),
            found => format!("{} of {found}", report.teardowns.killed),
        };
        rows.push(vec![
            report.host.name.as_str().into(),
            labels.join(",").into(),
            revision,
            format!("{} ago", span(seconds_between(report.at, view.now))).into(),
            report.rules.into(),
            match report.refused_total {
                0 => "0".into(),
                n => Cell::from(n).color(Color::Red),
            },
            killed.into(),
            if report.skewed {
                Cell::from(skew).color(Color::Red)
            } else {
                skew.into()
            },
            match report.losses {
                0 => "".into(),
                n => n.into(),
            },
            report.blocker.as_str().into(),
        ]);
        for refused in &report.refused {
            let text = format!(
                "{}: refused {}: {}",
                report.host.name, refused.rule, refused.why
            );
            let _ = writeln!(notes, "{}", styled(BAD, &printable(&text)));
        }
        if report.skewed {
            let text = format!(
                "{}: its clock is off by {} ms",
                report.host.name,
                report.skew_ms.unwrap_or(0)
            );
            let _ = writeln!(notes, "{}", styled(WARN, &printable(&text)));
        }
    }
    draw(HOSTS, rows, view.width) + &notes
}

/// A line of `watch`.
#[derive(Debug, Serialize)]
pub(crate) struct NewsLine {
    at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    pub(crate) text: String,
}

/// An event in a line; `before` is the host's previous report. `None` for a report without changes.
pub(crate) fn news(news: &News, before: Option<&HostReport>, at: Timestamp) -> Option<NewsLine> {
    let (host, rule, what) = match news {
        News::Rule(stored) => {
            let what = match &stored.value {
                Ok(value) => format!(
                    "written by {}: {} on {}",
                    value.by.as_deref().unwrap_or("?"),
                    targets(&value.rule.targets),
                    value.hosts
                ),
                Err(error) => format!("no host takes it: {error}"),
            };
            (None, Some(stored.id.clone()), what)
        }
        News::RuleGone { id, revision } => (
            None,
            Some(id.clone()),
            format!("lifted at revision {revision}"),
        ),
        News::HostGone(host) => (Some(host.clone()), None, "its report is gone".to_owned()),
        News::Answer(_) => return None,
        News::Host(report) => {
            let what = difference(report, before)?;
            (Some(report.host.name.clone()), None, what)
        }
    };
    let who = host.as_deref().or(rule.as_deref()).unwrap_or_default();
    let clock = at.strftime("%H:%M:%S%.3f");
    Some(NewsLine {
        at,
        text: printable(&format!("{clock}  {who:<20}  {what}")),
        host,
        rule,
    })
}

fn standing(report: &HostReport) -> String {
    let rules = usize::try_from(report.rules).unwrap_or(usize::MAX);
    format!("{}, revision {}", counted(rules, "rule"), report.revision)
}

/// The differences between a report and the previous one.
fn difference(report: &HostReport, before: Option<&HostReport>) -> Option<String> {
    let Some(before) = before else {
        return Some(format!("is there: {}", standing(report)));
    };
    let mut parts = Vec::new();
    if report.revision != before.revision {
        parts.push(standing(report));
    }
    for refused in report
        .refused
        .iter()
        .filter(|r| !before.refused.contains(r))
    {
        parts.push(format!("refuses {}: {}", refused.rule, refused.why));
    }
    let (now, then) = (report.teardowns, before.teardowns);
    if now.found > then.found {
        let (killed, found) = (
            now.killed - then.killed.min(now.killed),
            now.found - then.found,
        );
        parts.push(format!("killed {killed} of {found} flows"));
    }
    if report.skewed && !before.skewed {
        parts.push(format!(
            "its clock is off by {} ms",
            report.skew_ms.unwrap_or(0)
        ));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn result(host: &str, state: State, why: Option<&str>, left: u64) -> HostResult {
        HostResult {
            host: host.to_owned(),
            state,
            took_ms: (state != State::Silent).then_some(31.4),
            teardown: (left > 0).then_some(Killed {
                found: 2,
                killed: 2 - left,
                left,
                elapsed_ms: 1.0,
            }),
            why: why.map(str::to_owned),
        }
    }

    fn changed(hosts: Vec<HostResult>) -> FleetChanged {
        let value = r#"{"version":1,"hosts":"role=web","written":"2026-06-01T00:00:00Z",
            "rule":{"targets":["10.0.0.1"],"mode":"reset","expires":"2026-06-01T00:05:00Z"}}"#;
        FleetChanged {
            rules: vec!["dev01".parse().unwrap()],
            revision: 7,
            created: true,
            meant: hosts.len(),
            hosts,
            value: Some(Value::parse(value.as_bytes()).unwrap()),
        }
    }

    fn view() -> View {
        View {
            width: Some(100),
            now: "2026-06-01T00:00:02Z".parse().unwrap(),
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_change_is_told_host_by_host() {
        let partly = changed(vec![
            result("web3", State::Refused, Some("it is protected"), 0),
            result("web4", State::Silent, None, 0),
            result("web1", State::Applied, None, 1),
            result("web2", State::Applied, None, 0),
        ]);
        insta::assert_snapshot!(plain(&added(&partly, view())), @"
        blocked 10.0.0.1 (rule dev01, reset, both directions, 4m 58s left; hosts role=web)
        HOST  STATE       TOOK  KILLED  WHY
        web3  refused    31 ms          it is protected
        web4  no answer                 no answer in time
        web1  applied    31 ms  1 of 2  1 flow left alive: see its log
        web2  applied    31 ms
        1 of 4 hosts; median 31 ms, the last after 31 ms
        ");
        assert_eq!(partly.exit() as u8, 6);
        assert_eq!(
            problem(&partly),
            "not complete on 3 hosts: web3: it is protected"
        );
        let told = changed(Vec::new());
        assert_eq!(told.exit() as u8, 0);
        assert!(plain(&added(&told, view())).starts_with("told 0 hosts to block 10.0.0.1"));
        let none = changed(vec![result("web3", State::Refused, Some("no"), 0)]);
        assert_eq!(none.exit() as u8, 5);
        assert!(plain(&added(&none, view())).starts_with("every host refuses"));
        let silent = changed(vec![result("web3", State::Silent, None, 0)]);
        assert_eq!(silent.exit() as u8, 6);
        assert!(plain(&added(&silent, view())).starts_with("no host has confirmed"));
    }

    fn report(more: &Json) -> HostReport {
        let mut report = json!({
            "version": 1, "name": "web1", "labels": {"role": "web"}, "blocker": "0.1.0",
            "started": "2026-06-01T00:00:00Z", "at": "2026-06-01T00:00:00Z", "revision": 7, "rules": 1,
            "refused_total": 0, "teardowns": {"found": 0, "killed": 0, "left": 0}, "skewed": false,
            "losses": 0
        });
        for (key, value) in more.as_object().unwrap() {
            report[key] = value.clone();
        }
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn hosts_are_shown_with_what_is_wrong_with_them() {
        let wrong = json!({
            "name": "web2", "revision": 5, "refused_total": 1, "skewed": true, "skew_ms": -7200, "losses": 2,
            "refused": [{"rule": "bad", "revision": 4, "why": "the value has version 9"}],
            "teardowns": {"found": 3, "killed": 2, "left": 1}
        });
        let host = |report, behind| FleetHost { report, behind };
        let hosts = [host(report(&json!({})), false), host(report(&wrong), true)];
        insta::assert_snapshot!(plain(&status(&hosts, view())), @"
        HOST  LABELS     REVISION  REPORTED  RULES  REFUSED  KILLED     CLOCK  LOSSES  VERSION
        web1  role=web          7    2s ago      1        0                            0.1.0
        web2  role=web  behind, 5    2s ago      1        1  2 of 3  -7200 ms       2  0.1.0
        web2: refused bad: the value has version 9
        web2: its clock is off by -7200 ms
        ");
    }

    #[test]
    fn a_sign_of_life_is_no_news() {
        let now = view().now;
        let line = |report: &HostReport, before: &HostReport| {
            let told = news(&News::Host(Box::new(report.clone())), Some(before), now);
            told.map(|line| line.text)
        };
        let before = report(&json!({}));
        assert_eq!(
            line(&report(&json!({"at": "2026-06-01T00:01:00Z"})), &before),
            None
        );
        let after = report(
            &json!({"revision": 9, "rules": 2, "teardowns": {"found": 2, "killed": 2, "left": 0}}),
        );
        let line = line(&after, &before).unwrap();
        assert!(
            line.ends_with("2 rules, revision 9; killed 2 of 2 flows"),
            "{line}"
        );
    }
}

//! Rates: the difference of two totals over the time between them.
//!
//! Pure. Times are of the kernel's boot clock, which cannot be set.

use std::collections::BTreeMap;

use blocker::wire::{Counters, HookStatus, RuleStats, Stats};
use jiff::Timestamp;
use serde::Serialize;

/// The rates of an interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Rates {
    /// The wall clock at the interval's end.
    pub(crate) at: Timestamp,
    /// Its length.
    pub(crate) seconds: f64,
    /// The rules in force at its end, by id.
    pub(crate) rules: Vec<RuleRates>,
    /// The hooks of the devices attached at its end.
    pub(crate) hooks: Vec<HookRates>,
}

/// A rule's rates, and its total.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RuleRates {
    pub(crate) id: String,
    pub(crate) owner: String,
    pub(crate) mode: String,
    /// Packets since the rule was put in force.
    pub(crate) packets: u64,
    /// Both directions.
    #[serde(flatten)]
    pub(crate) both: Rate,
    pub(crate) ingress: Rate,
    pub(crate) egress: Rate,
}

/// Counters of a rule, per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Rate {
    pub(crate) packets_per_second: f64,
    pub(crate) bits_per_second: f64,
    pub(crate) replies_per_second: f64,
    pub(crate) suppressed_per_second: f64,
}

/// A hook's rates on a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct HookRates {
    pub(crate) device: String,
    pub(crate) hook: String,
    pub(crate) mode: String,
    pub(crate) seen_per_second: f64,
    pub(crate) passed_per_second: f64,
    pub(crate) malformed_per_second: f64,
}

/// The rates between two totals, the earlier first.
pub(crate) fn between(before: &Stats, after: &Stats) -> Rates {
    // Avoids a division by zero for two answers with the same time.
    let nanoseconds = after.boot_ns.saturating_sub(before.boot_ns).max(1);
    let seconds = nanoseconds as f64 / 1e9;
    let old_rules: BTreeMap<&str, &RuleStats> = before
        .rules
        .iter()
        .map(|rule| (rule.id.as_str(), rule))
        .collect();
    let rules = after.rules.iter().map(|rule| {
        // A rule that was lifted and added again is another rule, whose counters started at 0.
        let old = old_rules
            .get(rule.id.as_str())
            .filter(|old| old.created == rule.created);
        let of = |counters: &Counters, old: Option<Counters>| {
            rate(counters, &old.unwrap_or_default(), seconds)
        };
        RuleRates {
            id: rule.id.to_string(),
            owner: rule.owner.to_string(),
            mode: rule.mode.to_string(),
            packets: rule.ingress.packets + rule.egress.packets,
            both: of(
                &(rule.ingress + rule.egress),
                old.map(|old| old.ingress + old.egress),
            ),
            ingress: of(&rule.ingress, old.map(|old| old.ingress)),
            egress: of(&rule.egress, old.map(|old| old.egress)),
        }
    });
    let old_hook = |index: u32, hook: &str| -> Option<&HookStatus> {
        let device = before.interfaces.iter().find(|old| old.index == index)?;
        device.hooks.iter().find(|old| old.hook == hook)
    };
    let hooks = after.interfaces.iter().flat_map(|interface| {
        interface.hooks.iter().map(|hook| {
            let old = old_hook(interface.index, &hook.hook);
            let of = |count: fn(&HookStatus) -> u64| {
                per_second(count(hook), old.map_or(0, count), seconds)
            };
            HookRates {
                device: interface.name.clone(),
                hook: hook.hook.clone(),
                mode: hook.mode.clone(),
                seen_per_second: of(|hook| hook.seen),
                passed_per_second: of(|hook| hook.passed),
                malformed_per_second: of(|hook| hook.malformed),
            }
        })
    });
    Rates {
        at: after.at,
        seconds,
        rules: rules.collect(),
        hooks: hooks.collect(),
    }
}

fn rate(now: &Counters, before: &Counters, seconds: f64) -> Rate {
    let of = |count: fn(&Counters) -> u64| per_second(count(now), count(before), seconds);
    Rate {
        packets_per_second: of(|counters| counters.packets),
        bits_per_second: of(|counters| counters.bytes) * 8.0,
        replies_per_second: of(|counters| counters.replies),
        suppressed_per_second: of(|counters| counters.suppressed),
    }
}

/// A counter that is smaller than before was restarted, with a new daemon.
fn per_second(now: u64, before: u64, seconds: f64) -> f64 {
    now.checked_sub(before).unwrap_or(now) as f64 / seconds
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rule(created: &str, packets: u64) -> Value {
        let counters = |packets: u64| json!({"packets": packets, "bytes": packets * 100, "replies": packets / 2, "suppressed": 0});
        json!({"id": "a", "owner": "api", "mode": "reset", "created": created,
            "ingress": counters(packets), "egress": counters(packets / 10)})
    }

    fn stats(seconds: f64, rules: &[Value], seen: u64) -> Stats {
        serde_json::from_value(json!({
            "at": "2026-11-23T21:30:00Z", "boot_ns": (seconds * 1e9) as u64, "rules": rules,
            "interfaces": [{"name": "eth0", "index": 2, "hooks": [
                {"hook": "xdp", "mode": "native", "seen": seen, "passed": seen / 2, "malformed": 1, "own": 0}]}],
        }))
        .unwrap()
    }

    const CREATED: &str = "2026-11-23T20:00:00Z";

    #[test]
    fn rates_are_differences_over_the_boot_clock() {
        let before = stats(10.0, &[rule(CREATED, 1_000)], 5_000);
        let after = stats(12.5, &[rule(CREATED, 2_000)], 10_000);
        let rates = between(&before, &after);
        assert_eq!(rates.seconds, 2.5);
        let rule = &rates.rules[0];
        assert_eq!(rule.packets, 2_200);
        assert_eq!(rule.ingress.packets_per_second, 400.0);
        assert_eq!(rule.egress.packets_per_second, 40.0);
        assert_eq!(rule.both.packets_per_second, 440.0);
        assert_eq!(rule.both.bits_per_second, 440.0 * 800.0);
        assert_eq!(rule.ingress.replies_per_second, 200.0);
        let hook = &rates.hooks[0];
        assert_eq!(hook.seen_per_second, 2_000.0);
        assert_eq!(hook.passed_per_second, 1_000.0);
        assert_eq!(hook.malformed_per_second, 0.0);
    }

    #[test]
    fn what_is_new_or_began_anew_counts_from_zero() {
        let none = stats(1.0, &[], 0);
        let some = stats(2.0, &[rule(CREATED, 100)], 0);
        assert_eq!(
            between(&none, &some).rules[0].ingress.packets_per_second,
            100.0
        );
        // Lifted and put back within the interval, with more packets than before.
        let again = stats(3.0, &[rule("2026-11-23T21:29:59Z", 150)], 0);
        assert_eq!(
            between(&some, &again).rules[0].ingress.packets_per_second,
            150.0
        );
        // A daemon that was restarted.
        let fewer = stats(3.0, &[rule(CREATED, 30)], 0);
        assert_eq!(
            between(&some, &fewer).rules[0].ingress.packets_per_second,
            30.0
        );
        assert!(
            between(&some, &none).rules.is_empty(),
            "what is gone is not shown"
        );
    }

    #[test]
    fn two_answers_at_once_are_no_division_by_zero() {
        let stats = stats(1.0, &[rule(CREATED, 1)], 1);
        assert_eq!(
            between(&stats, &stats).rules[0].both.packets_per_second,
            0.0
        );
    }
}

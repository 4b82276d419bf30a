//! The series: names, units and labels by Prometheus' conventions, values from the
//! controller's answers.
//!
//! Pure.

use std::fmt;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::rule::Owner;
use crate::wire::{Counters, FeedStatus, FleetState, HookStatus, Stats, Status};

/// What one scrape reads.
#[derive(Debug)]
pub struct Series {
    pub status: Status,
    pub stats: Stats,
}

/// Labels of one series, in the order in which they are written.
type Labels = Vec<(&'static str, String)>;

impl Collector for Series {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        self.daemon(&mut out)?;
        self.configuration(&mut out)?;
        self.fill(&mut out)?;
        self.feeds(&mut out)?;
        self.rules(&mut out)?;
        self.fleet(&mut out)?;
        self.hooks(&mut out)
    }
}

impl Series {
    fn daemon(&self, out: &mut Out<'_>) -> fmt::Result {
        let status = &self.status;
        out.gauges(
            "blocker_build_info",
            "The daemon's version, the version of its maps' layout and the kernel that it runs on; always 1.",
            [(
                vec![
                    ("version", status.version.clone()),
                    ("abi", status.abi.to_string()),
                    ("kernel", status.kernel.clone()),
                ],
                1.0,
            )],
        )?;
        out.gauge(
            "process_start_time_seconds",
            "When the daemon started, since the Unix epoch.",
            seconds(status.started),
        )?;
        out.gauge(
            "process_resident_memory_bytes",
            "Resident memory of the daemon.",
            status.resident_bytes as f64,
        )?;
        let killed = status.teardowns;
        out.counter(
            "blocker_teardown_flows_found",
            "Established flows that teardowns found.",
            killed.found,
        )?;
        out.counter(
            "blocker_teardown_flows_killed",
            "Established flows that teardowns killed at both ends.",
            killed.killed,
        )?;
        out.counter(
            "blocker_teardown_flows_left",
            "Established flows that teardowns could not kill.",
            killed.left,
        )
    }

    fn configuration(&self, out: &mut Out<'_>) -> fmt::Result {
        let reload = &self.status.last_reload;
        out.gauge(
            "blocker_config_last_reload_successful",
            "Whether the configuration was accepted when it was last loaded.",
            f64::from(u8::from(reload.error.is_none())),
        )?;
        out.gauge(
            "blocker_config_last_reload_timestamp_seconds",
            "When the configuration was last loaded, accepted or not.",
            seconds(reload.at),
        )?;
        out.gauge(
            "blocker_config_last_reload_success_timestamp_seconds",
            "When the configuration that is in force was loaded.",
            seconds(reload.in_force_since),
        )
    }

    fn fill(&self, out: &mut Out<'_>) -> fmt::Result {
        let status = &self.status;
        let owned = |owner: &Owner| {
            let rules = self.stats.rules.iter();
            rules.filter(|rule| rule.owner == *owner).count()
        };
        let feeds = status.feeds.iter();
        let feeds = feeds.map(|feed| Owner::Feed(feed.name.clone()));
        let owners = [Owner::Config, Owner::Api, Owner::Fleet];
        let owners = owners.into_iter().chain(feeds);
        out.gauges(
            "blocker_rules",
            "Rules in force, by owner.",
            owners.map(|owner| {
                let labels = vec![("owner", owner.to_string())];
                (labels, owned(&owner) as f64)
            }),
        )?;
        let limits = [
            (
                "blocker_rules_limit",
                "Rules that there is room for (limits.rules).",
                status.rules.allowed,
            ),
            (
                "blocker_prefixes",
                "Prefixes in force: targets, exceptions and local addresses of all rules, and protected ones.",
                status.prefixes.used,
            ),
            (
                "blocker_prefixes_limit",
                "Prefixes that there is room for (limits.prefixes).",
                status.prefixes.allowed,
            ),
            (
                "blocker_prefixes_v6",
                "IPv6 prefixes among those in force.",
                status.prefixes_v6.used,
            ),
            (
                "blocker_prefixes_v6_limit",
                "IPv6 prefixes that there is room for (limits.prefixes_v6).",
                status.prefixes_v6.allowed,
            ),
        ];
        for (name, help, value) in limits {
            out.gauge(name, help, value as f64)?;
        }
        let label = |name: &str| vec![("map", name.to_owned())];
        let maps = || status.maps.iter();
        out.gauges(
            "blocker_map_bytes",
            "Kernel memory of a map.",
            maps().map(|map| (label(&map.name), map.bytes as f64)),
        )?;
        let counted = || maps().filter_map(|map| Some((map.name.as_str(), map.entries?)));
        out.gauges(
            "blocker_map_entries",
            "Entries of a map that the rules in force take.",
            counted().map(|(name, entries)| (label(name), entries.used as f64)),
        )?;
        out.gauges(
            "blocker_map_entries_limit",
            "Entries of a map that there is room for.",
            counted().map(|(name, entries)| (label(name), entries.allowed as f64)),
        )
    }

    fn feeds(&self, out: &mut Out<'_>) -> fmt::Result {
        let feeds = || self.status.feeds.iter();
        let labels = |feed: &FeedStatus| vec![("feed", feed.name.clone())];
        out.gauges(
            "blocker_feed_info",
            "A feed of the configuration; always 1.",
            feeds().map(|feed| {
                let mut labels = labels(feed);
                labels.push(("type", feed.kind.clone()));
                labels.push(("source", feed.source.clone()));
                (labels, 1.0)
            }),
        )?;
        type Of = fn(&FeedStatus) -> f64;
        let gauges: [(&str, &str, Of); 3] = [
            (
                "blocker_feed_entries",
                "Targets in force of a feed.",
                |feed| feed.entries as f64,
            ),
            (
                "blocker_feed_left_out",
                "Targets of a feed that are left out, because they must not be blocked.",
                |feed| feed.left_out as f64,
            ),
            (
                "blocker_feed_stale",
                "Whether the last attempt at a feed failed: what it gave before, if anything, is in force.",
                |feed| f64::from(u8::from(feed.error.is_some())),
            ),
        ];
        for (name, help, of) in gauges {
            out.gauges(name, help, feeds().map(|feed| (labels(feed), of(feed))))?;
        }
        out.gauges(
            "blocker_feed_last_success_timestamp_seconds",
            "When a feed was last seen to be sound, by this daemon.",
            feeds().filter_map(|feed| Some((labels(feed), seconds(feed.last_success?)))),
        )?;
        out.gauges(
            "blocker_feed_changed_timestamp_seconds",
            "When what is in force of a feed was had from its source.",
            feeds().filter_map(|feed| Some((labels(feed), seconds(feed.changed?)))),
        )?;
        out.counters(
            "blocker_feed_failures",
            "Attempts at a feed that failed.",
            feeds().map(|feed| (labels(feed), feed.failures)),
        )
    }

    fn rules(&self, out: &mut Out<'_>) -> fmt::Result {
        type Of = fn(&Counters) -> u64;
        let counters: [(&str, &str, Of); 4] = [
            (
                "blocker_rule_packets",
                "Packets that a rule decided.",
                |counters| counters.packets,
            ),
            (
                "blocker_rule_bytes",
                "Bytes of the packets that a rule decided, with link-layer header.",
                |counters| counters.bytes,
            ),
            (
                "blocker_rule_replies",
                "Replies (RST, ICMP errors) sent for packets that a rule decided.",
                |counters| counters.replies,
            ),
            (
                "blocker_rule_replies_suppressed",
                "Packets that a rule decided and the rate limit left without a reply.",
                |counters| counters.suppressed,
            ),
        ];
        let labels = |rule: &crate::wire::RuleStats| {
            vec![
                ("rule", rule.id.to_string()),
                ("owner", rule.owner.to_string()),
                ("mode", rule.mode.to_string()),
            ]
        };
        for (name, help, of) in counters {
            let series = self.stats.rules.iter().flat_map(|rule| {
                [("ingress", &rule.ingress), ("egress", &rule.egress)].map(
                    |(direction, counters)| {
                        let mut labels = labels(rule);
                        labels.push(("direction", direction.to_owned()));
                        (labels, of(counters))
                    },
                )
            });
            out.counters(name, help, series)?;
        }
        out.gauges(
            "blocker_rule_created_timestamp_seconds",
            "When a rule was put in force.",
            self.stats
                .rules
                .iter()
                .map(|rule| (labels(rule), seconds(rule.created))),
        )?;
        out.gauges(
            "blocker_rule_expires_timestamp_seconds",
            "When a rule ends; only of rules with a deadline.",
            self.stats
                .rules
                .iter()
                .filter_map(|rule| Some((labels(rule), seconds(rule.expires?)))),
        )
    }

    /// Only where a fleet is configured.
    fn fleet(&self, out: &mut Out<'_>) -> fmt::Result {
        let Some(fleet) = &self.status.fleet else {
            return Ok(());
        };
        let following = fleet.state == FleetState::Following;
        let gauges = [
            (
                "blocker_fleet_following",
                "Whether the fleet's etcd is there.",
                f64::from(u8::from(following)),
            ),
            (
                "blocker_fleet_stale_seconds",
                "How long the fleet's etcd was not heard of; a few seconds where all is well.",
                fleet.stale_seconds,
            ),
            (
                "blocker_fleet_revision",
                "The revision of the fleet's etcd up to which all changes are applied here.",
                fleet.revision as f64,
            ),
            (
                "blocker_fleet_rules_refused",
                "Rules of the fleet that are refused here.",
                fleet.refused.len() as f64,
            ),
            (
                "blocker_fleet_rules_lifted_by_loss",
                "Whether rules without a deadline are lifted, because etcd is gone.",
                f64::from(u8::from(fleet.lifted_by_loss)),
            ),
            (
                "blocker_fleet_reporting",
                "Whether this host can report itself to the fleet.",
                f64::from(u8::from(following && fleet.report_error.is_none())),
            ),
        ];
        for (name, help, value) in gauges {
            out.gauge(name, help, value)?;
        }
        if let Some(skew) = fleet.skew_seconds {
            out.gauge(
                "blocker_fleet_clock_skew_seconds",
                "How far this host's clock was ahead of a writer's, with the time that the rule took to come here.",
                skew,
            )?;
        }
        out.counter(
            "blocker_fleet_changes",
            "Changes of the fleet's rules that were applied.",
            fleet.changes,
        )?;
        out.counter(
            "blocker_fleet_losses",
            "How many times the fleet's etcd was lost.",
            fleet.losses,
        )
    }

    fn hooks(&self, out: &mut Out<'_>) -> fmt::Result {
        type Of = fn(&HookStatus) -> u64;
        let hooks = || {
            self.stats.interfaces.iter().flat_map(|interface| {
                let labels = |hook: &HookStatus| {
                    vec![
                        ("device", interface.name.clone()),
                        ("hook", hook.hook.clone()),
                    ]
                };
                interface.hooks.iter().map(move |hook| (labels(hook), hook))
            })
        };
        out.gauges(
            "blocker_hook_info",
            "An attached hook and how it is attached; always 1.",
            hooks().map(|(mut labels, hook)| {
                labels.push(("mode", hook.mode.clone()));
                (labels, 1.0)
            }),
        )?;
        let counters: [(&str, &str, Of); 4] = [
            (
                "blocker_hook_packets",
                "Packets that a hook saw, whatever became of them.",
                |hook| hook.seen,
            ),
            (
                "blocker_hook_passed_packets",
                "Packets that a hook saw and no rule decided there.",
                |hook| hook.passed,
            ),
            (
                "blocker_hook_malformed_packets",
                "Packets that a hook saw and whose headers could not be read; they passed.",
                |hook| hook.malformed,
            ),
            (
                "blocker_hook_own_packets",
                "Packets of blocker's own (replies, probes) that a hook saw; they passed.",
                |hook| hook.own,
            ),
        ];
        for (name, help, of) in counters {
            out.counters(name, help, hooks().map(|(labels, hook)| (labels, of(hook))))?;
        }
        Ok(())
    }
}

/// What families are written to.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauges(name, help, [(Labels::new(), value)])
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let write = |mut metric: MetricEncoder<'_>, value: f64| metric.encode_gauge(&value);
        self.family(name, help, MetricType::Gauge, series, write)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [(Labels::new(), value)])
    }

    /// The name is written with `_total` behind it.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let write = |mut metric: MetricEncoder<'_>, value: u64| {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
        };
        self.family(name, help, MetricType::Counter, series, write)
    }

    fn family<T>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        series: impl IntoIterator<Item = (Labels, T)>,
        write: impl Fn(MetricEncoder<'_>, T) -> fmt::Result,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        // A family without a series would print its help and nothing else.
        if series.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in series {
            write(family.encode_family(&labels)?, value)?;
        }
        Ok(())
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

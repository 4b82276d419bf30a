//! The content of a feed, and the rules made of it. Pure.

use ipnet::IpNet;
use jiff::Timestamp;

use super::feed::{Feed, Private};
use super::source::Source;
use super::{Decisions, FeedError};
use crate::lists::is_special;
use crate::rule::{Defaults, Mode, Rule, RuleError, Target, Targets};
use crate::safety::{self, HostFacts};

/// The content of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A list: its targets, none covering another.
    List(Targets),
    /// The decisions of a Local API.
    Decisions(Decisions),
}

impl Content {
    /// The number of targets or decisions, including those that become no rule.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::List(targets) => targets.len() as u64,
            Self::Decisions(decisions) => decisions.len() as u64,
        }
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a source gives content of this kind.
    #[must_use]
    pub const fn is_of(&self, source: &Source) -> bool {
        matches!(self, Self::Decisions(_)) == source.decision_modes().is_some()
    }
}

/// The rules made of content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// The rules.
    pub rules: Vec<Rule>,
    /// The number of their targets.
    pub entries: u64,
    /// The targets that were left out.
    pub left_out: LeftOut,
}

/// Targets that were left out of the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// How many.
    pub count: u64,
    /// The first of them, and why.
    pub first: Option<String>,
}

/// What rules are made with.
pub struct With<'a> {
    /// The configuration's defaults.
    pub defaults: Defaults,
    /// The addresses that the host must not be cut off from.
    pub facts: &'a HostFacts,
    /// Prefixes that no rule may touch.
    pub protect: &'a [IpNet],
    /// The wall clock.
    pub now: Timestamp,
}

impl Made {
    /// Makes the rules of content.
    ///
    /// # Errors
    /// The feed refuses private targets and has one, or no target of a list is left.
    pub fn of(feed: &Feed, content: &Content, with: &With<'_>) -> Result<Self, FeedError> {
        let mut made = Self::default();
        match (content, feed.source.decision_modes()) {
            (Content::List(targets), _) => {
                made.add(feed, None, targets, None, with)?;
                if made.rules.is_empty() {
                    return Err(FeedError::NothingLeft {
                        from: feed.source.shown(),
                        count: made.left_out.count,
                        first: made.left_out.first.unwrap_or_default(),
                    });
                }
            }
            (Content::Decisions(decisions), Some(types)) => {
                for ((word, deadline), (mode, targets)) in decisions.groups(types) {
                    if deadline > with.now {
                        let part = deadline
                            .strftime(&format!("{word}.%Y%m%dt%H%Mz"))
                            .to_string();
                        let end = Some((mode, deadline));
                        made.add(feed, Some(&part), &targets, end, with)?;
                    }
                }
            }
            (Content::Decisions(_), None) => {}
        }
        Ok(made)
    }

    fn add(
        &mut self,
        feed: &Feed,
        part: Option<&str>,
        targets: &[Target],
        end: Option<(Mode, Timestamp)>,
        with: &With<'_>,
    ) -> Result<(), FeedError> {
        let targets = self.allowed(feed, targets, end.map(|(mode, _)| mode), with)?;
        if targets.is_empty() {
            return Ok(());
        }
        let inside = |error: RuleError| FeedError::Inside(error.to_string());
        let id = feed
            .name
            .rule(part)
            .ok_or_else(|| FeedError::Inside(format!("feed {} makes no rule's id", feed.name)))?;
        let count = targets.len() as u64;
        let mut spec = feed.spec(id.clone(), targets, end.map(|(mode, _)| mode));
        spec.expires = end.map(|(_, deadline)| deadline);
        let mut rule = spec
            .resolve(|| id, with.defaults, with.now)
            .map_err(inside)?;
        // Targets that would be refused are left out above; protected addresses are carved out here.
        safety::review(&mut rule, with.facts, with.protect, false)
            .map_err(|refusal| FeedError::Inside(refusal.to_string()))?;
        self.entries += count;
        self.rules.push(rule);
        Ok(())
    }

    /// The targets that may be blocked.
    fn allowed(
        &mut self,
        feed: &Feed,
        targets: &[Target],
        mode: Option<Mode>,
        with: &With<'_>,
    ) -> Result<Vec<Target>, FeedError> {
        let mode = mode.or(feed.rule.mode).unwrap_or(with.defaults.mode);
        let refusing = safety::Refusing::new(with.facts, with.protect, mode);
        let mut allowed = Vec::with_capacity(targets.len());
        for target in targets {
            let special = match feed.private {
                Private::Block => None,
                Private::Skip | Private::Refuse => is_special(*target),
            };
            match (refusing.refusal(*target), special) {
                (Some(refusal), _) => self.leave_out(*target, &refusal.why),
                (None, Some(range)) if feed.private == Private::Refuse => {
                    let from = feed.source.shown();
                    return Err(FeedError::Private(format!("{from} has {target} ({range})")));
                }
                (None, Some(range)) => self.leave_out(*target, range),
                (None, None) => allowed.push(*target),
            }
        }
        Ok(allowed)
    }

    fn leave_out(&mut self, target: Target, why: &str) {
        self.left_out.count += 1;
        self.left_out
            .first
            .get_or_insert_with(|| format!("{target}: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jiff::SignedDuration;

    use super::super::source;
    use super::*;
    use crate::yaml::Source as Yaml;

    const LIST: &str = "[{name: drop, type: file, path: /l, mode: reset, on_lift: resume, comment: why, except: [198.51.100.7]";

    fn feed(text: &str) -> Feed {
        let forms = serde_yaml::from_str(text).unwrap();
        let (name, directory) = ("c.yaml", Path::new("/"));
        source::read(forms, Defaults::default(), directory, Yaml { text, name })
            .unwrap()
            .remove(0)
    }

    fn targets(text: &[&str]) -> Targets {
        text.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn made(feed: &Feed, content: &Content) -> Result<Made, FeedError> {
        let facts = HostFacts {
            own: vec!["203.0.113.9".parse().unwrap()],
            ..HostFacts::default()
        };
        let with = With {
            defaults: Defaults::default(),
            facts: &facts,
            protect: &["192.0.2.0/24".parse().unwrap()],
            now: Timestamp::UNIX_EPOCH,
        };
        Made::of(feed, content, &with)
    }

    #[test]
    fn a_list_becomes_a_rule_without_what_must_not_be_blocked() {
        let list = Content::List(targets(&[
            "10.0.0.0/8",
            "192.0.2.7",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "203.0.113.9",
        ]));
        let made = made(&feed(&format!("{LIST}}}]")), &list).unwrap();
        let [rule] = made.rules.as_slice() else {
            panic!("{made:?}")
        };
        assert_eq!(rule.id.as_str(), "feed-drop");
        assert_eq!(
            rule.targets,
            targets(&["198.51.100.0/24", "203.0.113.0/24"])
        );
        assert_eq!(rule.mode, Mode::Reset);
        assert_eq!(rule.comment.as_deref(), Some("why"));
        // The feed's own exception, and this host's address carved out.
        assert_eq!(*rule.except, *targets(&["198.51.100.7", "203.0.113.9"]));
        assert_eq!((made.entries, made.left_out.count), (2, 3));
        assert_eq!(
            made.left_out.first.as_deref(),
            Some("10.0.0.0/8: private, RFC 1918")
        );
    }

    #[test]
    fn private_targets_are_left_out_refused_or_blocked() {
        let list = Content::List(targets(&["10.0.0.0/8"]));
        let made = |private: &str| {
            let feed = feed(&format!("{LIST}, private: {private}}}]"));
            made(&feed, &list).map_err(|error| error.to_string())
        };
        assert_eq!(
            made("refuse").unwrap_err(),
            "/l has 10.0.0.0/8 (private, RFC 1918); `private: skip` leaves them out"
        );
        assert_eq!(
            made("skip").unwrap_err(),
            "/l: nothing would be blocked: of 1 targets all are left out, such as 10.0.0.0/8: private, RFC 1918"
        );
        assert_eq!(made("block").unwrap().entries, 1);
    }

    #[test]
    fn decisions_become_a_rule_for_each_mode_and_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, "k").unwrap();
        let feed = feed(&format!(
            "[{{name: cs, type: crowdsec, url: 'http://127.0.0.1:8080', api_key_file: {}, types: {{ban: drop}}}}]",
            key.display()
        ));
        let mut decisions = Decisions::default();
        let now = Timestamp::UNIX_EPOCH;
        for (target, minutes) in [("11.0.0.1", 7), ("11.0.0.2", 8), ("10.0.0.3", 70)] {
            let lasts = SignedDuration::from_mins(minutes);
            decisions.insert("ban", target.parse().unwrap(), lasts, now);
        }
        let made = made(&feed, &Content::Decisions(decisions)).unwrap();
        let rules: Vec<_> = made
            .rules
            .iter()
            .map(|rule| (rule.id.as_str(), rule.targets.len(), rule.expires))
            .collect();
        let end = |seconds| Timestamp::from_second(seconds).ok();
        assert_eq!(
            rules,
            [
                ("feed-cs.drop.19700101t0010z", 2, end(600)),
                ("feed-cs.drop.19700101t0200z", 1, end(7200)),
            ]
        );
        assert_eq!((made.entries, made.left_out.count), (3, 0));
    }
}

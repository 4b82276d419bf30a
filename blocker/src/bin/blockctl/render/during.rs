//! `during` and `run`: a block at its start, in force, and after its end.

use blocker::rule::Rule;
use blocker::wire::{Account, Counters, Held};
use jiff::Timestamp;

use super::View;
use super::change::{account, names, spared, terms};
use super::text::{bytes, many};

/// The start of a block.
pub(crate) fn held(held: &Held, view: View) -> String {
    let mut out = String::new();
    for rule in &held.rules {
        // Its deadline is that of the lease, which moves.
        let rule = Rule {
            expires: None,
            ..rule.clone()
        };
        let (what, terms) = (names(&rule.targets), terms(&rule, view));
        out += &format!("blocked {what} (rule {}, {terms})\n", rule.id);
    }
    out += &spared(&held.carved);
    let looked = held.rules.iter().any(Rule::kills);
    out + &account(&held.teardown, "established flow", looked, view)
}

/// The counters so far.
pub(crate) fn progress(counters: &Counters) -> String {
    format!(
        "{}, {}",
        many(counters.packets, "packet"),
        bytes(counters.bytes)
    )
}

/// The end of a block. `killed` is the account of blocked flows at its end.
pub(crate) fn over(
    held: Option<Timestamp>,
    lifted: Option<Timestamp>,
    counters: Option<Counters>,
    killed: Option<&Account>,
    view: View,
) -> String {
    let mut out = match (held, lifted) {
        (Some(held), Some(lifted)) => {
            let seconds = lifted.duration_since(held).as_secs_f64();
            format!("lifted after {seconds:.1} s")
        }
        _ => "not lifted: the daemon is gone".to_owned(),
    };
    if let Some(counters) = counters {
        out += &format!("; {} met the block", progress(&counters));
    }
    out.push('\n');
    if let Some(killed) = killed {
        out += &account(killed, "flow", false, view);
    }
    out
}

//! `del`: decides which of its arguments are ids and which are targets, and lifts them.
//!
//! An argument is an id if a rule has exactly that id, and otherwise a target. An id may look like an
//! address (`10.0.0.1`). Several arguments are all looked up first, so that a typing error in the last
//! one changes nothing.

use std::collections::BTreeSet;

use blocker::api::client::{Client, ClientError};
use blocker::rule::{RuleId, Target};
use blocker::wire::{Account, Code, DeleteResponse};

use crate::failure::Failure;
use crate::input::Named;

/// An argument that was looked up.
enum Found {
    Rule(RuleId),
    Target(Target),
}

/// Lifts what the arguments name. Returns one account for all, and a line for each rule or target that
/// was gone before it could be lifted.
pub(crate) async fn lift(
    client: &Client,
    named: &[Named],
) -> Result<(DeleteResponse, Vec<String>), Failure> {
    if let [one] = named {
        return Ok((lift_one(client, one).await?, Vec::new()));
    }
    let found = look_up(client, named).await?;
    let mut whole = DeleteResponse {
        removed: Vec::new(),
        narrowed: Vec::new(),
        teardown: Account::default(),
    };
    let mut gone = Vec::new();
    for one in found {
        let answer = match &one {
            Found::Rule(id) => client.delete(id).await,
            Found::Target(target) => client.delete_target(*target).await,
        };
        match answer {
            Ok(answer) => add(&mut whole, answer),
            // Expired since the lookup, or lifted with an earlier argument: not an error.
            Err(ClientError::Problem(p)) if p.code == Code::NotFound => gone.push(match one {
                Found::Rule(id) => format!("rule {id} was gone already"),
                Found::Target(target) => format!("no rule had target {target} any more"),
            }),
            Err(error) if whole.removed.is_empty() && whole.narrowed.is_empty() => {
                return Err(error.into());
            }
            Err(error) => {
                let done = [whole.removed, whole.narrowed].concat();
                return Err(Failure::HalfWay { done, error });
            }
        }
    }
    // A rule that lost a target and then its last one was removed, not narrowed.
    let removed: BTreeSet<_> = whole.removed.iter().collect();
    whole.narrowed.retain(|id| !removed.contains(id));
    whole.narrowed.sort_unstable();
    whole.narrowed.dedup();
    Ok((whole, gone))
}

/// Lifts a single argument without a lookup: the daemon's answer says whether it exists. A program that
/// lifts one address at a time therefore does not read all rules each time.
async fn lift_one(client: &Client, named: &Named) -> Result<DeleteResponse, ClientError> {
    match named {
        Named::Id(id) => client.delete(id).await,
        Named::Target(target) => client.delete_target(*target).await,
        Named::Either(id, target) => match client.delete(id).await {
            Err(ClientError::Problem(p)) if p.code == Code::NotFound => {
                client.delete_target(*target).await
            }
            answer => answer,
        },
    }
}

async fn look_up(client: &Client, named: &[Named]) -> Result<Vec<Found>, Failure> {
    let mut ids = BTreeSet::new();
    let mut targets = BTreeSet::new();
    for view in client.list().await?.rules {
        ids.insert(view.rule.id);
        targets.extend(view.rule.targets.iter().copied());
    }
    let mut found = Vec::new();
    let mut unknown = Vec::new();
    for one in named {
        match one {
            Named::Id(id) | Named::Either(id, _) if ids.contains(id) => {
                found.push(Found::Rule(id.clone()));
            }
            Named::Target(target) | Named::Either(_, target) if targets.contains(target) => {
                found.push(Found::Target(*target));
            }
            Named::Id(id) => unknown.push(id.to_string()),
            Named::Target(target) | Named::Either(_, target) => unknown.push(target.to_string()),
        }
    }
    if unknown.is_empty() {
        Ok(found)
    } else {
        Err(Failure::Unknown(unknown))
    }
}

/// Adds the account of one argument to that of all.
fn add(whole: &mut DeleteResponse, part: DeleteResponse) {
    whole.removed.extend(part.removed);
    whole.narrowed.extend(part.narrowed);
    let (sum, one) = (&mut whole.teardown, part.teardown);
    sum.found += one.found;
    sum.killed += one.killed;
    sum.left.extend(one.left);
    sum.elapsed_ms += one.elapsed_ms;
    for note in one.notes {
        if !sum.notes.contains(&note) {
            sum.notes.push(note);
        }
    }
}

//! The set of a rule's targets.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Target;

/// Targets, sorted and without duplicates. They are immutable, and clones share them: a rule may
/// have a million targets, and every change of the ruleset clones all rules.
#[derive(Clone, Default, Eq)]
pub struct Targets(Arc<Vec<Target>>);

impl Targets {
    /// Whether two sets share one allocation. Compares only pointers.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the set contains a target.
    #[must_use]
    pub fn have(&self, target: Target) -> bool {
        self.binary_search(&target).is_ok()
    }

    /// The targets for which `keep` returns true.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&Target) -> bool) -> Self {
        self.iter().copied().filter(keep).collect()
    }
}

impl From<Vec<Target>> for Targets {
    fn from(mut targets: Vec<Target>) -> Self {
        // Most lists are sorted already.
        if !targets.is_sorted_by(|one, next| one < next) {
            targets.sort_unstable();
            targets.dedup();
        }
        targets.shrink_to_fit();
        Self(Arc::new(targets))
    }
}

impl FromIterator<Target> for Targets {
    fn from_iter<I: IntoIterator<Item = Target>>(targets: I) -> Self {
        targets.into_iter().collect::<Vec<_>>().into()
    }
}

impl From<Targets> for Vec<Target> {
    fn from(targets: Targets) -> Self {
        Arc::unwrap_or_clone(targets.0)
    }
}

impl Deref for Targets {
    type Target = [Target];

    fn deref(&self) -> &[Target] {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Targets {
    type Item = &'a Target;
    type IntoIter = std::slice::Iter<'a, Target>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl PartialEq for Targets {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.0 == other.0
    }
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

//! Whether a list is sound: it can be read, and is not suspiciously short.

use serde::Serialize;

use super::FeedError;
use crate::lists::{Invalid, List};

/// Shorter lists may lose any number of targets: one of three is a third.
const FEW: u64 = 20;

/// What a new list must be like to replace the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ListChecks {
    /// What is done with lines that cannot be read.
    pub invalid: Invalid,
    /// How many percent of the list before may be missing: 0 to 100.
    pub shrink: u8,
}

/// Reads a list in place of one with `before` targets, if there was one.
pub(super) fn sound(
    shown: &str,
    bytes: &[u8],
    checks: ListChecks,
    before: Option<u64>,
) -> Result<List, FeedError> {
    let list = List::parse(shown, bytes, checks.invalid)
        .map_err(|error| FeedError::List(error.brief()))?;
    if let Some(before) = before.filter(|before| *before >= FEW) {
        let least = before * u64::from(100 - checks.shrink.min(100));
        if list.kept * 100 < least {
            return Err(FeedError::Shrunk {
                from: shown.to_owned(),
                before,
                now: list.kept,
                most: checks.shrink,
            });
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(shrink: u8) -> ListChecks {
        ListChecks {
            invalid: Invalid::Refuse,
            shrink,
        }
    }

    fn list(count: u32) -> Vec<u8> {
        let lines = (0..count).map(|n| format!("198.51.{}.{}\n", n / 256, n % 256));
        lines.collect::<String>().into_bytes()
    }

    #[test]
    fn a_list_may_lose_what_shrink_says_and_not_a_target_more() {
        for (before, now, shrink, good) in [
            (None, 1, 50, true),
            (Some(100), 50, 50, true),
            (Some(100), 49, 50, false),
            (Some(100), 100, 0, true),
            (Some(100), 99, 0, false),
            (Some(100), 1, 100, true),
            (Some(19), 1, 50, true),
            (Some(20), 9, 50, false),
            (Some(100), 5_000, 0, true),
        ] {
            let sound = sound("l", &list(now), checks(shrink), before);
            assert_eq!(sound.is_ok(), good, "{before:?} {now} {shrink}");
        }
    }

    #[test]
    fn nothing_is_never_sound() {
        for text in ["", "# all is well\n"] {
            let error = sound("l", text.as_bytes(), checks(100), None).unwrap_err();
            assert!(error.to_string().contains("no target"), "{error}");
        }
        let error = sound("l", b"<html>\n198.51.100.1\n", checks(100), None).unwrap_err();
        assert!(error.to_string().starts_with("l:1: "), "{error}");
    }
}

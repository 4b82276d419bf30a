//! Whether a list is sound: it can be read, and is not suspiciously short.

use std::io::Read as _;
use std::path::Path;

use super::FeedError;
use crate::config::feeds::{Feed, Invalid, ListChecks, Source};
use crate::lists::{self, List};

/// Shorter lists may lose as many targets as they like, but for the last: one of three is a third.
const FEW: u64 = 20;

/// Reads a list that takes the place of one with `before` targets, if there was one.
pub(super) fn sound(
    place: &str,
    bytes: &[u8],
    checks: ListChecks,
    before: Option<u64>,
) -> Result<List, FeedError> {
    let invalid = match checks.invalid {
        Invalid::Refuse => lists::Invalid::Refuse,
        Invalid::Skip => lists::Invalid::Skip,
    };
    let list =
        List::parse(place, bytes, invalid).map_err(|error| FeedError::List(error.brief()))?;
    if let Some(before) = before.filter(|before| *before >= FEW) {
        let least = before * u64::from(100 - checks.shrink.min(100));
        if list.kept * 100 < least {
            return Err(FeedError::Shrunk {
                place: place.to_owned(),
                before,
                now: list.kept,
                most: checks.shrink,
            });
        }
    }
    Ok(list)
}

/// Reads a list's file, of so many bytes at most.
///
/// # Errors
/// It cannot be read, or is not sound.
pub fn load_file(
    path: &Path,
    most: u64,
    checks: ListChecks,
    before: Option<u64>,
) -> Result<List, FeedError> {
    let failed = |source| FeedError::Read {
        path: path.display().to_string(),
        source,
    };
    let mut bytes = Vec::new();
    // Opening a pipe would wait for whoever writes into it.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(FeedError::File(format!(
            "{} is no plain file",
            path.display()
        )));
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let place = path.display().to_string();
    if bytes.len() as u64 > most {
        return Err(FeedError::TooLarge { place, most });
    }
    sound(&place, &bytes, checks, before)
}

/// Warns of lists in files that cannot be used as they are: they may be there later.
pub fn warn_of_files(feeds: &[Feed]) {
    for feed in feeds {
        if let Source::File { path, list } = &feed.source
            && let Err(error) = load_file(path, feed.max_bytes, *list, None)
        {
            tracing::warn!("feed {}: {error}", feed.name);
        }
    }
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

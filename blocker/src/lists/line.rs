//! One line of a list, in any of the formats.

use std::borrow::Cow;

use serde::Deserialize;

use super::error::clipped;
use crate::rule::{RuleError, Target};

/// No target's text is longer. The error for a longer text quotes only its beginning.
const LONGEST: usize = 64;

/// The target that a line names; `None` for an empty line, a comment or metadata. The error says
/// why the line is invalid.
pub(super) fn target(line: &[u8]) -> Result<Option<Target>, String> {
    let line = line.trim_ascii();
    // The fast path: most lines are plain IPv4 targets.
    if let Some(target) = Target::plain(line) {
        return Ok(Some(target));
    }
    if line.first() == Some(&b'{') {
        return json(line);
    }
    let end = line.iter().position(|byte| matches!(byte, b'#' | b';'));
    let text = line[..end.unwrap_or(line.len())].trim_ascii_end();
    if text.is_empty() {
        return Ok(None);
    }
    match std::str::from_utf8(text) {
        Ok(text) if text.len() <= LONGEST => text
            .parse()
            .map(Some)
            .map_err(|error: RuleError| error.to_string()),
        _ => Err(RuleError::Target(clipped(text)).to_string()),
    }
}

/// A line of Spamhaus' NDJSON. An object's other fields (`sblid`, `rir`) are ignored.
#[derive(Deserialize)]
struct Object<'a> {
    #[serde(default)]
    cidr: Option<Target>,
    #[serde(default, borrow, rename = "type")]
    kind: Cow<'a, str>,
}

fn json(line: &[u8]) -> Result<Option<Target>, String> {
    let object: Object<'_> = serde_json::from_slice(line).map_err(|error| {
        let message = error.to_string();
        // The error's line is always 1, because each line is parsed alone: only the column is told.
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = message.strip_suffix(&place).unwrap_or(&message);
        format!("column {}: {message}", error.column())
    })?;
    match object.cidr {
        None if object.kind == "metadata" => Ok(None),
        None => Err("the object names no target: \"cidr\" is missing".to_owned()),
        target => Ok(target),
    }
}

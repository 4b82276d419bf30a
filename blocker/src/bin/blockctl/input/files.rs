//! Files that the command line names: that of `apply`, and target lists.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use blocker::lists::{Invalid, List, ListError};

use super::Flaws;

/// Reads the file of `apply`; `-` is standard input. Gives its name for messages, which for a file
/// is its path, and its text.
pub(crate) fn read_file(path: &Path) -> Result<(String, String), Flaws> {
    let (name, text) = if path == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        ("standard input".to_owned(), read.map(|_| text))
    } else {
        (path.display().to_string(), std::fs::read_to_string(path))
    };
    match text {
        Ok(text) => Ok((name, text)),
        Err(error) => Err(vec![format!("cannot read {name}: {error}")]),
    }
}

/// Reads the lists of `add`; `-` is standard input. Their errors are appended to `flaws`.
pub(super) fn lists(paths: &[PathBuf], invalid: Invalid, flaws: &mut Flaws) -> Vec<List> {
    let is_stdin = |path: &&PathBuf| path.as_path() == Path::new("-");
    if paths.iter().filter(is_stdin).count() > 1 {
        flaws.push("--from-file: standard input (-) can be read only once".to_owned());
        return Vec::new();
    }
    let mut lists = Vec::new();
    for path in paths {
        let list = match is_stdin(&path) {
            true => List::load_stdin(invalid),
            false => List::load(path, invalid),
        };
        match list {
            Ok(list) => lists.push(list),
            Err(error) => flaws.extend(list_flaws(&error)),
        }
    }
    lists
}

/// The errors of a list, and what to do.
pub(super) fn list_flaws(error: &ListError) -> impl Iterator<Item = String> + use<> {
    let hint = match error {
        ListError::Invalid { name, .. } => Some(format!(
            "{name}: correct the lines, or leave them out with --skip-invalid"
        )),
        ListError::Read { .. } | ListError::Empty { .. } => None,
    };
    error.messages().into_iter().chain(hint)
}

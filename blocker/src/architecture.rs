//! Holds the sources to `docs/architecture.md`: which modules there are, and what each may import.
//!
//! A path that begins with `crate::` is an import, except in comments and tests: a test may compose
//! what stands above its module.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A module, and modules that it imports.
type Row = (String, BTreeSet<String>);

const PAGE: &str = include_str!("../../docs/architecture.md");

/// The rows of the table under a heading: a name first, imports last, both in backticks.
fn table(heading: &str) -> Vec<Row> {
    let section = PAGE.split(heading).nth(1).expect(heading);
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let names = |cell: &str| -> Vec<String> {
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted.map(str::to_owned).collect()
    };
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let imports = names(cells[cells.len() - 1]).into_iter().collect();
        (names(cells[0]).remove(0), imports)
    })
    .collect()
}

/// The modules in a directory, with their files.
fn modules(directory: &str, without: &[&str]) -> Vec<(String, Vec<PathBuf>)> {
    fn files(path: &Path) -> Vec<PathBuf> {
        if !path.is_dir() {
            return vec![path.to_owned()];
        }
        let entries = fs::read_dir(path).unwrap().map(Result::unwrap);
        let paths = entries.map(|entry| entry.path());
        let product = paths.filter(|path| path.file_stem() != Some("tests".as_ref()));
        product.flat_map(|path| files(&path)).collect()
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let named = entries.map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        (
            name.trim_end_matches(".rs").to_owned(),
            files(&entry.path()),
        )
    });
    named
        .filter(|(name, _)| !without.contains(&name.as_str()))
        .collect()
}

/// The first names of all paths that begin with `crate::`.
fn paths(source: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = source.lines().map(|line| line.split("//").next().unwrap());
    let code: Vec<&str> = lines.collect();
    let mut names = BTreeSet::new();
    for rest in code.join("\n").split("crate::").skip(1) {
        let mut depth = 0;
        // Of `{a::{b, c}, d}`: `a::, d`.
        let outermost: String = match rest.strip_prefix('{') {
            None => rest.split([',', ';', '\n']).next().unwrap().to_owned(),
            Some(group) => group
                .chars()
                .map_while(|letter| {
                    depth += i32::from(letter == '{') - i32::from(letter == '}');
                    (depth >= 0).then_some(if depth == 0 { letter } else { ' ' })
                })
                .collect(),
        };
        let first = |path: &str| {
            let end = |letter: char| !letter.is_alphanumeric() && letter != '_';
            path.trim().split(end).next().unwrap().to_owned()
        };
        names.extend(outermost.split(',').map(first));
    }
    names
}

/// Holds the modules in a directory to the table under a heading. Rows import rows above them, so there
/// is no circle.
fn check(heading: &str, directory: &str, without: &[&str]) {
    let table = table(heading);
    for (number, (name, imports)) in table.iter().enumerate() {
        for import in imports {
            let is_above = table[..number].iter().any(|(row, _)| row == import);
            assert!(is_above, "{name}: {import} stands below");
        }
    }
    let modules = modules(directory, without);
    let mut rows: Vec<&String> = table.iter().map(|(name, _)| name).collect();
    let mut names: Vec<&String> = modules.iter().map(|(name, _)| name).collect();
    rows.sort();
    names.sort();
    assert_eq!(rows, names, "the modules of the table and the sources");
    for (name, files) in &modules {
        let (_, allowed) = table.iter().find(|(row, _)| row == name).unwrap();
        for file in files {
            for import in paths(&fs::read_to_string(file).unwrap()) {
                assert!(
                    import == *name || !names.contains(&&import) || allowed.contains(&import),
                    "{} imports {import}, which docs/architecture.md does not allow",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn the_daemons_modules_import_only_what_they_may() {
    check(
        "## Modules of the daemon",
        "src",
        &["architecture", "bin", "lib", "main"],
    );
}

#[test]
fn the_datapaths_files_import_only_what_they_may() {
    check(
        "## Files of the datapath",
        "../blocker-ebpf/src",
        &["lib", "main", "names", "records", "toolchain"],
    );
}

#[test]
fn imports_are_found_in_every_form() {
    let source = "use crate::rule::{Mode, Rule};\n// use crate::api::Api;\n\
                  use crate::{a::{b, c}, d};\nlet x = crate::wire::Code::Refused;\n\
                  #[cfg(test)]\nmod tests {\n    use crate::controller::Controller;\n}";
    let expected = ["a", "d", "rule", "wire"].map(str::to_owned);
    assert_eq!(paths(source), expected.into());
}

//! Man pages and shell completions, generated from the commands' definitions, for packages.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// Writes `man/*.1` (a page for each subcommand, too) and `completions/` for bash, zsh and fish,
/// each under the name that the shell looks for, into a directory.
///
/// # Errors
/// If something can't be written.
pub fn write(mut command: Command, directory: &Path) -> io::Result<()> {
    let pages = directory.join("man");
    fs::create_dir_all(&pages)?;
    clap_mangen::generate_to(command.clone(), pages)?;
    let name = command.get_name().to_owned();
    let completions = directory.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, &completions)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    #[test]
    fn each_command_has_its_page_and_each_shell_its_file() {
        let command = Command::new("tool")
            .about("Does it")
            .arg(Arg::new("level").long("level"))
            .subcommand(Command::new("run").about("Runs"))
            .subcommand(Command::new("secret").hide(true));
        let directory = tempfile::tempdir().unwrap();
        super::write(command, directory.path()).unwrap();
        let names = |of: &str| {
            let entries = directory.path().join(of).read_dir().unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names("man"), ["tool-run.1", "tool.1"]);
        assert_eq!(names("completions"), ["_tool", "tool.bash", "tool.fish"]);
        let page = std::fs::read_to_string(directory.path().join("man/tool.1")).unwrap();
        assert!(page.contains("Does it") && page.contains("level"), "{page}");
    }
}

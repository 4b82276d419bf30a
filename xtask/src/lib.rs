//! The tasks of this workspace, one module each (`cargo xtask help` lists them), and what they share
//! with blocker's tests: the public modules.
//!
//! Depends on nothing that needs the eBPF toolchain, so that `cargo xtask setup` can install it.

mod bench;
pub mod bpf;
mod build;
mod command;
mod demo;
pub mod etcd;
mod fleet;
pub mod hosts;
pub mod kernel_objects;
mod kernels;
mod package;
mod python;
mod setup;
mod soak;
mod test;
mod test_package;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The tasks of blocker's workspace"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need; does nothing if nothing is missing
    Setup {
        /// Only report what is missing; fails if anything is
        #[arg(long)]
        check: bool,
    },
    /// Build `blocker` and `blockctl` for use (release profile, stripped)
    Build,
    /// Show in network namespaces how iptables fails to cut a host off, and how blocker does it
    Demo {
        /// The directory of the programs, if they are built already
        #[arg(long, hide = true)]
        programs: Option<PathBuf>,
    },
    /// Measure the cost of a packet with blocker, with its peers, and without a filter
    Bench {
        #[command(flatten)]
        what: bench::What,
        /// The directory of the programs, if they are built already
        #[arg(long, hide = true)]
        programs: Option<PathBuf>,
    },
    /// Measure the load of a large fleet on etcd: many hosts in one process, without a datapath
    Fleet {
        /// Number of hosts; several, separated by commas
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "100,300,1000",
            value_name = "N"
        )]
        hosts: Vec<usize>,
        /// Number of rules that exist before
        #[arg(long, default_value_t = 20, value_name = "N")]
        rules: usize,
    },
    /// Build a Debian package and an RPM, and check the former with lintian
    Package {
        /// Build the programs without shared libraries instead
        #[arg(long = "static")]
        fixed: bool,
    },
    /// Install, use, upgrade and remove the packages in a booted system
    TestPackage(test_package::How),
    /// Change rules, reload, restart and kill the daemon under traffic for a long time; check that
    /// no blocked packet passes and no resource grows
    Soak {
        #[command(flatten)]
        how: soak::How,
        /// The directory of the programs, if they are built already
        #[arg(long, hide = true)]
        programs: Option<PathBuf>,
    },
    /// Run all tests, those that need root and a kernel included
    Test {
        /// Only tests whose name contains one of these
        filter: Vec<String>,
        /// On other kernels, under QEMU: 5.10, 6.1, 6.12, newest; several, separated by commas
        #[arg(long, value_delimiter = ',', value_name = "VERSION")]
        kernel: Vec<kernels::Release>,
    },
}

/// Carries out the task that the command line names.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup { check: true } => setup::check(setup::Purpose::Test),
        Task::Setup { check: false } => setup::install(setup::Purpose::Test),
        Task::Bench {
            programs: Some(programs),
            what,
        } => bench::compare(&programs, &what),
        Task::Bench {
            programs: None,
            what,
        } => bench::run(&what),
        Task::Fleet { hosts, rules } => fleet::run(&hosts, rules),
        Task::Build => setup::install(setup::Purpose::Build)
            .and_then(|()| build::release())
            .map(drop),
        Task::Demo { programs } => demo::demo(programs),
        Task::Package { fixed: false } => package::check(),
        Task::Package { fixed: true } => package::fixed(),
        Task::Soak { how, programs } => soak::run(how, programs),
        Task::TestPackage(how) => test_package::run(how),
        Task::Test { filter, kernel } if kernel.is_empty() => test::run(&filter),
        Task::Test { filter, kernel } => kernels::run(&kernel, &filter),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

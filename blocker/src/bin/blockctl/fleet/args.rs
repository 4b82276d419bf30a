//! The command line of `fleet`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::args::AddArgs;

pub(crate) const ABOUT: &str = "\
Block on many hosts at once, through etcd.

Hosts whose configuration names the same etcd take their rules from it. This command uses etcd, not the \
daemon. It reads `fleet` (endpoints, tls, prefix) from /etc/blocker/fleet.yaml, else from \
/etc/blocker/blocker.yaml, in the format of the daemon's configuration, with a certificate that may \
write rules.";

pub(crate) const AFTER: &str = "\
Examples:
  blockctl fleet add 10.48.22.221 --hosts role=web --mode reset --for 10m --wait
  blockctl fleet add 10.48.22.221 --hosts 'web*,!web3' --for 10m --dry-run    list hosts and numbers of flows
  blockctl fleet during 10.48.0.0/16 --hosts zone=eu-1 --for 30m -- ./drill.sh
  blockctl fleet status
  blockctl fleet del dev01 --wait

Exit codes: as for the other commands, with etcd instead of the daemon:
  2  invalid input, or no host is selected; nothing was changed
  3  no member of etcd is reachable; nothing was changed
  5  more hosts than --max-hosts, or refused by every host
  6  some hosts refused, did not answer in time, or left established flows alive";

/// `fleet`.
#[derive(Debug, Args)]
pub(crate) struct FleetArgs {
    /// The file that names etcd [default: /etc/blocker/fleet.yaml, else /etc/blocker/blocker.yaml].
    #[arg(long, global = true, value_name = "FILE", env = "BLOCKER_FLEET")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: FleetCommand,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Block targets on the hosts that a selector chooses.
    ///
    /// The rule ends at its deadline on each host, also without etcd and this program.
    Add(Box<FleetAdd>),
    /// Block targets on many hosts while a command runs.
    ///
    /// The command starts once the rule is in force on all hosts. The rule is lifted when the command ends,
    /// within some seconds if this program is killed, and at its deadline in any case.
    During(Box<FleetDuring>),
    /// Lift rules on all hosts, by id.
    Del {
        /// The rules.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List all rules, and the number of hosts that have applied each.
    List,
    /// Show every host: its revision, what it refuses, its teardowns.
    Status {
        /// Only these hosts.
        #[arg(long, value_name = "SELECTOR", default_value = "*")]
        hosts: String,
    },
    /// Show changes of rules and the hosts' reports, as they happen, until Ctrl-C.
    Watch {
        /// Only these hosts.
        #[arg(long, value_name = "SELECTOR", default_value = "*")]
        hosts: String,
    },
}

/// `fleet add`.
#[derive(Debug, Args)]
pub(crate) struct FleetAdd {
    #[command(flatten)]
    pub(crate) rule: AddArgs,
    #[command(flatten)]
    pub(crate) on: On,
    /// Block without a deadline, until the rule is lifted.
    #[arg(long, conflicts_with_all = ["lifetime", "expires"])]
    pub(crate) forever: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// `fleet during`.
#[derive(Debug, Args)]
pub(crate) struct FleetDuring {
    #[command(flatten)]
    pub(crate) rule: AddArgs,
    #[command(flatten)]
    pub(crate) on: On,
    /// How long to wait for the hosts, before the command starts and at the end.
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(crate) wait: String,
    /// Run the command even if some hosts refuse the rule or do not answer.
    #[arg(long)]
    pub(crate) partial: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Which hosts.
#[derive(Debug, Args)]
pub(crate) struct On {
    /// The hosts: *, names, globs and labels: web1,web2, 'web*,!web3', role=web,zone=eu-1.
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) hosts: String,
    /// Refuse if the selector chooses more hosts.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) max_hosts: usize,
}

/// Whether to wait.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Wait until all hosts have applied or refused the change, at most this long [default: 30s].
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "30s"
    )]
    pub(crate) wait: Option<String>,
}

//! The command line and its help texts.
//!
//! Owns names, help texts and the defaults of the client's own options. A rule's fields stay text
//! here; [`crate::input`] parses them, so that all errors are reported at once, and owns those of a match.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::input::MatchArgs;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  usage or invalid input; nothing was changed
  3  the daemon is not reachable; nothing was changed
  4  no such rule; nothing was changed
  5  refused to protect you (--force overrides); nothing was changed
  6  partly enforced: the rule is in force, but some established flows were not killed";

const ADD_EXAMPLES: &str = "\
Examples:
  blockctl add 10.48.22.221 --mode reset          close every connection at both ends
  blockctl add 10.171.0.0/16 --except 10.171.0.9  drop a network except one host
  blockctl add 2001:db8::7 --protocol tcp --remote-port 443,8080-8085 --for 5m
  blockctl add --from-file drop.netset --id drop      block a published list
  blockctl add 10.48.22.221 --mode reset --dry-run    list the flows that would be killed";

const DURING_ABOUT: &str = "\
Block targets while a command runs.

The block is lifted when the command ends, at SIGINT, SIGTERM and SIGHUP (which are passed to the \
command), and when this program is killed. If the daemon dies, the kernel ends the block within half a \
minute. Without a command the block lasts until this program is interrupted.

The exit code is the command's; 128 plus the signal's number if a signal ended it; 127 if it cannot be \
started. If the command succeeded but the block ended before it, the exit code is 6.";

const DURING_EXAMPLES: &str = "\
Examples:
  blockctl during 10.48.22.221 --mode reset -- ./run-experiment.sh
  blockctl during 10.48.22.221 --mode reset --report evidence.json -- pytest tests/failover
  blockctl during 10.48.0.0/16                         block until Ctrl-C";

const DEL_ABOUT: &str = "\
Lift rules by id, or remove targets from all rules that name them.

An argument is an id if there is a rule of exactly that id. Otherwise, if it is an address or a \
prefix, it is a target: it is removed from every rule that names exactly this target, and a rule \
that has no other target is lifted. Several arguments are all looked up first; if one is unknown, \
nothing is changed.";

const APPLY_ABOUT: &str = "\
Make the API's rules exactly those of a file, as one change.

The file is YAML or JSON: `rules:` and a list of rules, with the fields that the configuration \
file has. A rule may name a list of targets as `targets_file`, relative to the file. Rules that \
are in force but not in the file are lifted; the configuration's own rules \
are not touched. What changes is printed as a diff: + added, - removed, ~ changed.";

const EXPLAIN_ABOUT: &str = "\
Show which rule decides a packet from or to a remote, at which hook, and why the other rules do not.

The answer is computed from the tables that the datapath uses at that moment. Fields that are not \
given are unknown; if the answer depends on one, it says so.";

const RUN_ABOUT: &str = "\
Carry out a runbook: a file with the steps of an experiment (block, wait, check, lift).

Every block is lifted at the end, when a step fails, at SIGINT, SIGTERM and SIGHUP, and when this \
program is killed. If the daemon dies, the kernel ends the blocks within half a minute. Before the \
first step the daemon is asked whether it would accept every block.

Progress is printed on standard error, the summary on standard output. The file is YAML; `blockctl \
schema` prints its JSON Schema, for editors.

Exit codes: 0 if all steps succeeded; 1 if a check failed or the deadline passed; 2 if the file is \
invalid; 3 if the daemon is not reachable; 5 if a block is refused; 6 if all checks passed but some \
established flows were not killed, or if a block ended before its lift; 128 plus the signal's number \
if a signal ended the run.";

const RUN_EXAMPLES: &str = "\
Examples:
  blockctl run dead-client.yaml --dry-run      check the file, list its steps and the flows to be killed
  blockctl run dead-client.yaml --report evidence.json";

const STATS_ABOUT: &str = "\
Show rates of rules and hooks: packets and bits a second, replies, what hooks saw and passed.

A rate is the difference of two totals, so the first is printed after one interval. -o json prints \
one object for each interval, one a line.";

const FLOWS_ABOUT: &str = "\
List the flows that rules decided: those that were blocked, or would have been (mode audit).

The datapath records at least limits.flows flows; new ones replace the oldest. The list includes flows \
of rules that were lifted.";

const WATCH_ABOUT: &str = "\
Show packets that rules decide, and changes, as they happen, until Ctrl-C.

Each packet is a line, with its verdict and rule. Changes of rules, teardowns, reloads and devices are \
lines, too. The daemon applies the filters. If there are more packets than limits.events_per_second of \
the configuration allows, or than can be printed, some are left out and their number is printed; the \
counters of list and flows include them.

-o json writes one object a line.";

/// Block and unblock peers, through the blocker daemon.
#[derive(Debug, Parser)]
#[command(name = "blockctl", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The daemon's control socket.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "BLOCKER_SOCKET",
        default_value = "/run/blocker/control.sock"
    )]
    pub(crate) socket: PathBuf,
    /// Output format; json is the API's answer.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// Colours; auto: on a terminal, unless NO_COLOR is set.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value_t = Color::Auto
    )]
    pub(crate) color: Color,
    /// Print only errors; `add` and `list` print ids, one a line.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Text and tables.
    Table,
    /// The API's JSON, with exact numbers.
    Json,
    /// The same as YAML.
    Yaml,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Block targets.
    #[command(after_help = ADD_EXAMPLES)]
    Add(Box<AddArgs>),
    #[command(about = "Block targets while a command runs", long_about = DURING_ABOUT, after_help = DURING_EXAMPLES)]
    During(Box<DuringArgs>),
    #[command(about = "Carry out a runbook", long_about = RUN_ABOUT, after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Print the JSON Schema of runbooks.
    Schema,
    #[command(about = "Lift rules by id, or remove targets from rules", long_about = DEL_ABOUT)]
    Del {
        /// A rule's id, or a target: an address or prefix.
        #[arg(required = true, value_name = "ID|TARGET")]
        what: Vec<String>,
    },
    /// Keep a rule that was added with --confirm-within.
    Confirm {
        /// The rule's id.
        id: String,
    },
    /// List all rules.
    List,
    /// Show one rule in full.
    Show {
        /// The rule's id.
        id: String,
    },
    /// Lift every rule of the API.
    Flush {
        /// Also lift the configuration's rules, until its next reload.
        #[arg(long)]
        all: bool,
    },
    #[command(about = "Make the API's rules exactly those of a file", long_about = APPLY_ABOUT)]
    Apply {
        /// YAML or JSON; - reads standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Skip invalid lines of the lists that rules name as targets_file.
        #[arg(long)]
        skip_invalid: bool,
        /// Print what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Override refusals, except `protect` and loopback.
        #[arg(long)]
        force: bool,
    },
    #[command(about = "Show which rule decides a packet, and why", long_about = EXPLAIN_ABOUT)]
    Explain(ExplainArgs),
    #[command(about = "List the flows that rules decided", long_about = FLOWS_ABOUT)]
    Flows(FlowsArgs),
    #[command(about = "Show packets that rules decide, and changes, as they happen", long_about = WATCH_ABOUT)]
    Watch(WatchArgs),
    #[cfg(feature = "fleet")]
    #[command(about = "Block on many hosts at once, through etcd", long_about = crate::fleet::args::ABOUT, after_help = crate::fleet::args::AFTER)]
    Fleet(crate::fleet::args::FleetArgs),
    /// Show the daemon's state: devices, limits, the last reload, missing kernel features.
    Status,
    #[command(about = "Show rates of rules and hooks", long_about = STATS_ABOUT)]
    Stats(StatsArgs),
    /// Show rates of rules and blocked flows in the terminal; q quits.
    Top(TopArgs),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write man pages and completions into a directory, for packages.
    #[command(hide = true)]
    Manual {
        /// The directory.
        directory: PathBuf,
    },
}

/// A rule, as flags.
#[derive(Debug, Default, Args)]
pub(crate) struct AddArgs {
    /// Remotes: addresses or prefixes, IPv4 or IPv6.
    #[arg(required_unless_present = "from_file", value_name = "TARGET")]
    pub(crate) targets: Vec<String>,
    /// A file with more targets, one a line; - reads standard input. May be repeated.
    ///
    /// Plain, FireHOL's .netset and .ipset, Spamhaus' DROP as text or JSON.
    #[arg(long, value_name = "PATH")]
    pub(crate) from_file: Vec<PathBuf>,
    /// Skip invalid lines of such files, instead of refusing the file.
    #[arg(long, requires = "from_file")]
    pub(crate) skip_invalid: bool,
    /// The rule's id; generated if absent.
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// What is done with packets [default: that of the configuration, else drop].
    ///
    /// drop: no reply. reset: RST to both ends of TCP, ICMP port unreachable for other protocols.
    /// reject: ICMP administratively prohibited. audit: count and pass.
    #[arg(long, value_parser = PossibleValuesParser::new(["drop", "reset", "reject", "audit"]))]
    pub(crate) mode: Option<String>,
    #[command(flatten)]
    pub(crate) matching: MatchArgs,
    /// What to do with established flows [default: kill for reset, else keep].
    #[arg(long, value_parser = PossibleValuesParser::new(["kill", "keep"]))]
    pub(crate) established: Option<String>,
    /// What to do with blocked flows when the rule ends [default: resume].
    ///
    /// reset kills the flows that were seen during the block, so that no stale data is delivered.
    #[arg(long, value_parser = PossibleValuesParser::new(["resume", "reset"]))]
    pub(crate) on_lift: Option<String>,
    /// How long the rule is in force: 30s, 5m, 1h30m, 2d [default: until it is lifted].
    #[arg(long = "for", value_name = "DURATION")]
    pub(crate) lifetime: Option<String>,
    /// When the rule ends: RFC 3339, such as 2026-01-31T18:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) expires: Option<String>,
    /// End the rule after this time, unless `blockctl confirm ID` is run before.
    #[arg(long, value_name = "DURATION")]
    pub(crate) confirm_within: Option<String>,
    /// Why the rule is there: "INC-1234".
    #[arg(long, value_name = "TEXT")]
    pub(crate) comment: Option<String>,
    /// Parts of the targets to leave alone.
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    pub(crate) except: Vec<String>,
    /// Override refusals, except `protect` and loopback.
    #[arg(long)]
    pub(crate) force: bool,
    /// List the flows that would be killed, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `during`: a rule, as flags, and a command.
#[derive(Debug, Default, Args)]
pub(crate) struct DuringArgs {
    #[command(flatten)]
    pub(crate) rule: AddArgs,
    /// Write a report as JSON: what was blocked, when, which flows, what was killed.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The runbook, as YAML; - reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Check the file, print its steps and the flows that would be killed, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write a report as JSON: every step, every block, which flows, what was killed.
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub(crate) report: Option<PathBuf>,
    /// Override refusals, except `protect` and loopback.
    #[arg(long)]
    pub(crate) force: bool,
}

/// `stats`.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// The interval: 500ms, 1s, 1m; repeats until interrupted [default: 1s, once].
    #[arg(short, long, value_name = "DURATION")]
    pub(crate) interval: Option<String>,
    /// The number of intervals.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
}

/// `top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The interval: 500ms, 1s, 1m [default: 1s].
    #[arg(short, long, value_name = "DURATION")]
    pub(crate) interval: Option<String>,
}

/// A packet, as flags.
#[derive(Debug, Default, Args)]
pub(crate) struct ExplainArgs {
    /// The remote: one address, IPv4 or IPv6.
    pub(crate) address: String,
    /// The local address [default: unknown].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) local: Option<String>,
    /// The port of either side.
    #[arg(long, value_name = "PORT", conflicts_with_all = ["local_port", "remote_port"])]
    pub(crate) port: Option<String>,
    /// The port of this host's side.
    #[arg(long, value_name = "PORT")]
    pub(crate) local_port: Option<String>,
    /// The port of the remote's side.
    #[arg(long, value_name = "PORT")]
    pub(crate) remote_port: Option<String>,
    /// tcp, udp, icmp or a number from 0 to 255 [default: unknown].
    #[arg(long)]
    pub(crate) protocol: Option<String>,
    /// The packet's direction, seen from this host [default: both].
    #[arg(long, value_parser = PossibleValuesParser::new(["both", "ingress", "egress"]))]
    pub(crate) direction: Option<String>,
    /// The packet's device, by name or glob [default: every attached one].
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<String>,
}

/// `flows`.
#[derive(Debug, Default, Args)]
pub(crate) struct FlowsArgs {
    /// Rules by id; several separated by commas or by repeating the flag.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub(crate) rule: Vec<String>,
    /// Flows with a remote in one of these addresses or prefixes.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) remote: Vec<String>,
    /// any, tcp, udp, icmp or a number from 0 to 255 [default: any].
    #[arg(long)]
    pub(crate) protocol: Option<String>,
    /// Sort key, descending [default: last_seen].
    #[arg(long, value_name = "BY", value_parser = PossibleValuesParser::new(["packets", "bytes", "first_seen", "last_seen"]))]
    pub(crate) sort: Option<String>,
    /// The maximum number of flows.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: u32,
}

/// `watch`.
#[derive(Debug, Default, Args)]
pub(crate) struct WatchArgs {
    /// Rules by id; several separated by commas or by repeating the flag.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub(crate) rule: Vec<String>,
    /// Packets with a remote in one of these addresses or prefixes.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) remote: Vec<String>,
    /// Packets of a protocol: tcp, udp, icmp or a number from 0 to 255 [default: any].
    #[arg(long)]
    pub(crate) protocol: Option<String>,
    /// Packets with this verdict.
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(["dropped", "reset", "rejected", "audited", "suppressed"]))]
    pub(crate) verdict: Vec<String>,
    /// Kinds of events [default: all].
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(["packet", "rule", "teardown", "reload", "device", "lost"]))]
    pub(crate) kind: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

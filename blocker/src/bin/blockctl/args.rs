//! The command line: what may be written, and what `--help` says about it.
//!
//! Owns names, defaults of the client's own options and help texts. A rule's fields stay text
//! here: [`crate::input`] reads them, so that every error in them is reported at once.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  usage or invalid input; nothing was changed
  3  the daemon is not reachable; nothing was changed
  4  no such rule; nothing was changed
  5  refused to protect you (--force overrides); nothing was changed
  6  partly enforced: the rule is in force, but some established flows were left";

const ADD_EXAMPLES: &str = "\
Examples:
  blockctl add 10.48.22.221 --mode reset          both ends of every flow die, new ones fail
  blockctl add 10.171.0.0/16 --except 10.171.0.9  drop a network but for one host
  blockctl add 2001:db8::7 --protocol tcp --remote-port 443,8080-8085 --for 5m
  blockctl add --from-file drop.netset --id drop      block a published list
  blockctl add 10.48.22.221 --mode reset --dry-run    which flows would die?";

const DURING_ABOUT: &str = "\
Block targets while a command runs, and lift the block whatever becomes of it.

The block holds as long as this program does: it is lifted when the command ends, at SIGINT, SIGTERM \
and SIGHUP (which the command gets, too), and when this program is killed. Should the daemon die, the \
kernel ends the block within half a minute. Without a command it holds until it is interrupted.

The exit code is the command's; 128 and the signal's number if a signal ended it, 127 if it cannot be \
started. If it succeeded, but the block did not hold to its end, the exit code is 6.";

const DURING_EXAMPLES: &str = "\
Examples:
  blockctl during 10.48.22.221 --mode reset -- ./run-experiment.sh
  blockctl during 10.48.22.221 --mode reset --report evidence.json -- pytest tests/failover
  blockctl during 10.48.0.0/16                         until Ctrl-C";

const DEL_ABOUT: &str = "\
Lift rules by id, or take targets out of all rules that name them.

An argument is an id if there is a rule of exactly that id. Otherwise, if it is an address or a \
prefix, it is a target: it is taken out of every rule that names exactly it, and a rule that has \
no other target is gone. With several arguments all are looked up first; if one is unknown, \
nothing is changed.";

const APPLY_ABOUT: &str = "\
Make the API's rules exactly those of a file, as one change.

The file is YAML or JSON: `rules:` and a list of rules, with the fields that the configuration \
file has. A rule may name a list of targets as `targets_file`, relative to the file. Rules that \
are in force but not in the file are lifted; the configuration's own rules \
are not touched. What changes is printed as a diff: + added, - removed, ~ changed.";

const EXPLAIN_ABOUT: &str = "\
Tell what becomes of a packet from or to a remote: which rule decides, at which hook, and why not \
the others.

The answer is read from what the datapath holds at that moment. What is left out may be anything: \
where it makes a difference, the answer says on what it depends.";

const RUN_ABOUT: &str = "\
Carry out an experiment from a file: block, wait, check, lift, step by step.

Whatever happens, every block is lifted: at the end, when a step fails, at SIGINT, SIGTERM and SIGHUP, \
and when this program is killed. Should the daemon die, the kernel ends the blocks within half a \
minute. The daemon is asked about every block before the first step.

What happens is told on standard error as it happens, the summary goes to standard output. The file \
is YAML; `blockctl schema` prints its JSON Schema, for editors.

Exit codes: 0 if all went as the file expects; 1 if a check failed or the deadline passed; 2 if the \
file is wrong; 3 if the daemon is not reachable; 5 if a block is refused; 6 if all checks passed but \
some established flows were left, or if a block did not hold until its lift; 128 and the signal's \
number if one ended the run.";

const RUN_EXAMPLES: &str = "\
Examples:
  blockctl run dead-client.yaml --dry-run      is the file right, what would it do, which flows would die?
  blockctl run dead-client.yaml --report evidence.json";

const STATS_ABOUT: &str = "\
Show rates of rules and hooks: packets and bits a second, replies, what hooks saw and passed.

A rate is the difference of two totals, so the first is there after one interval. With -o json one \
object an interval, each in a line.";

const FLOWS_ABOUT: &str = "\
List the flows that rules decided: those that were blocked, or would have been (mode audit).

The datapath keeps a record of each, as many as limits.flows of the configuration says; the oldest \
give way. Of rules that are gone, too.";

const WATCH_ABOUT: &str = "\
Show packets that rules decide, and changes, as they happen, until Ctrl-C.

A line a packet: what came of it at this host, by which rule. Changes of rules, teardowns, reloads \
and devices are lines, too. Only what was asked for is sent here. With more packets than \
limits.events_per_second of the configuration, or than can be written here, some are left out, and \
how many is told; what they do is counted all the same (list, flows).

-o json writes an object a line.";

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
    /// How results are printed; json is the API's own.
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
    /// Print nothing but errors; `add` and `list` print ids alone, one a line.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// Forms of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// The API's JSON, every number exact.
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

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Block targets.
    #[command(after_help = ADD_EXAMPLES)]
    Add(Box<AddArgs>),
    #[command(about = "Block targets while a command runs", long_about = DURING_ABOUT, after_help = DURING_EXAMPLES)]
    During(Box<DuringArgs>),
    #[command(about = "Carry out an experiment from a file", long_about = RUN_ABOUT, after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Print the JSON Schema of the files that `run` takes.
    Schema,
    #[command(about = "Lift rules by id, or take targets out of rules", long_about = DEL_ABOUT)]
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
    /// Lift every rule that came over the API.
    Flush {
        /// The configuration's rules too, until its next reload.
        #[arg(long)]
        all: bool,
    },
    #[command(about = "Make the API's rules exactly those of a file", long_about = APPLY_ABOUT)]
    Apply {
        /// YAML or JSON; - reads standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Leave out bad lines of the lists that rules name as targets_file.
        #[arg(long)]
        skip_invalid: bool,
        /// Print what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Override the refusals that protect you (never `protect` and loopback).
        #[arg(long)]
        force: bool,
    },
    #[command(about = "Tell what becomes of a packet, and which rule decides", long_about = EXPLAIN_ABOUT)]
    Explain(ExplainArgs),
    #[command(about = "List the flows that rules decided", long_about = FLOWS_ABOUT)]
    Flows(FlowsArgs),
    #[command(about = "Show packets that rules decide, and changes, as they happen", long_about = WATCH_ABOUT)]
    Watch(WatchArgs),
    #[cfg(feature = "fleet")]
    #[command(about = "Block on many hosts at once, through etcd", long_about = crate::fleet::args::ABOUT, after_help = crate::fleet::args::AFTER)]
    Fleet(crate::fleet::args::FleetArgs),
    /// Show the daemon's state: devices, limits, the last reload, what the kernel lacks.
    Status,
    #[command(about = "Show rates of rules and hooks", long_about = STATS_ABOUT)]
    Stats(StatsArgs),
    /// Watch rules and blocked flows by rate, in the terminal; q quits.
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
        /// Where to.
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
    /// Leave out lines of such files that cannot be read, instead of refusing them all.
    #[arg(long, requires = "from_file")]
    pub(crate) skip_invalid: bool,
    /// The rule's name; made up if absent.
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// What is done with packets; by default what the configuration says, drop if nothing.
    ///
    /// drop: silence. reset: RST to both ends of TCP, ICMP port unreachable for the rest.
    /// reject: ICMP administratively prohibited. audit: counted, and passed.
    #[arg(long, value_parser = PossibleValuesParser::new(["drop", "reset", "reject", "audit"]))]
    pub(crate) mode: Option<String>,
    #[command(flatten)]
    pub(crate) matching: MatchArgs,
    /// What becomes of established flows [default: kill for reset, else keep].
    #[arg(long, value_parser = PossibleValuesParser::new(["kill", "keep"]))]
    pub(crate) established: Option<String>,
    /// What becomes of blocked flows when the rule ends [default: resume].
    ///
    /// reset kills what was seen during the block, so that nothing stale is delivered.
    #[arg(long, value_parser = PossibleValuesParser::new(["resume", "reset"]))]
    pub(crate) on_lift: Option<String>,
    /// How long the rule lives: 30s, 5m, 1h30m, 2d [default: until it is lifted].
    #[arg(long = "for", value_name = "DURATION")]
    pub(crate) lifetime: Option<String>,
    /// When the rule ends: RFC 3339, such as 2026-01-31T18:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) expires: Option<String>,
    /// Lift the rule by itself after this time, unless `blockctl confirm ID` comes before.
    #[arg(long, value_name = "DURATION")]
    pub(crate) confirm_within: Option<String>,
    /// Why the rule is there: "INC-1234".
    #[arg(long, value_name = "TEXT")]
    pub(crate) comment: Option<String>,
    /// Parts of the targets to leave alone.
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    pub(crate) except: Vec<String>,
    /// Override the refusals that protect you (never `protect` and loopback).
    #[arg(long)]
    pub(crate) force: bool,
    /// List the live flows that would die, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What narrows a rule, as flags.
#[derive(Debug, Default, Args)]
pub(crate) struct MatchArgs {
    /// Which way a packet must go, seen from this host [default: both].
    #[arg(long, value_parser = PossibleValuesParser::new(["both", "ingress", "egress"]))]
    pub(crate) direction: Option<String>,
    /// any, tcp, udp, icmp or a number from 0 to 255 [default: any].
    #[arg(long)]
    pub(crate) protocol: Option<String>,
    /// Ports of either side: 80 or 8080-8085; several by commas or by repeating the flag.
    #[arg(
        long = "port",
        visible_alias = "ports",
        value_name = "PORTS",
        value_delimiter = ','
    )]
    pub(crate) ports: Vec<String>,
    /// Ports of this host's side.
    #[arg(
        long = "local-port",
        visible_alias = "local-ports",
        value_name = "PORTS",
        value_delimiter = ','
    )]
    pub(crate) local_ports: Vec<String>,
    /// Ports of the remote's side.
    #[arg(
        long = "remote-port",
        visible_alias = "remote-ports",
        value_name = "PORTS",
        value_delimiter = ','
    )]
    pub(crate) remote_ports: Vec<String>,
    /// Addresses or prefixes of this host's side, its own or behind it [default: any].
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) local: Vec<String>,
    /// Devices, by name or glob [default: every attached one].
    #[arg(
        long = "interface",
        visible_alias = "interfaces",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub(crate) interfaces: Vec<String>,
    /// How many of a hundred packets (flows, for reset) are taken [default: 100].
    #[arg(long, value_name = "1-100")]
    pub(crate) percent: Option<String>,
}

/// A rule, as flags, and what it is for.
#[derive(Debug, Default, Args)]
pub(crate) struct DuringArgs {
    #[command(flatten)]
    pub(crate) rule: AddArgs,
    /// Write evidence as JSON: what was blocked, when, which flows, what was killed.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// The command, and its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// An experiment.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The experiment, as YAML; - reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Check the file, print what would be done and which live flows would die, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write evidence as JSON: every step, every block, which flows, what was killed.
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub(crate) report: Option<PathBuf>,
    /// Override the refusals that protect you (never `protect` and loopback).
    #[arg(long)]
    pub(crate) force: bool,
}

/// How often, and how many times.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// How long an interval is: 500ms, 1s, 1m; goes on until it is interrupted [default: 1s, once].
    #[arg(short, long, value_name = "DURATION")]
    pub(crate) interval: Option<String>,
    /// How many intervals.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
}

/// How often.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// How long an interval is: 500ms, 1s, 1m [default: 1s].
    #[arg(short, long, value_name = "DURATION")]
    pub(crate) interval: Option<String>,
}

/// A packet, as flags.
#[derive(Debug, Default, Args)]
pub(crate) struct ExplainArgs {
    /// The remote: one address, IPv4 or IPv6.
    pub(crate) address: String,
    /// This host's address, or that of what is behind it [default: not known].
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
    /// tcp, udp, icmp or a number from 0 to 255 [default: not known].
    #[arg(long)]
    pub(crate) protocol: Option<String>,
    /// Which way it goes, seen from this host [default: both].
    #[arg(long, value_parser = PossibleValuesParser::new(["both", "ingress", "egress"]))]
    pub(crate) direction: Option<String>,
    /// The device that it is on, by name or glob [default: every attached one].
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<String>,
}

/// Which flows, as flags.
#[derive(Debug, Default, Args)]
pub(crate) struct FlowsArgs {
    /// Of these rules; several by commas or by repeating the flag.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub(crate) rule: Vec<String>,
    /// With a remote in one of these addresses or prefixes.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) remote: Vec<String>,
    /// any, tcp, udp, icmp or a number from 0 to 255 [default: any].
    #[arg(long)]
    pub(crate) protocol: Option<String>,
    /// What comes first: the most, or the latest [default: last_seen].
    #[arg(long, value_name = "BY", value_parser = PossibleValuesParser::new(["packets", "bytes", "first_seen", "last_seen"]))]
    pub(crate) sort: Option<String>,
    /// How many are shown at most.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: u32,
}

/// Which events, as flags.
#[derive(Debug, Default, Args)]
pub(crate) struct WatchArgs {
    /// Of these rules; several by commas or by repeating the flag.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub(crate) rule: Vec<String>,
    /// Packets with a remote in one of these addresses or prefixes.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    pub(crate) remote: Vec<String>,
    /// Packets of a protocol: tcp, udp, icmp or a number from 0 to 255 [default: any].
    #[arg(long)]
    pub(crate) protocol: Option<String>,
    /// Packets that this became of.
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

//! What narrows a rule: its flags, and the match that they make.

use blocker::matching::Match;
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::{Flaws, many, one, parse};

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

impl MatchArgs {
    /// Parses the flags, and adds what is wrong with them to the flaws.
    pub(super) fn read(&self, flaws: &mut Flaws) -> Match {
        Match {
            direction: one(flaws, "--direction", self.direction.as_deref(), parse)
                .unwrap_or_default(),
            protocol: one(flaws, "--protocol", self.protocol.as_deref(), parse).unwrap_or_default(),
            ports: many(flaws, "--port", &self.ports),
            local_ports: many(flaws, "--local-port", &self.local_ports),
            remote_ports: many(flaws, "--remote-port", &self.remote_ports),
            local: many(flaws, "--local", &self.local),
            interfaces: self.interfaces.clone(),
            percent: one(flaws, "--percent", self.percent.as_deref(), parse).unwrap_or_default(),
        }
    }
}

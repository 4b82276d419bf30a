//! The configuration file: what it may say, how it is read, and how it is printed.
//!
//! Pure, except that it reads the file and the target lists that its rules name. Nothing here acts on
//! the configuration, or checks that an interface or a group exists. Errors name the file, the line and
//! the column, what was found and what is expected. The keys `feeds` and `fleet` are declared by
//! [`crate::feeds`] and [`crate::fleet`].

mod error;
mod rules;
#[cfg(test)]
mod tests;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_yaml::Spanned;

pub use error::ConfigError;
pub use values::{DeviceName, Interfaces, OnStop, ReadAccess, SocketMode};

pub use crate::datapath::attach::HookChoice;
pub use crate::teardown::Namespaces;

use crate::feeds::feed::Feed;
use crate::feeds::source as feeds;
use crate::fleet::form::Fleet;
use crate::rule::{Defaults, RuleSpec, Target};
use crate::yaml;
use error::Source;

/// The path of the configuration by default.
pub const DEFAULT_PATH: &str = "/etc/blocker/blocker.yaml";

/// The configuration. An empty file gives [`Config::default`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// Which devices are attached.
    pub interfaces: Interfaces,
    /// Which hooks serve them.
    pub hook: HookChoice,
    /// Whose sockets teardown reaches.
    pub namespaces: Namespaces,
    /// The control socket, and who may use it.
    pub control: Control,
    /// Where metrics are served in addition to the control socket.
    pub metrics: Metrics,
    /// Where API rules and the content of feeds are saved. Absolute.
    pub state_dir: PathBuf,
    /// Where programs, maps and links are pinned: a directory of a bpf file system. Absolute.
    pub pin_dir: PathBuf,
    /// What is done with the rules when the daemon stops.
    pub on_stop: OnStop,
    /// The limits of the datapath.
    pub limits: Limits,
    /// Prefixes that no rule may touch.
    pub protect: Vec<Target>,
    /// The etcd that rules for many hosts come from; `None`: none.
    pub fleet: Option<Fleet>,
    /// Defaults for rules, including those of the API.
    pub defaults: Defaults,
    /// Lists of targets that are followed.
    pub feeds: Vec<Feed>,
    /// The rules of owner `config`, as written. [`Config::rules`] makes them explicit.
    pub rules: Vec<RuleSpec>,
}

/// The control socket, and who may use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// Path of the socket. Absolute.
    #[serde(deserialize_with = "yaml::absolute")]
    pub socket: PathBuf,
    /// The group that owns the socket and, as root, may write; `None`: root alone.
    pub group: Option<String>,
    /// Permissions of the socket.
    pub mode: SocketMode,
    /// Who else may read.
    pub read: ReadAccess,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/blocker/control.sock"),
            group: None,
            mode: SocketMode::default(),
            read: ReadAccess::None,
        }
    }
}

/// Metrics for Prometheus, in addition to the control socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Address and port on which `/metrics` is served over HTTP; `None`: nowhere.
    #[serde(deserialize_with = "values::listen")]
    pub listen: Option<SocketAddr>,
}

/// The limits of the datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Prefixes: targets and exceptions of all rules, and protected ones.
    #[serde(deserialize_with = "values::whole::<1, 4_000_000, _>")]
    pub prefixes: u32,
    /// How many of them may be IPv6, which takes more memory; at most `prefixes`.
    #[serde(deserialize_with = "values::whole::<1, 4_000_000, _>")]
    pub prefixes_v6: u32,
    /// Rules.
    #[serde(deserialize_with = "values::whole::<1, 65_536, _>")]
    pub rules: u32,
    /// Flow records: of flows that rules decided, and as many of flows to be killed at the end of rules
    /// with `on_lift: reset`. The oldest are replaced. 0: none of the former, and the default number of
    /// the latter.
    #[serde(deserialize_with = "values::whole::<0, 1_048_576, _>")]
    pub flows: u32,
    /// Replies (RST, ICMP) a second on each CPU; 0: none.
    #[serde(deserialize_with = "values::whole::<0, 1_000_000, _>")]
    pub replies_per_second: u32,
    /// Events a second on each CPU, while a client watches; 0: none.
    #[serde(deserialize_with = "values::whole::<0, 1_000_000, _>")]
    pub events_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            prefixes: 1_000_000,
            prefixes_v6: 131_072,
            rules: 4_096,
            flows: 65_536,
            replies_per_second: 1_000,
            events_per_second: 10_000,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interfaces: Interfaces::Auto,
            hook: HookChoice::Auto,
            namespaces: Namespaces::Own,
            control: Control::default(),
            metrics: Metrics::default(),
            state_dir: PathBuf::from("/var/lib/blocker"),
            pin_dir: PathBuf::from("/sys/fs/bpf/blocker"),
            on_stop: OnStop::Lift,
            limits: Limits::default(),
            protect: Vec::new(),
            fleet: None,
            defaults: Defaults::default(),
            feeds: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// The file: as [`Config`], with the position of each rule.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    interfaces: Interfaces,
    hook: HookChoice,
    namespaces: Namespaces,
    control: Control,
    metrics: Metrics,
    #[serde(deserialize_with = "yaml::absolute")]
    state_dir: PathBuf,
    #[serde(deserialize_with = "yaml::absolute")]
    pin_dir: PathBuf,
    on_stop: OnStop,
    limits: Limits,
    protect: Vec<Target>,
    fleet: Option<Spanned<Fleet>>,
    defaults: Defaults,
    feeds: Vec<Spanned<feeds::Form>>,
    rules: Vec<Spanned<RuleSpec>>,
}

impl Default for Document {
    fn default() -> Self {
        let config = Config::default();
        Self {
            interfaces: config.interfaces,
            hook: config.hook,
            namespaces: config.namespaces,
            control: config.control,
            metrics: config.metrics,
            state_dir: config.state_dir,
            pin_dir: config.pin_dir,
            on_stop: config.on_stop,
            limits: config.limits,
            protect: config.protect,
            fleet: None,
            defaults: config.defaults,
            feeds: Vec::new(),
            rules: Vec::new(),
        }
    }
}

impl Config {
    /// Reads a configuration from text; `name` is its path, for errors. Also reads the target lists that
    /// its rules name; relative paths start at the directory of `name`.
    ///
    /// # Errors
    /// The first thing that is wrong with it or a list, and where.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        Self::parse_in(text, name, directory(Path::new(name)))
    }

    fn parse_in(text: &str, name: &str, directory: &Path) -> Result<Self, ConfigError> {
        let source = Source { text, name };
        // A million targets are about three million events. The limits of aliases are unchanged.
        let options = serde_yaml::options! {
            budget: serde_yaml::budget! {
                max_events: 40_000_000,
                max_nodes: 20_000_000,
                max_total_scalar_bytes: 512 << 20,
            },
            with_snippet: false,
        };
        let mut document: Document = serde_yaml::from_str_with_options(text, options)
            .map_err(|error| source.yaml_error(&error))?;
        rules::read_lists(&mut document.rules, directory, source)?;
        let feeds = feeds::read(document.feeds, document.defaults, directory, source.yaml())?;
        rules::check(&document.rules, document.defaults, &feeds, source)?;
        if let Some(fleet) = &document.fleet {
            let place = fleet.referenced;
            let checked = fleet.value.check();
            checked.map_err(|error| source.error(place, error))?;
        }
        Ok(Self {
            interfaces: document.interfaces,
            hook: document.hook,
            namespaces: document.namespaces,
            control: document.control,
            metrics: document.metrics,
            state_dir: document.state_dir,
            pin_dir: document.pin_dir,
            on_stop: document.on_stop,
            limits: document.limits,
            protect: document.protect,
            fleet: document.fleet.map(|fleet| fleet.value),
            defaults: document.defaults,
            feeds,
            rules: document.rules.into_iter().map(|rule| rule.value).collect(),
        })
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// If the file cannot be read or is not UTF-8 text, or as [`Config::parse`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = std::fs::read(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let name = path.display().to_string();
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse_in(text, &name, directory(path)),
            Err(error) => Err(ConfigError::not_text(&bytes, error.valid_up_to(), name)),
        }
    }

    /// The configuration as YAML with every default explicit, in rules too. It can be read again and
    /// means the same.
    ///
    /// # Errors
    /// As [`Config::rules`]; none for a configuration that was parsed.
    pub fn effective_yaml(&self) -> Result<String, ConfigError> {
        #[derive(Serialize)]
        struct Effective<'a> {
            interfaces: &'a Interfaces,
            hook: HookChoice,
            namespaces: Namespaces,
            control: &'a Control,
            metrics: Metrics,
            state_dir: &'a Path,
            pin_dir: &'a Path,
            on_stop: OnStop,
            limits: Limits,
            protect: &'a [Target],
            #[serde(skip_serializing_if = "Option::is_none")]
            fleet: Option<&'a Fleet>,
            defaults: Defaults,
            feeds: &'a [Feed],
            rules: Vec<crate::rule::Rule>,
        }
        let effective = Effective {
            interfaces: &self.interfaces,
            hook: self.hook,
            namespaces: self.namespaces,
            control: &self.control,
            metrics: self.metrics,
            state_dir: &self.state_dir,
            pin_dir: &self.pin_dir,
            on_stop: self.on_stop,
            limits: self.limits,
            protect: &self.protect,
            fleet: self.fleet.as_ref(),
            defaults: self.defaults,
            feeds: &self.feeds,
            rules: rules::resolved(&self.rules, self.defaults)?,
        };
        serde_yaml::to_string(&effective).map_err(|error| ConfigError::Print(error.to_string()))
    }
}

/// The directory of a file.
fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new(""))
}

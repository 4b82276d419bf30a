//! `cargo xtask setup`: installs what building, the demo and the tests need.
//!
//! Idempotent, and quick if nothing is missing. It installs by `rustup`, `apt-get` and
//! `cargo install` only; without the privileges for it, it names the command to run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use blocker_ebpf::toolchain::{self, BPF_LINKER, Missing};

use crate::command::{self, cargo, find, line, rustc, say};
use crate::python;

const TASK: &str = "setup";

/// What the set-up is for. `Test` and `Kernels` include all before them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// The demonstration, of programs without the fleet.
    Demo,
    /// Building the two programs as they are installed.
    Build,
    /// All tests.
    Test,
    /// Tests on other kernels.
    Kernels,
    /// Building a Debian package, and testing it.
    Package,
}

impl Purpose {
    fn needs(self, tool: &Tool) -> bool {
        match self {
            Self::Build => tool.purpose == Self::Build,
            // Testing a package takes what the demonstration takes.
            Self::Package => tool.purpose <= Self::Build || tool.purpose == Self::Package,
            _ => tool.purpose <= self,
        }
    }
}

/// A program that the workspace runs, and its Debian package.
struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: Purpose,
    why: &'static str,
}

const fn tool(
    program: &'static str,
    package: &'static str,
    purpose: Purpose,
    why: &'static str,
) -> Tool {
    Tool {
        program,
        package,
        purpose,
        why,
    }
}

/// Every program that the workspace runs.
const TOOLS: &[Tool] = &[
    tool(
        "protoc",
        "protobuf-compiler",
        Purpose::Build,
        "generates code from etcd's interface",
    ),
    // A file, not a program: it is found by its absolute path.
    tool(
        "/usr/include/google/protobuf/descriptor.proto",
        "libprotobuf-dev",
        Purpose::Build,
        "etcd's interface imports it",
    ),
    tool(
        "ip",
        "iproute2",
        Purpose::Demo,
        "makes network namespaces and veth pairs",
    ),
    tool(
        "iptables",
        "iptables",
        Purpose::Demo,
        "its rules are compared with blocker",
    ),
    tool(
        "nft",
        "nftables",
        Purpose::Test,
        "blocker must work together with its rules; compared in the benchmark",
    ),
    tool(
        "tcpdump",
        "tcpdump",
        Purpose::Test,
        "captures what is on the wire",
    ),
    tool(
        "ethtool",
        "ethtool",
        Purpose::Test,
        "switches checksum and segmentation offload",
    ),
    tool(
        "conntrack",
        "conntrack",
        Purpose::Demo,
        "shows the kernel's connection tracking table",
    ),
    tool("ping", "iputils-ping", Purpose::Test, "sends ICMP"),
    tool(
        "bpftool",
        "bpftool",
        Purpose::Test,
        "lists all attached programs",
    ),
    tool(
        "xdp-filter",
        "xdp-tools",
        Purpose::Test,
        "occupies an XDP hook before blocker starts; compared in the benchmark",
    ),
    tool(
        "prometheus",
        PROMETHEUS,
        Purpose::Test,
        "scrapes the daemon's metrics; its package has promtool",
    ),
    tool(
        "curl",
        "curl",
        Purpose::Test,
        "sends requests to the control API, and to services in runbooks",
    ),
    tool("jq", "jq", Purpose::Test, "parses the responses"),
    tool(
        "socat",
        "socat",
        Purpose::Test,
        "forwards HTTP over TCP to the control socket",
    ),
    tool(
        "python3",
        "python3",
        Purpose::Test,
        "sends requests to the control API",
    ),
    tool(
        "fail2ban-server",
        FAIL2BAN,
        Purpose::Test,
        "bans addresses through blocker's action",
    ),
    tool("etcd", ETCD, Purpose::Test, "distributes a fleet's rules"),
    tool(
        "etcdctl",
        "etcd-client",
        Purpose::Test,
        "creates etcd's users and reads its keys",
    ),
    tool("nginx", NGINX, Purpose::Test, "serves feeds' lists"),
    tool(
        "openssl",
        "openssl",
        Purpose::Test,
        "makes certificates for nginx and etcd",
    ),
    tool(
        "crowdsec",
        CROWDSEC,
        Purpose::Test,
        "makes decisions for a feed; its package has cscli",
    ),
    tool(
        "tmux",
        "tmux",
        Purpose::Test,
        "provides a terminal to blockctl top",
    ),
    tool(
        "haproxy",
        HAPROXY,
        Purpose::Test,
        "takes blocked servers out of rotation",
    ),
    tool(
        "ipset",
        "ipset",
        Purpose::Test,
        "compared in the benchmark, with iptables",
    ),
    tool(
        "qemu-system-x86_64",
        "qemu-system-x86",
        Purpose::Kernels,
        "boots other kernels",
    ),
    tool(
        "busybox",
        "busybox-static",
        Purpose::Kernels,
        "provides the guests' user space",
    ),
    tool(
        "depmod",
        "kmod",
        Purpose::Kernels,
        "indexes the guests' kernel modules",
    ),
    tool(
        "lintian",
        "lintian",
        Purpose::Package,
        "checks the Debian package against Debian's policy",
    ),
    tool(
        "dpkg-shlibdeps",
        "dpkg-dev",
        Purpose::Package,
        "finds the packages of the libraries that the programs need",
    ),
    tool("rpm", "rpm", Purpose::Package, "inspects the RPM"),
    tool(
        "debootstrap",
        "debootstrap",
        Purpose::Package,
        "makes the system that the packages are installed on",
    ),
    tool(
        "systemd-nspawn",
        "systemd-container",
        Purpose::Package,
        "boots that system",
    ),
];

/// A program from crates.io, installed in this workspace's own cache.
pub(crate) struct CargoTool {
    name: &'static str,
    version: &'static str,
}

/// Builds the Debian package.
pub(crate) const CARGO_DEB: CargoTool = CargoTool {
    name: "cargo-deb",
    version: "3.8.0",
};
/// Builds the RPM.
pub(crate) const CARGO_GENERATE_RPM: CargoTool = CargoTool {
    name: "cargo-generate-rpm",
    version: "0.21.1",
};

impl CargoTool {
    /// Its path.
    ///
    /// # Errors
    /// It is not installed.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        let name = self.name;
        self.find()
            .with_context(|| format!("{name} is missing after the set-up"))
    }

    fn find(&self) -> Option<PathBuf> {
        let cached = self.cache()?.join("bin").join(self.name);
        cached.is_file().then_some(cached)
    }

    fn cache(&self) -> Option<PathBuf> {
        let name = format!("{}-{}", self.name, self.version);
        Some(toolchain::cache()?.with_file_name(name))
    }
}

/// Packages whose services Debian starts on installation; the tests start their own instances.
const PROMETHEUS: &str = "prometheus";
const FAIL2BAN: &str = "fail2ban";
const ETCD: &str = "etcd-server";
const HAPROXY: &str = "haproxy";
const NGINX: &str = "nginx-light";
const CROWDSEC: &str = "crowdsec";

/// Debian's compiler and its library source, for hosts where rustup cannot fetch `rust-src`.
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Reports what is missing, without installing it.
///
/// # Errors
/// Something is missing.
pub(crate) fn check(purpose: Purpose) -> Result<()> {
    let (parts, found) = match toolchain::locate(&rustc()) {
        Ok(toolchain) => (Vec::new(), Some(toolchain)),
        Err(missing) => (missing, None),
    };
    let tools = missing_tools(purpose);
    if let Some(found) = found {
        let compiler = &found.compiler;
        let paths = [
            ("eBPF compiler", &compiler.rustc),
            ("its cargo", &compiler.cargo),
            ("its library", &compiler.sysroot),
            ("linker", &found.linker),
            ("the linker's LLVM", &found.llvm),
        ];
        for (what, path) in paths {
            say(TASK, &format!("{what}: {}", path.display()));
        }
    }
    for part in &parts {
        say(TASK, &format!("missing: {part}"));
    }
    for tool in &tools {
        say(TASK, &format!("missing: {} ({})", tool.program, tool.why));
    }
    let python = tests(purpose) && !python::is_there();
    if python {
        say(
            TASK,
            "missing: chaos and schemathesis (they run config/runbooks and test /openapi.json)",
        );
    }
    if !parts.is_empty() || !tools.is_empty() || python {
        bail!("the set-up is incomplete: run `cargo xtask setup`");
    }
    say(TASK, "complete");
    Ok(())
}

/// Installs what is missing.
///
/// # Errors
/// Something could not be installed; the error names the command that would.
pub(crate) fn install(purpose: Purpose) -> Result<()> {
    let mut done = Vec::new();
    if missing_parts().contains(&Missing::Llvm) {
        bail!(
            "{} is not in the toolchain of {}: use rustup's (https://rustup.rs)",
            Missing::Llvm,
            rustc().display()
        );
    }
    if missing_parts().contains(&Missing::CoreSource) && rust_src() {
        done.push("rust-src".to_owned());
    }
    let compiler: &[&str] = if missing_parts().contains(&Missing::CoreSource) {
        say(
            TASK,
            "installing the distribution's compiler and library source instead",
        );
        &DEBIAN_COMPILER
    } else {
        &[]
    };
    let tools = missing_tools(purpose);
    for tool in &tools {
        say(TASK, &format!("{} is missing ({})", tool.program, tool.why));
    }
    let mut packages: Vec<_> = tools.iter().map(|tool| tool.package).collect();
    let python = tests(purpose) && !python::is_there();
    if python && !python::can_be_made() {
        packages.push(python::PACKAGE);
    }
    packages.extend(compiler);
    if packages.contains(&CROWDSEC) {
        keep_crowdsec_to_itself()?;
    }
    if !packages.is_empty() {
        apt(&packages, !compiler.is_empty())?;
        done.extend(packages.iter().map(ToString::to_string));
    }
    for (package, service) in [
        (PROMETHEUS, "prometheus"),
        (FAIL2BAN, "fail2ban"),
        (ETCD, "etcd"),
        (HAPROXY, "haproxy"),
        (NGINX, "nginx"),
        (CROWDSEC, CROWDSEC),
    ] {
        if packages.contains(&package) {
            stop_service(service);
        }
    }
    if missing_parts().contains(&Missing::Linker) {
        install_program("bpf-linker", BPF_LINKER, toolchain::cache().as_deref())?;
        done.push(format!("bpf-linker {BPF_LINKER}"));
    }
    if purpose == Purpose::Package {
        for tool in [CARGO_DEB, CARGO_GENERATE_RPM] {
            if tool.find().is_none() {
                install_program(tool.name, tool.version, tool.cache().as_deref())?;
                done.push(format!("{} {}", tool.name, tool.version));
            }
        }
    }
    if python {
        done.push(python::make()?);
    }
    if done.is_empty() {
        say(TASK, "nothing to install");
        return Ok(());
    }
    say(TASK, &format!("installed {}", done.join(", ")));
    check(purpose)
}

/// Whether the purpose includes the tests.
fn tests(purpose: Purpose) -> bool {
    matches!(purpose, Purpose::Test | Purpose::Kernels)
}

fn missing_parts() -> Vec<Missing> {
    toolchain::locate(&rustc()).err().unwrap_or_default()
}

fn missing_tools(purpose: Purpose) -> Vec<&'static Tool> {
    let needed = TOOLS.iter().filter(|tool| purpose.needs(tool));
    needed.filter(|tool| find(tool.program).is_none()).collect()
}

/// Adds `rust-src` to rustup's toolchain. Returns whether that succeeded.
fn rust_src() -> bool {
    let Some(rustup) = find("rustup") else {
        return false;
    };
    let mut add = Command::new(rustup);
    add.args(["component", "add", "rust-src"])
        .current_dir(command::workspace());
    match command::run(TASK, &mut add) {
        Ok(()) => true,
        Err(error) => {
            say(TASK, &format!("{error:#}"));
            false
        }
    }
}

/// Installs Debian packages; with `compiler`, the eBPF compiler is one of them.
fn apt(packages: &[&str], compiler: bool) -> Result<()> {
    let by_hand = format!(
        "apt-get update && apt-get install --no-install-recommends {}",
        packages.join(" ")
    );
    if find("apt-get").is_none() {
        let source = if compiler {
            " For the compiler, `rustup component add rust-src` will do."
        } else {
            ""
        };
        bail!(
            "there is no apt-get: install what Debian calls {} by your package manager.{source}",
            packages.join(" ")
        );
    }
    let by_hand = format!("run this as root: {by_hand}");
    let sudo = command::sudo().with_context(|| by_hand.clone())?;
    let apt = |arguments: &[&str]| -> Result<()> {
        let mut command = command::elevated(sudo.as_deref(), "env");
        command
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"])
            // Wait for another apt, such as unattended-upgrades.
            .args(["-o", "DPkg::Lock::Timeout=300"])
            .args(arguments);
        command::run(TASK, &mut command)
    };
    say(
        TASK,
        &format!("installing {} by apt-get", packages.join(" ")),
    );
    // Without an update the existing package lists may still do.
    if let Err(error) = apt(&["update"]) {
        say(
            TASK,
            &format!("{error:#}; continuing with the existing package lists"),
        );
    }
    apt(&[&["install", "--no-install-recommends"], packages].concat()).context(by_hand)
}

/// Keeps CrowdSec's package from registering with the Central API: on installation it does so
/// unless there are credentials, and fails without a network.
fn keep_crowdsec_to_itself() -> Result<()> {
    const CREDENTIALS: &str = "/etc/crowdsec/online_api_credentials.yaml";
    if Path::new(CREDENTIALS).exists() {
        return Ok(());
    }
    let sudo = command::sudo()?;
    let script = format!("mkdir -p /etc/crowdsec && echo '# offline' > {CREDENTIALS}");
    let mut shell = command::elevated(sudo.as_deref(), "sh");
    command::run(TASK, shell.args(["-c", &script]))
}

/// Stops and disables a service that an installed package started. Without systemd, none was.
fn stop_service(name: &str) {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let stopped = command::sudo().and_then(|sudo| {
        let mut stop = command::elevated(sudo.as_deref(), "systemctl");
        command::run(TASK, stop.args(["disable", "--now", name]))
    });
    if let Err(error) = stopped {
        say(
            TASK,
            &format!("{error:#}; the service {name} may be running"),
        );
    }
}

/// Builds a program from crates.io into the cache.
fn install_program(name: &str, version: &str, cache: Option<&Path>) -> Result<()> {
    let mut install = cargo();
    install.args(["install", name, "--version", version, "--locked"]);
    if let Some(cache) = cache {
        // Cargo warns if the directory is not on the PATH.
        let mut path = cache.join("bin").into_os_string();
        path.push(":");
        path.push(command::search_path());
        install.arg("--root").arg(cache).env("PATH", path);
    }
    say(
        TASK,
        &format!("building {name} {version}; this takes some minutes, once"),
    );
    // The workspace's flags are not meant for it.
    install
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR");
    let by_hand = line(&install);
    command::run(TASK, &mut install).map_err(|error| {
        error.context(format!(
            "{name} could not be built; with the network there, run: {by_hand}"
        ))
    })
}

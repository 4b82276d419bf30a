//! `cargo xtask setup`: what building, the demo and the tests need, found or installed.
//!
//! Idempotent, and quick when nothing is missing. Installs by `rustup`, `apt-get` and
//! `cargo install` only; where it may not, it names the one command that would.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{self, cargo, find, line, rustc, say};
use crate::python;
use crate::toolchain::{self, BPF_LINKER, Missing};

const TASK: &str = "setup";

/// What the set-up is for: each purpose includes those before it, but that a package needs no
/// tests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Building the two programs.
    Build,
    /// The demonstration.
    Demo,
    /// All tests.
    Test,
    /// Tests on other kernels.
    Kernels,
    /// Making a Debian package, and testing it.
    Package,
}

impl Purpose {
    fn needs(self, tool: &Tool) -> bool {
        match self {
            Self::Package => tool.purpose <= Self::Demo || tool.purpose == Self::Package,
            _ => tool.purpose <= self,
        }
    }
}

/// A program that others of the workspace call, and the package that has it.
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

/// Every program that is called, in Debian's packages.
const TOOLS: &[Tool] = &[
    tool(
        "protoc",
        "protobuf-compiler",
        Purpose::Build,
        "turns etcd's interface into code",
    ),
    // No program, and found all the same: an absolute path stands for itself.
    tool(
        "/usr/include/google/protobuf/descriptor.proto",
        "libprotobuf-dev",
        Purpose::Build,
        "what etcd's interface rests on",
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
        "the rules that blocker is compared with",
    ),
    tool(
        "nft",
        "nftables",
        Purpose::Test,
        "firewalls that blocker must get along with; a peer in the benchmark",
    ),
    tool(
        "tcpdump",
        "tcpdump",
        Purpose::Test,
        "sees what really is on the wire",
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
        "shows the kernel's table of connections",
    ),
    tool(
        "ping",
        "iputils-ping",
        Purpose::Test,
        "is neither TCP nor UDP",
    ),
    tool(
        "bpftool",
        "bpftool",
        Purpose::Test,
        "shows what is attached, whoever did it",
    ),
    tool(
        "xdp-filter",
        "xdp-tools",
        Purpose::Test,
        "holds an XDP hook before blocker comes; a peer in the benchmark",
    ),
    tool(
        "prometheus",
        PROMETHEUS,
        Purpose::Test,
        "scrapes the daemon's metrics; promtool is with it",
    ),
    tool(
        "curl",
        "curl",
        Purpose::Test,
        "asks the control API, and services in runbooks",
    ),
    tool("jq", "jq", Purpose::Test, "reads what it answers"),
    tool(
        "socat",
        "socat",
        Purpose::Test,
        "takes HTTP over TCP to the control socket",
    ),
    tool("python3", "python3", Purpose::Test, "asks it, too"),
    tool(
        "fail2ban-server",
        FAIL2BAN,
        Purpose::Test,
        "bans by our action for it",
    ),
    tool(
        "etcd",
        ETCD,
        Purpose::Test,
        "rules for many hosts come through it",
    ),
    tool(
        "etcdctl",
        "etcd-client",
        Purpose::Test,
        "sets up its users, and looks at it from outside",
    ),
    tool("nginx", NGINX, Purpose::Test, "serves the lists of feeds"),
    tool(
        "openssl",
        "openssl",
        Purpose::Test,
        "makes certificates for it, and for servers",
    ),
    tool(
        "crowdsec",
        CROWDSEC,
        Purpose::Test,
        "decides whom a feed blocks; cscli is with it",
    ),
    tool("tmux", "tmux", Purpose::Test, "a terminal for blockctl top"),
    tool(
        "haproxy",
        HAPROXY,
        Purpose::Test,
        "takes servers that blocker cuts off out of rotation",
    ),
    tool(
        "ipset",
        "ipset",
        Purpose::Test,
        "a peer in the benchmark, with iptables",
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
        "the shell of a kernel without a system",
    ),
    tool(
        "depmod",
        "kmod",
        Purpose::Kernels,
        "lets such a kernel load its modules",
    ),
    tool(
        "lintian",
        "lintian",
        Purpose::Package,
        "knows what a Debian package must be",
    ),
    tool(
        "dpkg-shlibdeps",
        "dpkg-dev",
        Purpose::Package,
        "finds which libraries' packages the programs need",
    ),
    tool("rpm", "rpm", Purpose::Package, "looks at the RPM"),
    tool(
        "debootstrap",
        "debootstrap",
        Purpose::Package,
        "makes the system that the package is installed on",
    ),
    tool(
        "systemd-nspawn",
        "systemd-container",
        Purpose::Package,
        "boots it",
    ),
];

/// A program of crates.io that is kept in a cache of ours.
pub(crate) struct CargoTool {
    name: &'static str,
    version: &'static str,
}

/// Makes the Debian package.
pub(crate) const CARGO_DEB: CargoTool = CargoTool {
    name: "cargo-deb",
    version: "3.8.0",
};
/// Makes the RPM.
pub(crate) const CARGO_GENERATE_RPM: CargoTool = CargoTool {
    name: "cargo-generate-rpm",
    version: "0.21.1",
};

impl CargoTool {
    /// Where it is.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        let name = self.name;
        self.find()
            .with_context(|| format!("{name} is not there after the set-up"))
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

/// Debian starts these as services when they are installed; the tests run their own.
const PROMETHEUS: &str = "prometheus";
const FAIL2BAN: &str = "fail2ban";
const ETCD: &str = "etcd-server";
const HAPROXY: &str = "haproxy";
const NGINX: &str = "nginx-light";
const CROWDSEC: &str = "crowdsec";

/// Debian's compiler with its library source, where rustup's `rust-src` cannot be had.
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Says what is missing, and changes nothing.
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
            "missing: chaos and schemathesis (run the experiments in config/runbooks, and requests by /openapi.json)",
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
            "{} is not beside {}: use rustup's toolchain (https://rustup.rs)",
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
            "taking the distribution's compiler and library source instead",
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

/// Whether what the tests need is needed.
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

/// Adds `rust-src` to rustup's toolchain, where there is one and it can be fetched.
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

/// Installs Debian packages. `compiler`: the eBPF compiler is among them.
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
            "this is no Debian: install what it calls {} by your package manager.{source}",
            packages.join(" ")
        );
    }
    let by_hand = format!("run this as root: {by_hand}");
    let sudo = command::sudo().with_context(|| by_hand.clone())?;
    let apt = |arguments: &[&str]| -> Result<()> {
        let mut command = command::elevated(sudo.as_deref(), "env");
        command
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"])
            // Another run of apt (unattended upgrades) is waited for.
            .args(["-o", "DPkg::Lock::Timeout=300"])
            .args(arguments);
        command::run(TASK, &mut command)
    };
    say(
        TASK,
        &format!("installing {} by apt-get", packages.join(" ")),
    );
    // Old package lists only matter if the packages cannot be had by them.
    if let Err(error) = apt(&["update"]) {
        say(
            TASK,
            &format!("{error:#}; going on with the lists that are there"),
        );
    }
    apt(&[&["install", "--no-install-recommends"], packages].concat()).context(by_hand)
}

/// Has CrowdSec's package register with nobody: it asks the Central API for an account when it is
/// installed, and fails without a network, unless there are credentials already.
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

/// Stops a service that came with a package of ours, now and at the next boot. Where there is no
/// systemd, nothing was started.
fn stop_service(name: &str) {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let stopped = command::sudo().and_then(|sudo| {
        let mut stop = command::elevated(sudo.as_deref(), "systemctl");
        command::run(TASK, stop.args(["disable", "--now", name]))
    });
    if let Err(error) = stopped {
        say(TASK, &format!("{error:#}; the service {name} may run"));
    }
}

/// Builds a program of crates.io into the cache. It takes some minutes, once.
fn install_program(name: &str, version: &str, cache: Option<&Path>) -> Result<()> {
    let mut install = cargo();
    install.args(["install", name, "--version", version, "--locked"]);
    if let Some(cache) = cache {
        // On the PATH, or cargo warns that it is not; who uses it finds it by itself.
        let mut path = cache.join("bin").into_os_string();
        path.push(":");
        path.push(command::search_path());
        install.arg("--root").arg(cache).env("PATH", path);
    }
    say(
        TASK,
        &format!("building {name} {version}; this takes some minutes, once"),
    );
    // Its own flags are its own business.
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

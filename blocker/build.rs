//! Builds the eBPF object (`blocker-ebpf`'s `datapath`) that the daemon embeds.
//!
//! A second cargo builds the object for its own target, with its own flags and its own target
//! directory; none of the outer build's flags apply to it. The crate gets the object's path as
//! `BLOCKER_DATAPATH`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blocker_ebpf::toolchain::{self, Toolchain};

const TARGET: &str = "bpfel-unknown-none";

/// If set, warnings in the eBPF programs are errors: clippy's `-D warnings` does not apply to them.
const DENY_WARNINGS: &str = "BLOCKER_DENY_WARNINGS";

fn main() {
    if let Err(message) = build() {
        // These lines alone fail the build. If the script exited with a failure, cargo would
        // print all of its output and hide the message in it.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<(), String> {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let workspace = package
        .parent()
        .ok_or("the package is not in a workspace")?
        .to_owned();

    for watched in [
        "blocker-ebpf/src",
        "blocker-ebpf/Cargo.toml",
        "Cargo.lock",
        "rust-toolchain.toml",
        "blocker/build.rs",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(watched).display()
        );
    }

    println!("cargo::rerun-if-env-changed={DENY_WARNINGS}");

    let rustc = PathBuf::from(variable("RUSTC")?);
    let toolchain = toolchain::locate(&rustc).map_err(|missing| {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        format!(
            "the eBPF toolchain is incomplete ({}): run `cargo xtask setup`",
            missing.join("; ")
        )
    })?;

    let target = target_directory(&out);
    let result = inner_cargo(&toolchain, &workspace, &target)?
        .output()
        .map_err(|e| {
            format!(
                "{} cannot be started: {e}",
                toolchain.compiler.cargo.display()
            )
        })?;
    if !result.status.success() {
        return Err(format!(
            "building the eBPF object failed:\n{}",
            String::from_utf8_lossy(&result.stderr)
        ));
    }

    let said = String::from_utf8_lossy(&result.stderr);
    if let Some(warnings) = said.find("warning:").map(|start| &said[start..]) {
        if env::var_os(DENY_WARNINGS).is_some() {
            return Err(format!("the eBPF object has warnings:\n{warnings}"));
        }
        for line in warnings.lines() {
            println!("cargo::warning={line}");
        }
    }

    let built = target.join(TARGET).join("release/datapath");
    let object = out.join("datapath.o");
    fs::copy(&built, &object).map_err(|e| {
        format!(
            "{} cannot be copied to {}: {e}",
            built.display(),
            object.display()
        )
    })?;
    println!("cargo::rustc-env=BLOCKER_DATAPATH={}", object.display());
    Ok(())
}

/// The inner cargo's command. It has its own target directory, since the outer cargo locks the
/// outer one while this script runs.
fn inner_cargo(toolchain: &Toolchain, workspace: &Path, target: &Path) -> Result<Command, String> {
    let compiler = &toolchain.compiler;
    let mut cargo = Command::new(&compiler.cargo);
    cargo.current_dir(workspace);
    for (name, _) in env::vars_os() {
        if name.to_str().is_none_or(belongs_to_the_outer_build) {
            cargo.env_remove(name);
        }
    }
    cargo
        .args([
            "build",
            "--locked",
            "-Z",
            "build-std=core",
            "--target",
            TARGET,
        ])
        .args(["--release", "--package", "blocker-ebpf"])
        .args([
            "--bin",
            "datapath",
            "--features",
            "datapath",
            "--target-dir",
        ])
        .arg(target)
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_WRAPPER", "") // a wrapper in the user's configuration may not support BPF
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        .env("RUSTC_BOOTSTRAP", "1") // build-std on a stable compiler
        .env("LD_LIBRARY_PATH", &toolchain.llvm)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain, workspace)?)
        // One codegen unit and no LTO by rustc: bpf-linker optimises the whole program, and the
        // build is reproducible.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false");
    Ok(cargo)
}

fn flags(toolchain: &Toolchain, workspace: &Path) -> Result<OsString, String> {
    let mut flags: Vec<OsString> = vec![
        "-Cdebuginfo=0".into(),
        // 32-bit arithmetic and jumps (Linux 5.1): fewer instructions, and the verifier keeps
        // bounds of 32-bit values.
        "-Ctarget-cpu=v3".into(),
        "-Clink-arg=-O3".into(),
        // The architecture of aya-ebpf's `pt_regs`. No program here reads registers; the flag
        // keeps aya-ebpf from taking the build host's.
        format!(
            "--cfg=bpf_target_arch=\"{}\"",
            variable("CARGO_CFG_TARGET_ARCH")?
        )
        .into(),
    ];
    let mut linker = OsString::from("-Clinker=");
    linker.push(&toolchain.linker);
    flags.push(linker);
    // BTF contains the paths of source files. Remapped, they do not depend on where it is built.
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let library = toolchain.compiler.sysroot.join("lib/rustlib/src/rust");
    let remapped = [
        (Some(workspace.to_owned()), "/blocker"),
        (home, "/cargo"),
        (library.canonicalize().ok(), "/rust"), // a symbolic link in Debian
        (Some(library), "/rust"),
    ];
    for (from, to) in remapped {
        if let Some(from) = from {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        }
    }
    Ok(flags.join(std::ffi::OsStr::new("\x1f")))
}

/// `target/ebpf`, shared by all profiles and feature sets of the outer build, since the object is
/// the same for all of them; a directory in `OUT_DIR` if cargo's layout is unknown.
fn target_directory(out: &Path) -> PathBuf {
    // target/<profile>/build/<package>-<hash>/out
    let build = out.ancestors().nth(2);
    match build {
        Some(build) if build.ends_with("build") => match build.ancestors().nth(2) {
            Some(target) => target.join("ebpf"),
            None => out.join("ebpf"),
        },
        _ => out.join("ebpf"),
    }
}

/// Whether a variable configures, or was set by, the build that runs this script.
fn belongs_to_the_outer_build(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_TERM_COLOR"];
    let network = [
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
    ];
    let ours = name.starts_with("CARGO") && !kept.contains(&name);
    let ours = ours && !network.iter().any(|prefix| name.starts_with(prefix));
    let build = [
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "OUT_DIR",
        "NUM_JOBS",
    ];
    ours || name.starts_with("RUST") && name != "RUST_BACKTRACE" && name != "RUSTUP_HOME"
        || build.contains(&name)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("cargo did not set {name}: {e}"))
}

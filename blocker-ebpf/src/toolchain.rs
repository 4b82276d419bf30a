//! Finds the eBPF toolchain: a compiler with the source of `core`, and bpf-linker.
//!
//! Shared by `blocker/build.rs`, which uses the toolchain, and by `cargo xtask setup`, which
//! installs missing parts. Nothing here changes the system.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The bpf-linker that the datapath is built and tested with. Later ones need an LLVM development
/// package that Debian 12 lacks.
pub const BPF_LINKER: &str = "0.10.1";

/// The LLVM version whose bitcode this bpf-linker reads. It may misread another version's.
pub const LLVM_MAJOR: u32 = 22;

/// Everything that is needed to build the eBPF object.
#[derive(Debug)]
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// The linker.
    pub linker: PathBuf,
    /// The directory of the `libLLVM` that the linker loads.
    pub llvm: PathBuf,
}

/// A compiler that can build `core`.
#[derive(Debug)]
pub struct Compiler {
    /// The path of `rustc` itself, not of rustup's proxy.
    pub rustc: PathBuf,
    /// The `cargo` of the same toolchain.
    pub cargo: PathBuf,
    /// The directory of its libraries and their source.
    pub sysroot: PathBuf,
}

/// A missing part of the toolchain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// No compiler with the right LLVM version has the source of `core`.
    CoreSource,
    /// There is no bpf-linker of the right version.
    Linker,
    /// The toolchain in use has no `libLLVM`, which the linker loads.
    Llvm,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CoreSource => write!(
                f,
                "a compiler (LLVM {LLVM_MAJOR}) with the source of Rust's core library"
            ),
            Self::Linker => write!(f, "bpf-linker {BPF_LINKER}"),
            Self::Llvm => write!(
                f,
                "libLLVM {LLVM_MAJOR} (it comes with rustup's toolchains)"
            ),
        }
    }
}

/// Finds the whole toolchain. `rustc` is the compiler that builds the rest of the workspace.
///
/// # Errors
/// The missing parts.
pub fn locate(rustc: &Path) -> Result<Toolchain, Vec<Missing>> {
    match (compiler(rustc), linker(), llvm(rustc)) {
        (Some(compiler), Some(linker), Some(llvm)) => Ok(Toolchain {
            compiler,
            linker,
            llvm,
        }),
        (compiler, linker, llvm) => {
            let missing = [
                (compiler.is_none(), Missing::CoreSource),
                (linker.is_none(), Missing::Linker),
                (llvm.is_none(), Missing::Llvm),
            ];
            let missing = missing.into_iter().filter(|(is, _)| *is);
            Err(missing.map(|(_, what)| what).collect())
        }
    }
}

/// Finds a compiler: the workspace's own if it has `rust-src`, else the distribution's.
#[must_use]
pub fn compiler(rustc: &Path) -> Option<Compiler> {
    let candidates = [sysroot(rustc), Some(PathBuf::from("/usr"))];
    candidates.into_iter().flatten().find_map(|sysroot| {
        let compiler = Compiler {
            rustc: sysroot.join("bin/rustc"),
            cargo: sysroot.join("bin/cargo"),
            sysroot,
        };
        let source = "lib/rustlib/src/rust/library/core/Cargo.toml";
        let complete = compiler.cargo.exists() && compiler.sysroot.join(source).exists();
        (complete && llvm_major(&compiler.rustc) == Some(LLVM_MAJOR)).then_some(compiler)
    })
}

/// Finds bpf-linker: in the cache that `cargo xtask setup` fills, in Cargo's own directory, on
/// the PATH.
#[must_use]
pub fn linker() -> Option<PathBuf> {
    let named = |directory: PathBuf| directory.join("bpf-linker");
    let cache = cache().map(|root| named(root.join("bin")));
    let cargo = cargo_home().map(|home| named(home.join("bin")));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = cache.into_iter().chain(cargo).collect::<Vec<_>>();
    candidates.extend(env::split_paths(&path).map(named));
    candidates.into_iter().find(|linker| {
        linker.is_file()
            && output(linker, &["--version"])
                .is_some_and(|text| text.split_whitespace().nth(1) == Some(BPF_LINKER))
    })
}

/// Where `cargo xtask setup` installs bpf-linker.
#[must_use]
pub fn cache() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.filter(|path| path.is_absolute());
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    Some(
        cache
            .join("blocker")
            .join(format!("bpf-linker-{BPF_LINKER}")),
    )
}

/// Finds the directory whose `libLLVM` bpf-linker is to load: it carries none of its own.
#[must_use]
pub fn llvm(rustc: &Path) -> Option<PathBuf> {
    let directory = sysroot(rustc)?.join("lib");
    let ours = |name: &str| {
        let version = name
            .strip_prefix("libLLVM-")
            .or_else(|| name.strip_prefix("libLLVM.so."));
        version.is_some_and(|version| version.starts_with(&LLVM_MAJOR.to_string()))
    };
    let mut entries = directory.read_dir().ok()?.filter_map(Result::ok);
    entries
        .any(|entry| entry.file_name().to_str().is_some_and(ours))
        .then_some(directory)
}

fn cargo_home() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    output(rustc, &["--print", "sysroot"]).map(|text| PathBuf::from(text.trim_end()))
}

fn llvm_major(rustc: &Path) -> Option<u32> {
    let text = output(rustc, &["-vV"])?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

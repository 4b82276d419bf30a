//! Direct use of bpf(2): arrays that are written through `mmap`, XDP programs from instructions, and
//! `BPF_PROG_TEST_RUN` as a source of packets.
//!
//! The programs are a few instructions each, so no ELF object is built. Blocker's own benchmark uses
//! this module too, and tests that need more of `BPF_PROG_TEST_RUN` than aya offers.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

// include/uapi/linux/bpf.h
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const BPF_F_TEST_XDP_ON_LIVE_FRAMES: u32 = 1 << 1;

/// A map, by its file descriptor.
pub struct Map(OwnedFd);

impl Map {
    /// An array of these values, mapped as memory (Linux 5.5).
    ///
    /// # Errors
    /// The kernel refuses the map or the mapping.
    pub fn array(values: &[[u8; 16]]) -> Result<Self> {
        #[repr(C)]
        #[derive(Default)]
        struct Create {
            kind: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            flags: u32,
            rest: [u32; 13],
        }
        let mut create = Create {
            kind: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: 16,
            max_entries: u32::try_from(values.len())?,
            flags: BPF_F_MMAPABLE,
            ..Create::default()
        };
        // SAFETY: the attributes hold no pointers.
        let fd = unsafe { bpf(BPF_MAP_CREATE, &mut create) }.context("BPF_MAP_CREATE")?;
        let map = Self(owned(fd)?);
        let length = size_of_val(values);
        // SAFETY: a new mapping at an address that the kernel chooses. The map has as many values as
        // `values`, 16 bytes each, without gaps.
        unsafe {
            let memory = libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.0.as_raw_fd(),
                0,
            );
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error()).context("a BPF array cannot be mapped");
            }
            std::ptr::copy_nonoverlapping(values.as_ptr(), memory.cast(), values.len());
            libc::munmap(memory, length);
        }
        Ok(map)
    }

    /// The map that is pinned at a path.
    ///
    /// # Errors
    /// There is no map, or it may not be opened.
    pub fn pinned(path: &Path) -> Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let text = std::ffi::CString::new(path.as_os_str().as_bytes())?;
        // pathname, bpf_fd and file_flags
        let mut get: [u64; 2] = [text.as_ptr() as u64, 0];
        // SAFETY: the path is a C string that outlives the call.
        let fd = unsafe { bpf(BPF_OBJ_GET, &mut get) }
            .with_context(|| format!("{} cannot be opened", path.display()))?;
        Ok(Self(owned(fd)?))
    }

    /// The value of a key. `size` is the size that bpf(2) copies: for a per-CPU map, a value for each
    /// possible CPU.
    ///
    /// # Errors
    /// There is no such key.
    pub fn lookup(&self, key: &[u8], size: usize) -> Result<Vec<u8>> {
        let mut value = vec![0; size];
        self.element(BPF_MAP_LOOKUP_ELEM, key, value.as_mut_ptr())
            .context("BPF_MAP_LOOKUP_ELEM")?;
        Ok(value)
    }

    /// Sets the value of a key; for its size see [`Map::lookup`].
    ///
    /// # Errors
    /// The map is full.
    pub fn update(&self, key: &[u8], value: &mut [u8]) -> Result<()> {
        self.element(BPF_MAP_UPDATE_ELEM, key, value.as_mut_ptr())
            .context("BPF_MAP_UPDATE_ELEM")
    }

    fn element(&self, command: libc::c_long, key: &[u8], value: *mut u8) -> io::Result<()> {
        // map_fd, key, value, flags
        let map = u64::from(self.0.as_raw_fd().cast_unsigned());
        let mut element: [u64; 4] = [map, key.as_ptr() as u64, value as u64, 0];
        // SAFETY: the caller gives a key and a value of the map's sizes; both outlive the call.
        unsafe { bpf(command, &mut element) }.map(|_| ())
    }

    /// The file descriptor, as instructions name the map.
    pub fn number(&self) -> u32 {
        self.0.as_raw_fd().cast_unsigned()
    }
}

/// A loaded program.
pub struct Program(OwnedFd);

impl Program {
    /// Loads these instructions (`struct bpf_insn`) as an XDP program.
    ///
    /// # Errors
    /// The verifier refuses them.
    pub fn load(instructions: &[u64]) -> Result<Self> {
        #[repr(C)]
        #[derive(Default)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            rest: [u64; 14],
        }
        let license = c"GPL";
        let mut log = vec![0_u8; 65_536];
        let mut load = Load {
            kind: BPF_PROG_TYPE_XDP,
            count: u32::try_from(instructions.len())?,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 1,
            log_size: u32::try_from(log.len())?,
            log: log.as_mut_ptr() as u64,
            rest: [0; 14],
        };
        // SAFETY: the attributes point to the instructions, a C string and a buffer, with their
        // sizes; all outlive the call.
        let loaded = unsafe { bpf(BPF_PROG_LOAD, &mut load) };
        let fd = loaded.with_context(|| {
            let said = String::from_utf8_lossy(&log);
            format!("BPF_PROG_LOAD: {}", said.trim_end_matches('\0').trim())
        })?;
        Ok(Self(owned(fd)?))
    }

    /// Attaches it natively to a device of this thread's network namespace, until the result is
    /// dropped.
    ///
    /// # Errors
    /// The device has another program, or its driver does not support XDP.
    pub fn attach(&self, ifindex: u32) -> Result<OwnedFd> {
        // prog_fd, target_ifindex, attach_type, flags
        let program = self.0.as_raw_fd().cast_unsigned();
        let mut link: [u32; 16] = [0; 16];
        link[..4].copy_from_slice(&[program, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE]);
        // SAFETY: the attributes hold no pointers.
        let fd = unsafe { bpf(BPF_LINK_CREATE, &mut link) }.context("BPF_LINK_CREATE")?;
        owned(fd)
    }

    /// Runs it on copies of a frame, and carries out its verdict on each (Linux 5.18).
    ///
    /// The kernel reuses frames with the program's changes.
    ///
    /// # Errors
    /// The kernel refuses, or a signal came.
    pub fn emit(&self, frame: &[u8], count: u32, batch: u32) -> Result<()> {
        let mut run = TestRun {
            program: self.0.as_raw_fd().cast_unsigned(),
            size_in: u32::try_from(frame.len())?,
            data_in: frame.as_ptr() as u64,
            repeat: count,
            flags: BPF_F_TEST_XDP_ON_LIVE_FRAMES,
            batch,
            ..TestRun::default()
        };
        // SAFETY: `data_in` is `size_in` bytes, which the kernel only reads; no output is asked for.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut run) }
            .context("BPF_PROG_TEST_RUN on live frames (Linux 5.18 and later have it)")?;
        Ok(())
    }

    /// Runs it on a packet `repeat` times.
    ///
    /// # Errors
    /// The kernel refuses, or a signal came.
    pub fn run(&self, packet: &[u8], repeat: u32) -> Result<Ran> {
        let mut run = TestRun {
            program: self.0.as_raw_fd().cast_unsigned(),
            size_in: u32::try_from(packet.len())?,
            data_in: packet.as_ptr() as u64,
            repeat,
            ..TestRun::default()
        };
        // SAFETY: as in `emit`.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut run) }.context("BPF_PROG_TEST_RUN")?;
        Ok(Ran {
            answer: run.answer,
            nanoseconds: run.duration,
        })
    }
}

impl From<OwnedFd> for Program {
    /// A program that is loaded already.
    fn from(program: OwnedFd) -> Self {
        Self(program)
    }
}

/// The result of a run.
pub struct Ran {
    /// The last run's return value.
    pub answer: u32,
    /// The mean time of a run.
    pub nanoseconds: u32,
}

/// `union bpf_attr`'s part for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    answer: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    rest: [u32; 5],
}

/// # Safety
/// `attributes` must be of the type that the command takes, with valid pointers.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads as many bytes as the attributes have, and refuses unknown fields; the
    // caller vouches for the rest.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    Ok(Errno::result(result)?)
}

fn owned(result: libc::c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(result)?;
    ensure!(fd >= 0, "bpf(2) gave {fd} as a file descriptor");
    // SAFETY: the kernel has just opened it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

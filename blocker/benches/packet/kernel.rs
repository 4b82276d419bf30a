//! bpf(2) itself: programs that do nothing, and running any program on a packet.
//!
//! Raw, since an empty program is no ELF object, and so that all programs are measured by the very
//! same call.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use blocker::datapath::Datapath;
use blocker_ebpf::programs;

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_XDP: u32 = 6;

/// What an empty program answers.
#[derive(Clone, Copy)]
pub(crate) enum Action {
    /// `XDP_DROP`.
    Drop = 1,
    /// `XDP_PASS`.
    Pass = 2,
}

/// A loaded program.
pub(crate) struct Program(OwnedFd);

impl Program {
    /// An XDP program of two instructions: `r0 = action; exit`.
    pub(crate) fn xdp(action: Action) -> Result<Self> {
        #[repr(C)]
        #[derive(Default)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            rest: [u64; 16],
        }
        let instructions: [u64; 2] = [0xb7 | ((action as u64) << 32), 0x95];
        let license = c"GPL";
        let mut load = Load {
            kind: BPF_PROG_TYPE_XDP,
            count: 2,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            rest: [0; 16],
        };
        // SAFETY: the attributes' pointers are to the two instructions and to a C string, and all
        // outlive the call.
        let fd = unsafe { bpf(BPF_PROG_LOAD, &mut load) }.context("an empty XDP program")?;
        Ok(Self(fd_of(fd)?))
    }

    /// A program of the datapath, by name.
    pub(crate) fn of(datapath: &mut Datapath, name: &'static str) -> Result<Self> {
        let object = datapath.object();
        let fd = if name == programs::XDP {
            object.xdp()?.fd()?.as_fd().try_clone_to_owned()
        } else {
            object.classifier(name)?.fd()?.as_fd().try_clone_to_owned()
        };
        Ok(Self(fd?))
    }

    /// Runs it on a packet, `repeat` times; nanoseconds of one run.
    pub(crate) fn run(&self, packet: &[u8], repeat: u32) -> Result<u32> {
        Ok(self.test(packet, repeat)?.duration)
    }

    /// Runs it once and checks its answer.
    pub(crate) fn expect(&self, packet: &[u8], answer: u32) -> Result<()> {
        let got = self.test(packet, 1)?.retval;
        ensure!(got == answer, "answers {got}, not {answer}");
        Ok(())
    }

    fn test(&self, packet: &[u8], repeat: u32) -> Result<TestRun> {
        let mut run = TestRun {
            fd: self.0.as_raw_fd().cast_unsigned(),
            size_in: u32::try_from(packet.len())?,
            data_in: packet.as_ptr() as u64,
            repeat,
            ..TestRun::default()
        };
        // SAFETY: `data_in` is `size_in` bytes, which the kernel only reads; no output is asked.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut run) }.context("BPF_PROG_TEST_RUN")?;
        Ok(run)
    }
}

/// `union bpf_attr`'s part for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    fd: u32,
    retval: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 6],
}

/// # Safety
/// `attributes` must be what the command takes, with pointers that are good for it.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> std::io::Result<libc::c_long> {
    // SAFETY: the kernel takes as many bytes as it is told the attributes have, and refuses what
    // it does not know; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(result)
}

fn fd_of(result: libc::c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(result)?;
    // SAFETY: the kernel has just made it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

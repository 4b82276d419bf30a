//! What is run: programs that do nothing, and the datapath's, all by the very same call.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use blocker::datapath::Datapath;
use blocker_ebpf::programs;

/// What an empty program answers.
#[derive(Clone, Copy)]
pub(crate) enum Action {
    /// `XDP_DROP`.
    Drop = 1,
    /// `XDP_PASS`.
    Pass = 2,
}

/// A loaded program.
pub(crate) struct Program(xtask::bpf::Program);

impl Program {
    /// An XDP program of two instructions: `r0 = action; exit`.
    pub(crate) fn xdp(action: Action) -> Result<Self> {
        xtask::bpf::Program::load(&[0xb7 | ((action as u64) << 32), 0x95]).map(Self)
    }

    /// A program of the datapath, by name.
    pub(crate) fn of(datapath: &mut Datapath, name: &'static str) -> Result<Self> {
        let object = datapath.object();
        let fd = if name == programs::XDP {
            object.xdp()?.fd()?.as_fd().try_clone_to_owned()
        } else {
            object.classifier(name)?.fd()?.as_fd().try_clone_to_owned()
        };
        Ok(Self(fd?.into()))
    }

    /// Runs it on a packet, `repeat` times; nanoseconds of one run.
    pub(crate) fn run(&self, packet: &[u8], repeat: u32) -> Result<u32> {
        Ok(self.0.run(packet, repeat)?.nanoseconds)
    }

    /// Runs it once and checks its answer.
    pub(crate) fn expect(&self, packet: &[u8], answer: u32) -> Result<()> {
        let got = self.0.run(packet, 1)?.answer;
        ensure!(got == answer, "answers {got}, not {answer}");
        Ok(())
    }
}

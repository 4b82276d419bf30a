//! Datagrams from B to A.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::TASK;
use crate::command::say;
use crate::hosts::{Pair, poll};

const PATIENCE: Duration = Duration::from_secs(20);

/// A socket in A, and one in B that sends to it.
pub(super) struct Wire {
    sink: UdpSocket,
    source: UdpSocket,
}

impl Wire {
    pub(super) fn new(pair: &Pair) -> Result<Self> {
        let sink = pair.a.enter(|| UdpSocket::bind((Pair::A, 0)))??;
        let source = pair.b.enter(|| UdpSocket::bind((Pair::B, 0)))??;
        source.connect(sink.local_addr()?)?;
        sink.set_nonblocking(true)?;
        Ok(Self { sink, source })
    }

    fn arrived(&self) -> Result<bool> {
        match self.sink.recv(&mut [0; 16]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("A's socket failed"),
        }
    }

    /// Waits until datagrams arrive, and receives all of them.
    pub(super) fn wait_passing(&self) -> Result<()> {
        poll("a datagram to pass", PATIENCE, || {
            // The send may fail with an ICMP port unreachable error.
            let _ = self.source.send(b"?");
            self.arrived().ok()?.then_some(())
        })?;
        while self.arrived()? {}
        Ok(())
    }

    /// Checks that no datagram of a flood during `work` arrives. Returns how many were sent.
    pub(super) fn tight(&self, work: impl FnOnce() -> Result<()>) -> Result<u64> {
        while self.arrived()? {}
        let over = AtomicBool::new(false);
        let (result, sent) = std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut sent = 0_u64;
                while sent < 100 || !over.load(Ordering::Relaxed) {
                    sent += u64::from(self.source.send(b"leak?").is_ok());
                    std::thread::yield_now();
                }
                sent
            });
            let result = work();
            over.store(true, Ordering::Relaxed);
            (result, sending.join())
        });
        result?;
        let sent = sent.map_err(|_| anyhow::anyhow!("the sender panicked"))?;
        let mut leaked = 0_u64;
        while self.arrived()? {
            leaked += 1;
        }
        ensure!(leaked == 0, "{leaked} of {sent} datagrams leaked");
        say(TASK, &format!("0 of {sent} datagrams arrived"));
        Ok(sent)
    }
}

//! The programs' diagnostics: read from their ring buffer, and logged.

use std::borrow::Cow;
use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use super::Error;

/// The programs' diagnostics, as records of the `log` crate (which `tracing` takes up).
pub struct Diagnostics(EbpfLogger<&'static dyn log::Log>);

impl Diagnostics {
    /// Opens the ring buffer of a loaded object.
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        EbpfLogger::init(ebpf)
            .map(Self)
            .map_err(|error| Error::Diagnostics {
                detail: Cow::Owned(error.to_string()),
            })
    }

    /// Logs the diagnostics as they come; does not return.
    ///
    /// # Errors
    /// If the ring buffer can't be waited for.
    pub async fn follow(self) -> io::Result<()> {
        // SAFETY: the logger owns its ring buffer's descriptor, and gives the same one as long as
        // it lives; it lives inside the `AsyncFd`.
        let mut readable = unsafe { AsyncFd::register(self.0) }?;
        loop {
            let mut guard = readable.readable_mut().await?;
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }
}

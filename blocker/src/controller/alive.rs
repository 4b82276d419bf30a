//! Whether the controller answers, for the service manager's watchdog.

use super::{Controller, Error, blocking};

impl Controller {
    /// Locks what is in force and reads a counter of the datapath, as a request would. Returns late, or
    /// not at all, if requests are answered late or not at all.
    ///
    /// # Errors
    /// If the datapath can't be read.
    pub async fn alive(&self) -> Result<(), Error> {
        let controller = self.clone();
        blocking(move || {
            let live = controller.live();
            let attached = live.datapath.attached();
            let mut hooks = attached.iter().flat_map(|attached| {
                let index = attached.device.index;
                attached.hooks.iter().map(move |hook| (hook.hook, index))
            });
            if let Some((hook, index)) = hooks.next() {
                live.datapath.hook_counters(hook, index)?;
            }
            Ok(())
        })
        .await
    }
}

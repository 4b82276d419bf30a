//! Whether the controller answers: what the service manager's watchdog is told.

use super::{Controller, Error, beside};

impl Controller {
    /// Has what is in force, and reads a counter of the datapath. Returns late, or not at all, where
    /// a request would.
    ///
    /// # Errors
    /// If the datapath can't be read.
    pub async fn alive(&self) -> Result<(), Error> {
        let controller = self.clone();
        // As requests do: what is in force may be locked for a moment.
        beside(move || {
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

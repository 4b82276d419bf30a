//! Match field: interfaces.

use super::{Holds, Match, Packet, RuleError, Tried};

impl Match {
    /// The interfaces in words: `on eth0, eth1`.
    pub(crate) fn interface_words(&self) -> String {
        format!("on {}", self.interfaces.join(", "))
    }
}

/// Whether a device's name equals a pattern, or matches the pattern as a glob.
#[must_use]
pub fn interface_matches(pattern: &str, device: &str) -> bool {
    pattern == device
        || globset::Glob::new(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(device))
}

/// Checks a device name, as `dev_valid_name` of the kernel's `net/core/dev.c` does, or a glob.
pub(crate) fn check_interface(name: &str) -> Result<(), RuleError> {
    let bad = name.is_empty()
        || name == "."
        || name == ".."
        || name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    let glob = name.contains(['*', '?', '[', '{']);
    if bad || (!glob && name.len() > 15) || (glob && globset::Glob::new(name).is_err()) {
        return Err(RuleError::Interface(name.to_owned()));
    }
    Ok(())
}

impl Tried {
    /// Whether the packet is on one of the rule's devices.
    pub(super) fn device_fits(&self, packet: &Packet) -> Holds {
        match (&self.interfaces, packet.device) {
            (None, _) => Holds::Always,
            (Some(devices), Some(device)) => Holds::from(devices.contains(&device)),
            (Some(devices), None) if devices.is_empty() => Holds::Never,
            (Some(_), None) => Holds::Sometimes,
        }
    }
}

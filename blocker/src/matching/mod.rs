//! What a rule matches, and which of several rules decides a packet. Pure.

mod decider;
pub(crate) mod packet;
mod tried;

pub use decider::{Decider, Outcome, Trial};
pub use packet::{Packet, PacketPorts};
pub use tried::{Fit, Holds, Miss, Tried, Unknown, settles_at_xdp};

//! Reads packet events from the datapath while there are watchers, and publishes them with names for
//! their numbers.

use std::os::fd::OwnedFd;
use std::time::Duration;

use blocker_ebpf::Event as Raw;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Controller;
use super::names::{self, Clock};
use crate::wire::event::{Event, Packet, What};

/// How long events may accumulate before they are read: each read costs a wake-up, and the delay is
/// not noticeable.
const GATHER: Duration = Duration::from_millis(5);
/// How often to check whether there are still watchers, and whether events were lost.
const LOOK: Duration = Duration::from_millis(200);

/// TCP's flags from the lowest bit (RFC 9293 3.1).
const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

impl Controller {
    /// Passes packet events on while there are watchers, until the daemon stops.
    pub(super) async fn pass_events_on(self) {
        let ready = self.0.seen.readiness().and_then(|fd| {
            // SAFETY: an `OwnedFd` gives the same descriptor for its whole life, and the `AsyncFd`
            // owns it.
            let ready = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
            Ok(ready?)
        });
        match ready {
            Ok(ready) => self.pass_on_when(&ready).await,
            Err(error) => tracing::error!("packets cannot be watched: {error}"),
        }
    }

    async fn pass_on_when(&self, ready: &AsyncFd<OwnedFd>) {
        let events = &self.0.events;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !events.is_closed() {
            events.woken.notified().await;
            let mut lost = self.lost();
            while events.is_watched() {
                tokio::select! {
                    ready = ready.readable() => match ready {
                        Ok(mut ready) => ready.clear_ready(),
                        Err(error) => {
                            tracing::error!("packets can no longer be watched: {error}");
                            return;
                        }
                    },
                    _ = look.tick() => {}
                }
                self.pass_on().await;
                let before = std::mem::replace(&mut lost, self.lost());
                if lost > before {
                    events.lost(lost - before);
                }
                sleep(GATHER).await;
            }
            // The next watcher must not get events from before its start.
            self.0.seen.drain(&mut |_| {});
        }
    }

    /// How many events the datapath lost so far.
    fn lost(&self) -> u64 {
        match self.0.seen.tally() {
            Ok(tally) => tally.lost,
            Err(error) => {
                tracing::error!("{error}");
                0
            }
        }
    }

    /// Publishes the events that are in the ring buffer.
    async fn pass_on(&self) {
        let mut raw = Vec::new();
        self.0.seen.drain(&mut |event| raw.push(*event));
        if raw.is_empty() {
            return;
        }
        // A new rule's first packet may arrive before the rule's name is known.
        if raw
            .iter()
            .any(|event| self.0.names.of(event.rule).is_none())
        {
            let this = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || this.learn_names()).await {
                tracing::error!("the names of rules cannot be learnt: {error}");
            }
        }
        let clock = self.0.wall.clock();
        self.0
            .events
            .publish_events(|| raw.iter().map(|event| self.event(event, clock)).collect());
    }

    fn event(&self, raw: &Raw, clock: Clock) -> Event {
        let (hook, direction) = names::hook(raw.hook);
        let protocol = names::protocol(u32::from(raw.protocol));
        let is_icmp = names::is_protocol(crate::rule::Protocol::Icmp, &protocol);
        Event {
            time: clock.wall(raw.time),
            what: What::Packet(Packet {
                interface: self.0.events.device(raw.ifindex),
                direction,
                hook,
                protocol,
                remote: names::address(raw.remote),
                remote_port: raw.remote_port,
                local: names::address(raw.local),
                local_port: raw.local_port,
                tcp_flags: flags(raw.flags),
                icmp_type: (is_icmp && raw.icmp_type != 0xff).then_some(raw.icmp_type),
                fragment: raw.fragment != 0,
                length: raw.length,
                verdict: names::decision(raw.verdict),
                rule: self.0.names.of(raw.rule),
            }),
        }
    }
}

/// The names of TCP flags.
fn flags(bits: u8) -> Vec<String> {
    let set = FLAGS.iter().enumerate();
    let set = set.filter(|(bit, _)| bits >> bit & 1 == 1);
    set.map(|(_, name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_named_from_the_lowest_bit() {
        assert_eq!(flags(0x12), ["syn", "ack"]);
        assert_eq!(flags(0xff), FLAGS);
        assert_eq!(flags(0), [""; 0]);
    }
}

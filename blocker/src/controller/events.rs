//! Events, published to watchers.
//!
//! Publishing never waits: events go into a bounded channel, from which each watcher reads at its own
//! pace. A watcher that is too slow misses the oldest ones and is told how many. Without watchers no
//! event is made.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use tokio::sync::{Notify, broadcast};

use super::names::{is_in, is_protocol};
use super::{Controller, Observer, Who, journal, lock};
use crate::datapath::attach::{Attached, hook_name};
use crate::rule::{Owner, Rule, RuleId};
use crate::ruleset::Diff;
use crate::wire::event::{
    DeviceChange, DeviceFate, Event, EventKind, Killed, Lost, LostAt, Reloaded, RuleChange,
    RuleFate, What,
};
use crate::wire::{Account, EventsRequest};

/// Capacity of the channel. It exceeds the datapath's ring buffer, so that reading a full buffer at once
/// loses none.
const WAITING: usize = 16_384;
/// How many bytes are written to a watcher at once.
const WRITE: usize = 64 << 10;
/// The most targets of a rule that an event lists.
const TARGETS: usize = 8;

/// An event and its line of JSON, which is made once, when the first watcher wants it.
struct Published {
    event: Event,
    line: OnceLock<Bytes>,
}

impl Published {
    fn line(&self) -> &Bytes {
        self.line.get_or_init(|| line(&self.event))
    }
}

fn line(event: &Event) -> Bytes {
    let mut line = BytesMut::new().writer();
    if let Err(error) = serde_json::to_writer(&mut line, event) {
        // Unreachable: writing to memory does not fail, and all keys are strings.
        tracing::error!("an event cannot be written: {error}");
    }
    let mut line = line.into_inner();
    line.put_u8(b'\n');
    line.freeze()
}

/// Devices by their index: name, hooks.
type Devices = BTreeMap<u32, (String, Vec<String>)>;

/// The hub of events.
pub(super) struct Events {
    /// `None` once the daemon stops.
    sender: Mutex<Option<broadcast::Sender<Arc<Published>>>>,
    /// Signals that there is a watcher, or that the daemon stops.
    pub(super) woken: Notify,
    /// How many events the datapath lost while there were watchers. A counter as well as an event, since
    /// a watcher may miss the event.
    lost: Arc<AtomicU64>,
    /// The attached devices, as published last.
    devices: Mutex<Devices>,
    seen: Arc<dyn Observer>,
}

impl Events {
    pub(super) fn new(seen: Arc<dyn Observer>) -> Self {
        Self {
            sender: Mutex::new(Some(broadcast::Sender::new(WAITING))),
            woken: Notify::new(),
            lost: Arc::default(),
            devices: Mutex::default(),
            seen,
        }
    }

    /// A new watcher of events from now on; none once the daemon stops.
    fn watch(&self, request: EventsRequest) -> Option<Watcher> {
        let sender = lock(&self.sender);
        let events = sender.as_ref()?.subscribe();
        self.seen.watch(true);
        self.woken.notify_one();
        Some(Watcher {
            events,
            request,
            told: self.lost.load(Ordering::Relaxed),
            lost: Arc::clone(&self.lost),
        })
    }

    /// Whether there are watchers. If not, stops the datapath from making events.
    pub(super) fn is_watched(&self) -> bool {
        // Under the lock, so that no watcher is added in between.
        let sender = lock(&self.sender);
        let watched = sender
            .as_ref()
            .is_some_and(|sender| sender.receiver_count() > 0);
        self.seen.watch(watched);
        watched
    }

    /// Whether the daemon stops.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.sender).is_none()
    }

    /// Ends all watchers, after the events that were published before.
    pub(super) fn close(&self) {
        lock(&self.sender).take();
        self.seen.watch(false);
        self.woken.notify_one();
    }

    /// Publishes an event with the current time, if there are watchers.
    pub(super) fn publish(&self, what: impl FnOnce() -> What) {
        self.publish_all(|| vec![what()]);
    }

    fn publish_all(&self, all: impl FnOnce() -> Vec<What>) {
        let time = Timestamp::now();
        let events = || all().into_iter().map(|what| Event { time, what }).collect();
        self.publish_events(events);
    }

    pub(super) fn publish_events(&self, events: impl FnOnce() -> Vec<Event>) {
        let sender = lock(&self.sender).clone();
        let Some(sender) = sender.filter(|sender| sender.receiver_count() > 0) else {
            return;
        };
        for event in events() {
            let line = OnceLock::new();
            // Sending fails only if the last watcher has left meanwhile.
            let _nobody = sender.send(Arc::new(Published { event, line }));
        }
    }

    /// Publishes that the datapath lost events.
    pub(super) fn lost(&self, events: u64) {
        self.lost.fetch_add(events, Ordering::Relaxed);
        let at = LostAt::Datapath;
        self.publish(|| What::Lost(Lost { events, at }));
    }

    /// Publishes changes of rules.
    pub(super) fn rules(&self, changes: Vec<RuleChange>) {
        self.publish_all(|| changes.into_iter().map(What::Rule).collect());
    }

    /// Publishes the changes of a replacement of all rules of an owner.
    pub(super) fn replaced(&self, diff: &Diff, owner: &Owner, by: Option<Who>) {
        self.publish_all(|| {
            let of = |fate| move |rule: &Rule| What::Rule(rule_change(fate, rule, owner, by));
            let removed = diff.removed.iter().map(of(RuleFate::Lifted));
            let added = diff.added.iter().map(of(RuleFate::Added));
            let changed = diff.changed.iter().map(|(_, after)| after);
            removed
                .chain(added)
                .chain(changed.map(of(RuleFate::Changed)))
                .collect()
        });
    }

    /// Publishes that the configuration was read again.
    pub(super) fn reloaded(&self, error: Option<&str>) {
        let error = error.map(str::to_owned);
        self.publish(|| What::Reload(Reloaded { error }));
    }

    /// Publishes that flows were killed.
    pub(super) fn killed(&self, rules: Vec<RuleId>, account: &Account) {
        self.publish(|| {
            What::Teardown(Killed {
                rules,
                found: account.found,
                killed: account.killed,
                left: account.left.len() as u64,
                elapsed_ms: account.elapsed_ms,
            })
        });
    }

    /// Stores the attached devices, and publishes which were attached and which were detached.
    pub(super) fn devices(&self, attached: &[&Attached]) {
        let now: Devices = attached
            .iter()
            .map(|attached| {
                let hooks = attached.hooks.iter();
                let hooks = hooks.map(|hook| format!("{} {}", hook_name(hook.hook), hook.mode));
                let device = &attached.device;
                (device.index, (device.name.clone(), hooks.collect()))
            })
            .collect();
        let before = std::mem::replace(&mut *lock(&self.devices), now.clone());
        let differ = |one: &Devices, other: &Devices, change| -> Vec<What> {
            let same = |index, name: &String| {
                let known = other.get(index);
                known.is_some_and(|(known, _)| known == name)
            };
            let differing = one.iter().filter(|(index, (name, _))| !same(index, name));
            let what = |(index, (name, hooks)): (&u32, &(String, Vec<String>))| {
                What::Device(DeviceChange {
                    change,
                    interface: name.clone(),
                    index: *index,
                    hooks: hooks.clone(),
                })
            };
            differing.map(what).collect()
        };
        self.publish_all(|| {
            let mut changes = differ(&before, &now, DeviceFate::Detached);
            changes.extend(differ(&now, &before, DeviceFate::Attached));
            changes
        });
    }

    /// A device's name: the one at its attachment, else the kernel's present one, else the index as
    /// a number.
    pub(super) fn device(&self, index: u32) -> String {
        if let Some((name, _)) = lock(&self.devices).get(&index) {
            return name.clone();
        }
        let mut name = [0; libc::IF_NAMESIZE];
        // SAFETY: the buffer has the length that the call requires.
        let found = unsafe { !libc::if_indextoname(index, name.as_mut_ptr()).is_null() };
        let name = name.map(libc::c_char::cast_unsigned);
        match CStr::from_bytes_until_nul(&name) {
            Ok(name) if found => name.to_string_lossy().into_owned(),
            _ => format!("#{index}"),
        }
    }
}

/// The event of a rule that changed.
pub(super) fn rule_change(
    change: RuleFate,
    rule: &Rule,
    owner: &Owner,
    by: Option<Who>,
) -> RuleChange {
    RuleChange {
        change,
        rule: rule.id.clone(),
        owner: owner.clone(),
        mode: rule.mode,
        targets: rule.targets.iter().take(TARGETS).copied().collect(),
        targets_total: rule.targets.len() as u64,
        expires: rule.expires,
        comment: rule.comment.clone(),
        by: by.map(|who| who.to_string()),
    }
}

impl Controller {
    /// Logs and publishes that a rule was added, or was in force already.
    pub(super) fn tell_added(&self, who: Who, rule: &Rule, owner: &Owner, created: bool) {
        journal::added(who, rule, created);
        let fate = if created {
            RuleFate::Added
        } else {
            RuleFate::Changed
        };
        self.0
            .events
            .rules(vec![rule_change(fate, rule, owner, Some(who))]);
    }

    /// A new watcher of events; none once the daemon stops.
    #[must_use]
    pub fn watch(&self, request: EventsRequest) -> Option<Watcher> {
        self.0.events.watch(request)
    }

    /// Publishes which devices were attached or detached.
    pub(super) fn tell_devices(&self) {
        self.0.events.devices(&self.live().datapath.attached());
    }
}

/// A receiver of events.
pub struct Watcher {
    events: broadcast::Receiver<Arc<Published>>,
    request: EventsRequest,
    /// The counter `lost` of [`Events`], and its value when this watcher was last told.
    lost: Arc<AtomicU64>,
    told: u64,
}

impl Watcher {
    /// Waits for the next events that the request asks for, as one line of JSON each. `None` once the
    /// daemon stops.
    pub async fn next(&mut self) -> Option<Bytes> {
        let mut lines = BytesMut::new();
        loop {
            let next = if lines.is_empty() {
                self.events.recv().await
            } else {
                match self.events.try_recv() {
                    Ok(event) => Ok(event),
                    Err(broadcast::error::TryRecvError::Lagged(missed)) => {
                        Err(broadcast::error::RecvError::Lagged(missed))
                    }
                    // If the channel is closed, the next call returns `None`.
                    Err(_) => return Some(lines.freeze()),
                }
            };
            match next {
                Ok(published) if published.event.what.kind() == EventKind::Lost => {
                    self.tell_lost(&mut lines);
                }
                Ok(published) => {
                    if takes(&self.request, &published.event.what) {
                        lines.extend_from_slice(published.line());
                    }
                }
                Err(broadcast::error::RecvError::Lagged(events)) => {
                    lines.extend_from_slice(&lost_line(events, LostAt::Watcher));
                    // The missed events may include one that reports lost events.
                    self.tell_lost(&mut lines);
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
            if lines.len() >= WRITE {
                return Some(lines.freeze());
            }
        }
    }

    /// Adds a line on the events that the datapath lost since this watcher was last told.
    fn tell_lost(&mut self, lines: &mut BytesMut) {
        let lost = self.lost.load(Ordering::Relaxed);
        let told = std::mem::replace(&mut self.told, lost);
        if lost > told {
            lines.extend_from_slice(&lost_line(lost - told, LostAt::Datapath));
        }
    }
}

fn lost_line(events: u64, at: LostAt) -> Bytes {
    line(&Event {
        time: Timestamp::now(),
        what: What::Lost(Lost { events, at }),
    })
}

/// Whether an event was asked for.
fn takes(request: &EventsRequest, what: &What) -> bool {
    let kind = what.kind();
    if kind == EventKind::Lost {
        return true;
    }
    let of_rules = |rules: &[RuleId]| {
        request.rule.is_empty() || rules.iter().any(|rule| request.rule.contains(rule))
    };
    if !request.kind.is_empty() && !request.kind.contains(&kind) {
        return false;
    }
    if let What::Packet(packet) = what {
        return of_rules(packet.rule.as_slice())
            && is_in(&request.remote, packet.remote)
            && is_protocol(request.protocol, &packet.protocol)
            && (request.verdict.is_empty() || request.verdict.contains(&packet.verdict));
    }
    let any_packet = EventsRequest {
        kind: request.kind.clone(),
        rule: request.rule.clone(),
        ..EventsRequest::default()
    };
    any_packet == *request
        && match what {
            What::Rule(change) => of_rules(std::slice::from_ref(&change.rule)),
            What::Teardown(killed) => of_rules(&killed.rules),
            _ => request.rule.is_empty(),
        }
}

#[cfg(test)]
mod tests;

//! The controller over a fake datapath: what happens to a change whose step n fails,
//! which no kernel can be made to show. That a real one takes a snapshot whole or not at all, keeps
//! counters by slot and reads only what is live is shown by the tests of the datapath itself.

mod owned;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use blocker_ebpf::{Event, FlowId, FlowKey, FlowRecord, Hook, Tally, mode};
use jiff::Timestamp;

use super::{Asking, Controller, Dataplane, Error, Observer};
use crate::compile::{Limits, Snapshot};
use crate::config::Config;
use crate::datapath::attach::Attached;
use crate::datapath::devices::Device;
use crate::datapath::{self, HookTotals, RuleCounters};
use crate::matching::Tried;
use crate::rule::{RuleId, RuleSpec};
use crate::state::Store;
use crate::teardown::Evidence;
use crate::wire::RuleView;

/// What was done to a fake datapath, and what is to fail.
#[derive(Default)]
struct Script {
    /// For each snapshot that was switched to: the modes of its rules, and their counter slots.
    live: Vec<Vec<(u8, u32)>>,
    /// The snapshot that was switched to last.
    snapshot: Option<Snapshot>,
    cleared: Vec<u32>,
    /// Whose counters are in which slot.
    counted: BTreeMap<RuleId, u32>,
    /// Whether events are to be made.
    watching: bool,
    /// How many more switches succeed; all if absent.
    switches_left: Option<usize>,
    /// Waited for by the next switches, one by each.
    gates: VecDeque<mpsc::Receiver<()>>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    fn live(&self) -> Vec<Vec<(u8, u32)>> {
        self.0.lock().unwrap().live.clone()
    }

    /// The modes of the rules that are live now.
    fn modes(&self) -> Vec<u8> {
        let live = self.live();
        live.last().unwrap().iter().map(|(mode, _)| *mode).collect()
    }

    fn fail_after(&self, switches: usize) {
        self.0.lock().unwrap().switches_left = Some(switches);
    }
}

const LIMITS: Limits = Limits {
    prefixes: 8,
    rules: 4,
    lists: 64,
    port_sets: 4,
    range_blocks: 1,
    v6_leaves: 4,
};

impl Dataplane for Fake {
    fn limits(&self) -> &Limits {
        &LIMITS
    }

    fn mark(&self) -> u32 {
        1
    }

    fn evidence(&self) -> Arc<dyn Evidence> {
        Arc::new(Self::default())
    }

    fn switch(&mut self, snapshot: &Snapshot) -> Result<(), datapath::Error> {
        let gate = self.0.lock().unwrap().gates.pop_front();
        if let Some(gate) = gate {
            // So long, lest a controller that holds its runtime up hangs the test.
            gate.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        let mut script = self.0.lock().unwrap();
        if let Some(left) = &mut script.switches_left {
            if *left == 0 {
                // Once: what the controller does about it is to succeed.
                script.switches_left = None;
                return Err(datapath::Error::Missing {
                    what: "what it was told",
                });
            }
            *left -= 1;
        }
        let rules = snapshot
            .rules
            .iter()
            .map(|rule| (rule.mode, rule.counter))
            .collect();
        script.live.push(rules);
        script.snapshot = Some(snapshot.clone());
        Ok(())
    }

    fn lookup(&self, remote: IpAddr) -> Result<Vec<Tried>, datapath::Error> {
        let script = self.0.lock().unwrap();
        let snapshot = script.snapshot.as_ref();
        Ok(snapshot.map_or_else(Vec::new, |snapshot| snapshot.tried(remote)))
    }

    fn list(&self, remote: IpAddr) -> u64 {
        let script = self.0.lock().unwrap();
        let list = script
            .snapshot
            .as_ref()
            .map(|snapshot| snapshot.list(remote));
        list.unwrap_or_default().into()
    }

    fn counted(&self) -> Vec<(RuleId, u32)> {
        let counted = self.0.lock().unwrap().counted.clone();
        counted.into_iter().collect()
    }

    fn begin_counting(&mut self, slot: u32, rule: &RuleId) -> Result<(), datapath::Error> {
        let mut script = self.0.lock().unwrap();
        script.cleared.push(slot);
        script.counted.retain(|_, of| *of != slot);
        script.counted.insert(rule.clone(), slot);
        Ok(())
    }

    fn end_counting(&mut self, slot: u32) -> Result<(), datapath::Error> {
        let mut script = self.0.lock().unwrap();
        script.counted.retain(|_, of| *of != slot);
        Ok(())
    }

    fn seen(&self) -> Arc<dyn Observer> {
        Arc::new(self.clone())
    }

    fn tag(&self, slot: u32) -> u32 {
        slot
    }

    fn rule_counters(&self, _slot: u32) -> Result<RuleCounters, datapath::Error> {
        Ok(RuleCounters::default())
    }

    fn hook_counters(&self, _hook: Hook, _ifindex: u32) -> Result<HookTotals, datapath::Error> {
        Ok(HookTotals::default())
    }

    fn recorded(&self, _slots: &[u32]) -> Result<Vec<FlowKey>, datapath::Error> {
        Ok(Vec::new())
    }

    fn forget_recorded(&mut self, _flows: &[FlowKey]) -> Result<(), datapath::Error> {
        Ok(())
    }

    fn attach(&mut self, _devices: &[Device]) -> Vec<datapath::Error> {
        Vec::new()
    }

    fn attached(&self) -> Vec<&Attached> {
        Vec::new()
    }

    fn sweep(&mut self) -> Result<(), datapath::Error> {
        Ok(())
    }

    fn detach(&mut self) -> Vec<datapath::Error> {
        Vec::new()
    }

    fn leave(&mut self) {}

    fn maps(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

impl Observer for Fake {
    fn is_recording(&self) -> bool {
        true
    }

    fn flows(&self, _see: &mut dyn FnMut(&FlowId, &FlowRecord)) -> u64 {
        0
    }

    fn tally(&self) -> Result<Tally, datapath::Error> {
        Ok(Tally {
            created: 0,
            not_recorded: 0,
            lost: 0,
        })
    }

    fn watch(&self, on: bool) {
        self.0.lock().unwrap().watching = on;
    }

    fn readiness(&self) -> io::Result<OwnedFd> {
        // Nobody writes into it: there are no packets.
        Ok(UnixStream::pair()?.0.into())
    }

    fn drain(&self, _see: &mut dyn FnMut(&Event)) {}
}

impl Evidence for Fake {
    fn watch(&self, _flows: &[FlowKey]) -> io::Result<()> {
        Ok(())
    }

    fn seen(&self, flows: &[FlowKey]) -> io::Result<Vec<u32>> {
        Ok(vec![0; flows.len()])
    }

    fn forget(&self, _flows: &[FlowKey]) -> io::Result<()> {
        Ok(())
    }
}

/// A controller over a fake, with its state in a directory of its own. Targets are of TEST-NET-2
/// (RFC 5737), with which this host has no flows.
struct Scene {
    files: tempfile::TempDir,
    fake: Fake,
    controller: Controller,
}

impl Scene {
    async fn new(rules: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("blocker.yaml");
        std::fs::write(&path, config(files.path(), rules)).unwrap();
        let fake = Fake::default();
        let loaded = Config::load(&path).unwrap();
        let controller = Controller::start(loaded, path, fake.clone()).await.unwrap();
        Self {
            files,
            fake,
            controller,
        }
    }

    fn rewrite(&self, rules: &str) {
        let text = config(self.files.path(), rules);
        std::fs::write(self.files.path().join("blocker.yaml"), text).unwrap();
    }

    async fn add(&self, json: &str) -> Result<bool, Error> {
        let answer = self.controller.add(spec(json), Asking::default()).await?;
        Ok(answer.created)
    }

    fn list(&self) -> Vec<RuleView> {
        self.controller.list().unwrap().rules
    }

    fn ids(&self) -> Vec<String> {
        self.list()
            .iter()
            .map(|view| view.rule.id.to_string())
            .collect()
    }

    /// The ids of the rules on disk.
    fn kept(&self) -> Vec<String> {
        let (_, loaded) = Store::open(&self.files.path().join("state"), Timestamp::now());
        assert_eq!(loaded.problem, None);
        loaded
            .rules
            .iter()
            .map(|stored| stored.rule.id.to_string())
            .collect()
    }
}

fn config(directory: &Path, rules: &str) -> String {
    format!("state_dir: {}/state\n{rules}", directory.display())
}

fn spec(json: &str) -> RuleSpec {
    serde_json::from_str(json).unwrap()
}

const ONE: &str = r#"{"id": "one", "targets": ["198.51.100.1"]}"#;
const TWO: &str = r#"{"id": "two", "targets": ["198.51.100.2"]}"#;

#[tokio::test]
async fn an_add_that_the_datapath_refuses_changes_nothing() {
    let scene = Scene::new("").await;
    scene.add(ONE).await.unwrap();
    scene.fake.fail_after(0);
    let error = scene.add(TWO).await.unwrap_err();
    assert!(matches!(error, Error::Datapath(_)), "{error}");
    assert_eq!(scene.ids(), ["one"]);
    assert_eq!(scene.kept(), ["one"]);
    assert_eq!(scene.fake.modes(), [mode::DROP]);
    // And it can be tried again.
    assert!(scene.add(TWO).await.unwrap());
    assert_eq!(scene.kept(), ["one", "two"]);
}

#[tokio::test]
async fn a_change_of_several_steps_is_put_back_from_the_step_that_fails() {
    // A rule that kills while it drops resets first: two switches. The first or the second fails.
    for step in 0..2 {
        let scene = Scene::new("").await;
        scene.add(ONE).await.unwrap();
        scene.fake.fail_after(step);
        let killing = r#"{"id": "two", "targets": ["198.51.100.2"], "established": "kill"}"#;
        scene.add(killing).await.unwrap_err();
        assert_eq!(
            (scene.ids(), scene.kept()),
            (vec!["one".into()], vec!["one".into()]),
            "step {step}"
        );
        assert_eq!(scene.fake.modes(), [mode::DROP], "step {step}");
    }
}

#[tokio::test]
async fn what_kills_while_it_drops_resets_until_its_flows_are_dead() {
    let scene = Scene::new("").await;
    let before = scene.fake.live().len();
    scene
        .add(r#"{"targets": ["198.51.100.1"], "established": "kill"}"#)
        .await
        .unwrap();
    let modes: Vec<u8> = scene.fake.live()[before..]
        .iter()
        .map(|rules| rules[0].0)
        .collect();
    assert_eq!(modes, [mode::RESET, mode::DROP]);
}

#[tokio::test]
async fn what_is_lifted_by_reset_resets_before_it_goes() {
    let scene = Scene::new("").await;
    scene
        .add(r#"{"id": "one", "targets": ["198.51.100.1"], "on_lift": "reset"}"#)
        .await
        .unwrap();
    let before = scene.fake.live().len();
    scene
        .controller
        .delete("one".parse().unwrap(), Asking::default())
        .await
        .unwrap();
    let modes: Vec<Vec<u8>> = scene.fake.live()[before..]
        .iter()
        .map(|rules| rules.iter().map(|(mode, _)| *mode).collect())
        .collect();
    assert_eq!(modes, [vec![mode::RESET], vec![]]);
    assert_eq!(scene.kept(), [""; 0]);
}

#[tokio::test]
async fn adding_what_is_there_changes_nothing_but_its_deadline() {
    let scene = Scene::new("").await;
    let unnamed = r#"{"targets": ["198.51.100.1"], "mode": "reset"}"#;
    assert!(scene.add(unnamed).await.unwrap());
    let id = scene.ids();
    assert!(!scene.add(unnamed).await.unwrap());
    let timed = r#"{"targets": ["198.51.100.1"], "mode": "reset", "for": "5m"}"#;
    assert!(!scene.add(timed).await.unwrap());
    assert_eq!(scene.ids(), id);
    assert!(
        scene.list()[0]
            .remaining_seconds
            .is_some_and(|left| (290..=300).contains(&left))
    );
    // Under a name it is another rule, and the name is taken from then on.
    assert!(scene.add(ONE).await.unwrap());
    let other = r#"{"id": "one", "targets": ["198.51.100.9"]}"#;
    assert!(matches!(
        scene.add(other).await.unwrap_err(),
        Error::Taken { .. }
    ));
}

#[tokio::test]
async fn counters_stay_with_their_rules_and_are_cleared_for_new_ones() {
    let kept = "rules: [{id: kept, targets: [198.51.100.1]}]\n";
    let scene = Scene::new(kept).await;
    let slot = |mode: u8| {
        let live = scene.fake.live();
        live.last()
            .unwrap()
            .iter()
            .find(|rule| rule.0 == mode)
            .unwrap()
            .1
    };
    let of_kept = slot(mode::DROP);
    scene
        .add(r#"{"id": "one", "targets": ["198.51.100.2"], "mode": "reject"}"#)
        .await
        .unwrap();
    assert_ne!(slot(mode::REJECT), of_kept);
    scene.rewrite(
        "rules: [{id: a, targets: [198.51.100.3], mode: audit}, {id: kept, targets: [198.51.100.1]}]\n",
    );
    scene.controller.reload().await.unwrap();
    assert_eq!(scene.ids(), ["a", "kept", "one"]);
    assert_eq!(slot(mode::DROP), of_kept);
    let slots: BTreeSet<u32> = [mode::DROP, mode::REJECT, mode::AUDIT].map(slot).into();
    assert_eq!(slots.len(), 3);
    assert_eq!(scene.fake.0.lock().unwrap().cleared.len(), 3);
}

/// The sorted modes of the rules of each switch that a reload of these rules makes.
async fn reload(scene: &Scene, rules: &str) -> Vec<Vec<u8>> {
    scene.rewrite(rules);
    let before = scene.fake.live().len();
    scene.controller.reload().await.unwrap();
    let switches = scene.fake.live().split_off(before).into_iter();
    let modes = |rules: Vec<(u8, u32)>| {
        let mut modes: Vec<u8> = rules.iter().map(|(mode, _)| *mode).collect();
        modes.sort_unstable();
        modes
    };
    switches.map(modes).collect()
}

#[tokio::test]
async fn one_target_more_or_less_leaves_the_others_blocked_as_they_are() {
    const ONE_TARGET: &str = "targets: [198.51.100.1]";
    const TWO_TARGETS: &str = "targets: [198.51.100.1, 198.51.100.2]";
    let rule = |targets, fields| format!("rules: [{{id: a, {targets}, {fields}}}]\n");
    let (drop, reset) = (mode::DROP, mode::RESET);
    // What a target more, and a target less, switches to.
    for (fields, more, less) in [
        (
            "on_lift: reset",
            vec![vec![drop]],
            vec![vec![drop, reset], vec![drop]],
        ),
        (
            "established: kill",
            vec![vec![drop, reset], vec![drop]],
            vec![vec![drop]],
        ),
        ("mode: reset", vec![vec![reset]], vec![vec![reset]]),
    ] {
        let scene = Scene::new(&rule(ONE_TARGET, fields)).await;
        let came = reload(&scene, &rule(TWO_TARGETS, fields)).await;
        assert_eq!(came, more, "{fields}");
        let went = reload(&scene, &rule(ONE_TARGET, fields)).await;
        assert_eq!(went, less, "{fields}");
    }
}

#[tokio::test]
async fn a_target_that_an_unchanged_rule_blocks_as_well_stays_blocked() {
    let rule = |id| format!("{{id: {id}, targets: [198.51.100.1], on_lift: reset}}");
    let scene = Scene::new(&format!("rules: [{}, {}]\n", rule("a"), rule("b"))).await;
    let went = reload(&scene, &format!("rules: [{}]\n", rule("a"))).await;
    assert_eq!(went, [[mode::DROP]]);
}

#[tokio::test]
async fn where_a_target_finds_no_room_to_reset_apart_its_whole_rule_resets() {
    let scene = Scene::new("").await;
    let others: String = (11..14)
        .map(|n| format!("  - {{id: r{n}, targets: [198.51.100.{n}], mode: audit}}\n"))
        .collect();
    let rules = |targets| {
        format!("rules:\n{others}  - {{id: a, targets: [{targets}], established: kill}}\n")
    };
    reload(&scene, &rules("198.51.100.1")).await;
    let switches = reload(&scene, &rules("198.51.100.1, 198.51.100.2")).await;
    let of_a: Vec<Option<&u8>> = switches
        .iter()
        .map(|modes| modes.iter().find(|mode| **mode != mode::AUDIT))
        .collect();
    assert_eq!(of_a, [Some(&mode::RESET), Some(&mode::DROP)]);
}

/// A rule that leaves counts until the switch: its slot is cleared too early for one that comes
/// with the same change, unless there is no other.
#[tokio::test]
async fn a_new_rule_takes_the_slot_of_one_that_leaves_only_for_want_of_another() {
    let scene = Scene::new("").await;
    let slots = || -> BTreeSet<u32> {
        let live = scene.fake.live();
        live.last().unwrap().iter().map(|(_, slot)| *slot).collect()
    };
    let replace = async |first: u8, count: u8| {
        let rule = |n| spec(&format!(r#"{{"targets": ["198.51.100.{n}"]}}"#));
        let rules = (first..first + count).map(rule).collect();
        scene
            .controller
            .replace(rules, Asking::default())
            .await
            .unwrap();
    };
    replace(10, 2).await;
    let before = slots();
    replace(20, 2).await;
    assert!(before.is_disjoint(&slots()), "{before:?}, {:?}", slots());
    for first in [30, 40] {
        replace(first, 4).await;
        assert_eq!(slots().len(), 4);
    }
}

#[tokio::test]
async fn a_reload_that_fails_keeps_rules_and_configuration() {
    let scene = Scene::new("rules: [{id: kept, targets: [198.51.100.1]}]\n").await;
    let changed =
        "protect: [198.51.100.1]\nrules: [{id: new, targets: [198.51.100.3], mode: audit}]\n";
    scene.rewrite(changed);
    scene.fake.fail_after(0);
    scene.controller.reload().await.unwrap_err();
    assert_eq!(scene.ids(), ["kept"]);
    assert!(
        scene
            .controller
            .status()
            .unwrap()
            .last_reload
            .error
            .is_some()
    );
    // What the refused file protects is not protected.
    let kept = "198.51.100.1".parse().unwrap();
    assert_eq!(scene.fake.lookup(kept).unwrap().len(), 1);
    scene
        .add(r#"{"id": "one", "targets": ["198.51.100.1"], "mode": "reset"}"#)
        .await
        .unwrap();
    scene
        .controller
        .flush(false, Asking::default())
        .await
        .unwrap();
    scene.controller.reload().await.unwrap();
    assert_eq!(scene.ids(), ["new"]);
    assert_eq!(scene.controller.status().unwrap().last_reload.error, None);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_whole() {
    let scene = Scene::new("").await;
    scene.add(ONE).await.unwrap();
    let many: Vec<String> = (0..9)
        .map(|n| format!("\"198.51.100.{}\"", 10 + 2 * n))
        .collect();
    let many = format!(r#"{{"targets": [{}]}}"#, many.join(", "));
    assert!(matches!(
        scene.add(&many).await.unwrap_err(),
        Error::Compile(_)
    ));
    for n in 2..=4 {
        scene
            .add(&format!(r#"{{"targets": ["198.51.100.{n}"]}}"#))
            .await
            .unwrap();
    }
    let fifth = scene
        .add(r#"{"targets": ["198.51.100.5"]}"#)
        .await
        .unwrap_err();
    assert!(
        matches!(fifth, Error::TooManyRules { .. } | Error::Compile(_)),
        "{fifth}"
    );
    assert_eq!((scene.ids().len(), scene.kept().len()), (4, 4));
}

#[tokio::test]
async fn where_rules_cannot_be_kept_none_is_added() {
    let scene = Scene::new("").await;
    let switches = scene.fake.live().len();
    std::fs::write(scene.files.path().join("state"), "in the way").unwrap();
    assert!(matches!(scene.add(ONE).await.unwrap_err(), Error::State(_)));
    assert!(scene.ids().is_empty());
    assert_eq!(scene.fake.live().len(), switches);
}

/// Asks for rules during a change, ends it once all wait, and returns their answers.
async fn burst(scene: &Scene, specs: &[&str]) -> Vec<Result<bool, Error>> {
    let writer = scene.controller.writer().await;
    let asked: Vec<_> = specs
        .iter()
        .map(|json| {
            let (controller, spec) = (scene.controller.clone(), spec(json));
            tokio::spawn(async move { controller.add(spec, Asking::default()).await })
        })
        .collect();
    while super::lock(&scene.controller.0.waiting).len() < specs.len() {
        tokio::task::yield_now().await;
    }
    drop(writer);
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.unwrap().map(|answer| answer.created));
    }
    answers
}

#[tokio::test]
async fn a_burst_of_rules_is_one_change() {
    let scene = Scene::new("").await;
    let before = scene.fake.live().len();
    let answers = burst(
        &scene,
        &[
            ONE,
            TWO,
            r#"{"id": "wrong", "targets": ["127.0.0.1"]}"#,
            r#"{"targets": ["198.51.100.3"]}"#,
        ],
    )
    .await;
    let created: Vec<bool> = answers
        .iter()
        .map(|answer| matches!(answer, Ok(true)))
        .collect();
    assert_eq!(created, [true, true, false, true]);
    assert!(matches!(answers[2], Err(Error::Refused(_))));
    assert_eq!(scene.fake.live().len(), before + 1);
    assert_eq!(scene.list().len(), 3);
    assert_eq!(scene.kept().len(), 3);
}

#[tokio::test]
async fn what_a_burst_asks_for_twice_is_there_once() {
    let scene = Scene::new("").await;
    let same = r#"{"targets": ["198.51.100.3"]}"#;
    let other = r#"{"id": "one", "targets": ["198.51.100.4"]}"#;
    let answers = burst(&scene, &[ONE, same, same, ONE, other]).await;
    let created: Vec<Option<bool>> = answers
        .iter()
        .map(|answer| answer.as_ref().ok().copied())
        .collect();
    assert_eq!(
        created,
        [Some(true), Some(true), Some(false), Some(false), None]
    );
    assert!(matches!(answers[4], Err(Error::Taken { .. })));
    assert_eq!(scene.list().len(), 2);
}

#[tokio::test]
async fn of_a_burst_that_does_not_fit_as_many_are_added_as_do() {
    let scene = Scene::new("").await;
    let specs: Vec<String> = (1..=6)
        .map(|n| format!(r#"{{"id": "r{n}", "targets": ["198.51.100.{n}"]}}"#))
        .collect();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    let answers = burst(&scene, &specs).await;
    assert_eq!(
        answers.iter().filter(|answer| answer.is_ok()).count(),
        LIMITS.rules as usize
    );
    assert_eq!(scene.ids(), ["r1", "r2", "r3", "r4"]);
    assert_eq!(scene.kept(), scene.ids());
}

#[tokio::test]
async fn who_asks_during_a_change_joins_those_who_wait() {
    let scene = Scene::new("").await;
    let (open, gate) = mpsc::channel();
    scene.fake.0.lock().unwrap().gates.push_back(gate);
    let ask = |json: &str| {
        let (controller, spec) = (scene.controller.clone(), spec(json));
        tokio::spawn(async move { controller.add(spec, Asking::default()).await })
    };
    let first = ask(ONE);
    while !scene.fake.0.lock().unwrap().gates.is_empty() {
        tokio::task::yield_now().await;
    }
    // During the change this runtime's only thread is free, even while deadlines are looked for.
    let controller = scene.controller.clone();
    let looking = tokio::spawn(async move { controller.expire().await });
    tokio::task::yield_now().await;
    let others = [ask(TWO), ask(r#"{"targets": ["198.51.100.3"]}"#)];
    while super::lock(&scene.controller.0.waiting).len() < others.len() {
        tokio::task::yield_now().await;
    }
    let before = scene.fake.live().len();
    open.send(()).unwrap();
    looking.await.unwrap();
    for asked in std::iter::once(first).chain(others) {
        assert!(asked.await.unwrap().unwrap().created);
    }
    // The first one's, and one for the two others.
    assert_eq!(scene.fake.live().len(), before + 2);
}

#[tokio::test]
async fn an_answer_waits_for_no_later_change() {
    let scene = Scene::new("").await;
    let (opens, gates): (Vec<_>, VecDeque<_>) = (0..3).map(|_| mpsc::channel()).unzip();
    scene.fake.0.lock().unwrap().gates = gates;
    let under_way = async |left: usize| {
        while scene.fake.0.lock().unwrap().gates.len() > left {
            tokio::task::yield_now().await;
        }
    };
    let ask = |last: u8| {
        let spec = spec(&format!(r#"{{"targets": ["198.51.100.{last}"]}}"#));
        let controller = scene.controller.clone();
        tokio::spawn(async move { controller.add(spec, Asking::default()).await })
    };
    let waiting = async |count: usize| {
        while super::lock(&scene.controller.0.waiting).len() < count {
            tokio::task::yield_now().await;
        }
    };
    let first = ask(1);
    under_way(2).await;
    let together = [ask(2), ask(3)];
    waiting(2).await;
    opens[0].send(()).unwrap();
    under_way(1).await;
    let last = ask(4);
    waiting(1).await;
    opens[1].send(()).unwrap();
    under_way(0).await;
    // The last one's change is under way; those before it have their answers all the same.
    for asked in std::iter::once(first).chain(together) {
        let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
        assert!(answer.unwrap().unwrap().unwrap().created);
    }
    opens[2].send(()).unwrap();
    assert!(last.await.unwrap().unwrap().created);
}

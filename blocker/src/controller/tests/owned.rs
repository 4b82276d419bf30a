//! All rules of the fleet, replaced as one change, of which each stands for itself.

use super::*;
use crate::controller::Owned;
use crate::rule::{Defaults, Owner};

fn owned(json: &str) -> Owned {
    let id = || "unnamed".parse().unwrap();
    let rule = spec(json).resolve(id, Defaults::default(), Timestamp::MIN);
    Owned {
        rule: rule.unwrap(),
        force: false,
    }
}

async fn replace(scene: &Scene, rules: &[&str]) -> (usize, Vec<(String, String)>) {
    let rules = rules.iter().map(|json| owned(json)).collect();
    let done = scene.controller.replace_owned(Owner::Fleet, rules).await;
    let done = done.unwrap();
    done.teardown.await.unwrap();
    let refused = done.refused.into_iter();
    let refused = refused.map(|(id, why)| (id.to_string(), why)).collect();
    (done.in_force, refused)
}

#[tokio::test]
async fn all_that_changes_is_one_change_and_others_rules_stay() {
    let scene = Scene::new("").await;
    scene.add(ONE).await.unwrap();
    replace(&scene, &[TWO]).await;
    let before = scene.fake.live().len();
    let three = r#"{"id": "three", "targets": ["198.51.100.3"]}"#;
    let four = r#"{"id": "four", "targets": ["198.51.100.4"]}"#;
    let (in_force, refused) = replace(&scene, &[three, four]).await;
    assert_eq!((in_force, refused.len()), (2, 0));
    assert_eq!(scene.ids(), ["four", "one", "three"]);
    assert_eq!(scene.fake.live().len(), before + 1, "one switch");
    assert_eq!(scene.kept(), ["one"], "only the API's are the API's");
    replace(&scene, &[three, four]).await;
    assert_eq!(scene.fake.live().len(), before + 1, "nothing to change");
    replace(&scene, &[]).await;
    assert_eq!(scene.ids(), ["one"]);
}

#[tokio::test]
async fn what_may_not_be_is_refused_alone_and_the_rest_is_in_force() {
    let scene = Scene::new("protect: [198.51.100.9]\n").await;
    scene.add(ONE).await.unwrap();
    let (in_force, refused) = replace(
        &scene,
        &[
            r#"{"id": "protected", "targets": ["198.51.100.9"]}"#,
            r#"{"id": "one", "targets": ["198.51.100.8"]}"#,
            r#"{"id": "over", "targets": ["198.51.100.7"], "expires": "2020-01-01T00:00:00Z"}"#,
            r#"{"id": "everything", "targets": ["0.0.0.0/0"]}"#,
            TWO,
        ],
    )
    .await;
    assert_eq!(
        (in_force, scene.ids()),
        (1, vec!["one".to_owned(), "two".to_owned()])
    );
    let why: Vec<_> = refused.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(why, ["protected", "one", "everything"]);
    assert!(
        refused[0].1.contains("the configuration protects"),
        "{refused:?}"
    );
    assert!(
        refused[1].1.contains("is taken by a rule of api"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn where_there_is_no_room_for_all_there_is_for_what_fits() {
    let scene = Scene::new("").await;
    replace(&scene, &[TWO]).await;
    // Eight prefixes and four rules are all there is room for.
    let large = r#"{"id": "large", "targets": ["198.51.100.64/29", "198.51.100.80/29", "198.51.100.96/29",
        "198.51.100.112/29", "198.51.100.128/29", "198.51.100.144/29", "198.51.100.160/29", "198.51.100.176/29"]}"#;
    let three = r#"{"id": "three", "targets": ["198.51.100.3"]}"#;
    let (in_force, refused) = replace(&scene, &[large, three, TWO]).await;
    assert_eq!(
        (in_force, scene.ids()),
        (2, vec!["three".to_owned(), "two".to_owned()])
    );
    assert_eq!(refused[0].0, "large");
    assert!(refused[0].1.contains("limits.prefixes"), "{refused:?}");
}

#[tokio::test]
async fn what_the_datapath_refuses_leaves_the_rules_before() {
    let scene = Scene::new("").await;
    replace(&scene, &[TWO]).await;
    scene.fake.fail_after(0);
    let other = owned(r#"{"id": "three", "targets": ["198.51.100.3"]}"#);
    let failed = scene
        .controller
        .replace_owned(Owner::Fleet, vec![other])
        .await;
    assert!(failed.is_err());
    assert_eq!(scene.ids(), ["two"]);
}

#[cfg(feature = "fleet")]
#[tokio::test]
async fn a_daemon_that_starts_goes_by_what_was_kept() {
    use crate::fleet::held::{Came, Held};

    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("blocker.yaml");
    let fleet =
        "protect: [198.51.100.9]\nfleet: {endpoints: [\"http://127.0.0.1:1\"], name: web1}\n";
    std::fs::write(&path, config(files.path(), fleet)).unwrap();
    let now = Timestamp::now();
    let mut held = Held::default();
    for (id, hosts, target) in [
        ("here", "web*", "198.51.100.1"),
        ("there", "db*", "198.51.100.2"),
        ("never", "*", "198.51.100.9"),
    ] {
        let value = format!(
            r#"{{"version":1,"hosts":"{hosts}","written":"{now}","rule":{{"targets":["{target}"]}}}}"#
        );
        held.put(id, 7, value.as_bytes(), Came::Listed, now);
    }
    held.save(&files.path().join("state"), "/blocker").unwrap();
    let fake = Fake::default();
    let loaded = Config::load(&path).unwrap();
    let controller = Controller::start(loaded, path, fake.clone()).await.unwrap();
    let rules = controller.list().unwrap().rules;
    let rules: Vec<_> = rules
        .iter()
        .map(|v| (v.rule.id.as_str(), &v.owner))
        .collect();
    assert_eq!(rules, [("here", &Owner::Fleet)]);
    assert_eq!(fake.live().len(), 1, "from the first moment on");
}

//! What jobs must not do to one another, nor to what was protected before them.

use std::sync::Arc;
use std::time::Duration;

use arm_model::VaultId;
use arm_model::job::{JobDetails, JobState};
use protection::{Generation, ReplicationState};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::bench::Bench;
use super::case::Case;
use super::{job, run};
use crate::app::App;
use crate::fault::Fault;
use crate::saga::runner::{self, Step, Trial, step_with};
use crate::saga::start::{NewJob, start};
use crate::saga::state::{JobRecord, Phase};
use crate::saga::{enable_protection, fence, state};
use crate::store::records::{self, Fabric, Fence, Item, Lock, Policy};
use crate::store::{Change, Expect, ResourceStore as _};

async fn cancel(bench: &Bench, key: &str) {
    records::update::<JobRecord>(&bench.store, key, |job| {
        Some(JobRecord {
            cancel: true,
            ..job.clone()
        })
    })
    .await
    .expect("cancel");
}

async fn item(bench: &Bench, key: &str) -> Item {
    let item = records::get::<Item>(&bench.store, key).await;
    item.expect("store").expect("the item is there").record
}

/// An item of another site of the vault, with its site and its association.
async fn in_another_site(bench: &Bench, name: &str) -> Item {
    let site = bench.vault.fabric("other");
    let record = Fabric {
        id: site.to_string(),
        internal_identifier: "other".to_owned(),
    };
    let mapping = site.container("c").mapping("m");
    let association = records::Mapping {
        id: mapping.to_string(),
        policy_id: bench.vault.policy("p").to_string(),
    };
    let changes = vec![
        records::put(site.key(), &record, Expect::Any).expect("record"),
        records::put(mapping.key(), &association, Expect::Any).expect("record"),
    ];
    bench.store.apply(changes).await.expect("stored");
    Item {
        id: site.container("c").protected_item(name).to_string(),
        ..bench.item(name)
    }
}

async fn enable(app: &App, vault: &VaultId, wanted: &Item) -> String {
    let id = arm_model::ArmId::parse(&wanted.id).expect("id");
    let job = start(
        app,
        NewJob {
            vault,
            resource: &id,
            removes: false,
            scenario: "EnableDr",
            friendly_name: "Enable replication",
            target_name: "vm",
            target_type: "ProtectionEntity",
            workflow: "enableProtection",
            input: json!({ "item": wanted }),
            tasks: enable_protection::tasks(),
            details: JobDetails::default(),
            locks: vec![id.key()],
            request_id: "",
            changes: Vec::new(),
            name: None,
        },
    )
    .await
    .expect("job");
    job.key()
}

/// Does so many nodes of a job.
async fn steps(bench: &mut Bench, app: &App, key: &str, count: usize) {
    for _ in 0..count {
        step_with(app, key, Trial::default()).await.expect("step");
        bench.report(app).await;
    }
}

#[tokio::test]
async fn of_two_items_of_one_name_the_second_never_gets_the_replica_of_the_first() {
    let mut bench = Bench::new().await;
    let app = bench.app().await;
    let first = Case::Enable.begin(&mut bench).await;
    let wanted = in_another_site(&bench, "VM-A").await;
    // Both have passed every check when the first one is written.
    let vault = bench.vault.clone();
    let second = enable(&app, &vault, &wanted).await;
    steps(&mut bench, &app, &second, 2).await;
    assert_eq!(
        run(&mut bench, &first, Trial::default(), false).await,
        JobState::Succeeded
    );
    let mut state = JobState::InProgress;
    for _ in 0..50 {
        match step_with(&app, &second, Trial::default()).await {
            Ok(Step::Ended) => {
                let job = job(&bench, &second).await;
                state = job.properties.state;
                assert_eq!(job.failure.expect("failure").code, "ReplicaNameInUse");
                break;
            }
            Ok(_) => {}
            Err(error) => assert!(error.is_conflict(), "{error}"),
        }
    }
    assert_eq!(state, JobState::Failed);
    let first = item(&bench, &bench.item_id("vm-a").key()).await;
    assert!(first.life.item.is_active() && first.life.item.copied_once);
    let other = Item {
        folder: "/srv/another".to_owned(),
        ..wanted
    };
    fence::alone(&app, &other).await.expect("in another place");
}

#[tokio::test]
async fn generations_go_on_rising_when_a_vm_moves_to_another_site() {
    let mut bench = Bench::new().await;
    let app = bench.app().await;
    let here = bench.item("vm-a");
    let there = in_another_site(&bench, "vm-a").await;
    let mut before = 0;
    for wanted in [&here, &there, &here] {
        let next = fence::next(&app, wanted).await.expect("generation");
        assert!(next > before, "{next} after {before}");
        before = next;
    }
    // What an earlier release counted for the item alone counts too.
    let old = Fence { generation: 40 };
    let key = records::fence_key(&bench.item_id("vm-a").key());
    let put = records::put(key, &old, Expect::Any).expect("record");
    bench.store.apply(vec![put]).await.expect("stored");
    assert_eq!(fence::next(&app, &there).await.expect("generation"), 41);
}

#[tokio::test]
async fn a_cancelled_repeat_of_an_enable_gives_the_record_of_before_back_and_retires_nothing() {
    for fenced in [false, true] {
        for nodes in 1..4 {
            let mut bench = Bench::new().await;
            bench.protected("vm-a").await;
            let key = bench.item_id("vm-a").key();
            if fenced {
                let mut present = item(&bench, &key).await;
                present.life.item.replication = ReplicationState::Fenced;
                let put = records::put(key.as_str(), &present, Expect::Any).expect("record");
                bench.store.apply(vec![put]).await.expect("stored");
            }
            let app = bench.app().await;
            let before = bench.remains().await;
            let mut wanted = bench.item("vm-a");
            wanted.request.target_azure_vm_name = Some("another".to_owned());
            let vault = bench.vault.clone();
            let job = enable(&app, &vault, &wanted).await;
            for _ in 0..nodes {
                step_with(&app, &job, Trial::default()).await.expect("step");
            }
            cancel(&bench, &job).await;
            let mut ended = false;
            for _ in 0..50 {
                ended |= matches!(
                    step_with(&app, &job, Trial::default()).await,
                    Ok(Step::Ended)
                );
                let present = item(&bench, &key).await;
                assert_eq!(
                    present.life.item.disabled, None,
                    "fenced {fenced} nodes {nodes}"
                );
            }
            assert!(ended);
            assert_eq!(
                bench.remains().await,
                before,
                "fenced {fenced} nodes {nodes}"
            );
        }
    }
}

#[tokio::test]
async fn an_enable_ends_when_what_it_needs_is_removed_meanwhile() {
    let gone = [
        |bench: &Bench| bench.vault.policy("p").key(),
        |bench: &Bench| bench.vault.fabric("f").key(),
        |_: &Bench| records::engine_key(super::bench::ENGINE),
        |bench: &Bench| bench.item("vm-a").storage_id.to_ascii_lowercase(),
    ];
    for gone in gone {
        let mut bench = Bench::new().await;
        let key = Case::Enable.begin(&mut bench).await;
        let app = bench.app().await;
        steps(&mut bench, &app, &key, 2).await;
        let change = records::delete(gone(&bench));
        bench.store.apply(vec![change]).await.expect("removed");
        let state = run(&mut bench, &key, Trial::default(), false).await;
        assert_eq!(state, JobState::Failed);
        let item = bench.store.get(&bench.item_id("vm-a").key()).await;
        assert!(item.expect("store").is_none(), "no request could reach it");
    }
}

#[tokio::test]
async fn a_policy_with_less_immutability_is_refused_while_points_are_promised_more() {
    let mut bench = Bench::new().await;
    bench.protected("vm-a").await;
    let vault = bench.vault.clone();
    let policy = |name: &str, hours| Policy {
        id: vault.policy(name).to_string(),
        details: arm_model::policy::PolicyDetails {
            immutability_in_hours: hours,
            ..Default::default()
        },
        promise: None,
    };
    for (name, hours) in [("p", 48), ("lax", 0), ("strict", 72)] {
        let put = records::put(
            bench.vault.policy(name).key(),
            &policy(name, hours),
            Expect::Any,
        );
        bench
            .store
            .apply(vec![put.expect("record")])
            .await
            .expect("stored");
    }
    let mapping = bench.vault.fabric("f").container("c").mapping("m2");
    let record = records::Mapping {
        id: mapping.to_string(),
        policy_id: bench.vault.policy("lax").to_string(),
    };
    let put = records::put(mapping.key(), &record, Expect::Any).expect("record");
    bench.store.apply(vec![put]).await.expect("stored");
    let app = bench.app().await;
    let present = item(&bench, &bench.item_id("vm-a").key()).await;
    let strict = crate::immutability::allows_policy(&app, &present, &policy("strict", 72)).await;
    strict.expect("a longer promise");
    // And the job itself, which runs after every check.
    let wanted = Item {
        policy_id: bench.vault.policy("lax").to_string(),
        ..bench.item("vm-a")
    };
    let key = enable(&app, &vault, &wanted).await;
    let state = run(&mut bench, &key, Trial::default(), false).await;
    assert_eq!(state, JobState::Failed);
    let after = item(&bench, &bench.item_id("vm-a").key()).await;
    assert_eq!(after.policy_id, present.policy_id);
    assert_eq!(after.life.item.generation, Generation(0));
}

#[tokio::test]
async fn a_site_that_was_given_an_item_meanwhile_is_not_removed() {
    let mut bench = Bench::new().await;
    let site: arm_model::ArmId = bench.vault.fabric("f").into();
    let vault = bench.vault.clone();
    let app = bench.app().await;
    let body = bench.store.get(&site.key()).await.expect("store");
    let document = json!({ "key": site.key(), "kind": "fabric", "body": body.expect("site").body });
    let job = start(
        &app,
        NewJob {
            vault: &vault,
            resource: &site,
            removes: true,
            scenario: "DeleteSite",
            friendly_name: "Delete a site",
            target_name: "f",
            target_type: "Server",
            workflow: "remove",
            input: json!({ "documents": [document], "engines": [super::bench::ENGINE] }),
            tasks: vec![state::fresh_task("UnregisterVMMTask", "Deleting the site")],
            details: JobDetails::default(),
            locks: vec![site.key()],
            request_id: "",
            changes: Vec::new(),
            name: None,
        },
    )
    .await
    .expect("job");
    bench.protected("vm-a").await;
    let state = run(&mut bench, &job.key(), Trial::default(), false).await;
    assert_eq!(state, JobState::Failed);
    let left = bench.store.get(&site.key()).await.expect("store");
    assert!(left.is_some());
}

#[tokio::test]
async fn a_lock_whose_job_is_gone_or_has_ended_holds_nobody_up() {
    for ended in [false, true] {
        let mut bench = Bench::new().await;
        bench.protected("vm-a").await;
        let item = bench.item_id("vm-a");
        let first = Case::Disable.begin(&mut bench).await;
        if ended {
            records::update::<JobRecord>(&bench.store, &first, |job| {
                Some(JobRecord {
                    phase: Phase::Ended,
                    ..job.clone()
                })
            })
            .await
            .expect("ended");
        } else {
            let change = records::delete(first.as_str());
            bench.store.apply(vec![change]).await.expect("removed");
        }
        let second = Case::Disable.begin(&mut bench).await;
        let lock = records::get::<Lock>(&bench.store, &records::lock_key(&item.key())).await;
        assert_eq!(lock.expect("store").expect("lock").record.job, second);
    }
}

#[tokio::test]
async fn no_job_begins_in_a_vault_that_is_gone() {
    let mut bench = Bench::new().await;
    bench.protected("vm-a").await;
    let app = bench.app().await;
    let change = records::delete(bench.vault.key());
    bench.store.apply(vec![change]).await.expect("removed");
    let id = bench.item_id("vm-a");
    let refused = start(
        &app,
        NewJob {
            vault: &bench.vault,
            resource: &id,
            removes: false,
            scenario: "Trial",
            friendly_name: "Trial",
            target_name: "trial",
            target_type: "Other",
            workflow: "resynchronize",
            input: json!({ "item": id }),
            tasks: crate::saga::resynchronize::tasks(),
            details: JobDetails::default(),
            locks: vec![id.key()],
            request_id: "",
            changes: Vec::<Change>::new(),
            name: None,
        },
    )
    .await
    .expect_err("no vault");
    assert!(
        matches!(refused, Fault::Refused { status: 404, .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn a_drill_that_failed_says_so_and_is_no_longer_active() {
    let mut bench = Bench::new().await;
    Case::ItemDrill.prepare(&mut bench).await;
    let key = Case::ItemDrill.begin(&mut bench).await;
    let trial = Trial {
        fail_after: Some(2),
        repeat: false,
    };
    assert_eq!(run(&mut bench, &key, trial, false).await, JobState::Failed);
    let job = job(&bench, &key).await;
    let status = job.properties.custom_details.test_failover_status;
    assert_eq!(status.as_deref(), Some("Failed"));
}

#[tokio::test]
async fn a_stored_job_that_nobody_drives_is_found_and_driven() {
    let mut bench = Bench::new().await;
    let app = bench.app().await;
    let (_sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let first = Case::Put.begin(&mut bench).await;
    let look = Duration::from_millis(20);
    let runner = runner::run_with(Arc::clone(&app), receiver, stop.clone(), look);
    let runner = tokio::spawn(runner);
    ended(&bench, &app, &first).await;
    // The runner has taken up what it found at its start: of this job nobody tells it.
    let second = Case::Put.begin(&mut bench).await;
    ended(&bench, &app, &second).await;
    stop.cancel();
    runner.await.expect("runner").expect("store");
}

async fn ended(bench: &Bench, app: &App, key: &str) {
    let mut bell = app.listen();
    let ended = async {
        loop {
            if job(bench, key).await.phase == Phase::Ended {
                return;
            }
            bell.changed().await.expect("bell");
        }
    };
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, ended).await.expect("driven");
}

#[tokio::test]
async fn numbers_that_a_life_has_given_out_are_not_given_out_again() {
    let mut bench = Bench::new().await;
    let app = bench.app().await;
    let first = bench.item("web");
    let generation = fence::next(&app, &first).await.expect("a generation");
    let mut first = Item {
        life: protection::Life::new(Generation(generation)),
        ..first
    };
    let delete_replica = true;
    let disable = protection::Event::Disable { delete_replica };
    // The order to let go of the VM has a number of its own.
    (first.life, _) = protection::step(first.life, disable).expect("allowed");
    assert!(first.life.counter > Generation(generation));
    let counted = fence::count(&app, &first).await.expect("counted");
    bench.store.apply(vec![counted]).await.expect("stored");
    let next = fence::next(&app, &bench.item("web")).await;
    assert!(Generation(next.expect("a generation")) > first.life.counter);
}

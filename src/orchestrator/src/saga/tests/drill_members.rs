//! The drill of a plan whose members are cleaned up one by one.

use arm_model::ArmId;
use arm_model::job::{JobDetails, JobState};
use protection::DrillState;
use serde_json::json;

use super::bench::Bench;
use super::case::Case;
use super::{job, run};
use crate::saga::drill_cleanup;
use crate::saga::runner::Trial;
use crate::saga::start::{NewJob, start};
use crate::store::records::{self, Item, Plan};

async fn clean(bench: &mut Bench, vm: &str, fail_after: Option<usize>) -> JobState {
    let app = bench.app().await;
    let item: ArmId = bench.item_id(vm);
    let new = NewJob {
        vault: &bench.vault,
        resource: &item,
        removes: false,
        scenario: "TestFailoverCleanup",
        friendly_name: "Test failover cleanup",
        target_name: vm,
        target_type: "ProtectionEntity",
        workflow: "testFailoverCleanup",
        input: json!({ "items": [item], "comments": "seen" }),
        tasks: drill_cleanup::tasks(),
        details: JobDetails::default(),
        locks: vec![item.key()],
        request_id: "",
        changes: Vec::new(),
        name: None,
    };
    let key = start(&app, new).await.expect("job").key();
    let trial = Trial {
        repeat: true,
        fail_after,
    };
    run(bench, &key, trial, true).await
}

async fn plan_job(bench: &Bench) -> Option<String> {
    let plan = records::get::<Plan>(&bench.store, &bench.vault.plan("plan").key()).await;
    plan.expect("get").expect("plan").record.drill_job
}

#[tokio::test]
async fn the_drill_of_a_plan_is_over_when_its_last_member_is_cleaned_up_and_not_before() {
    let mut bench = Bench::new().await;
    Case::PlanDrill.prepare(&mut bench).await;
    let drill = Case::PlanDrill.begin(&mut bench).await;
    let state = run(&mut bench, &drill, Trial::default(), false).await;
    assert_eq!(state, JobState::Succeeded);
    let shown = async |bench: &Bench| {
        let details = job(bench, &drill).await.properties.custom_details;
        let vms = details.protected_item_details.unwrap_or_default();
        let removed = vms.iter().filter(|vm| vm.state == "Removed");
        let removed: Vec<String> = removed.map(|vm| vm.name.clone()).collect();
        (details.test_failover_status.unwrap_or_default(), removed)
    };
    assert_eq!(clean(&mut bench, "vm-a", None).await, JobState::Succeeded);
    let one = vec!["vm-a".to_owned()];
    assert_eq!(shown(&bench).await, ("Active".to_owned(), one));
    assert!(plan_job(&bench).await.is_some(), "a member is left");
    // The last step of the second one fails after its work: repeated, it still finds what it did.
    clean(&mut bench, "vm-b", Some(2)).await;
    clean(&mut bench, "vm-b", None).await;
    let (status, removed) = shown(&bench).await;
    assert_eq!((status.as_str(), removed.len()), ("Completed", 2));
    assert_eq!(plan_job(&bench).await, None);
    for vm in ["vm-a", "vm-b"] {
        let item = records::get::<Item>(&bench.store, &bench.item_id(vm).key()).await;
        let item = item.expect("get").expect("item").record;
        assert_eq!(
            (item.life.item.drill, item.drill_job),
            (DrillState::None, None)
        );
    }
}

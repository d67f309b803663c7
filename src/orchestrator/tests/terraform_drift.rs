//! Real Terraform and the provider where something happens beside them: webhooks that only an apply knows, drills that take too
//! long, VMs that are failed over, brought back and migrated from elsewhere.
//!
//! Needs the provider's program (`cargo build -p provider`) and Terraform 1.15 (`make tools`).

mod harness;
#[path = "../../provider/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use engine_protocol::v1::recovered_vm_status;
use harness::engine::WEB;
use harness::{World, ready};
use serde_json::{Value, json};
use support::Terraform;

fn terraform(world: &World, name: &str) -> Terraform {
    let names = [
        "ENDPOINT",
        "CA_FILE",
        "TENANT_ID",
        "CLIENT_ID",
        "CLIENT_SECRET",
        "SUBSCRIPTION_ID",
    ];
    let environment: BTreeMap<String, String> = names
        .into_iter()
        .map(|name| format!("SITERECOVERY_{name}"))
        .map(|name| (name.clone(), world.admin.value(&name).to_owned()))
        .collect();
    Terraform::new(world.folder.path(), name, environment).newest()
}

/// Lets the orchestrator go on while Terraform runs.
fn with<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn property<'a>(item: &'a Value, name: &str) -> &'a Value {
    &item["properties"][name]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_only_the_apply_knows_changes_together_with_anything_else() {
    let (world, _engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let one = terraform(&world, "unknown-hook");
    let text = |hook: &str, keep: u32| {
        format!(
            "resource \"terraform_data\" \"hook\" {{\n  input = \"{hook}\"\n}}\n\nresource \"siterecovery_drill_schedule\" \"this\" {{\n  \
             name = \"weekly\"\n  recovery_vault_id = \"{}\"\n  protected_vm_id = \"{item}\"\n  every_hours = 24\n  keep_for_minutes = {keep}\n  \
             webhooks_wo = [terraform_data.hook.output]\n}}\n",
            world.vault()
        )
    };
    let hosts =
        |one: &Terraform| one.state()["siterecovery_drill_schedule.this"]["webhook_hosts"].clone();
    with(|| {
        one.write(&text("https://hooks.example.com/a", 30)).apply();
        one.plan_is_empty();
        assert_eq!(hosts(&one), json!(["https://hooks.example.com/…"]));

        // The output of what changes is unknown until it has changed.
        one.write(&text("https://pager.example.com/b", 45)).apply();
        one.plan_is_empty();
        assert_eq!(hosts(&one), json!(["https://pager.example.com/…"]));

        // Alone it is seen by the next plan, which knows it.
        one.write(&text("https://third.example.com/c", 45)).apply();
        assert!(one.plan_has_changes().contains("third.example.com"));
        one.apply();
        one.plan_is_empty();
    });
    let shown = world
        .get(&format!("{}/drillSchedules/weekly", world.vault()))
        .await
        .body;
    assert_eq!(
        (
            property(&shown, "webhooks"),
            property(&shown, "keepForMinutes")
        ),
        (&json!(["https://third.example.com/…"]), &json!(45))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_outlasts_its_action_leaves_no_test_vm_behind() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    engine.behave(|behaviour| {
        behaviour.vm_state = Some(recovered_vm_status::State::Preparing);
    });
    let one = terraform(&world, "drill");
    let (code, text) = with(|| {
        one.write(&format!(
            "action \"siterecovery_test_failover\" \"this\" {{\n  config {{\n    protected_vm_id = {web:?}\n    timeout = \"3s\"\n  }}\n}}\n"
        ));
        one.run(&[
            "apply",
            "-auto-approve",
            "-no-color",
            "-invoke=action.siterecovery_test_failover.this",
        ])
    });
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        code != 0 && text.contains("none of its test VMs is left"),
        "{text}"
    );
    let item = world.get(&web).await.body;
    assert_eq!(property(&item, "testFailoverState"), "None", "{item}");
    assert_eq!(engine.last().recovered_vms, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_calm_and_says_where_the_vm_is_when_it_is_failed_over_brought_back_and_migrated_elsewhere()
 {
    let (world, _engine) = ready().await;
    world.associate().await;
    let one = terraform(&world, "elsewhere");
    let address = "siterecovery_protected_vm.web";
    let text = format!(
        "resource \"siterecovery_protected_vm\" \"web\" {{\n  hyperv_site_id = \"{}\"\n  replication_policy_id = \"{}\"\n  vm_id = \"{WEB}\"\n  \
         target_storage_account_id = \"{}\"\n  target_network_id = \"{}\"\n  target_resource_group_id = \"{}\"\n}}\n",
        world.fabric(),
        world.policy(),
        world.storage(),
        world.network(),
        world.vault().split("/providers/").next().expect("group")
    );
    with(|| {
        one.write(&text).apply();
        one.plan_is_empty();
    });
    let web = with(|| one.state()[address]["id"].clone());
    let web = web.as_str().expect("id").to_owned();
    // A plan without a difference, in words without line breaks.
    let calm = || {
        with(|| {
            let (code, text) = one.run(&["plan", "-detailed-exitcode", "-no-color"]);
            assert_eq!(code, 0, "{text}");
            text.replace(['│', '\n'], " ")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    let quiet = || {
        let told = calm();
        !told.contains("The VM web01") && !told.contains("The failback")
    };
    assert!(quiet(), "nothing is going on");
    let step = async |verb: &str, body: Value| {
        let asked = world.post(&format!("{web}/{verb}"), body).await;
        world.done(&asked).await;
    };
    let away = json!({ "properties": { "failoverDirection": "PrimaryToRecovery",
        "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" } } });
    step("plannedFailover", away.clone()).await;
    assert!(calm().contains("The VM web01 is failed over"));

    // What would make another protected VM of it is refused at its line, and destroying is told what it is.
    with(|| {
        let policy = format!("{}2", world.policy());
        one.write(&text.replace(&world.policy(), &policy));
        let problem = one.one_error("plan", "replication_policy_id");
        assert!(problem.summary.contains("can't be replaced"), "{problem:?}");
        one.write(&text);
        let (_, told) = one.run(&["plan", "-destroy", "-no-color"]);
        assert!(told.contains("complete the migration"), "{told}");
    });

    step("failoverCommit", json!({})).await;
    assert!(calm().contains("PlannedFailoverStatesBegin"));
    let back = json!({ "properties": { "failoverDirection": "RecoveryToPrimary",
        "providerSpecificDetails": { "instanceType": "HyperVReplicaAzureFailback", "dataSyncOption": "ForSynchronization" } } });
    step("plannedFailover", back).await;
    assert!(calm().contains("The failback of the VM web01 is not over"));
    step("failoverCommit", json!({})).await;
    calm();
    step("reProtect", json!({})).await;
    assert!(quiet(), "protected as before");

    step("plannedFailover", away).await;
    let body = json!({ "properties": { "disableProtectionReason": "MigrationComplete" } });
    let removed = world.post(&format!("{web}/remove"), body).await;
    world.finish(&removed).await;
    with(|| {
        let (code, told) = one.run(&["plan", "-detailed-exitcode", "-no-color"]);
        assert!(
            code == 2 && told.contains("The VM web01 was migrated") && told.contains("1 to add"),
            "{told}"
        );
        // Taken out of the configuration there is nothing to do.
        one.write("");
        let (code, told) = one.run(&["plan", "-detailed-exitcode", "-no-color"]);
        assert_eq!(code, 0, "{told}");
    });
}

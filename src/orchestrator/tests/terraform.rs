//! Real Terraform and the provider on an orchestrator whose engine does as it is told: recovery plans with actions, schedules
//! of drills, and the actions of failover and failback.
//!
//! Needs the provider's program (`cargo build -p provider`), Terraform, and for actions Terraform 1.15 (`make tools`).

mod harness;
#[path = "../../provider/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use harness::engine::{DB, WEB};
use harness::{World, ready};
use orchestrator::schedule::Schedule;
use orchestrator::store::records;
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
    Terraform::new(world.folder.path(), name, environment)
}

/// Lets the orchestrator go on while Terraform runs.
fn with<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn property<'a>(item: &'a Value, name: &str) -> &'a Value {
    &item["properties"][name]
}

const PLAN: &str = r#"
resource "siterecovery_recovery_plan" "shop" {
  name              = "shop"
  recovery_vault_id = "VAULT"
  hyperv_site_id    = "FABRIC"

  shutdown_group {
    pre_action {
      name                      = "tell the users"
      type                      = "ManualActionDetails"
      fail_over_types           = ["PlannedFailover"]
      fail_over_directions      = ["PrimaryToRecovery"]
      manual_action_instruction = "Tell the users."
    }
  }

  failover_group {
    post_action {
      name                 = "move the name"
      type                 = "WebhookActionDetails"
      fail_over_types      = ["PlannedFailover", "UnplannedFailover"]
      fail_over_directions = ["PrimaryToRecovery", "RecoveryToPrimary"]
      webhook_url          = "https://hooks.example.com/dns"
      timeout              = "PT1M"
    }
  }

  boot_group {
    protected_vm_ids = ["DB"]

    pre_action {
      name                 = "check the storage"
      type                 = "ScriptActionDetails"
      fail_over_types      = ["TestFailover", "PlannedFailover"]
      fail_over_directions = ["PrimaryToRecovery"]
      fabric_location      = "Recovery"
      host_id              = "HOST"
      script_path          = "shop/storage.sh"
      idempotent           = true
      timeout              = "00:05:00"
    }

    post_action {
      name                 = "the database speaks"
      type                 = "ReadinessCheckActionDetails"
      fail_over_types      = ["TestFailover", "PlannedFailover", "UnplannedFailover"]
      fail_over_directions = ["PrimaryToRecovery"]
      readiness_check      = "Console"
      timeout              = "300"
    }
  }

  boot_group {
    protected_vm_ids = ["WEB"]

    post_action {
      name                      = "look at the shop"
      type                      = "ManualActionDetails"
      fail_over_types           = ["PlannedFailover"]
      fail_over_directions      = ["PrimaryToRecovery"]
      manual_action_instruction = "Look at the shop."
    }
  }
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_with_actions_of_every_kind_is_kept_changed_and_imported_as_it_is_written() {
    let (world, engine) = ready().await;
    world.associate().await;
    let (web, db) = (world.protect(WEB).await, world.protect(DB).await);
    let text = PLAN
        .replace("VAULT", &world.vault())
        .replace("FABRIC", &world.fabric())
        .replace("\"DB\"", &format!("{db:?}"))
        .replace("\"WEB\"", &format!("{web:?}"))
        .replace("HOST", &engine.provider_id);
    let one = terraform(&world, "plan");
    with(|| {
        one.write(&text).apply();
        one.plan_is_empty();
    });
    let plan = format!("{}/replicationRecoveryPlans/shop", world.vault());
    let made = world.get(&plan).await.body;
    let names = |plan: &Value| -> Vec<String> {
        let groups = property(plan, "groups").as_array().expect("groups");
        let lists = groups
            .iter()
            .flat_map(|group| [&group["startGroupActions"], &group["endGroupActions"]]);
        let actions = lists.flat_map(|list| list.as_array().into_iter().flatten());
        let names = actions.filter_map(|action| action["actionName"].as_str());
        names.map(str::to_owned).collect()
    };
    assert_eq!(
        names(&made),
        [
            "tell the users",
            "move the name",
            "check the storage",
            "the database speaks",
            "look at the shop"
        ]
    );

    // One action is another one, one group has none any more: a change in place, of these and nothing else.
    let from = text.find("  shutdown_group").expect("group");
    let to = text.find("  failover_group").expect("group");
    let changed = text
        .replace(&text[from..to], "")
        .replace("Look at the shop.", "Look at the shop, and buy something.");
    with(|| {
        one.write(&changed);
        let plan = one.plan_has_changes();
        assert!(
            plan.contains("0 to add, 1 to change, 0 to destroy"),
            "{plan}"
        );
        one.apply();
        one.plan_is_empty();
    });
    let after = world.get(&plan).await.body;
    let mut expected = made.clone();
    expected["properties"]["groups"][0]["startGroupActions"] = json!([]);
    expected["properties"]["groups"][3]["endGroupActions"][0]["customDetails"]["description"] =
        json!("Look at the shop, and buy something.");
    assert_eq!(property(&after, "groups"), property(&expected, "groups"));

    // Somebody's change shows, and is taken back.
    let mut groups = property(&after, "groups").clone();
    groups[1]["endGroupActions"] = json!([]);
    let body = json!({ "properties": { "groups": groups } });
    let foreign = world.call(reqwest::Method::PATCH, &plan, Some(body)).await;
    world.done(&foreign).await;
    with(|| {
        assert!(one.plan_has_changes().contains("move the name"));
        one.apply();
        one.plan_is_empty();
    });

    let two = terraform(&world, "import");
    with(|| {
        two.write(&changed);
        two.import("siterecovery_recovery_plan.shop", &plan);
        two.plan_is_empty();
        let address = "siterecovery_recovery_plan.shop";
        assert_eq!(two.state()[address], one.state()[address]);

        // What can't be carried out is refused before anything is asked, at its attribute.
        for (from, to, line) in [
            ("shop/storage.sh", "../storage.sh", "script_path"),
            ("https://hooks", "http://hooks", "webhook_url"),
            ("\"PT1M\"", "\"soon\"", "timeout"),
            (
                "\"TestFailover\", \"PlannedFailover\"]",
                "\"Sometimes\"]",
                "fail_over_types",
            ),
            ("\"look at the shop\"", "\"move the name\"", "name"),
        ] {
            assert!(changed.contains(from), "{from}");
            two.write(&changed.replace(from, to));
            two.one_error("plan", line);
        }
        one.destroy();
    });
}

const SCHEDULE: &str = r#"
variable "hook" {
  type      = string
  ephemeral = true
}

resource "siterecovery_drill_schedule" "this" {
  name                = "weekly"
  recovery_vault_id   = "VAULT"
  protected_vm_id     = "ITEM"
  days                = ["Sunday", "Wednesday"]
  time                = "02:30"
  webhooks_wo         = [var.hook]
  webhooks_wo_version = 1
}
"#;

async fn stored(world: &World, id: &str) -> Schedule {
    let store = world.orchestrator.app.store.as_ref();
    let found = records::get::<Schedule>(store, &id.to_ascii_lowercase()).await;
    found.expect("store").expect("schedule").record
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_lives_in_terraform_with_its_webhooks_and_without_their_addresses() {
    let (mut world, _engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let text = SCHEDULE
        .replace("VAULT", &world.vault())
        .replace("ITEM", &item);
    let mut one = terraform(&world, "schedule").newest();
    let set = |one: &mut Terraform, url: &str| {
        let name = "TF_VAR_hook".to_owned();
        one.environment.insert(name, url.to_owned());
    };
    set(&mut one, "https://hooks.example.com/TOP-SECRET");
    let id = format!("{}/drillSchedules/weekly", world.vault());
    let address = "siterecovery_drill_schedule.this";
    with(|| {
        one.write(&text).apply();
        one.plan_is_empty();
        let made = one.state()[address].clone();
        assert_eq!(made["id"], id.as_str());
        assert_eq!(
            made["webhook_hosts"],
            json!(["https://hooks.example.com/…"])
        );
        assert_eq!(
            (&made["keep_for_minutes"], &made["enabled"]),
            (&json!(60), &json!(true))
        );
        assert!(!one.state_text().contains("TOP-SECRET"));
    });
    let kept = stored(&world, &id).await;
    assert_eq!(kept.webhooks, ["https://hooks.example.com/TOP-SECRET"]);

    // Another host shows by itself; another address of the same host when the version says so. The rest stays.
    set(&mut one, "https://pager.example.com/TOP-SECRET");
    with(|| {
        let plan = one.plan_has_changes();
        assert!(
            plan.contains("pager.example.com") && !plan.contains("TOP-SECRET"),
            "{plan}"
        );
        one.apply();
        one.plan_is_empty();
    });
    set(&mut one, "https://pager.example.com/OTHER-SECRET");
    with(|| {
        one.plan_is_empty();
        one.write(&text.replace("version = 1", "version = 2"));
        one.plan_has_changes();
        one.apply();
        one.plan_is_empty();
        assert!(!one.state_text().contains("SECRET"));
    });
    let kept = stored(&world, &id).await;
    assert_eq!(kept.webhooks, ["https://pager.example.com/OTHER-SECRET"]);

    // Imported by id and by identity it is the same.
    let whole = text.replace("version = 1", "version = 2");
    let mut two = terraform(&world, "by-identity").newest();
    set(&mut two, "https://pager.example.com/OTHER-SECRET");
    with(|| {
        two.write(&format!(
            "import {{\n  to = {address}\n  identity = {{\n    id = {id:?}\n  }}\n}}\n{whole}"
        ));
        let text = two.apply();
        assert!(text.contains("1 imported, 0 added"), "{text}");
        assert_eq!(two.state()[address], one.state()[address]);
        two.plan_is_empty();
    });
    let mut three = terraform(&world, "by-id");
    set(&mut three, "https://pager.example.com/OTHER-SECRET");
    with(|| {
        three.write(&whole);
        three.import(address, &id);
        let plan = three.plan_has_changes();
        assert!(
            plan.contains("webhooks_wo_version"),
            "only the version is unknown: {plan}"
        );
        assert!(
            plan.contains("0 to add, 1 to change, 0 to destroy"),
            "{plan}"
        );
    });

    // Another rule, in place; and the drill that is due is told by the data source.
    let hourly = whole.replace(
        "  days                = [\"Sunday\", \"Wednesday\"]\n  time                = \"02:30\"\n",
        "  every_hours         = 1\n  keep_for_minutes    = 10\n",
    ) + "\ndata \"siterecovery_drill_schedule\" \"this\" {\n  name              = \"weekly\"\n  recovery_vault_id = siterecovery_drill_schedule.this.recovery_vault_id\n}\n\noutput \"runs\" {\n  value = data.siterecovery_drill_schedule.this.runs\n}\n";
    with(|| {
        one.write(&hourly);
        let text = one.apply();
        assert!(text.contains("0 added, 1 changed, 0 destroyed"), "{text}");
        one.plan_is_empty();
        assert_eq!(one.state()[address]["id"], id.as_str());
        assert_eq!(one.state()[address]["days"], Value::Null);
    });
    let minutes = |count: u64| Duration::from_secs(count * 60);
    world.orchestrator.app.advance(minutes(61));
    world.sign_in_again().await;
    let run = |schedule: &Value, at: &str| {
        schedule
            .pointer(&format!("/properties/runs/0/{at}"))
            .cloned()
    };
    world
        .until(&id, |schedule| {
            run(schedule, "verdict").is_some_and(|verdict| verdict != "")
        })
        .await;
    with(|| {
        one.apply();
        let (_, runs) = one.run(&["output", "-json", "runs"]);
        let runs: Value = serde_json::from_str(&runs).expect("runs");
        let job = runs[0]["job_id"].as_str().expect("job");
        assert!(job.contains("/replicationJobs/"), "{runs}");
        assert_eq!(
            (&runs[0]["cleaned_up"], &runs[0]["skipped_reason"]),
            (&json!(false), &Value::Null)
        );

        // Its VMs are still there: the schedule is what removes them.
        let (code, text) = one.run(&["destroy", "-auto-approve", "-no-color"]);
        assert!(code != 0 && text.contains("not cleaned up yet"), "{text}");
    });
    world.orchestrator.app.advance(minutes(12));
    world.sign_in_again().await;
    world
        .until(&id, |schedule| {
            run(schedule, "cleanup/done") == Some(json!(true))
        })
        .await;
    with(|| one.destroy());
    let gone = world.get(&id).await;
    assert_eq!(gone.status, reqwest::StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_makes_no_sense_is_refused_at_its_attribute_before_anything_is_asked() {
    let (world, _engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let text = SCHEDULE
        .replace("VAULT", &world.vault())
        .replace("ITEM", &item);
    let mut one = terraform(&world, "schedule");
    let hook = "https://hooks.example.com/x".to_owned();
    one.environment.insert("TF_VAR_hook".to_owned(), hook);
    let other = item.replace("vaults/vault-dr", "vaults/other");
    with(|| {
        for (from, to, line) in [
            ("\"weekly\"", "\"week/ly\"", "name"),
            (item.as_str(), other.as_str(), "protected_vm_id"),
            ("\"Wednesday\"", "\"Funday\"", "days"),
            ("\"02:30\"", "\"24:30\"", "time"),
            ("[\"Sunday\", \"Wednesday\"]", "[]", "days"),
            (
                "[var.hook]",
                "[\"http://hooks.example.com/TOP-SECRET\"]",
                "webhooks_wo",
            ),
            (
                "webhooks_wo_version = 1",
                "keep_for_minutes = 0",
                "keep_for_minutes",
            ),
            ("webhooks_wo_version = 1", "every_hours = 24", "every_hours"),
            ("webhooks_wo_version = 1", "notify = \"Never\"", "notify"),
        ] {
            assert!(text.contains(from), "{from}");
            one.write(&text.replacen(from, to, 1));
            let problem = one.one_error("plan", line);
            assert!(!problem.detail.contains("TOP-SECRET"), "{problem:?}");
        }
    });
    let list = format!("{}/drillSchedules", world.vault());
    assert_eq!(world.get(&list).await.body["value"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_goes_to_the_recovery_side_and_back_by_actions_and_drills_leave_a_report() {
    let (world, engine) = ready().await;
    world.associate().await;
    let (web, db) = (world.protect(WEB).await, world.protect(DB).await);
    let plan = format!("{}/replicationRecoveryPlans/shop", world.vault());
    let boot =
        |item: &str| json!({ "groupType": "Boot", "replicationProtectedItems": [{ "id": item }] });
    let body = json!({ "properties": { "primaryFabricId": world.fabric(), "groups": [boot(&db), boot(&web)] } });
    world.done(&world.put(&plan, body).await).await;

    let action = |name: &str, label: &str, config: &str| {
        format!(
            "action \"siterecovery_{name}\" \"{label}\" {{\n  config {{\n    {config}\n  }}\n}}\n"
        )
    };
    let of_plan = format!("recovery_plan_id = {plan:?}");
    let of_vm = format!("protected_vm_id = {web:?}");
    let part = format!("{of_plan}\n    group_ids = [2]");
    let one = terraform(&world, "actions").newest();
    with(|| {
        one.write(
            &[
                action("test_failover", "part", &format!("{part}\n    report_path = \"drill.json\"\n    cleanup_comment = \"Quarterly.\"")),
                action("planned_failover", "part", &format!("{part}\n    report_path = \"failover.html\"")),
                action("cancel", "vm", &of_vm),
                action("planned_failover", "vm", &of_vm),
                action("commit_failover", "vm", &of_vm),
                action("failback", "waits", &format!("{of_vm}\n    complete = false")),
                action("failback", "vm", &of_vm),
                action("reverse_replicate", "vm", &of_vm),
            ]
            .concat(),
        );
    });
    let state = async || {
        let item = world.get(&web).await.body;
        property(&item, "protectionState")
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };

    // A drill of one group: only its VM boots, the report says so, and nothing is left.
    let told = with(|| one.invoke("siterecovery_test_failover.part"));
    assert!(told.contains("report: drill.json"), "{told}");
    let file = std::fs::read(one.folder.join("drill.json")).expect("report");
    let report: Value = serde_json::from_slice(&file).expect("JSON");
    let machines = report["report"]["virtualMachines"].as_array().expect("VMs");
    assert_eq!(machines.len(), 1, "{report}");
    assert_eq!(machines[0]["name"], "web01", "{report}");
    assert_eq!(report["report"]["cleanup"]["notes"], "Quarterly.");
    let job = report["report"]["run"]["job"].as_str().unwrap_or_default();
    let name = job.rsplit('/').next().unwrap_or_default();
    assert!(
        !name.is_empty() && told.contains(&format!("job {name}")),
        "{told}"
    );
    assert_eq!(engine.last().recovered_vms, []);

    // Away by the plan's part, and back before it is committed.
    let told = with(|| one.invoke("siterecovery_planned_failover.part"));
    assert!(
        told.contains("VM web01") && !told.contains("VM db01"),
        "{told}"
    );
    let page = std::fs::read_to_string(one.folder.join("failover.html")).expect("report");
    assert!(page.contains("<html") && page.contains("web01"));
    assert_eq!(state().await, "PlannedFailoverCommitRequired");
    assert_eq!(
        property(&world.get(&db).await.body, "activeLocation"),
        "Primary"
    );
    with(|| one.invoke("siterecovery_cancel.vm"));
    world
        .until(&web, |item| {
            property(item, "protectionState") == "Protected"
        })
        .await;

    // Away for good.
    with(|| {
        one.invoke("siterecovery_planned_failover.vm");
        one.invoke("siterecovery_commit_failover.vm");
    });
    assert_eq!(state().await, "PlannedFailoverStatesBegin");

    // A failback that waits for a person is given up: the VM runs on at the recovery side.
    let told = with(|| one.invoke("siterecovery_failback.waits"));
    assert!(told.contains("waits for a person"), "{told}");
    let current = property(&world.get(&web).await.body, "currentScenario")["jobId"].clone();
    let current = current.as_str().expect("job").to_owned();
    assert_eq!(
        property(&world.get(&current).await.body, "state"),
        "Suspended"
    );
    with(|| one.invoke("siterecovery_cancel.vm"));
    assert_eq!(
        property(&world.get(&current).await.body, "state"),
        "Cancelled"
    );
    world
        .until(&web, |item| {
            property(item, "protectionState") == "PlannedFailoverStatesBegin"
        })
        .await;

    // One that may goes through, and the circle closes.
    let told = with(|| one.invoke("siterecovery_failback.vm"));
    assert!(told.contains("completing the failback"), "{told}");
    assert_eq!(state().await, "FailbackCommitRequired");
    with(|| {
        one.invoke("siterecovery_commit_failover.vm");
        one.invoke("siterecovery_reverse_replicate.vm");
    });
    world
        .until(&web, |item| {
            property(item, "protectionState") == "Protected"
        })
        .await;

    // Nothing is under way: there is nothing to cancel, and the service says what is possible.
    let (code, text) = with(|| {
        one.run(&[
            "apply",
            "-auto-approve",
            "-no-color",
            "-invoke=action.siterecovery_cancel.vm",
        ])
    });
    assert!(code != 0 && text.contains("OperationNotAllowed"), "{text}");
}

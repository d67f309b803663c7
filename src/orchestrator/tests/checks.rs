//! Checks before protection, over REST and with real Terraform, on an engine that tells what it is told to.
//!
//! The last test needs the provider's program (`cargo build -p provider`) and Terraform (`make tools`).

mod harness;
#[path = "../../provider/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use engine_protocol::v1::{self, Presence};
use harness::engine::{BROKEN, DB, Engine, WEB};
use harness::{World, ready};
use serde_json::{Value, json};
use support::Terraform;

const OS_DISK: &str = "c0ffee00-1234-4abc-8def-001122334466-disk-0";
const DATA_DISK: &str = "c0ffee00-1234-4abc-8def-001122334466-disk-1";

fn disk(id: &str, name: &str) -> v1::DiskFacts {
    v1::DiskFacts {
        id: id.to_owned(),
        name: name.to_owned(),
        logical_sector_bytes: 512,
        shared: Presence::NotPresent.into(),
        pass_through: Presence::NotPresent.into(),
        ..v1::DiskFacts::default()
    }
}

fn pass_through() -> v1::DiskFacts {
    v1::DiskFacts {
        pass_through: Presence::Present.into(),
        ..disk("", "PHYSICALDRIVE3")
    }
}

/// A VM that can't be protected for four reasons, one of them in Azure only.
fn difficult() -> v1::VmFacts {
    v1::VmFacts {
        fibre_channel: Presence::Present.into(),
        secure_boot: Presence::Present.into(),
        disks: vec![
            v1::DiskFacts {
                look: Some(v1::DiskLook {
                    bitlocker: true,
                    guest: "Linux".to_owned(),
                    ..v1::DiskLook::default()
                }),
                ..disk(OS_DISK, "db01-0.vhdx")
            },
            v1::DiskFacts {
                logical_sector_bytes: 4096,
                ..disk(DATA_DISK, "db01-1.vhdx")
            },
            pass_through(),
        ],
        ..v1::VmFacts::default()
    }
}

fn findings(item: &Value) -> &[Value] {
    item["properties"]["readinessFindings"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

/// Codes with severity and targets.
fn told(item: &Value) -> BTreeSet<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let targets = |value: &Value| {
        let targets = value.as_array().into_iter().flatten();
        targets.map(text).collect::<Vec<_>>().join("+")
    };
    findings(item)
        .iter()
        .map(|one| {
            (
                text(&one["code"]),
                text(&one["severity"]),
                targets(&one["recoveryTargets"]),
            )
        })
        .collect()
}

fn set(entries: &[(&str, &str, &str)]) -> BTreeSet<(String, String, String)> {
    let owned = |(code, severity, targets): &(&str, &str, &str)| {
        (
            (*code).to_owned(),
            (*severity).to_owned(),
            (*targets).to_owned(),
        )
    };
    entries.iter().map(owned).collect()
}

async fn tell(world: &World, engine: &Engine, vm: &'static str, facts: v1::VmFacts) -> String {
    engine.behave(|engine| {
        engine.facts.insert(vm, facts);
    });
    let path = format!(
        "{}/replicationProtectableItems/{vm}",
        world.container().await
    );
    world
        .until(&path, |item| {
            item["properties"]["customDetails"]["hasFibreChannelAdapter"] != "Unknown"
        })
        .await;
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn every_finding_is_told_at_once_and_an_enable_is_refused_with_all_that_stand_in_the_way() {
    let (world, engine) = ready().await;
    world.associate().await;
    let path = tell(&world, &engine, DB, difficult()).await;
    let item = world.get(&path).await.body;
    let both = "Azure+RecoveryHost";
    assert_eq!(
        told(&item),
        set(&[
            ("FibreChannel", "Error", both),
            ("PassThroughDisk", "Error", both),
            ("FourKNative", "Error", both),
            ("BitLockerOsDisk", "Error", "Azure"),
            ("BitLockerOsDisk", "Warning", "RecoveryHost"),
            ("SecureBoot", "Warning", both),
            ("LinuxGeneration2", "Lifted", both),
        ])
    );
    for finding in findings(&item) {
        for word in ["summaryMessage", "possibleCauses", "recommendedAction"] {
            assert!(
                finding[word].as_str().is_some_and(|text| !text.is_empty()),
                "{finding}"
            );
        }
    }
    let properties = &item["properties"];
    let errors = properties["protectionReadinessErrors"]
        .as_array()
        .expect("errors");
    assert_eq!(errors.len(), 3, "{errors:?}");
    let details = &properties["customDetails"];
    assert_eq!(details["hasPhysicalDisk"], "Present");
    assert_eq!(details["hasFibreChannelAdapter"], "Present");
    assert_eq!(details["hasSharedVhd"], "NotPresent");

    // Judged for what somebody wants: the disk with large sectors and the one of the host are left out.
    let chosen = format!("{path}?recoveryTarget=RecoveryHost&disksToInclude={OS_DISK}");
    let severity = |item: &Value, code: &str| -> String {
        let mut all = findings(item).iter();
        let found = all.find(|one| one["code"] == code).expect("finding");
        found["severity"].as_str().expect("text").to_owned()
    };
    let judged = world.get(&chosen).await.body;
    assert_eq!(severity(&judged, "FourKNative"), "Warning");
    assert_eq!(severity(&judged, "PassThroughDisk"), "Warning");
    assert_eq!(severity(&judged, "FibreChannel"), "Error");

    let refused = world
        .put(&world.item(DB).await, world.enable_body(DB).await)
        .await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_eq!(refused.target(), "properties.protectableItemId");
    let codes: Vec<&str> = refused.body["error"]["details"]
        .as_array()
        .expect("details")
        .iter()
        .filter_map(|detail| detail["code"].as_str())
        .collect();
    assert_eq!(codes, ["PassThroughDisk", "FibreChannel", "FourKNative"]);
    let mut body = world.enable_body(DB).await;
    body["properties"]["providerSpecificDetails"]["recoveryTarget"] = json!("Azure");
    let refused = world.put(&world.item(DB).await, body).await;
    let codes = refused.body["error"]["details"].as_array().map(Vec::len);
    assert_eq!(codes, Some(4), "{refused:?}");
    assert_eq!(
        world.get(&world.item(DB).await).await.status,
        404,
        "nothing was made"
    );

    // What the host says stands beside.
    let broken = format!(
        "{}/replicationProtectableItems/{BROKEN}",
        world.container().await
    );
    tell(&world, &engine, BROKEN, difficult()).await;
    let refused = {
        let mut body = world.enable_body(BROKEN).await;
        body["properties"]["protectableItemId"] = json!(broken);
        world.put(&world.item(BROKEN).await, body).await
    };
    assert_eq!(refused.code(), "PhysicalDisk");
    assert!(
        refused.body["error"]["details"]
            .as_array()
            .is_some_and(|all| all.len() >= 3),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_up_after_protection_is_a_health_error_until_it_is_gone() {
    let (world, engine) = ready().await;
    world.associate().await;
    let plain = v1::VmFacts {
        fibre_channel: Presence::NotPresent.into(),
        disks: vec![
            disk(OS_DISK, "db01-0.vhdx"),
            v1::DiskFacts {
                shared: Presence::Present.into(),
                ..disk(DATA_DISK, "db01-1.vhdx")
            },
        ],
        ..v1::VmFacts::default()
    };
    tell(&world, &engine, DB, plain.clone()).await;
    // The shared disk refuses, unless it is left out.
    let item = world.item(DB).await;
    let body = world.enable_body(DB).await;
    let refused = world.put(&item, body.clone()).await;
    assert_eq!(refused.code(), "SharedDisk", "{refused:?}");
    let mut without = body;
    without["properties"]["providerSpecificDetails"]["disksToInclude"] = json!([OS_DISK]);
    world.done(&world.put(&item, without.clone()).await).await;
    let errors = |item: &Value| -> Vec<String> {
        let errors = item["properties"]["healthErrors"].as_array();
        let errors = errors.into_iter().flatten();
        errors
            .filter(|error| error["errorCategory"] == "Configuration")
            .filter_map(|error| error["errorCode"].as_str().map(str::to_owned))
            .collect()
    };
    let healthy = world
        .until(&item, |item| {
            item["properties"]["protectionState"] == "Protected"
        })
        .await;
    // That was known and meant.
    assert_eq!(errors(&healthy), Vec::<String>::new());

    let mut more = plain.clone();
    more.disks.push(pass_through());
    engine.behave(|engine| {
        engine.facts.insert(DB, more);
    });
    let ill = world.until(&item, |item| !errors(item).is_empty()).await;
    assert_eq!(errors(&ill), ["PassThroughDisk"]);
    assert_eq!(ill["properties"]["replicationHealth"], "Warning");

    // What would refuse a VM that is protected anew takes nothing from one that is protected: a repeated enable goes on.
    let mut native = plain.clone();
    native.disks[0].logical_sector_bytes = 4096;
    engine.behave(|engine| {
        engine.facts.insert(DB, native);
    });
    world
        .until(&item, |item| {
            let errors = errors(item);
            !errors.is_empty() && errors != ["PassThroughDisk"]
        })
        .await;
    world.done(&world.put(&item, without.clone()).await).await;
    // One for another target is none: what it needs was never looked at.
    let mut elsewhere = without;
    elsewhere["properties"]["providerSpecificDetails"]["recoveryTarget"] = json!("Azure");
    let refused = world.put(&item, elsewhere).await;
    assert_eq!(refused.code(), "FourKNative", "{refused:?}");

    engine.behave(|engine| {
        engine.facts.insert(DB, plain);
    });
    world.until(&item, |item| errors(item).is_empty()).await;
}

fn terraform(world: &World, name: &str) -> Terraform {
    let environment: BTreeMap<String, String> = [
        "ENDPOINT",
        "CA_FILE",
        "TENANT_ID",
        "CLIENT_ID",
        "CLIENT_SECRET",
        "SUBSCRIPTION_ID",
    ]
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

const VMS: &str = r#"
data "siterecovery_protectable_vms" "all" {
  hyperv_site_id = "FABRIC"
}

output "findings" {
  value = { for vm in data.siterecovery_protectable_vms.all.vms : vm.name => [for one in vm.findings : one.code] }
}
"#;

const VM: &str = r#"
resource "siterecovery_protected_vm" "db" {
  hyperv_site_id            = "FABRIC"
  replication_policy_id     = "POLICY"
  vm_name                   = "db01"
  target_storage_account_id = "STORAGE"
  target_resource_group_id  = "GROUP"
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn terraform_refuses_at_plan_time_at_the_argument_and_warns_of_the_rest() {
    let (world, engine) = ready().await;
    world.associate().await;
    let mut facts = difficult();
    facts.fibre_channel = Presence::NotPresent.into();
    tell(&world, &engine, DB, facts).await;
    tell(
        &world,
        &engine,
        WEB,
        v1::VmFacts {
            fibre_channel: Presence::NotPresent.into(),
            ..v1::VmFacts::default()
        },
    )
    .await;
    let fill = |text: &str| {
        text.replace("FABRIC", &world.fabric())
            .replace("POLICY", &world.policy())
            .replace("STORAGE", &world.storage())
            .replace("GROUP", &world.group)
    };
    let one = terraform(&world, "checks");
    with(|| {
        one.write(&fill(VM));
        let problems = one.errors("plan");
        let mut at: Vec<(&str, bool)> = problems
            .iter()
            .map(|problem| {
                (
                    problem.line.as_str(),
                    problem.detail.contains("What to do: "),
                )
            })
            .collect();
        at.sort_unstable();
        assert_eq!(at.len(), 2, "{problems:?}");
        assert!(at.iter().all(|(_, advised)| *advised), "{problems:?}");
        assert!(
            problems
                .iter()
                .any(|one| one.detail.starts_with("PassThroughDisk: ")
                    && one.line.contains("vm_name")),
            "{problems:?}"
        );
        assert!(
            problems
                .iter()
                .any(|one| one.detail.starts_with("FourKNative: ")),
            "{problems:?}"
        );

        // Only the disk with the operating system: nothing refuses, and the plan says what should be known.
        let text = fill(VM).replace(
            "vm_name  ",
            &format!("disks_to_include = [\"{OS_DISK}\"]\n  vm_name  "),
        );
        one.write(&text);
        let (code, plan) = one.run(&["plan", "-no-color"]);
        assert_eq!(code, 0, "{plan}");
        for code in [
            "PassThroughDisk: ",
            "FourKNative: ",
            "BitLockerOsDisk: ",
            "SecureBoot: ",
        ] {
            assert!(plan.contains(code), "{code}{plan}");
        }
        assert!(!plan.contains("LinuxGeneration2"), "{plan}");

        // In Azure BitLocker refuses too.
        one.write(&text.replace("vm_name  ", "recovery_target = \"Azure\"\n  vm_name  "));
        let problems = one.errors("plan");
        assert!(
            problems.len() == 1 && problems[0].detail.starts_with("BitLockerOsDisk: "),
            "{problems:?}"
        );

        one.write(&fill(VMS)).apply();
        let (code, shown) = one.run(&["output", "-json", "findings"]);
        assert_eq!(code, 0, "{shown}");
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(shown["web01"], json!(["LinuxGeneration2"]), "{shown}");
        let db = shown["db01"].as_array().expect("codes").len();
        assert_eq!(db, 6, "{shown}");

        // What was planned is made: the checks hold again, and let it through.
        one.write(&text).apply();
        one.plan_is_empty();
        one.destroy();
    });
}

//! `siterecovery failover` as a process, against a double of the orchestrator: what is asked, what is told, how it ends.

#![cfg(unix)]

mod double;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use self::double::{Asked, Double, ITEM, Ran, VAULT, job, succeeds};

fn of_item(action: &str, properties: &Value) -> Asked {
    Asked {
        path: format!("{}/{action}", ITEM.strip_prefix(VAULT).unwrap()),
        body: json!({ "properties": properties }),
    }
}

#[tokio::test]
async fn a_planned_failover_is_followed_to_its_end() {
    let double = Double::start(succeeds()).await;
    let ran = double.run(&["planned", "WEB01"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(
        double.asked(),
        [of_item(
            "plannedFailover",
            &json!({ "failoverDirection": "PrimaryToRecovery",
                "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" } })
        )]
    );
    let told: Vec<&str> = ran.err.lines().collect();
    assert_eq!(
        told,
        [
            "web01: Shutting down the virtual machine: InProgress",
            "web01: Shutting down the virtual machine: Succeeded",
            "web01: Starting failover: Succeeded",
        ],
        "one line for each change, because there is no terminal"
    );
    assert!(
        ran.out
            .starts_with("Planned failover of web01: Succeeded\n"),
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn an_unplanned_failover_takes_the_point_of_a_time_and_leaves_the_source_alone() {
    let double = Double::start(succeeds()).await;
    let at = ["--at", "2031-03-04T05:09:00Z"];
    let ran = double
        .run(&["unplanned", "web01", at[0], at[1], "--yes"])
        .await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let wanted = |source: &str, point: Option<&str>| {
        let mut details = json!({ "instanceType": "HyperVReplicaAzure" });
        if let Some(point) = point {
            details["recoveryPointId"] = json!(format!("{ITEM}/recoveryPoints/{point}"));
        }
        of_item(
            "unplannedFailover",
            &json!({ "failoverDirection": "PrimaryToRecovery", "sourceSiteOperations": source,
                "providerSpecificDetails": details }),
        )
    };
    assert_eq!(double.asked(), [wanted("NotRequired", Some("p2"))]);

    let double = Double::start(succeeds()).await;
    let shut = ["unplanned", "web01", "--shut-down-source", "--yes"];
    assert_eq!(double.run(&shut).await.code, Some(0));
    assert_eq!(
        double.asked(),
        [wanted("Required", None)],
        "the newest point is the service's to choose"
    );
}

#[tokio::test]
async fn no_point_of_that_age_means_no_failover() {
    let double = Double::start(succeeds()).await;
    let ran = double
        .run(&["unplanned", "web01", "--at", "2030-01-01T00:00:00Z", "-y"])
        .await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("the oldest is of 2031-03-04T05:00:00Z"),
        "{}",
        ran.err
    );
    assert!(double.asked().is_empty());
}

#[tokio::test]
async fn what_can_not_be_taken_back_is_not_done_unasked() {
    let double = Double::start(succeeds()).await;
    for step in ["unplanned", "commit", "back", "complete-migration"] {
        let ran = double.run(&[step, "web01"]).await;
        assert_eq!(ran.code, Some(1), "{step}");
        assert!(ran.err.contains("--yes is needed"), "{step}: {}", ran.err);
    }
    assert!(double.asked().is_empty());
}

#[tokio::test]
async fn a_failed_job_fails_the_command_and_tells_cause_and_next_step() {
    let mut failed = job("Failed", "Failed", "NotStarted");
    failed["properties"]["errors"] = json!([{ "serviceErrorDetails": {
        "code": "ShutdownFailed", "message": "web01 did not shut down.",
        "possibleCauses": "The guest hangs.", "recommendedAction": "Shut it down by hand and start the failover again." },
        "providerErrorDetails": {}, "errorLevel": "Error" }]);
    let double = Double::start([failed]).await;
    let ran = double.run(&["planned", "web01"]).await;
    assert_eq!(ran.code, Some(1));
    for part in [
        "error: web01 did not shut down. (ShutdownFailed)",
        "possible cause: The guest hangs.",
        "next step: Shut it down by hand and start the failover again.",
    ] {
        assert!(ran.out.contains(part), "{part} in {}", ran.out);
    }
}

#[tokio::test]
async fn a_refused_request_tells_cause_and_next_step() {
    let double = Double::start(succeeds()).await;
    double.refuse(
        409,
        json!({ "code": "OperationNotAllowed", "message": "Commit is not possible.", "details": [{
            "code": "1", "message": "m", "possibleCauses": "There was no failover.",
            "recommendedAction": "Start a failover first." }] }),
    );
    let ran = double.run(&["commit", "web01", "--yes"]).await;
    assert_eq!(ran.code, Some(1));
    for part in [
        "Commit is not possible. (OperationNotAllowed)",
        "possible cause: There was no failover.",
        "next step: Start a failover first.",
    ] {
        assert!(ran.err.contains(part), "{part} in {}", ran.err);
    }
}

#[tokio::test]
async fn with_json_standard_output_is_the_finished_job_and_nothing_else() {
    let double = Double::start(succeeds()).await;
    let ran = double
        .run(&["change-point", "web01", "latest-app-consistent", "--json"])
        .await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let job: Value = serde_json::from_str(&ran.out).expect("one document");
    assert_eq!(job["properties"]["state"], "Succeeded");
    assert_eq!(
        double.asked(),
        [of_item(
            "applyRecoveryPoint",
            &json!({ "recoveryPointId": format!("{ITEM}/recoveryPoints/p2"),
                "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" } })
        )]
    );
}

#[tokio::test]
async fn without_waiting_the_jobs_id_is_all_there_is() {
    let double = Double::start(succeeds()).await;
    let ran = double.run(&["undo", "web01", "--no-wait"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "job-1\n"));
    assert_eq!(double.looks(), 0, "nobody looks at the job");
    let asked = double.asked();
    assert!(asked[0].path.ends_with("/failoverCancel"), "{asked:?}");
    assert_eq!(asked[0].body, Value::Null);
}

#[tokio::test]
async fn ctrl_c_ends_the_waiting_and_says_that_the_job_goes_on() {
    let double = Double::start([job("InProgress", "InProgress", "NotStarted")]).await;
    let child = double.spawn(&["planned", "web01"]);
    double.looked(1).await;
    let id = i32::try_from(child.id().expect("it runs")).unwrap();
    kill(Pid::from_raw(id), Signal::SIGINT).unwrap();
    let ran = Ran::of(child.wait_with_output().await.unwrap());
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.err.contains("the job goes on"), "{}", ran.err);
    assert!(
        ran.err.contains("siterecovery job cancel job-1"),
        "{}",
        ran.err
    );
    assert_eq!(double.asked().len(), 1, "nothing was cancelled");
}

#[tokio::test]
async fn a_failback_that_waits_is_no_success_and_is_completed_by_its_own_job() {
    let waits = job("Suspended", "Succeeded", "NotStarted");
    let double = Double::start([waits.clone()]).await;
    let ran = double
        .run(&[
            "back",
            "web01",
            "--create-vm-if-missing",
            "--host",
            "hv2",
            "-y",
        ])
        .await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(
        ran.err.contains("siterecovery failover complete web01"),
        "{}",
        ran.err
    );
    assert_eq!(
        double.asked(),
        [of_item(
            "plannedFailover",
            &json!({ "failoverDirection": "RecoveryToPrimary", "providerSpecificDetails": {
                "instanceType": "HyperVReplicaAzureFailback", "dataSyncOption": "ForDownTime",
                "recoveryVmCreationOption": "CreateVmIfNotFound",
                "providerIdForAlternateRecovery": format!("{VAULT}/hosts/h2") } })
        )]
    );

    // The job may be seen as waiting once more right after it was told to go on.
    let [running, done] = succeeds();
    let double = Double::start([waits.clone(), waits, running, done]).await;
    double.item(
        &json!({ "currentScenario": { "scenarioName": "PlannedFailover",
        "jobId": format!("{VAULT}/replicationJobs/job-1") } }),
    );
    let ran = double.run(&["complete", "web01"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(double.asked()[0].path, "/replicationJobs/job-1/resume");
}

#[tokio::test]
async fn completing_asks_for_the_failback_again_where_no_job_waits() {
    let double = Double::start(succeeds()).await;
    let ran = double.run(&["complete", "web01"]).await;
    assert_eq!(ran.code, Some(1), "nothing waits");
    assert!(
        ran.err.contains("PlannedFailover, UnplannedFailover"),
        "what is allowed instead: {}",
        ran.err
    );
    assert!(
        double.asked().is_empty(),
        "the same request would begin a failback"
    );

    double.item(&json!({ "activeLocation": "Recovery", "allowedOperations": ["FinalizeFailback", "CancelFailover"] }));
    assert_eq!(double.run(&["complete", "web01"]).await.code, Some(0));
    let asked = double.asked();
    assert!(asked[0].path.ends_with("/plannedFailover"), "{asked:?}");
    assert_eq!(
        asked[0].body["properties"]["failoverDirection"],
        "RecoveryToPrimary"
    );
}

#[tokio::test]
async fn a_plan_takes_kinds_of_points_in_a_list() {
    let double = Double::start(succeeds()).await;
    let ran = double
        .run(&["unplanned", "--plan", "shop", "--point", "p2", "-y"])
        .await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("latest-processed"), "{}", ran.err);
    let ran = double
        .run(&[
            "unplanned",
            "--plan",
            "shop",
            "--point",
            "latest-app-consistent",
            "-y",
        ])
        .await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let reprotect = double.run(&["reprotect", "--plan", "shop"]).await;
    assert_eq!(reprotect.code, Some(0), "{reprotect:?}");
    assert_eq!(
        double.asked(),
        [
            Asked {
                path: "/replicationRecoveryPlans/shop/unplannedFailover".to_owned(),
                body: json!({ "properties": {
                    "failoverDirection": "PrimaryToRecovery", "sourceSiteOperations": "NotRequired",
                    "providerSpecificDetails": [{ "instanceType": "HyperVReplicaAzure",
                        "recoveryPointType": "LatestApplicationConsistent" }] } }),
            },
            Asked {
                path: "/replicationRecoveryPlans/shop/reProtect".to_owned(),
                body: Value::Null,
            },
        ]
    );
}

#[tokio::test]
async fn completing_a_migration_ends_protection_and_keeps_the_vm() {
    let double = Double::start(succeeds()).await;
    let ran = double.run(&["complete-migration", "web01", "-y"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(
        double.asked(),
        [of_item(
            "remove",
            &json!({ "disableProtectionReason": "MigrationComplete",
                "replicationProviderInput": { "instanceType": "HyperVReplicaAzure" } })
        )]
    );
}

#[tokio::test]
async fn either_a_vm_or_a_plan_is_named() {
    let double = Double::start(succeeds()).await;
    for wrong in [
        &["planned"][..],
        &["planned", "web01", "--plan", "shop"],
        &["change-point", "web01"],
        &[
            "change-point",
            "web01",
            "p1",
            "--at",
            "2031-03-04T05:00:00Z",
        ],
        &["back", "web01", "--host", "hv2", "-y"],
        &[
            "unplanned",
            "web01",
            "--point",
            "p1",
            "--at",
            "2031-03-04T05:00:00Z",
        ],
    ] {
        assert_eq!(double.run(wrong).await.code, Some(2), "{wrong:?}");
    }
    assert!(double.asked().is_empty());
}

#[tokio::test]
async fn a_part_of_a_plan_and_a_common_point_reach_the_request() {
    let double = Double::start(succeeds()).await;
    let ran = double
        .run(&[
            "planned", "--plan", "shop", "--vms", "web01", "--groups", "2,3",
        ])
        .await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let asked = double.asked();
    assert_eq!(
        asked[0].path,
        "/replicationRecoveryPlans/shop/plannedFailover"
    );
    let properties = &asked[0].body["properties"];
    assert_eq!(properties["protectedItemIds"], json!([ITEM]));
    assert_eq!(properties["groupIds"], json!([2, 3]));

    let double = Double::start(succeeds()).await;
    let words = ["unplanned", "--plan", "shop", "--groups", "1", "--yes"];
    let shared = ["--multi-vm-sync-point", "shared"];
    let ran = double.run(&[&words[..], &shared[..]].concat()).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let properties = double.asked()[0].body["properties"].clone();
    assert_eq!(properties["groupIds"], json!([1]));
    assert_eq!(properties.get("protectedItemIds"), None);
    let details = &properties["providerSpecificDetails"][0];
    assert_eq!(
        details["multiVmSyncPointOption"],
        "UseMultiVmSyncRecoveryPoint"
    );
    assert_eq!(details["recoveryPointType"], "Latest");

    // What is asked of a person says which VMs are meant; a VM alone has no parts, and there is no group 0.
    let double = Double::start(succeeds()).await;
    let ran = double
        .run(&[
            "unplanned",
            "--plan",
            "shop",
            "--vms",
            "web01",
            "--groups",
            "2",
        ])
        .await;
    assert!(
        ran.err
            .contains("VM web01 and the VMs of group 2 in plan shop"),
        "{}",
        ran.err
    );
    for wrong in [
        ["planned", "web01", "--groups", "1"],
        ["planned", "web01", "--vms", "db01"],
        ["unplanned", "web01", "--multi-vm-sync-point", "shared"],
    ] {
        assert_eq!(double.run(&wrong).await.code, Some(2), "{wrong:?}");
    }
    let none = ["planned", "--plan", "shop", "--groups", "0"];
    assert_eq!(double.run(&none).await.code, Some(2));
    assert!(double.asked().is_empty());
}

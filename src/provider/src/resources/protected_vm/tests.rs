//! Progress and completion of the first copy, as the provider reads them.

use arm_model::VaultId;

use super::first_copy::{is_completed, progress};
use super::request::Vm;
use super::*;

fn item(state: &str) -> ProtectedItemProperties {
    serde_json::from_value(json!({
        "friendlyName": "web01", "protectionState": state, "policyId": "/p",
        "providerSpecificDetails": {
            "vmId": "c0ffee00-1234-4abc-8def-001122334455", "vmProtectionState": state,
            "recoveryAzureVmName": "web01", "recoveryAzureStorageAccount": "/A",
            "initialReplicationDetails": { "initialReplicationProgressPercentage": "43" },
            "progressDoneBytes": 12 * 1024 * 1024, "progressTotalBytes": 28 * 1024 * 1024,
            "azureVmDiskDetails": [
                { "vhdType": "OperatingSystem", "vhdId": "D0" }, { "vhdType": "Data", "vhdId": "D1" },
            ],
        }
    }))
    .unwrap()
}

fn problems(config: &Object) -> Vec<String> {
    let mut report = Diagnostics::new();
    check(config, &mut report);
    report.iter().map(|d| d.attribute.to_string()).collect()
}

#[test]
fn progress_says_what_people_want_to_know() {
    let line = progress(&item("InitialReplicationInProgress"));
    assert_eq!(line, "web01: initial replication 43 % (12 of 28 MiB)");
}

#[test]
fn the_first_copy_stays_complete_in_every_later_state() {
    for state in [
        "UnprotectedStatesBegin",
        "EnablingProtection",
        "InitialReplicationInProgress",
        "",
    ] {
        assert!(!is_completed(&item(state)), "{state}");
    }
    for state in [
        "Protected",
        "PlannedFailoverInitiated",
        "PlannedFailoverCompleting",
        "PlannedFailoverCommitRequired",
        "PlannedFailoverStatesBegin",
        "UnplannedFailoverInitiated",
        "UnplannedFailoverCompleting",
        "UnplannedFailoverCommitPendingStatesBegin",
        "UnplannedFailoverStatesBegin",
        "ChangeRecoveryPointInitiated",
        "CancelFailoverInProgressOnRecovery",
        "CancelFailoverInProgressOnPrimary",
        "FailbackSynchronizing",
        "FailbackWaitingForUserInputAfterDataSync",
        "FailbackInitiated",
        "FailbackCompleting",
        "FailbackStartingOnPrimary",
        "FailbackCommitRequired",
        "CommitFailoverInProgressOnRecovery",
        "CommitFailoverCompleted",
    ] {
        assert!(is_completed(&item(state)), "{state}");
    }
}

#[test]
fn a_failover_changes_nothing_that_terraform_keeps() {
    let id = VaultId::new("s", "g", "v")
        .fabric("f")
        .container("c")
        .protected_item("c0ffee00-1234-4abc-8def-001122334455");
    let mut before = Object::new();
    fill(&id, &item("Protected"), &mut before);
    let mut away = item("PlannedFailoverCommitRequired");
    away.active_location = "Recovery".to_owned();
    away.allowed_operations = vec!["Commit".to_owned(), "ChangePit".to_owned()];
    away.failover_recovery_point_id = Some("/p7".to_owned());
    away.last_successful_failover_time = Some("2031-03-04T05:06:07Z".to_owned());
    away.provider_specific_details.rpo_in_seconds = None;
    let mut after = before.clone();
    fill(&id, &away, &mut after);
    assert_eq!(after, before);
}

#[test]
fn a_vm_is_named_in_exactly_one_way() {
    assert_eq!(problems(&Object::new()), ["vm_id"]);
    assert_eq!(
        problems(&Object::new().with("vm_id", "x").with("vm_name", "y")),
        ["vm_name"]
    );
    assert!(problems(&Object::new().with("vm_id", Value::unknown())).is_empty());
}

#[test]
fn the_system_disk_can_not_be_left_out() {
    let config = Object::new().with("vm_name", "a").with("os_disk_id", "D0");
    assert_eq!(
        problems(&config.clone().with("disks_to_include", Value::set(["D1"]))),
        ["disks_to_include"]
    );
    assert!(problems(&config.clone().with("disks_to_include", Value::set(["d0"]))).is_empty());
    assert_eq!(
        problems(&config.with("disks_to_include", Value::Set(vec![]))),
        ["disks_to_include", "disks_to_include"]
    );
}

#[test]
fn reading_keeps_the_users_spelling_of_what_means_the_same() {
    let id = VaultId::new("s", "g", "v")
        .fabric("f")
        .container("c")
        .protected_item("c0ffee00-1234-4abc-8def-001122334455");
    let mut object = Object::new()
        .with("vm_id", "C0FFEE00-1234-4ABC-8DEF-001122334455")
        .with("target_storage_account_id", "/a")
        .with("disks_to_include", Value::set(["d1", "d0"]));
    let before = object.clone();
    fill(&id, &item("Protected"), &mut object);
    for name in ["vm_id", "target_storage_account_id", "disks_to_include"] {
        assert_eq!(object.get(name), before.get(name), "{name}");
    }
    assert_eq!(object.bool(COMPLETED), Some(true));
    assert_eq!(object.str("os_disk_id"), Some("D0"));
}

fn vms() -> Vec<Vm> {
    serde_json::from_value(json!([
        { "id": "/1", "name": "c0ffee00-1234-4abc-8def-001122334455", "properties": {
            "friendlyName": "web01", "protectionReadinessErrors": [],
            "customDetails": { "osDetails": { "osType": "Linux" }, "diskDetails": [
                { "vhdId": "D0", "vhdType": "OperatingSystem" }, { "vhdId": "D1", "vhdType": "Data" },
            ] } } },
        { "id": "/2", "name": "22222222-1234-4abc-8def-001122334455", "properties": {
            "friendlyName": "db01", "protectionReadinessErrors": ["the disk is shared"] } },
    ]))
    .unwrap()
}

#[test]
fn an_unknown_vm_is_an_error_at_its_attribute_that_lists_the_known_ones() {
    let vms = vms();
    let error = choose(&vms, "web02", "vm_name").unwrap_err();
    let first = error.iter().next().unwrap();
    assert_eq!(first.attribute.to_string(), "vm_name");
    assert!(first.detail.contains("db01, web01"), "{}", first.detail);
    assert!(choose(&vms, "C0FFEE00-1234-4ABC-8DEF-001122334455", "vm_id").is_ok());
}

#[test]
fn a_vm_that_can_not_be_protected_is_refused_with_the_hosts_reason() {
    let error = choose(&vms(), "db01", "vm_name").unwrap_err();
    assert!(error.to_string().contains("The disk is shared."), "{error}");
}

#[test]
fn all_disks_are_replicated_unless_some_are_named() {
    let vms = vms();
    assert_eq!(disks(&vms[0], &Object::new()).unwrap(), ["D0", "D1"]);
    let some = Object::new().with("disks_to_include", Value::set(["d0"]));
    assert_eq!(disks(&vms[0], &some).unwrap(), ["D0"]);
    let wrong = Object::new().with("disks_to_include", Value::set(["d7"]));
    let error = disks(&vms[0], &wrong).unwrap_err();
    assert_eq!(
        error.iter().next().unwrap().attribute.to_string(),
        "disks_to_include"
    );
}

#[test]
fn the_request_holds_what_the_service_needs_and_no_empty_network() {
    let planned = Object::new()
        .with("replication_policy_id", "/p")
        .with("target_storage_account_id", "/a")
        .with("target_resource_group_id", "/g");
    let body = enable(&vms()[0], &planned, &["D0".to_owned(), "D1".to_owned()]);
    let specific = &body["properties"]["providerSpecificDetails"];
    assert_eq!(specific["osType"], "Linux");
    assert_eq!(specific["vhdId"], "D0");
    assert_eq!(specific["targetAzureVmName"], "web01");
    assert!(specific.get("targetAzureNetworkId").is_none());
}

#[test]
fn network_and_subnet_that_are_taken_out_are_named_as_empty() {
    let planned = Object::new().with("target_vm_name", "web01");
    let body = patch(&planned, |_| false);
    assert_eq!(body["properties"]["selectedRecoveryAzureNetworkId"], "");
    assert_eq!(
        body["properties"]["vmNics"][0]["ipConfigs"][0]["recoverySubnetName"],
        ""
    );
}

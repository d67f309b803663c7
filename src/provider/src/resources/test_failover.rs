//! `siterecovery_test_failover`: a drill as a resource. Creating it boots the replicas as new VMs while the originals
//! and the replication go on; destroying it removes these VMs.

use std::time::Duration;

use arm_client::{Method, Operation, Retry};
use arm_model::job::{JobProperties, JobState};
use arm_model::test_failover::{NO_NETWORK, VM_NETWORK};
use arm_model::{
    ArmId, HYPER_V_REPLICA_AZURE, JobId, PlanId, ProtectedItemId, RecoveryPointId,
    Resource as Answer, VaultId, VirtualNetworkId,
};
use async_trait::async_trait;
use serde_json::{Value as Json, json};
use tf_provider::{
    Attribute, Change, Context, Diagnostic, Diagnostics, IdentitySchema, ImportKey, Object,
    Presence, Resource, ResourceState, Schema,
};

use super::drill_vms;
use crate::Session;
use crate::errors::Fields;
use crate::plain::{identity, import_stub, stored_id};
use crate::remote::Remote;
use crate::{fields, timeouts};

const WHAT: &str = "test failover";
/// How long a drill is looked for whose start was not answered.
const LOOK_FOR: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const FIELDS: Fields = &[
    ("networkType", "network_type"),
    ("networkId", "network_id"),
    ("recoveryPointId", "recovery_point_id"),
    ("recoveryPointType", "recovery_point_type"),
];

/// The resource.
pub(crate) struct TestFailover;

#[async_trait]
impl Resource<Session> for TestFailover {
    fn type_name(&self) -> &str {
        "siterecovery_test_failover"
    }

    fn schema(&self) -> Schema {
        Schema::new()
            .describe(
                "A drill: boots the replicas of a recovery plan, or of one protected VM, as new VMs while the originals and the \
                 replication go on. Destroying it removes the new VMs and their files. Changing anything but the comment makes a new drill.",
            )
            .attribute(
                "recovery_plan_id",
                fields::arm_id::<PlanId>("a recovery plan")
                    .optional()
                    .requires_replace()
                    .describe("Id of the plan. Give this or `protected_vm_id`."),
            )
            .attribute(
                "protected_vm_id",
                fields::arm_id::<ProtectedItemId>("a protected VM")
                    .optional()
                    .requires_replace()
                    .describe("Id of the protected VM. Give this or `recovery_plan_id`."),
            )
            .attribute(
                "network_type",
                Attribute::string()
                    .optional()
                    .default(NO_NETWORK)
                    .one_of(&[NO_NETWORK, VM_NETWORK])
                    .requires_replace()
                    .describe("`NoNetworkAttachAsInput` (the default): the VMs reach one another and nothing else. `VmNetworkAsInput`: they are in \
                               `network_id`; on a recovery host that is a private network of all VMs of the host that are in it."),
            )
            .attribute(
                "network_id",
                fields::arm_id::<VirtualNetworkId>("a virtual network")
                    .optional()
                    .requires_replace()
                    .describe("Id of the network for `VmNetworkAsInput`. It must exist in the vault's region."),
            )
            .attribute(
                "recovery_point_id",
                fields::arm_id::<RecoveryPointId>("a recovery point")
                    .optional()
                    .requires_replace()
                    .describe("Id of the recovery point, for a drill of one VM. Default: the newest."),
            )
            .attribute(
                "recovery_point_type",
                Attribute::string()
                    .optional()
                    .one_of(&["Latest", "LatestProcessed", "LatestApplicationConsistent"])
                    .requires_replace()
                    .describe("Which points a drill of a plan uses: `Latest` (the default), `LatestProcessed` or `LatestApplicationConsistent`."),
            )
            .attribute(
                "cleanup_comment",
                Attribute::string()
                    .optional()
                    .default("Removed by Terraform.")
                    .describe("What the cleanup's job says. Default: `Removed by Terraform.`"),
            )
            .attribute("id", fields::id())
            .attribute(
                "job_id",
                Attribute::string().computed().use_state_for_unknown().describe("Name of the drill's job."),
            )
            .attribute("vms", drill_vms::attribute().use_state_for_unknown())
            .attribute("timeouts", timeouts::attribute(timeouts::QUICK))
    }

    fn identity(&self) -> Option<IdentitySchema> {
        Some(identity())
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        check(config, report);
    }

    async fn create(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let limit = timeouts::of(&change.planned, "create", timeouts::QUICK.create);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let subject = subject(&change.planned)?;
        let vault = VaultId::of(&subject).ok_or_else(|| {
            Diagnostics::error(
                "The drill has no vault",
                "The id of the plan or VM names no vault.",
            )
        })?;
        let begun = begin(cx, &remote, &subject, &request(&change.planned)).await?;
        if let Some(job) = begun.unheard {
            // Nobody told us of it, but it runs: without its id nothing would ever clean it up.
            state.value.set("id", job.as_str());
            state.value.set("job_id", job.name());
            state.keep();
        }
        let operation = begun.operation?;
        let Some(job) = operation.job_id().map(|job| vault.job(job)) else {
            return Err(Diagnostics::error(
                "The drill has no job",
                "The service accepted the drill but named no job. Check that the provider's endpoint is an orchestrator's.",
            ));
        };
        state.value.set("id", job.as_str());
        state.value.set("job_id", job.name());
        state.keep();
        remote.finish("Running", &operation).await?;
        match remote.find::<Answer<JobProperties>>(job.as_str()).await? {
            Some(found) => fill(&job, &found.properties, &mut state.value),
            None => state
                .value
                .set("vms", drill_vms::value(&[]))
                .set("id", job.as_str()),
        };
        Ok(())
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        state: &mut ResourceState,
    ) -> Result<Presence, Diagnostics> {
        let limit = timeouts::of(&state.value, "read", timeouts::QUICK.read);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let job: JobId = stored_id(&state.value)?;
        let Some(found) = remote.find::<Answer<JobProperties>>(job.as_str()).await? else {
            return Ok(Presence::Gone);
        };
        if is_over(&found.properties) {
            return Ok(Presence::Gone);
        }
        fill(&job, &found.properties, &mut state.value);
        Ok(Presence::Present)
    }

    async fn update(
        &self,
        _cx: &Context<Session>,
        _change: &Change,
        _state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        // Only the comment and `timeouts` change in place: they are for the cleanup.
        Ok(())
    }

    async fn delete(&self, cx: &Context<Session>, change: &Change) -> Result<(), Diagnostics> {
        let prior = change.prior.clone().unwrap_or_default();
        let limit = timeouts::of(&prior, "delete", timeouts::QUICK.delete);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let subject = subject(&prior)?;
        let job: JobId = stored_id(&prior)?;
        if nothing_left(&remote, &job).await? {
            return Ok(());
        }
        let body = json!({ "properties": { "comments": prior.str("cleanup_comment") } });
        let path = format!("{subject}/testFailoverCleanup");
        match remote.try_remove(Method::Post, &path, Some(&body)).await? {
            Ok(()) => Ok(()),
            // It may have ended, or been cleaned up by somebody, since we looked.
            Err(error) if error.status() == Some(409) && nothing_left(&remote, &job).await? => {
                Ok(())
            }
            Err(error) => Err(remote.failed("Removing", &error)),
        }
    }

    async fn import(
        &self,
        cx: &Context<Session>,
        key: &ImportKey,
    ) -> Result<ResourceState, Diagnostics> {
        let mut state = import_stub::<JobId>("drill's job", key)?;
        let remote = Remote::new(cx, WHAT, FIELDS, timeouts::QUICK.read)?;
        let job: JobId = stored_id(&state.value)?;
        let Some(found) = remote.find::<Answer<JobProperties>>(job.as_str()).await? else {
            return Err(Diagnostics::error(
                "There is no such drill",
                format!("No job has the id {job}."),
            ));
        };
        let details = &found.properties.custom_details;
        if details.instance_type != arm_model::job::DRILL_DETAILS {
            return Err(Diagnostics::error(
                "Not a drill",
                format!(
                    "Job {job} is {:?}, not a test failover.",
                    found.properties.friendly_name
                ),
            ));
        }
        let object = &mut state.value;
        object.set("cleanup_comment", "Removed by Terraform.");
        object.set(
            "network_type",
            details.network_type.as_deref().unwrap_or(NO_NETWORK),
        );
        object.set(
            "network_id",
            fields::text_or_null(
                details
                    .network_name
                    .as_deref()
                    .filter(|n| n.starts_with('/')),
            ),
        );
        if let Some(vault) = VaultId::of(&job) {
            let target = &found.properties.target_object_id;
            if found.properties.target_instance_type == "RecoveryPlan" {
                let plan = if target.starts_with('/') {
                    target.clone()
                } else {
                    vault.plan(target).to_string()
                };
                object.set("recovery_plan_id", plan);
            } else if let Some(item) = item_of(&remote, &vault, target).await? {
                object.set("protected_vm_id", item);
            }
        }
        Ok(state)
    }
}

/// A drill that was asked for.
pub(crate) struct Begun {
    /// What the service answered.
    pub(crate) operation: Result<Operation, Diagnostics>,
    /// The drill that runs although its start was not answered.
    pub(crate) unheard: Option<JobId>,
}

/// Asks for a drill.
///
/// # Errors
/// When nothing was asked for.
pub(crate) async fn begin(
    cx: &Context<Session>,
    remote: &Remote<'_>,
    subject: &ArmId,
    body: &Json,
) -> Result<Begun, Diagnostics> {
    let before = remote.find::<Json>(subject.as_str()).await?;
    let before = before.as_ref().and_then(drill_of);
    let path = format!("{subject}/testFailover");
    let begun = remote.session.api.begin(Method::Post, &path, Some(body));
    let (operation, unknown) = match cx.cancel().guard(begun).await {
        Ok(Ok(operation)) => (Ok(operation), false),
        Ok(Err(error)) => {
            let unknown = error.retry() == Retry::UnknownOutcome;
            (Err(remote.failed("Starting", &error)), unknown)
        }
        Err(interrupted) => (Err(interrupted), true),
    };
    let unheard = match unknown {
        true => begun_unheard(remote, subject, before.as_ref()).await,
        false => None,
    };
    Ok(Begun { operation, unheard })
}

/// Whether a drill has left nothing to be cleaned up: it was cleaned up, or it failed or was cancelled, which takes all of it
/// back.
pub(crate) fn is_over(job: &JobProperties) -> bool {
    let status = job.custom_details.test_failover_status.as_deref();
    matches!(status, Some("Completed" | "Failed" | "Cancelled"))
        || matches!(job.state, JobState::Failed | JobState::Cancelled)
}

/// [`is_over`] of a drill's job. The service keeps the job for as long as there is something to clean up.
async fn nothing_left(remote: &Remote<'_>, job: &JobId) -> Result<bool, Diagnostics> {
    let found = remote.find::<Answer<JobProperties>>(job.as_str()).await?;
    Ok(found.is_none_or(|job| is_over(&job.properties)))
}

/// The drill that a plan or a VM is in the middle of.
fn drill_of(subject: &Json) -> Option<JobId> {
    let scenario = subject.pointer("/properties/currentScenario")?;
    let is_drill = scenario.get("scenarioName")?.as_str() == Some("TestFailover");
    let job = scenario.get("jobId")?.as_str()?;
    is_drill.then(|| JobId::parse(job).ok()).flatten()
}

/// The drill that began although its start was not answered; other than the one of `before`. Looks for a while, also when the
/// user has interrupted us.
async fn begun_unheard(
    remote: &Remote<'_>,
    subject: &ArmId,
    before: Option<&JobId>,
) -> Option<JobId> {
    let look = async {
        loop {
            let found = remote.session.api.find::<Json>(subject.as_str()).await;
            let drill = found.ok().flatten().as_ref().and_then(drill_of);
            if let Some(drill) = drill.filter(|drill| Some(drill) != before) {
                return drill;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(LOOK_FOR, look).await.ok()
}

/// The protected item of a name, anywhere in the vault.
async fn item_of(
    remote: &Remote<'_>,
    vault: &VaultId,
    name: &str,
) -> Result<Option<String>, Diagnostics> {
    let items: Vec<Answer<Json>> = remote
        .list(&format!("{vault}/replicationProtectedItems"))
        .await?;
    let found = items
        .into_iter()
        .find(|i| i.name.eq_ignore_ascii_case(name) || i.id.eq_ignore_ascii_case(name));
    Ok(found.map(|item| item.id))
}

/// What a drill can't be.
pub(crate) fn check(config: &Object, report: &mut Diagnostics) {
    let (plan, vm) = ("recovery_plan_id", "protected_vm_id");
    if config.is_null(plan) && config.is_null(vm) {
        report.push_error(
            plan,
            "A drill of what?",
            "Give recovery_plan_id or protected_vm_id.",
        );
    }
    if !config.is_null(plan) && !config.is_null(vm) {
        report.push_error(
            vm,
            "A drill of two things",
            "Give recovery_plan_id or protected_vm_id, not both.",
        );
    }
    if config.str("network_type") == Some(VM_NETWORK) && config.is_null("network_id") {
        report.push_error(
            "network_id",
            "Which network?",
            "network_type = \"VmNetworkAsInput\" needs network_id.",
        );
    }
    if config.str("network_type") == Some(VM_NETWORK) {
        let warning = Diagnostic::warning(
            "On a recovery host the network is a private one",
            "A recovery host connects no VM to its own networks: the VMs of the drill meet those that are in this virtual network on \
             the same host, failed-over ones too, and nobody else. In Azure they are in the virtual network itself.",
        );
        report.push(warning.at("network_type"));
    }
    let no_network =
        config.is_null("network_type") || config.str("network_type") == Some(NO_NETWORK);
    if no_network && !config.is_null("network_id") {
        report.push_error(
            "network_id",
            "A network that is not used",
            "Set network_type = \"VmNetworkAsInput\" to connect the VMs to it.",
        );
    }
    if !config.is_null(plan) && !config.is_null("recovery_point_id") {
        report.push_error(
            "recovery_point_id",
            "One point for a whole plan",
            "A drill of a plan uses recovery_point_type.",
        );
    }
    if !config.is_null(vm) && !config.is_null("recovery_point_type") {
        report.push_error(
            "recovery_point_type",
            "Only for a plan",
            "A drill of one VM uses recovery_point_id.",
        );
    }
    let owner = config
        .str("recovery_point_id")
        .and_then(|id| ArmId::parse(id).ok())
        .and_then(|id| ProtectedItemId::of(&id));
    let item = config
        .str(vm)
        .and_then(|id| ProtectedItemId::parse(id).ok());
    if let (Some(owner), Some(item)) = (owner, item)
        && owner != item
    {
        report.push_error(
            "recovery_point_id",
            "A point of another VM",
            format!("It belongs to {owner}."),
        );
    }
}

fn subject(object: &Object) -> Result<ArmId, Diagnostics> {
    let name = if object.is_null("recovery_plan_id") {
        "protected_vm_id"
    } else {
        "recovery_plan_id"
    };
    ArmId::parse(object.require_str(name)?)
        .map_err(|error| Diagnostics::error_at(name, "Not an ARM id", format!("{error}.")))
}

/// The body of the request for a drill.
pub(crate) fn request(planned: &Object) -> Json {
    let mut properties = json!({
        "failoverDirection": "PrimaryToRecovery",
        "networkType": planned.str("network_type").unwrap_or(NO_NETWORK),
    });
    if let Some(network) = planned.str("network_id") {
        properties["networkId"] = Json::from(network);
    }
    properties["providerSpecificDetails"] = if planned.is_null("recovery_plan_id") {
        let mut details = json!({ "instanceType": HYPER_V_REPLICA_AZURE });
        if let Some(point) = planned.str("recovery_point_id") {
            details["recoveryPointId"] = Json::from(point);
        }
        details
    } else {
        let kind = planned.str("recovery_point_type").unwrap_or("Latest");
        json!([{ "instanceType": HYPER_V_REPLICA_AZURE, "recoveryPointType": kind }])
    };
    json!({ "properties": properties })
}

fn fill<'a>(job: &JobId, properties: &JobProperties, object: &'a mut Object) -> &'a mut Object {
    let vms = properties
        .custom_details
        .protected_item_details
        .clone()
        .unwrap_or_default();
    object
        .set("vms", drill_vms::value(&vms))
        .set("job_id", job.name())
}

#[cfg(test)]
mod tests {
    use tf_provider::Severity;

    use super::*;

    const ITEM: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v/replicationFabrics/f/replicationProtectionContainers/c/replicationProtectedItems/i";

    fn problems(config: &Object) -> Vec<String> {
        let mut report = Diagnostics::new();
        check(config, &mut report);
        report
            .iter()
            .filter(|d| d.severity == Severity::Error)
            .map(|d| d.attribute.to_string())
            .collect()
    }

    #[test]
    fn a_network_that_no_vm_is_connected_to_yet_is_warned_of() {
        let config = Object::new()
            .with("protected_vm_id", ITEM)
            .with("network_type", VM_NETWORK)
            .with("network_id", "n");
        let mut report = Diagnostics::new();
        check(&config, &mut report);
        let told: Vec<_> = report
            .iter()
            .map(|d| (d.severity, d.attribute.to_string()))
            .collect();
        assert_eq!(told, [(Severity::Warning, "network_type".to_owned())]);
    }

    #[test]
    fn a_drill_is_of_a_plan_or_of_a_vm() {
        assert_eq!(problems(&Object::new()), ["recovery_plan_id"]);
        let both = Object::new()
            .with("recovery_plan_id", "p")
            .with("protected_vm_id", "v");
        assert_eq!(problems(&both), ["protected_vm_id"]);
    }

    #[test]
    fn a_network_belongs_to_its_type_and_a_point_to_its_vm() {
        let vm = Object::new().with("protected_vm_id", ITEM);
        assert_eq!(
            problems(&vm.clone().with("network_type", VM_NETWORK)),
            ["network_id"]
        );
        assert_eq!(
            problems(&vm.clone().with("network_id", "n")),
            ["network_id"]
        );
        let other = format!("{}x/recoveryPoints/p", ITEM);
        assert_eq!(
            problems(&vm.clone().with("recovery_point_id", other)),
            ["recovery_point_id"]
        );
        assert!(
            problems(&vm.with("recovery_point_id", format!("{ITEM}/recoveryPoints/p"))).is_empty()
        );
    }

    #[test]
    fn details_are_a_list_for_a_plan_and_an_object_for_a_vm() {
        let plan = request(&Object::new().with("recovery_plan_id", "p"));
        assert_eq!(
            plan["properties"]["providerSpecificDetails"][0]["recoveryPointType"],
            "Latest"
        );
        let vm = request(
            &Object::new()
                .with("protected_vm_id", "v")
                .with("recovery_point_id", "r"),
        );
        assert_eq!(
            vm["properties"]["providerSpecificDetails"]["recoveryPointId"],
            "r"
        );
    }

    #[test]
    fn a_drill_that_failed_was_cancelled_or_cleaned_up_is_over() {
        let job = |state: &str, status: Option<&str>| -> JobProperties {
            let details =
                json!({ "instanceType": "TestFailoverJobDetails", "testFailoverStatus": status });
            serde_json::from_value(json!({ "state": state, "customDetails": details })).unwrap()
        };
        for (state, status) in [
            ("Failed", Some("Active")),
            ("Cancelled", Some("Active")),
            ("Failed", Some("Failed")),
            ("Succeeded", Some("Completed")),
        ] {
            assert!(is_over(&job(state, status)), "{state} {status:?}");
        }
        for (state, status) in [
            ("InProgress", Some("Active")),
            ("Succeeded", Some("Active")),
        ] {
            assert!(!is_over(&job(state, status)), "{state} {status:?}");
        }
    }

    #[test]
    fn the_drill_that_is_under_way_is_found_and_no_other_job() {
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v/replicationJobs/";
        let subject = |name: &str, job: &str| json!({ "properties": { "currentScenario": { "scenarioName": name, "jobId": format!("{id}{job}") } } });
        let found = drill_of(&subject("TestFailover", "j")).expect("a drill");
        assert_eq!(found.name(), "j");
        assert_eq!(drill_of(&subject("TestFailoverCleanup", "j")), None);
        assert_eq!(drill_of(&json!({ "properties": {} })), None);
    }
}

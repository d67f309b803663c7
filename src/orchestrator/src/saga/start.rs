//! Makes a job: stored together with its locks and the first changes, or not at all.

use std::collections::BTreeMap;

use arm_model::job::{JobDetails, JobProperties, JobState, PLAIN_DETAILS, Task};
use arm_model::{ArmId, JobId, VaultId};
use serde_json::Value;
use tracing::warn;
use uuid::Uuid;

use super::state::{JobRecord, Phase};
use crate::app::App;
use crate::fault::Fault;
use crate::store::records::{self, Lock};
use crate::store::{Change, Expect, StoreError};

/// What a job is about.
pub struct NewJob<'a> {
    /// Vault that shows the job.
    pub vault: &'a VaultId,
    /// Resource that the operation is about.
    pub resource: &'a ArmId,
    /// Whether the resource is gone after success.
    pub removes: bool,
    /// Such as `EnableDr`.
    pub scenario: &'static str,
    /// Such as `Enable replication`.
    pub friendly_name: &'static str,
    /// Name of the object for people.
    pub target_name: &'a str,
    /// Such as `ProtectionEntity`.
    pub target_type: &'static str,
    /// Workflow.
    pub workflow: &'static str,
    /// Its parameters.
    pub input: Value,
    /// Its tasks, one per node.
    pub tasks: Vec<Task>,
    /// More about the job.
    pub details: JobDetails,
    /// Keys of resources that the job needs to itself.
    pub locks: Vec<String>,
    /// `x-ms-client-request-id` of the request.
    pub request_id: &'a str,
    /// Changes that are made with the job.
    pub changes: Vec<Change>,
    /// Job name, for a job that another one starts and may start twice; a new one when absent.
    pub name: Option<String>,
}

/// Stores the job and hands it to the runner.
///
/// # Errors
/// 409 when another job has one of the resources; 412 when a change of `changes` doesn't hold any more; 404 when the vault
/// is gone; failures of the store.
pub async fn start(app: &App, new: NewJob<'_>) -> Result<JobId, Fault> {
    let id = new
        .vault
        .job(&new.name.unwrap_or_else(|| Uuid::new_v4().to_string()));
    let now = app.now_ms();
    let mut details = new.details;
    if details.instance_type.is_empty() {
        PLAIN_DETAILS.clone_into(&mut details.instance_type);
    }
    details
        .affected_object_details
        .entry("primaryFabricProviderId".to_owned())
        .or_insert_with(|| arm_model::HYPER_V_SITE.to_owned());
    let record = JobRecord {
        id: id.as_str().to_owned(),
        resource: new.resource.as_str().to_owned(),
        removes: new.removes,
        properties: JobProperties {
            activity_id: format!("{} ActivityId: {}", new.request_id, Uuid::new_v4()),
            scenario_name: new.scenario.to_owned(),
            friendly_name: new.friendly_name.to_owned(),
            state: JobState::InProgress,
            state_description: "InProgress".to_owned(),
            tasks: new.tasks,
            start_time: app.now_text(),
            allowed_actions: vec!["Cancel".to_owned()],
            target_object_id: new.resource.name().to_owned(),
            target_object_name: new.target_name.to_owned(),
            target_instance_type: new.target_type.to_owned(),
            custom_details: details,
            ..JobProperties::default()
        },
        workflow: new.workflow.to_owned(),
        input: new.input,
        memo: BTreeMap::new(),
        node: 0,
        phase: Phase::Forward,
        failure: None,
        cancel: false,
        locks: new.locks.clone(),
        node_since_unix_ms: now,
        created_unix_ms: now,
    };
    let mut changes = new.changes;
    // A job of a vault that is gone could neither be seen nor cancelled.
    changes.push(Change::Check {
        key: new.vault.key(),
        expect: Expect::Present,
    });
    for lock in &new.locks {
        let lock_record = Lock { job: id.key() };
        changes.push(records::put(
            records::lock_key(lock),
            &lock_record,
            Expect::Absent,
        )?);
    }
    changes.push(records::put(id.key(), &record, Expect::Absent)?);
    loop {
        match app.store.apply(changes.clone()).await {
            Ok(_) => break,
            Err(StoreError::Conflict { key }) if key == new.vault.key() => {
                return Err(Fault::not_found(new.vault.as_str()));
            }
            Err(StoreError::Conflict { key }) => match orphan(app, &key).await? {
                Some(orphan) => match app.store.apply(vec![orphan]).await {
                    Err(error) if !error.is_conflict() => return Err(error.into()),
                    _ => warn!(lock = %key, "the lock of a job that has ended is given back"),
                },
                None => return Err(busy(app, &key).await?),
            },
            Err(error) => return Err(error.into()),
        }
    }
    app.start_job(&id.key());
    app.ring();
    Ok(id)
}

/// The removal of a lock whose job is gone or has ended. A job gives its locks back in the batch that ends it, so nobody will
/// do it any more.
async fn orphan(app: &App, key: &str) -> Result<Option<Change>, StoreError> {
    let store = app.store.as_ref();
    let Some(lock) = records::get::<Lock>(store, key).await? else {
        return Ok(None);
    };
    let job = records::get::<JobRecord>(store, &lock.record.job).await?;
    let over = job.is_none_or(|job| job.record.phase == Phase::Ended);
    Ok(over.then(|| Change::Delete {
        key: key.to_owned(),
        expect: Expect::Etag(lock.etag),
    }))
}

/// Why a conflicting job can't begin.
async fn busy(app: &App, key: &str) -> Result<Fault, Fault> {
    let Some(resource) = key.strip_prefix("~lock/") else {
        return Ok(Fault::refuse(
            412,
            arm_model::ArmError::new(
                "PreconditionFailed",
                "The resource was changed by somebody else in the meantime.",
            )
            .at(key)
            .advise("", "Read the resource again and repeat the request."),
        ));
    };
    let holder = records::get::<Lock>(app.store.as_ref(), key).await?;
    let job = match holder {
        Some(lock) => records::get::<JobRecord>(app.store.as_ref(), &lock.record.job).await?,
        None => None,
    };
    let what = job.map_or_else(
        || "Another job".to_owned(),
        |job| {
            format!(
                "The job `{}` ({})",
                job.record.properties.friendly_name, job.record.id
            )
        },
    );
    Ok(Fault::conflict(
        "AnotherOperationInProgress",
        resource,
        format!("{what} is running on the object."),
        "Wait until the job has ended, or cancel it.",
    ))
}

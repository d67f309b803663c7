//! Associations of policies with a site's container.

use arm_model::container::{MappingCreation, MappingProperties};
use arm_model::{ArmError, MICROSOFT_AZURE, MappingId, PolicyId, Resource, validate};
use axum::http::StatusCode;
use serde_json::json;

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{fabrics, load};
use crate::fault::Fault;
use crate::saga::start::{self, NewJob};
use crate::saga::state::fresh_task;
use crate::store::records::{self, Item, Mapping, Policy, Record};

/// PUT, GET, POST remove, DELETE.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    match (call.method, call.route.tail.as_deref()) {
        ("GET", None) => {
            let located = load::container(call).await?;
            let id = located.mapping(&load::name(call, "replicationProtectionContainerMappings")?);
            let stored = load::require::<Mapping>(call.app, id.as_str()).await?;
            Reply::versioned(&answer(&stored.record)?, stored.etag)
        }
        ("PUT", None) => put(call).await,
        ("POST", Some("remove")) => remove(call, false).await,
        ("DELETE", None) => remove(call, true).await,
        _ => Err(unknown_path(&call.path)),
    }
}

/// `C/replicationProtectionContainerMappings`.
///
/// # Errors
/// 404 without a container.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let located = load::container(call).await?;
    below(call, &located.container.key()).await
}

/// `V/replicationProtectionContainerMappings`.
///
/// # Errors
/// 404 without a vault.
pub async fn list_of_vault(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    below(call, &vault.key()).await
}

async fn below(call: &Call<'_>, key: &str) -> Result<Reply, Fault> {
    let mappings = records::list::<Mapping>(call.app.store.as_ref(), &format!("{key}/")).await?;
    page(
        mappings
            .iter()
            .map(|mapping| answer(&mapping.record))
            .collect::<Result<Vec<_>, _>>()?,
    )
}

async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let located = load::container(call).await?;
    let name = load::name(call, "replicationProtectionContainerMappings")?;
    validate::resource_name(&name)
        .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
    let body: MappingCreation = call.properties()?;
    let wanted = body.policy_id.unwrap_or_default();
    let policy_id = PolicyId::parse(&wanted)
        .map_err(|error| Fault::invalid("properties.policyId", format!("{error}.")))?;
    call.may_use(policy_id.as_arm(), "properties.policyId")?;
    let foreign = arm_model::VaultId::of(&policy_id).is_none_or(|vault| vault != located.vault);
    let policy = records::get::<Policy>(call.app.store.as_ref(), &policy_id.key())
        .await?
        .filter(|_| !foreign);
    let Some(policy) = policy else {
        return Err(Fault::refuse(
            400,
            ArmError::new(
                "PolicyNotFound",
                format!("The vault has no policy `{}`.", policy_id.name()),
            )
            .at("properties.policyId")
            .advise("", "Make the policy in the same vault first."),
        ));
    };
    let target = body
        .target_protection_container_id
        .unwrap_or_else(|| MICROSOFT_AZURE.to_owned());
    if target != MICROSOFT_AZURE {
        return Err(Fault::invalid(
            "properties.targetProtectionContainerId",
            format!("Hyper-V VMs are replicated to `{MICROSOFT_AZURE}` only."),
        ));
    }
    let id = located.mapping(&name);
    let store = call.app.store.as_ref();
    let stored = records::get::<Mapping>(store, &id.key()).await?;
    call.precondition(stored.as_ref().map(|stored| stored.etag))?;
    let record = Mapping {
        id: id.as_str().to_owned(),
        policy_id: policy.record.id.clone(),
    };
    let others = records::list::<Mapping>(store, &format!("{}/", located.container.key())).await?;
    if let Some(other) = others
        .iter()
        .find(|other| other.key != id.key() && other.record.policy_id == record.policy_id)
    {
        return Err(Fault::conflict(
            "AlreadyAssociated",
            id.as_str(),
            format!(
                "The policy is already associated with the site by `{}`.",
                other.record.id
            ),
            "Use that association.",
        ));
    }
    if let Some(stored) = &stored
        && stored.record.policy_id != record.policy_id
        && in_use(call, &id, &stored.record).await?
    {
        return Err(Fault::conflict(
            "MappingInUse",
            id.as_str(),
            "Protected VMs use the association.",
            "Make another association for the other policy.",
        ));
    }
    let job = start::start(
        call.app,
        NewJob {
            vault: &located.vault,
            resource: &id,
            removes: false,
            scenario: "PairCloud",
            friendly_name: "Associate replication policy",
            target_name: policy_id.name(),
            target_type: "ProtectionProfile",
            workflow: "put",
            input: fabrics::put_input(&id.key(), &record, stored.as_ref()),
            tasks: vec![
                fresh_task(
                    "PairCloudPreflightChecksTask",
                    "Prerequisites check for associating the replication policy",
                ),
                fresh_task("PairCloudTask", "Associating the replication policy"),
            ],
            details: arm_model::job::JobDetails::default(),
            locks: vec![id.key()],
            request_id: &call.request_id,
            changes: vec![fabrics::unchanged(
                &id.key(),
                stored.as_ref().map(|stored| stored.etag),
            )],
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, &id))
}

/// Whether items of the container use the association's policy.
async fn in_use(call: &Call<'_>, id: &MappingId, mapping: &Mapping) -> Result<bool, Fault> {
    let container = id
        .parent()
        .map(|container| format!("{}/", container.key()))
        .unwrap_or_default();
    let items = records::list::<Item>(call.app.store.as_ref(), &container).await?;
    Ok(items.iter().any(|item| {
        item.record
            .policy_id
            .eq_ignore_ascii_case(&mapping.policy_id)
    }))
}

async fn remove(call: &Call<'_>, forced: bool) -> Result<Reply, Fault> {
    let (vault, fabric, _) = load::fabric(call).await?;
    let container = load::name(call, "replicationProtectionContainers")?;
    // Without a container check: the association must go even when the last host is gone.
    let id = fabric
        .container(&container)
        .mapping(&load::name(call, "replicationProtectionContainerMappings")?);
    let stored = match load::require::<Mapping>(call.app, id.as_str()).await {
        Ok(stored) => stored,
        Err(Fault::Refused { status: 404, .. }) if forced => {
            return Ok(Reply::Empty(StatusCode::NO_CONTENT));
        }
        Err(fault) => return Err(fault),
    };
    call.precondition(Some(stored.etag))?;
    if in_use(call, &id, &stored.record).await? {
        return Err(Fault::conflict(
            "MappingInUse",
            id.as_str(),
            "Protected VMs use the association.",
            "Switch their protection off first.",
        ));
    }
    let job = start::start(call.app, NewJob {
        vault: &vault,
        resource: &id,
        removes: true,
        scenario: "UnpairCloud",
        friendly_name: "Dissociate replication policy",
        target_name: id.name(),
        target_type: "ProtectionProfile",
        workflow: "remove",
        input: json!({ "documents": [{ "key": id.key(), "kind": Mapping::KIND, "body": stored.record }] }),
        tasks: vec![fresh_task("UnpairCloudTask", "Dissociating the replication policy")],
        details: arm_model::job::JobDetails::default(),
        locks: vec![id.key()],
        request_id: &call.request_id,
        changes: vec![fabrics::unchanged(&id.key(), Some(stored.etag))],
        name: None,
    })
    .await?;
    Ok(Reply::accepted(job, &id))
}

fn answer(mapping: &Mapping) -> Result<Resource<MappingProperties>, Fault> {
    let id =
        MappingId::parse(&mapping.id).map_err(|error| Fault::invalid("id", error.to_string()))?;
    let site = id
        .name_of("replicationFabrics")
        .unwrap_or_default()
        .to_owned();
    let azure = || MICROSOFT_AZURE.to_owned();
    Ok(Resource::answer(
        &id,
        MappingProperties {
            policy_id: mapping.policy_id.clone(),
            policy_friendly_name: mapping
                .policy_id
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned(),
            target_protection_container_id: azure(),
            target_protection_container_friendly_name: azure(),
            target_fabric_friendly_name: azure(),
            source_protection_container_friendly_name: site.clone(),
            source_fabric_friendly_name: site,
            state: "Paired".to_owned(),
            health: "Normal".to_owned(),
            health_error_details: Vec::new(),
        },
    ))
}

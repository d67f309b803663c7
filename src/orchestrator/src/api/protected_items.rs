//! Protected VMs: list, get, update, disable, purge. Enabling is in [`super::enable`], the answer in
//! [`super::item_answer`].

use arm_model::ProtectedItemId;
use arm_model::failover::MIGRATION_COMPLETE;
use arm_model::protected_item::{DisableProtection, UpdateDetails, UpdateProtectedItem};
use axum::http::StatusCode;
use protection::life::{Awaited, Phase};
use protection::{Event, life};
use serde_json::json;

use super::entry::{Call, page, unknown_path};
use super::filter::Filter;
use super::item_answer::{answer, answers};
use super::reply::Reply;
use super::{item_rules, load, nics};
use crate::fault::Fault;
use crate::saga::start::{self, NewJob};
use crate::saga::{disable_protection, fence};
use crate::store::records::{self, Item, Plan, Recovered};
use crate::store::{Change, Expect};
use crate::{azure_target, immutability, vault_keys};

/// PUT, PATCH, GET, POST remove, DELETE.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    match (call.method, call.route.tail.as_deref()) {
        ("GET", None) => {
            let (_, _, stored) = load::item(call).await?;
            Reply::versioned(&answer(call, &stored.record).await?, stored.etag)
        }
        ("PUT", None) => super::enable::put(call).await,
        ("PATCH", None) => patch(call).await,
        ("POST", Some("remove")) => disable(call).await,
        ("DELETE", None) => purge(call).await,
        _ => Err(unknown_path(&call.path)),
    }
}

/// `C/replicationProtectedItems`.
///
/// # Errors
/// 404 without a container.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let located = load::container(call).await?;
    let items = records::list::<Item>(
        call.app.store.as_ref(),
        &format!("{}/", located.container.key()),
    )
    .await?;
    page(answers(call, items.iter().map(|item| &item.record)).await?)
}

/// `V/replicationProtectedItems`.
///
/// # Errors
/// 404 without a vault; 400 for a filter that can't be read.
pub async fn list_of_vault(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let filter = Filter::parse(call.query.get("$filter").map_or("", String::as_str))?;
    let store = call.app.store.as_ref();
    let members: Option<Vec<String>> = match filter.first("recoveryPlanName") {
        None => None,
        Some(plan) => Some(
            load::require::<Plan>(call.app, vault.plan(plan).as_str())
                .await?
                .record
                .groups
                .iter()
                .flat_map(|group| {
                    group
                        .replication_protected_items
                        .iter()
                        .map(|item| item.id.to_ascii_lowercase())
                })
                .collect(),
        ),
    };
    let items = records::list::<Item>(store, &format!("{}/", vault.key())).await?;
    let chosen = items.iter().map(|item| &item.record).filter(|item| {
        let site = ProtectedItemId::parse(&item.id)
            .ok()
            .and_then(|id| id.name_of("replicationFabrics").map(str::to_owned));
        filter.allows("sourceFabricName", &site.unwrap_or_default())
            && filter.allows("instanceType", arm_model::HYPER_V_REPLICA_AZURE)
            && members
                .as_ref()
                .is_none_or(|members| members.contains(&item.id.to_ascii_lowercase()))
    });
    page(answers(call, chosen).await?)
}

/// Settings of the recovery VM. Nothing is copied, so it is done at once.
async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, _, stored) = load::item(call).await?;
    call.precondition(Some(stored.etag))?;
    let update: UpdateProtectedItem = call.properties()?;
    let mut item = stored.record;
    if let Some(name) = update.recovery_azure_vm_name {
        super::enable::target_name(&name)?;
        item.request.target_azure_vm_name = Some(name);
    }
    if update.recovery_azure_vm_size.is_some() {
        item.request.target_vm_size = update.recovery_azure_vm_size;
    }
    if let Some(network) = update.selected_recovery_azure_network_id {
        if !network.is_empty() {
            let (_, vault) = load::vault(call).await?;
            super::enable::network(
                call,
                &network,
                &vault.record.0.location,
                "properties.selectedRecoveryAzureNetworkId",
            )
            .await?;
        }
        // An empty text takes the network out; what is absent stays.
        item.request.target_azure_network_id = Some(network).filter(|id| !id.is_empty());
    }
    let (of_vm, of_nics): (Vec<_>, Vec<_>) = update
        .vm_nics
        .unwrap_or_default()
        .into_iter()
        .partition(|choice| choice.nic_id.is_empty());
    // A choice without an adapter is for the whole VM; an empty name takes its subnet out.
    let subnet = of_vm.first().and_then(|choice| choice.ip_configs.first());
    if let Some(subnet) = subnet.and_then(|ip| ip.recovery_subnet_name.clone()) {
        item.request.target_azure_subnet_id = Some(subnet).filter(|name| !name.is_empty());
    }
    let chooses = !of_nics.is_empty() || update.selected_source_nic_id.is_some();
    if chooses {
        // What was chosen for an adapter that is gone must not stand in the way.
        nics::drop_gone(call, &mut item);
    }
    if !of_nics.is_empty() {
        let choices = nics::merged(item.request.vm_nics.as_ref(), of_nics);
        item.request.vm_nics = Some(choices);
    }
    if let Some(primary) = update.selected_source_nic_id {
        item.request.selected_source_nic_id = Some(primary).filter(|id| !id.is_empty());
    }
    // Old choices are not checked when something else is changed: the network may be another one by now.
    if chooses {
        nics::check(call, &item, "properties").await?;
    }
    let of_details = update.provider_specific_details.as_ref();
    let of_details = of_details.map(|details| details.extra.clone());
    azure_target::update(&mut item, &update.extra, &of_details.unwrap_or_default());
    if let Some(details) = update.provider_specific_details {
        apply(call, &mut item, details).await?;
    }
    azure_target::check_settings(call.app, &item, |property| {
        format!("properties.providerSpecificDetails.{property}")
    })?;
    let etags = call
        .app
        .store
        .apply(vec![records::put(
            stored.key,
            &item,
            Expect::Etag(stored.etag),
        )?])
        .await?;
    // Limits and groups take effect at once.
    call.app.ring();
    Reply::versioned(
        &answer(call, &item).await?,
        etags.first().copied().unwrap_or_default(),
    )
}

/// The Hyper-V to Azure part of an update: what is absent stays.
async fn apply(call: &Call<'_>, item: &mut Item, details: UpdateDetails) -> Result<(), Fault> {
    let at = |property: &str| format!("properties.providerSpecificDetails.{property}");
    if let Some(group) = details.recovery_azure_v2_resource_group_id {
        item_rules::resource_group(call, &group, &at("recoveryAzureV2ResourceGroupId"))?;
        item.request.target_azure_v2_resource_group_id = Some(group);
    }
    if let Some(name) = details.multi_vm_group_name {
        if !name.is_empty() {
            let (vault, _) = load::vault(call).await?;
            let target = at("multiVmGroupName");
            item_rules::group(
                call,
                &vault.key(),
                &item.id,
                &item.engine_id,
                &name,
                &target,
            )
            .await?;
        }
        item.request.multi_vm_group_name = Some(name).filter(|name| !name.is_empty());
    }
    if let Some(throttles) = details.throttles {
        item_rules::throttles(&throttles, &at("throttles"))?;
        item.request.throttles = Some(throttles);
    }
    if let Some(seeds) = details.seeds {
        item_rules::seeds(&seeds, &item.disk_ids, item.azure.is_some(), &at("seeds"))?;
        item.request.seeds = Some(seeds);
    }
    Ok(())
}

async fn disable(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, id, stored) = load::item(call).await?;
    call.precondition(Some(stored.etag))?;
    let body: DisableProtection = call.properties()?;
    // A VM that stays at the recovery side was made from the replica: it is let go of, not deleted.
    let delete_replica =
        body.delete_replica.unwrap_or(true) && !stored.record.life.is_at_recovery();
    let completes = body.disable_protection_reason.as_deref() == Some(MIGRATION_COMPLETE);
    if completes {
        let complete = life::Event::Request(life::Request::CompleteMigration);
        protection::step(stored.record.life, complete)?;
    }
    protection::step(stored.record.life, Event::Disable { delete_replica })?;
    in_plan(call, &id).await?;
    if delete_replica {
        immutability::allows_deletion(call.app, &stored.record, disable_protection::KEEP).await?;
    }
    if let Some(engine) = disable_protection::needed_and_away(call.app, &stored.record) {
        return Err(crate::saga::enable_protection::host_disconnected(
            call.app, engine,
        ));
    }
    let job = start::start(
        call.app,
        NewJob {
            vault: &vault,
            resource: &id,
            removes: true,
            scenario: if completes {
                "CompleteMigration"
            } else {
                "DisableDr"
            },
            friendly_name: if completes {
                "Complete migration"
            } else {
                "Disable replication"
            },
            target_name: &stored.record.vm_name,
            target_type: "ProtectionEntity",
            workflow: "disableProtection",
            input: json!({ "item": id, "deleteReplica": delete_replica }),
            tasks: disable_protection::tasks(),
            details: super::item_answer::job_details(&stored.record),
            locks: vec![id.key()],
            request_id: &call.request_id,
            changes: Vec::new(),
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, &id))
}

async fn in_plan(call: &Call<'_>, id: &ProtectedItemId) -> Result<(), Fault> {
    let vault = id
        .ancestor(1)
        .map(|vault| format!("{}/", vault.key()))
        .unwrap_or_default();
    let plans = records::list::<Plan>(call.app.store.as_ref(), &vault).await?;
    let member = plans.iter().find(|plan| {
        plan.record.groups.iter().any(|group| {
            group
                .replication_protected_items
                .iter()
                .any(|item| item.id.eq_ignore_ascii_case(id.as_str()))
        })
    });
    match member {
        None => Ok(()),
        Some(plan) => Err(Fault::conflict(
            "ItemInRecoveryPlan",
            id.as_str(),
            format!(
                "The VM belongs to the recovery plan `{}`.",
                plan.record.id.rsplit('/').next().unwrap_or_default()
            ),
            "Take it out of the plan, or remove the plan first.",
        )),
    }
}

/// Nobody would look after a recovered VM without its record, and the source could be started beside it. Once it has been
/// made independent, or while its host is away as well, there is no other way to get rid of the record.
fn not_at_recovery(call: &Call<'_>, item: &Item) -> Result<(), Fault> {
    let Some(side) = item
        .recovery
        .as_ref()
        .filter(|_| item.life.instance.is_some())
    else {
        return Ok(());
    };
    let is_left = matches!(
        item.life.phase,
        Phase::Leaving(Awaited::Source) | Phase::Gone
    );
    if is_left || !call.app.fleet.connected(&side.engine_id, call.app.now_ms()) {
        return Ok(());
    }
    Err(Fault::conflict(
        "OperationNotAllowed",
        &item.id,
        format!("The recovered VM `{}` would be left to itself.", side.name),
        "Take the failover back, complete the migration, or bring the VM back to its source.",
    ))
}

/// DELETE: drops the record without the host; works with the host away and whatever state the item is in, but not under a
/// recovered VM that runs.
async fn purge(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, id, stored) = match load::item(call).await {
        Ok(found) => found,
        Err(Fault::Refused { status: 404, .. }) => return Ok(Reply::Empty(StatusCode::NO_CONTENT)),
        Err(fault) => return Err(fault),
    };
    call.precondition(Some(stored.etag))?;
    in_plan(call, &id).await?;
    not_at_recovery(call, &stored.record)?;
    // Without its record nobody would hold an engine back from the points any more.
    immutability::allows_deletion(
        call.app,
        &stored.record,
        "Switch protection off without removing the replica (`deleteReplica`: false) while the host is there, or wait until then.",
    )
    .await?;
    vault_keys::keep_for(call.app, &vault, &stored.record).await?;
    let store = call.app.store.as_ref();
    let mut changes = crate::alternate_host::left_behind(&stored.key, &stored.record)?;
    changes.push(Change::Delete {
        key: stored.key,
        expect: Expect::Etag(stored.etag),
    });
    for vm in records::list::<Recovered>(store, "~recovered/").await? {
        if vm.record.item.eq_ignore_ascii_case(id.as_str()) {
            changes.push(records::delete(vm.key));
        }
    }
    changes.push(fence::count(call.app, &stored.record).await?);
    store.apply(changes).await?;
    call.app.ring();
    Ok(Reply::Empty(StatusCode::NO_CONTENT))
}

//! Actions on a protected item that keep it protected: more or less disks, a comparison. Each is a job.

use arm_model::ProtectedItemId;
use arm_model::VaultId;
use arm_model::protected_item::{ChangeDisks, ChangeDisksDetails};
use protection::Event;
use protection::life::Phase;
use serde_json::{Value, json};

use super::entry::{Call, unknown_path};
use super::item_rules;
use super::load;
use super::reply::Reply;
use crate::fault::Fault;
use crate::saga::enable_protection::host_disconnected;
use crate::saga::start::{self, NewJob};
use crate::saga::{reshape, resynchronize};
use crate::store::records::{Item, Stored};

const TARGET: &str = "properties.providerSpecificDetails.diskIds";

/// `POST I/addDisks`, `I/removeDisks`, `I/repairReplication`.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, id, stored) = load::item(call).await?;
    call.precondition(Some(stored.etag))?;
    match call.route.tail.as_deref() {
        Some("adddisks") => {
            let wanted = named(call)?;
            let mut disks = stored.record.disk_ids.clone();
            disks.extend(
                wanted
                    .into_iter()
                    .filter(|disk| !contains(&stored.record.disk_ids, disk)),
            );
            change_disks(call, &vault, &id, &stored, &disks).await
        }
        Some("removedisks") => {
            let unwanted = named(call)?;
            let disks: Vec<String> = stored
                .record
                .disk_ids
                .iter()
                .filter(|disk| !contains(&unwanted, disk))
                .cloned()
                .collect();
            change_disks(call, &vault, &id, &stored, &disks).await
        }
        Some("repairreplication") => repair(call, &vault, &id, &stored.record).await,
        _ => Err(unknown_path(&call.path)),
    }
}

fn contains(disks: &[String], wanted: &str) -> bool {
    disks.iter().any(|disk| disk.eq_ignore_ascii_case(wanted))
}

fn named(call: &Call<'_>) -> Result<Vec<String>, Fault> {
    let body: ChangeDisks = call.properties()?;
    let ChangeDisksDetails {
        instance_type,
        disk_ids,
    } = body.provider_specific_details.unwrap_or_default();
    if instance_type != arm_model::HYPER_V_REPLICA_AZURE {
        return Err(Fault::invalid(
            "properties.providerSpecificDetails.instanceType",
            format!(
                "Disks of type `{instance_type}` are not possible here; use `{}`.",
                arm_model::HYPER_V_REPLICA_AZURE
            ),
        ));
    }
    if disk_ids.is_empty() {
        return Err(Fault::invalid(TARGET, "Name at least one disk."));
    }
    Ok(disk_ids)
}

/// Starts the job that makes an item replicate exactly these disks.
///
/// # Errors
/// 400 for a disk that the VM doesn't have; 409 while the host is away or the first copy is not whole.
pub async fn change_disks(
    call: &Call<'_>,
    vault: &VaultId,
    id: &ProtectedItemId,
    stored: &Stored<Item>,
    wanted: &[String],
) -> Result<Reply, Fault> {
    let item = &stored.record;
    let live = call
        .app
        .fleet
        .get(&item.engine_id)
        .filter(|live| live.connected(call.app.now_ms()));
    let Some(live) = live else {
        return Err(host_disconnected(call.app, &item.engine_id));
    };
    let machine = live.machine(&item.vm_id).cloned().unwrap_or_default();
    // A disk that is gone from the VM can be left out, but not taken in.
    let fresh: Vec<String> = wanted
        .iter()
        .filter(|disk| !contains(&item.disk_ids, disk))
        .cloned()
        .collect();
    if let Some(disk) = fresh.iter().find(|disk| !item_rules::has(&machine, disk)) {
        return Err(item_rules::no_disk(&machine, disk, TARGET));
    }
    let present: Vec<String> = wanted
        .iter()
        .filter(|disk| item_rules::has(&machine, disk))
        .cloned()
        .collect();
    let mut disks = item_rules::disks(&present, &machine, TARGET)?;
    disks.extend(
        wanted
            .iter()
            .filter(|disk| !item_rules::has(&machine, disk))
            .cloned(),
    );
    if !item.life.item.copied_once || !item.life.item.is_active() {
        return Err(Fault::conflict(
            "OperationNotAllowed",
            id.as_str(),
            "The VM's disks can be changed once its first copy is whole.",
            "Wait for the end of the first copy.",
        ));
    }
    if item.life.phase != Phase::AtSource {
        return Err(Fault::conflict(
            "OperationNotAllowed",
            id.as_str(),
            format!(
                "The VM's disks can't be changed in state `{}`.",
                item.life.texts().0
            ),
            "Change them when the VM is protected at its source again.",
        ));
    }
    let removed = item.disk_ids.iter().any(|disk| !contains(&disks, disk));
    let (scenario, friendly) = if fresh.is_empty() && removed {
        ("RemoveDisks", "Remove disks from replication")
    } else {
        ("AddDisks", "Add disks to replication")
    };
    start_job(
        call,
        vault,
        id,
        item,
        (scenario, friendly, "reshape"),
        json!({ "item": id, "disks": disks, "before": item.disk_ids }),
        reshape::tasks(),
    )
    .await
}

async fn repair(
    call: &Call<'_>,
    vault: &VaultId,
    id: &ProtectedItemId,
    item: &Item,
) -> Result<Reply, Fault> {
    protection::step(item.life, Event::Resynchronise)?;
    if !call.app.fleet.connected(&item.engine_id, call.app.now_ms()) {
        return Err(host_disconnected(call.app, &item.engine_id));
    }
    start_job(
        call,
        vault,
        id,
        item,
        ("RepairReplication", "Resynchronize", "resynchronize"),
        json!({ "item": id }),
        resynchronize::tasks(),
    )
    .await
}

async fn start_job(
    call: &Call<'_>,
    vault: &VaultId,
    id: &ProtectedItemId,
    item: &Item,
    (scenario, friendly_name, workflow): (&'static str, &'static str, &'static str),
    input: Value,
    tasks: Vec<arm_model::job::Task>,
) -> Result<Reply, Fault> {
    let job = start::start(
        call.app,
        NewJob {
            vault,
            resource: id,
            removes: false,
            scenario,
            friendly_name,
            target_name: &item.vm_name,
            target_type: "ProtectionEntity",
            workflow,
            input,
            tasks,
            details: super::item_answer::job_details(item),
            locks: vec![id.key()],
            request_id: &call.request_id,
            changes: Vec::new(),
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, id))
}

//! Recovery points of a protected VM, and sizes of recovered VMs.

use arm_model::recovery_point::{
    APPLICATION_CONSISTENT, CRASH_CONSISTENT, RecoveryPointDetails, RecoveryPointProperties,
    TargetComputeSizeProperties,
};
use arm_model::{HYPER_V_REPLICA_AZURE, ProtectedItemId, Resource};
use engine_protocol::v1;
use serde_json::json;

use super::entry::{Call, page};
use super::load;
use super::reply::Reply;
use crate::fault::Fault;
use crate::store::records::Item;

/// (name, cores, memory in GiB) of the sizes that a recovery host gives.
const SIZES: &[(&str, u32, f64)] = &[
    ("Standard_B1s", 1, 1.0),
    ("Standard_B2s", 2, 4.0),
    ("Standard_D2s_v5", 2, 8.0),
    ("Standard_D4s_v5", 4, 16.0),
    ("Standard_D8s_v5", 8, 32.0),
];

/// `I/recoveryPoints`, newest first.
///
/// # Errors
/// 404 without an item.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, id, stored) = load::item(call).await?;
    page(
        points(call, &stored.record)
            .iter()
            .rev()
            .map(|point| answer(&id, point))
            .collect(),
    )
}

/// `I/recoveryPoints/{point}`.
///
/// # Errors
/// 404.
pub async fn get(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, id, stored) = load::item(call).await?;
    let name = load::name(call, "recoveryPoints")?;
    let point = points(call, &stored.record)
        .into_iter()
        .find(|point| point.id.eq_ignore_ascii_case(&name));
    match point {
        Some(point) => Reply::ok(&answer(&id, &point)),
        None => Err(Fault::not_found(id.recovery_point(&name).as_str())),
    }
}

/// `I/targetComputeSizes`: those with at least the source's processors and memory have no errors.
///
/// # Errors
/// 404 without an item.
pub async fn sizes(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, id, stored) = load::item(call).await?;
    let live = call
        .app
        .fleet
        .get(&stored.record.engine_id)
        .unwrap_or_default();
    let machine = live.last_machine(&stored.record.vm_id);
    let sizes = SIZES.iter().map(|(name, cores, memory)| {
        let fits = machine.is_none_or(|vm| {
            let wanted = u32::try_from(vm.memory_bytes >> 20).unwrap_or(u32::MAX);
            vm.processor_count <= *cores && f64::from(wanted) <= memory * 1024.0
        });
        let errors = if fits { Vec::new() } else { vec![json!({ "message": "The size has less processors or memory than the source.", "severity": "Warning" })] };
        Resource::answer(&id.child("targetComputeSizes", name), TargetComputeSizeProperties {
            name: (*name).to_owned(),
            friendly_name: (*name).to_owned(),
            cpu_cores_count: *cores,
            vcpus_available: *cores,
            memory_in_gb: *memory,
            max_data_disk_count: 16,
            max_nics_count: 4,
            high_iops_supported: "NotSupported".to_owned(),
            hyper_v_generations: vec!["V1".to_owned(), "V2".to_owned()],
            errors,
        })
    });
    page(sizes.collect())
}

fn points(call: &Call<'_>, item: &Item) -> Vec<v1::RecoveryPoint> {
    let live = call.app.fleet.get(&item.engine_id).unwrap_or_default();
    let name = item.id.rsplit('/').next().unwrap_or_default();
    live.replication(name)
        .map(|status| status.recovery_points.clone())
        .unwrap_or_default()
}

fn answer(item: &ProtectedItemId, point: &v1::RecoveryPoint) -> Resource<RecoveryPointProperties> {
    let kind = match point.kind() {
        v1::recovery_point::Kind::ApplicationConsistent => APPLICATION_CONSISTENT,
        v1::recovery_point::Kind::CrashConsistent | v1::recovery_point::Kind::Unspecified => {
            CRASH_CONSISTENT
        }
    };
    Resource::answer(
        &item.recovery_point(&point.id),
        RecoveryPointProperties {
            recovery_point_time: arm_model::timestamp::from_unix_ms(point.time_unix_ms)
                .unwrap_or_default(),
            recovery_point_type: kind.to_owned(),
            provider_specific_details: RecoveryPointDetails {
                instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
                position: point.position,
                changed_bytes: point.changed_bytes,
                sent_bytes: point.sent_bytes,
                group_point_id: Some(point.group_point_id.clone()).filter(|id| !id.is_empty()),
            },
        },
    )
}

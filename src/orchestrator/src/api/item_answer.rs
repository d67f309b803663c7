//! A protected item as the API shows it: the record, what its engine last said, and the figures of both.

use std::collections::BTreeMap;

use arm_model::job::JobDetails;
use arm_model::network::SELECTED_BY_DEFAULT;
use arm_model::policy::{ENCRYPTION_DISABLED, ENCRYPTION_ENABLED};
use arm_model::protectable_item::OsDetails;
use arm_model::protected_item::{
    CurrentScenario, InitialReplicationDetails, ProtectedItemProperties, ReplicatedDisk,
    ReplicationDetails, VmNic,
};
use arm_model::{
    HYPER_V_REPLICA_AZURE, HYPER_V_SITE, MICROSOFT_AZURE, ProtectedItemId, Resource, VaultId,
    timestamp,
};
use engine_protocol::v1::{self, disk_status::Tracking};
use protection::health::{Signs, replication_health};
use protection::{Health, ReplicationState, rpo_seconds};

use super::entry::Call;
use super::item_health;
use super::operations::current_job;
use crate::fault::Fault;
use crate::fleet::Live;
use crate::saga::initial_replication::percent;
use crate::store::records::{self, EngineRecord, Item, NetworkMapping, Place, Policy};
use crate::{azure_target, checks, failover, immutability, networks, vault_keys};

/// Many.
///
/// # Errors
/// Failures of the store.
pub async fn answers<'a>(
    call: &Call<'_>,
    items: impl Iterator<Item = &'a Item>,
) -> Result<Vec<Resource<ProtectedItemProperties>>, Fault> {
    let mut answers = Vec::new();
    for item in items {
        answers.push(answer(call, item).await?);
    }
    Ok(answers)
}

/// One.
///
/// # Errors
/// Failures of the store.
pub async fn answer(
    call: &Call<'_>,
    item: &Item,
) -> Result<Resource<ProtectedItemProperties>, Fault> {
    let id = ProtectedItemId::parse(&item.id)
        .map_err(|error| Fault::invalid("id", error.to_string()))?;
    let store = call.app.store.as_ref();
    let live = call.app.fleet.get(&item.engine_id).unwrap_or_default();
    let status = live
        .replication(id.name())
        .filter(|status| status.generation == item.life.item.generation.0)
        .cloned()
        .unwrap_or_default();
    let policy = records::get::<Policy>(store, &item.policy_id.to_ascii_lowercase()).await?;
    let engine = records::get::<EngineRecord>(store, &records::engine_key(&item.engine_id)).await?;
    let now = call.app.now_ms();
    let newest = status
        .recovery_points
        .last()
        .map(|point| point.time_unix_ms);
    let rpo = rpo_seconds(newest, now);
    let mut health_errors = item_health::errors(call.app, item, &status, &live, id.name());
    if item_health::needs_source(item)
        && let Some(machine) = live.machine(&item.vm_id)
    {
        let quota = policy
            .as_ref()
            .map_or(0, |policy| policy.record.details.log_quota_in_percent);
        health_errors.extend(checks::health(item, machine, quota, id.name()));
    }
    let host_away = usize::from(!live.connected(now) && item_health::needs_source(item));
    let of_replication = replication_health(&Signs {
        state: item.life.item.replication,
        connected: live.connected(now),
        critical_findings: status.findings.iter().any(|finding| finding.critical),
        findings: health_errors.len() > host_away,
        rpo_seconds: rpo,
        interval_seconds: policy.as_ref().map_or(300, |policy| {
            u64::from(policy.record.details.replication_interval)
        }),
    });
    health_errors.extend(item_health::unconfirmed_formers(call.app, item, id.name()).await?);
    // Nothing is replicated while the VM runs elsewhere, and nothing is late then.
    let health = if item.life.is_at_recovery() {
        Health::None
    } else {
        of_replication
    };
    let (local, whole) = hydration(call, item).unzip();
    let immutable_until = immutability::until(call.app, item).await?;
    let mappings = networks::of_site(call.app, &item.id).await?;
    let encrypts = policy
        .as_ref()
        .is_some_and(|policy| vault_keys::encrypts(&policy.record));
    let (state, state_text) = item.life.texts();
    let (drill, drill_text) = item.life.item.drill.texts();
    let job = current_job(call, &id.key()).await?;
    let allowed: Vec<String> = if job.is_some() {
        Vec::new()
    } else {
        let operations = item.life.allowed_operations().into_iter();
        operations.map(|one| one.as_str().to_owned()).collect()
    };
    let site = id
        .name_of("replicationFabrics")
        .unwrap_or_default()
        .to_owned();
    let container = id
        .parent()
        .map(|container| container.as_str().to_owned())
        .unwrap_or_default();
    let failover_health = if item.life.item.copied_once {
        health
    } else {
        Health::None
    };
    let vault = VaultId::of(&id)
        .map(|vault| vault.to_string())
        .unwrap_or_default();
    Ok(Resource::answer(
        &id,
        ProtectedItemProperties {
            friendly_name: item.vm_name.clone(),
            protected_item_type: "HyperVVirtualMachine".to_owned(),
            protectable_item_id: format!("{container}/replicationProtectableItems/{}", item.vm_id),
            recovery_services_provider_id: engine
                .map(|engine| engine.record.provider_id)
                .unwrap_or_default(),
            primary_fabric_friendly_name: site.clone(),
            primary_fabric_provider: HYPER_V_SITE.to_owned(),
            recovery_fabric_friendly_name: MICROSOFT_AZURE.to_owned(),
            recovery_fabric_id: MICROSOFT_AZURE.to_owned(),
            primary_protection_container_friendly_name: site,
            recovery_protection_container_friendly_name: MICROSOFT_AZURE.to_owned(),
            protection_state: state.to_owned(),
            protection_state_description: state_text.to_owned(),
            active_location: item.life.active_location().to_owned(),
            test_failover_state: drill.to_owned(),
            test_failover_state_description: drill_text.to_owned(),
            allowed_operations: allowed,
            replication_health: health.as_str().to_owned(),
            failover_health: failover_health.as_str().to_owned(),
            health_errors,
            policy_id: item.policy_id.clone(),
            policy_friendly_name: item
                .policy_id
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned(),
            last_successful_test_failover_time: item.last_test_failover.clone(),
            last_successful_failover_time: item
                .last_failover
                .as_ref()
                .map(|failover| failover.time.clone()),
            current_scenario: match job {
                Some(job) => CurrentScenario {
                    scenario_name: job.record.properties.scenario_name,
                    job_id: job.record.id,
                    start_time: job.record.properties.start_time,
                },
                None => CurrentScenario {
                    job_id: format!("{vault}/replicationJobs/None"),
                    ..CurrentScenario::default()
                },
            },
            failover_recovery_point_id: item
                .recovery
                .as_ref()
                .filter(|side| !side.point_id.is_empty())
                .map(|side| format!("{}/recoveryPoints/{}", item.id, side.point_id)),
            event_correlation_id: Some(item.correlation_id.clone()),
            provider_specific_details: ReplicationDetails {
                encryption: if encrypts {
                    ENCRYPTION_ENABLED
                } else {
                    ENCRYPTION_DISABLED
                }
                .to_owned(),
                immutable_until: immutable_until.and_then(timestamp::from_unix_ms),
                recovered_vm_local_bytes: local,
                recovered_vm_disk_bytes: whole,
                ..details(item, &status, &live, &mappings, now, rpo)
            },
        },
    ))
}

/// How much of a failed-over VM's disks is on its host, and how much there is.
fn hydration(call: &Call<'_>, item: &Item) -> Option<(u64, u64)> {
    let side = item.recovery.as_ref()?;
    let id = failover::vm_id(item)?.to_string();
    let live = call.app.fleet.get(&side.engine_id)?;
    let status = live.recovered(&id)?;
    (status.disk_bytes > 0).then_some((status.local_bytes, status.disk_bytes))
}

fn details(
    item: &Item,
    status: &v1::ReplicationStatus,
    live: &Live,
    mappings: &[NetworkMapping],
    now: i64,
    rpo: Option<u64>,
) -> ReplicationDetails {
    let (state, state_text) = item.life.texts();
    let machine = live.last_machine(&item.vm_id).cloned().unwrap_or_default();
    let newest = status
        .recovery_points
        .last()
        .map(|point| point.time_unix_ms);
    let instant = |ms: Option<i64>| ms.and_then(timestamp::from_unix_ms);
    let account = item.storage_id.rsplit('/').next().unwrap_or_default();
    let percentage = if item.life.item.copied_once {
        100
    } else {
        percent(status.progress_done_bytes, status.progress_total_bytes).unwrap_or_default()
    };
    let adapters = &machine.network_adapters;
    let recovery_network = networks::after_failover(item, adapters, mappings);
    let network_id = recovery_network.as_ref().map(|network| network.id.as_str());
    let nics: Vec<VmNic> = adapters
        .iter()
        .map(|adapter| nic(item, adapter, network_id))
        .collect();
    ReplicationDetails {
        instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
        vm_id: item.vm_id.clone(),
        vm_protection_state: state.to_owned(),
        vm_protection_state_description: state_text.to_owned(),
        azure_vm_disk_details: item
            .disk_ids
            .iter()
            .enumerate()
            .map(|(lun, disk)| replicated_disk(&machine, status, disk, lun, account))
            .collect(),
        recovery_azure_vm_name: item
            .request
            .target_azure_vm_name
            .clone()
            .unwrap_or_else(|| item.vm_name.clone()),
        recovery_azure_vm_size: item.request.target_vm_size.clone(),
        recovery_azure_resource_group_id: item.request.target_azure_v2_resource_group_id.clone(),
        recovery_azure_storage_account: item.storage_id.clone(),
        recovery_azure_log_storage_account_id: item.request.log_storage_account_id.clone(),
        selected_recovery_azure_network_id: network_id.map(str::to_owned),
        recovery_network_source: recovery_network
            .filter(|network| network.is_mapped)
            .map(|_| "Mapping".to_owned()),
        target_azure_subnet_id: Some(
            item.request
                .target_azure_subnet_id
                .clone()
                .unwrap_or_default(),
        ),
        selected_source_nic_id: networks::primary(item, adapters)
            .map(|adapter| networks::nic_id(&item.vm_id, &adapter.id)),
        vm_nics: nics,
        last_replicated_time: instant(newest),
        last_rpo_calculated_time: rpo.and_then(|_| timestamp::from_unix_ms(now)),
        last_recovery_point_received: instant(newest),
        rpo_in_seconds: rpo,
        initial_replication_details: InitialReplicationDetails {
            initial_replication_type: "Online".to_owned(),
            initial_replication_progress_percentage: percentage.to_string(),
        },
        encryption: ENCRYPTION_DISABLED.to_owned(),
        os_details: Some(OsDetails {
            os_type: item
                .request
                .os_type
                .clone()
                .unwrap_or_else(|| machine.os_type.clone()),
            ..OsDetails::default()
        }),
        source_vm_ram_size_in_mb: machine.memory_bytes >> 20,
        source_vm_cpu_count: machine.processor_count,
        use_managed_disks: item
            .request
            .use_managed_disks
            .clone()
            .unwrap_or_else(|| azure_target::is_wanted(item).to_string()),
        last_cycle_changed_bytes: status.last_cycle_changed_bytes,
        last_cycle_sent_bytes: status.last_cycle_sent_bytes,
        last_cycle_time: timestamp::from_unix_ms(status.last_cycle_unix_ms),
        total_sent_bytes: status.total_sent_bytes,
        backlog_cycles: status.backlog_cycles,
        progress_done_bytes: status.progress_done_bytes,
        progress_total_bytes: status.progress_total_bytes,
        recovery_point_count: u64::try_from(status.recovery_points.len()).unwrap_or(u64::MAX),
        replication_generation: item.life.item.generation.0,
        replica_folder: folder_in(item, item.place()),
        log_folder: item
            .log
            .as_ref()
            .and_then(|log| folder_in(item, log.place())),
        backlog_bytes: status.backlog_bytes,
        eta_in_seconds: Some(status.eta_seconds).filter(|seconds| *seconds > 0),
        effective_replication_interval_in_seconds: Some(status.effective_interval_seconds)
            .filter(|seconds| *seconds > 0),
        degraded_reason: Some(status.degraded_reason.clone()).filter(|text| !text.is_empty()),
        bytes_per_second: status.bytes_per_second,
        last_app_consistent_time: instant(
            Some(status.last_app_consistent_unix_ms).filter(|at| *at > 0),
        ),
        last_verified_time: instant(Some(status.last_verified_unix_ms).filter(|at| *at > 0)),
        multi_vm_group_name: item.request.multi_vm_group_name.clone(),
        last_group_point_id: status
            .recovery_points
            .iter()
            .rev()
            .map(|point| point.group_point_id.clone())
            .find(|id| !id.is_empty()),
        throttles: item.request.throttles.clone().unwrap_or_default(),
        seeds: item.request.seeds.clone().unwrap_or_default(),
        resynchronizations_requested: item.resynchronize,
        resynchronizations_completed: status.resynchronized,
        encryption_key_id: Some(status.active_key_id.clone()).filter(|id| !id.is_empty()),
        immutable_until: None,
        recovered_vm_local_bytes: None,
        recovered_vm_disk_bytes: None,
        extra: azure_target::shown(item),
    }
}

/// Where an item's replica, or its log, lies in a storage account: in the account's folder, or its container in Azure.
fn folder_in(item: &Item, place: Place<'_>) -> Option<String> {
    let store = place.azure.map_or_else(
        || place.folder.to_owned(),
        |azure| format!("{}/{}", azure.endpoint, azure.container),
    );
    let name = item.id.rsplit('/').next().unwrap_or_default();
    (item.life.item.replication != ReplicationState::Removed)
        .then(|| format!("{store}/{}/{name}", item.vault_key))
}

fn replicated_disk(
    machine: &v1::VirtualMachine,
    status: &v1::ReplicationStatus,
    id: &str,
    lun: usize,
    account: &str,
) -> ReplicatedDisk {
    let disk = machine
        .disks
        .iter()
        .find(|disk| disk.id.eq_ignore_ascii_case(id))
        .cloned()
        .unwrap_or_default();
    let tracked = status
        .disks
        .iter()
        .find(|disk| disk.disk_id.eq_ignore_ascii_case(id));
    let tracking_state = tracked.and_then(|disk| match disk.tracking() {
        Tracking::Unspecified => None,
        Tracking::Tracked => Some("Tracked"),
        Tracking::Suspect => Some("Suspect"),
        Tracking::Comparing => Some("Comparing"),
    });
    ReplicatedDisk {
        tracking_state: tracking_state.map(str::to_owned),
        tracking_reason: tracked
            .map(|disk| disk.reason.clone())
            .filter(|reason| !reason.is_empty()),
        compared_bytes: tracked
            .filter(|disk| disk.tracking() == Tracking::Comparing)
            .map(|disk| disk.compared_bytes),
        size_in_bytes: tracked
            .map(|disk| disk.size_bytes)
            .filter(|size| *size > 0)
            .or(Some(disk.size_bytes).filter(|size| *size > 0)),
        vhd_type: if disk.operating_system {
            "OperatingSystem"
        } else {
            "Data"
        }
        .to_owned(),
        vhd_id: id.to_owned(),
        disk_id: id.to_owned(),
        vhd_name: disk.name.clone(),
        max_size_mb: disk.size_bytes.div_ceil(1 << 20).to_string(),
        target_disk_location: account.to_owned(),
        target_disk_name: disk.name,
        lun_id: lun.to_string(),
    }
}

fn nic(item: &Item, adapter: &v1::NetworkAdapter, network: Option<&str>) -> VmNic {
    let nic_id = networks::nic_id(&item.vm_id, &adapter.id);
    let choice = networks::choice(item, &nic_id);
    let selection = choice
        .map(|choice| choice.selection_type.as_str())
        .filter(|kind| !kind.is_empty());
    let subnet = choice
        .and_then(|choice| choice.subnet())
        .or(item.request.target_azure_subnet_id.as_deref());
    let address = choice.and_then(|choice| choice.address());
    VmNic {
        vm_network_name: adapter.network_name.clone(),
        selection_type: selection.unwrap_or(SELECTED_BY_DEFAULT).to_owned(),
        recovery_vm_network_id: network.map(str::to_owned),
        ip_configs: vec![serde_json::json!({
            "name": "ip0", "isPrimary": true, "isSeletedForFailover": true,
            "ipAddressType": if address.is_some() { "Static" } else { "Dynamic" },
            "recoverySubnetName": subnet,
            "recoveryStaticIPAddress": address,
        })],
        nic_id,
    }
}

/// What a job about an item tells of it.
#[must_use]
pub fn job_details(item: &Item) -> JobDetails {
    let pairs = [
        ("primaryVmId", item.vm_id.as_str()),
        ("primaryVmName", item.vm_name.as_str()),
        ("protectionProfileId", item.policy_id.as_str()),
        ("primaryFabricProviderId", HYPER_V_SITE),
        ("recoveryFabricProviderId", "Azure"),
    ];
    let affected: BTreeMap<String, String> = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    JobDetails {
        affected_object_details: affected,
        ..JobDetails::default()
    }
}

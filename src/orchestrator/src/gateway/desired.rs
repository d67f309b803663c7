//! What an engine shall do, computed from the store alone. The generation grows only when the contents
//! change, and is stored with a digest of them.

use arm_model::window::{Minutes, Throttle};
use engine_protocol::orders;
use engine_protocol::v1::{self, recovered_vm::Power};
use prost::Message as _;
use protection::Generation;
use protection::life::{RecoveryOrder, SourceOrder};
use sha2::{Digest as _, Sha256};

use crate::app::App;
use crate::store::former::{LeftBehind, left_behind_key};
use crate::store::records::{
    self, AzurePlace, Desired, EngineRecord, Item, Policy, Question, Recovered, ScriptOrder,
};
use crate::store::{Expect, StoreError};
use crate::{access, azure_target, evidence, failover, immutability, networks, vault_keys};

/// How often engines report.
const REPORT_INTERVAL_MS: u32 = 1_000;

/// Computes the desired state of an engine and gives it a new generation when it differs from the last one.
///
/// # Errors
/// Failures of the store.
pub async fn refresh(app: &App, engine_id: &str) -> Result<v1::DesiredState, StoreError> {
    let key = records::desired_key(engine_id);
    loop {
        let stored = records::get::<Desired>(app.store.as_ref(), &key).await?;
        let mut state = compute(app, engine_id).await?;
        let digest = hex(&Sha256::digest(state.encode_to_vec()));
        let (generation, expect) = match &stored {
            Some(stored) if stored.record.digest == digest => {
                state.generation = stored.record.generation;
                return Ok(state);
            }
            Some(stored) => (stored.record.generation + 1, Expect::Etag(stored.etag)),
            None => (1, Expect::Absent),
        };
        let record = Desired { generation, digest };
        match app
            .store
            .apply(vec![records::put(key.as_str(), &record, expect)?])
            .await
        {
            Ok(_) => {
                state.generation = generation;
                return Ok(state);
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

async fn compute(app: &App, engine_id: &str) -> Result<v1::DesiredState, StoreError> {
    if azure_target::is_engine(engine_id) {
        return azure_target::desired(app).await;
    }
    let store = app.store.as_ref();
    let mut state = v1::DesiredState {
        generation: 0,
        report_interval_ms: REPORT_INTERVAL_MS,
        ..v1::DesiredState::default()
    };
    let Some(engine) = records::get::<EngineRecord>(store, &records::engine_key(engine_id)).await?
    else {
        return Ok(state);
    };
    state.throttles = throttles(&engine.record.throttles);
    let below = format!("{}/", engine.record.fabric_id.to_ascii_lowercase());
    let vault = super::reports::vault_of_engine(app, engine_id).await?;
    let mut stores = Vec::new();
    for item in records::list::<Item>(store, vault.as_ref().unwrap_or(&below)).await? {
        if let Some(vm) = failed_over(app, &item.record, engine_id).await? {
            state.recovered_vms.push(vm);
        }
        // A former source holds wherever its host is registered by now.
        if let Some(former) = item.record.former(engine_id) {
            let held = former.numbers.held();
            state
                .replications
                .push(of_former(app, &item.record, held).await?);
        }
        if !item.key.starts_with(&below) {
            continue;
        }
        if item.record.engine_id == engine_id {
            state
                .replications
                .push(replication(app, &item.record).await?);
        }
        // A recovered VM that is no longer listed leaves a point to be let go of in its container.
        let item = item.record;
        let in_azure = item.places().any(|(place, _)| place.azure.is_some());
        if in_azure && !stores.iter().any(|known| same_store(known, &item)) {
            let target = access::target(app, item.place(), item.log.as_ref()).await?;
            state.stores.push(target);
            stores.push(item);
        }
    }
    for left in records::list::<LeftBehind>(store, &left_behind_key(engine_id, "")).await? {
        // What another vault's items are written with is none of this one's business.
        let id = left.record.item.id.to_ascii_lowercase();
        if !id.starts_with(vault.as_ref().unwrap_or(&below)) {
            continue;
        }
        let let_go = left.record.source.numbers.let_go();
        let message = of_former(app, &left.record.item, let_go).await?;
        // First this: what is protected anew under its name waits until it is forgotten.
        let is_other = |one: &v1::Replication| {
            (&one.vault_key, &one.item_id) != (&message.vault_key, &message.item_id)
        };
        state.replications.retain(is_other);
        state.replications.push(message);
    }
    for vm in records::list::<Recovered>(store, &records::recovered_key(engine_id, "")).await? {
        state.recovered_vms.push(recovered(app, vm.record).await?);
    }
    for question in records::list::<Question>(store, "~question/").await? {
        let question = question.record;
        let mut vms = state.recovered_vms.iter_mut();
        if question.engine_id == engine_id
            && let Some(vm) = vms.find(|vm| vm.id == question.vm_id)
        {
            match question.port {
                Some(port) => vm.ports.push(port.into()),
                None => vm.ask_agent = true,
            }
        }
    }
    let below = records::script_key(engine_id, "");
    for order in records::list::<ScriptOrder>(store, &below).await? {
        let order = order.record;
        state.scripts.push(v1::ScriptOrder {
            id: order.id,
            path: order.path,
            context_json: order.context,
            timeout_seconds: order.timeout_seconds,
            repeatable: order.repeatable,
        });
    }
    Ok(state)
}

/// Whether both are in one store, whatever the spelling of its accounts.
fn same_store(one: &Item, other: &Item) -> bool {
    let places = |item: &Item| -> Vec<(String, Option<AzurePlace>)> {
        item.places()
            .map(|(place, _)| (place.folder.to_owned(), place.azure.cloned()))
            .collect()
    };
    places(one) == places(other)
}

async fn replication(app: &App, item: &Item) -> Result<v1::Replication, StoreError> {
    let policy =
        records::get::<Policy>(app.store.as_ref(), &item.policy_id.to_ascii_lowercase()).await?;
    let policy = policy.map(|policy| policy.record);
    let active = item.life.item.is_active();
    let phase = if active {
        v1::replication::Phase::Active
    } else {
        v1::replication::Phase::Retired
    };
    let encrypts = policy.as_ref().is_some_and(vault_keys::encrypts);
    let request = &item.request;
    let order = item.life.orders().source;
    Ok(v1::Replication {
        item_id: item.id.rsplit('/').next().unwrap_or_default().to_owned(),
        vault_key: item.vault_key.clone(),
        generation: item.life.item.generation.0,
        vm_id: item.vm_id.clone(),
        disk_ids: item.disk_ids.clone(),
        store: Some(access::target(app, item.place(), item.log.as_ref()).await?),
        policy: policy.map(|policy| policy_of(&policy, app.now_ms())),
        phase: phase.into(),
        delete_replica: item
            .life
            .item
            .disabled
            .is_some_and(|disabled| disabled.delete_replica),
        vm_name: item.vm_name.clone(),
        encryption: encryption(app, item, encrypts, encrypts).await?,
        group_name: request.multi_vm_group_name.clone().unwrap_or_default(),
        throttles: throttles(request.throttles.as_deref().unwrap_or_default()),
        replica_exists: item.life.item.copied_once,
        seeds: request
            .seeds
            .iter()
            .flatten()
            .map(|seed| v1::DiskSeed {
                disk_id: seed.disk_id.clone(),
                path: seed.path.clone(),
            })
            .collect(),
        resynchronize: item.resynchronize,
        // Without a new one the order of before stays in force: the disks are received, the VM is off.
        order: (!item.waits_for_its_group()).then(|| orders::source_message(order.0, order.1)),
        create_vm: item.creates_source(),
        origin: failover::ship_generation(&item.life),
    })
}

/// What a host is told that was the source before: nothing but to keep the VM off.
async fn of_former(
    app: &App,
    item: &Item,
    (epoch, order): (Generation, SourceOrder),
) -> Result<v1::Replication, StoreError> {
    Ok(v1::Replication {
        order: Some(orders::source_message(epoch, order)),
        create_vm: false,
        origin: 0,
        seeds: Vec::new(),
        delete_replica: false,
        ..replication(app, item).await?
    })
}

/// Keys for those who need them: who encrypts, and who has objects that were encrypted.
async fn encryption(
    app: &App,
    item: &Item,
    encrypts: bool,
    writes: bool,
) -> Result<Option<v1::Encryption>, StoreError> {
    if !encrypts && item.key_ids.is_empty() {
        return Ok(None);
    }
    let Some(vault) = super::reports::vault_of(item) else {
        return Ok(None);
    };
    let mut keys = vault_keys::load(app, &vault).await?;
    if keys.keys.is_empty() && encrypts {
        // What a policy promises is never left out for want of a key.
        keys = vault_keys::ensure(app, &vault)
            .await
            .map_err(|fault| StoreError::Backend(Box::new(fault)))?;
    }
    if keys.keys.is_empty() {
        return Ok(None);
    }
    match vault_keys::for_engine(app, &vault, &keys, writes) {
        Ok(encryption) => Ok(Some(encryption)),
        Err(error) => {
            // Better no new state at all than one that makes an engine write in the clear.
            Err(StoreError::Backend(Box::new(error)))
        }
    }
}

/// A policy as engines read it.
fn policy_of(policy: &Policy, now_ms: i64) -> v1::Policy {
    let details = &policy.details;
    v1::Policy {
        replication_interval_seconds: details.replication_interval,
        retention_hours: details.recovery_point_history_duration_in_hours,
        app_consistent_frequency_hours: details.application_consistent_snapshot_frequency_in_hours,
        retention_tiers: details
            .retention_tiers
            .iter()
            .map(|tier| v1::RetentionTier {
                every_seconds: u64::from(tier.interval_in_minutes) * 60,
                for_seconds: u64::from(tier.duration_in_hours) * 3_600,
            })
            .collect(),
        immutability_hours: immutability::hours(policy, now_ms),
        app_consistent_frequency_minutes: details
            .application_consistent_snapshot_frequency_in_minutes,
        log_quota_percent: details.log_quota_in_percent,
        comparison_windows: details
            .comparison_windows
            .iter()
            .filter_map(|window| window.parse().ok())
            .map(window_of)
            .collect(),
        verification_hours: details.verification_interval_in_hours,
    }
}

/// Limits as engines read them. What can't be read was never taken, so nothing is lost here.
fn throttles(throttles: &[Throttle]) -> Vec<v1::Throttle> {
    throttles
        .iter()
        .filter_map(|throttle| throttle.parse().ok())
        .map(|(bytes_per_second, window)| v1::Throttle {
            bytes_per_second,
            windows: window.into_iter().map(window_of).collect(),
        })
        .collect()
}

fn window_of(minutes: Minutes) -> v1::TimeWindow {
    v1::TimeWindow {
        days: minutes.days,
        start_minute: minutes.start,
        end_minute: minutes.end,
        utc_offset_minutes: minutes.utc_offset,
    }
}

/// The recovered VM of an item outside of drills, if it is this host's.
async fn failed_over(
    app: &App,
    item: &Item,
    engine_id: &str,
) -> Result<Option<v1::RecoveredVm>, StoreError> {
    let (Some(side), Some(id)) = (&item.recovery, failover::vm_id(item)) else {
        return Ok(None);
    };
    if side.engine_id != engine_id || !side.due {
        return Ok(None);
    }
    let (epoch, order) = item.life.orders().recovery;
    let live = app.fleet.get(&item.engine_id).unwrap_or_default();
    let network = networks::of_item(app, item, &live).await?;
    let power = match order {
        RecoveryOrder::Run { .. } | RecoveryOrder::Leave { .. } => Power::Running,
        RecoveryOrder::Absent | RecoveryOrder::Stop => Power::Off,
    };
    Ok(Some(v1::RecoveredVm {
        id: id.to_string(),
        name: side.name.clone(),
        item_id: item.id.rsplit('/').next().unwrap_or_default().to_owned(),
        vault_key: item.vault_key.clone(),
        store: Some(access::target(app, item.place(), item.log.as_ref()).await?),
        point_id: side.point_id.clone(),
        isolated: false,
        power: power.into(),
        boot_after: String::new(),
        // Who ships writes: then a policy that encrypts holds for it too.
        encryption: keys(app, item, failover::ship_generation(&item.life) > 0).await?,
        immutability_hours: immutability_to_ship(app, item).await?,
        order: Some(orders::recovery_message(epoch, order)),
        ships: failover::ship_generation(&item.life) > 0,
        ship_generation: failover::ship_generation(&item.life),
        replication_interval_seconds: interval_to_ship(app, item).await?,
        throttles: throttles(item.request.throttles.as_deref().unwrap_or_default()),
        private_network: network.map(|network| network.id).unwrap_or_default(),
        left_out_adapters: networks::left_out(item),
        evidence_received: evidence::received(app, engine_id, &id.to_string()).await?,
        ..v1::RecoveredVm::default()
    }))
}

/// The keys that an item's objects may need, and the one for new objects if there will be some.
async fn keys(app: &App, item: &Item, writes: bool) -> Result<Option<v1::Encryption>, StoreError> {
    let key = item.policy_id.to_ascii_lowercase();
    let policy = records::get::<Policy>(app.store.as_ref(), &key).await?;
    let encrypts = policy.is_some_and(|policy| vault_keys::encrypts(&policy.record));
    encryption(app, item, encrypts, encrypts && writes).await
}

/// What the policy promises to the points that a recovered VM ships.
async fn immutability_to_ship(app: &App, item: &Item) -> Result<u32, StoreError> {
    if failover::ship_generation(&item.life) == 0 {
        return Ok(0);
    }
    let key = item.policy_id.to_ascii_lowercase();
    let policy = records::get::<Policy>(app.store.as_ref(), &key).await?;
    Ok(policy.map_or(0, |policy| {
        immutability::hours(&policy.record, app.now_ms())
    }))
}

/// How often the policy wants a point of what a recovered VM ships.
async fn interval_to_ship(app: &App, item: &Item) -> Result<u32, StoreError> {
    if failover::ship_generation(&item.life) == 0 {
        return Ok(0);
    }
    let key = item.policy_id.to_ascii_lowercase();
    let policy = records::get::<Policy>(app.store.as_ref(), &key).await?;
    Ok(policy.map_or(0, |policy| policy.record.details.replication_interval))
}

async fn recovered(app: &App, vm: Recovered) -> Result<v1::RecoveredVm, StoreError> {
    let power = if vm.running {
        Power::Running
    } else {
        Power::Off
    };
    let store = app.store.as_ref();
    let item = records::get::<Item>(store, &vm.item.to_ascii_lowercase()).await?;
    let encryption = match &item {
        Some(item) => keys(app, &item.record, false).await?,
        None => None,
    };
    let left_out_adapters = item.map(|item| networks::left_out(&item.record));
    // A drill's own network is that of its job: its VMs meet nobody else, and switches stay apart.
    let private_network = if vm.isolated {
        vm.job.clone()
    } else {
        vm.network_id.clone().unwrap_or_default()
    };
    let target = access::target(app, vm.place(), vm.log.as_ref()).await?;
    let evidence_received = evidence::received(app, &vm.engine_id, &vm.id).await?;
    Ok(v1::RecoveredVm {
        evidence_received,
        id: vm.id,
        name: vm.name,
        item_id: vm.item_id,
        vault_key: vm.vault_key,
        store: Some(target),
        point_id: vm.point_id,
        isolated: vm.isolated,
        power: power.into(),
        boot_after: String::new(),
        encryption,
        private_network,
        switches_apart: vm.isolated,
        left_out_adapters: left_out_adapters.unwrap_or_default(),
        ..v1::RecoveredVm::default()
    })
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

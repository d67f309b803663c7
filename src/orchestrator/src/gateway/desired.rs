//! What an engine shall do, computed from the store alone. The generation grows only when the contents
//! change, and is stored with a digest of them.

use engine_protocol::v1;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::app::App;
use crate::store::records::{self, Desired, EngineRecord, Item, Policy, Recovered};
use crate::store::{Expect, StoreError};

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
    let below = format!("{}/", engine.record.fabric_id.to_ascii_lowercase());
    for item in records::list::<Item>(store, &below).await? {
        if item.record.engine_id == engine_id {
            state
                .replications
                .push(replication(app, &item.record).await?);
        }
    }
    for vm in records::list::<Recovered>(store, &records::recovered_key(engine_id, "")).await? {
        state.recovered_vms.push(recovered(vm.record));
    }
    Ok(state)
}

async fn replication(app: &App, item: &Item) -> Result<v1::Replication, StoreError> {
    let policy =
        records::get::<Policy>(app.store.as_ref(), &item.policy_id.to_ascii_lowercase()).await?;
    let active = item.machine.is_active();
    let phase = if active {
        v1::replication::Phase::Active
    } else {
        v1::replication::Phase::Retired
    };
    Ok(v1::Replication {
        item_id: item.id.rsplit('/').next().unwrap_or_default().to_owned(),
        vault_key: item.vault_key.clone(),
        generation: item.machine.generation.0,
        vm_id: item.vm_id.clone(),
        disk_ids: item.disk_ids.clone(),
        store: Some(folder(&item.folder)),
        policy: policy.map(|policy| v1::Policy {
            replication_interval_seconds: policy.record.details.replication_interval,
            retention_hours: policy
                .record
                .details
                .recovery_point_history_duration_in_hours,
            app_consistent_frequency_hours: policy
                .record
                .details
                .application_consistent_snapshot_frequency_in_hours,
            ..v1::Policy::default()
        }),
        phase: phase.into(),
        delete_replica: item
            .machine
            .disabled
            .is_some_and(|disabled| disabled.delete_replica),
        vm_name: item.vm_name.clone(),
        ..v1::Replication::default()
    })
}

fn recovered(vm: Recovered) -> v1::RecoveredVm {
    let power = if vm.running {
        v1::recovered_vm::Power::Running
    } else {
        v1::recovered_vm::Power::Off
    };
    v1::RecoveredVm {
        id: vm.id,
        name: vm.name,
        item_id: vm.item_id,
        vault_key: vm.vault_key,
        store: Some(folder(&vm.folder)),
        point_id: vm.point_id,
        isolated: vm.isolated,
        power: power.into(),
        boot_after: String::new(),
        encryption: None,
    }
}

fn folder(path: &str) -> v1::StoreTarget {
    v1::StoreTarget {
        kind: Some(v1::store_target::Kind::Folder(path.to_owned())),
    }
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

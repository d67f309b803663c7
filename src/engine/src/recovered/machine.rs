//! One VM of a drill, from its point to its first line on the console, and its removal.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use engine_protocol::v1;
use hypervisor::{PowerState, Stop, VmId};
use replica_store::{ReplicaKey, ReplicaView};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use v1::recovered_vm::Power;
use v1::recovered_vm_status::State;

use super::adapters::Adapters;
use super::conversion::Unfit;
use super::evidence::Looks;
use super::record::Record;
use super::{CONSOLE_POLL, POWER_POLL, RecoveryHost, making, readiness};
use crate::backoff;
use crate::engine::now_unix_ms;
use crate::finding;
use crate::stores;
use crate::task::blocking;

/// A VM that can't be made is given up after so many tries; the task ends, a new desired state starts it anew. One that has
/// been started is never given up: it waits for its disks, and its work would be lost.
const TRIES: u32 = 5;

/// Makes the VM, keeps its disks served, reports. Ends when stopped, or when given up.
pub(super) async fn run(
    host: &RecoveryHost,
    id: Uuid,
    wish: &v1::RecoveredVm,
    stop: &CancellationToken,
) {
    let key = id.to_string();
    host.board.update_recovered(&key, |status| {
        if status.state() == State::Unspecified {
            status.set_state(State::Preparing);
        }
    });
    let mut failures = 0;
    loop {
        let begin = tokio::time::Instant::now();
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            result = once(host, id, wish) => result,
        };
        let Err(error) = result;
        // A VM that ran for long and lost its server deserves a fresh count.
        failures = if begin.elapsed() > Duration::from_secs(300) {
            1
        } else {
            failures + 1
        };
        let unfit = Unfit::of(&error);
        let given_up = (failures >= TRIES || unfit.is_some()) && !has_been_started(host, id).await;
        tracing::error!(vm = %id, name = wish.name, error = format!("{error:#}"), given_up, "recovered VM");
        host.board.update_recovered(&key, |status| {
            status.set_state(State::Failed);
            status.findings = vec![match unfit {
                Some(unfit) => unfit.finding(&wish.name),
                None => finding::recovery_failed(&wish.name, &format!("{error:#}"), given_up),
            }];
        });
        if given_up {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff::ship_delay(failures)) => {}
        }
    }
}

/// One try; returns only with an error.
async fn once(
    host: &RecoveryHost,
    id: Uuid,
    wish: &v1::RecoveredVm,
) -> anyhow::Result<std::convert::Infallible> {
    let (mut record, view) = open(host, id, wish).await?;
    // Served as long as this future lives.
    let _made = making::make(host, &host.folder, &mut record, &view).await?;
    let vm = VmId(id);
    let console = host
        .hypervisor
        .console(vm)
        .await
        .context("find its console")?;
    let shown = console.display().to_string();
    host.board.update_recovered(&id.to_string(), |status| {
        status.console_path = shown;
        status.point_id = record.point_id.to_string();
        status.point_time_unix_ms = record.point_time_unix_ms;
        status.started_unix_ms = record.started_unix_ms;
        status.first_output_unix_ms = record.first_output_unix_ms;
        status.findings.clear();
    });
    if wish.power() == Power::Off {
        host.hypervisor
            .stop(vm, Stop::TurnOff)
            .await
            .context("turn the virtual machine off")?;
        set(host, id, State::Off);
        return std::future::pending().await;
    }
    // A VM that this engine, or the one before it, has started and that was shut down inside stays off.
    if record.started_unix_ms == 0 || making::power(host, vm).await? == PowerState::Running {
        host.hypervisor
            .start(vm)
            .await
            .context("start the virtual machine")?;
    }
    if record.started_unix_ms == 0 {
        record.started_unix_ms = now_unix_ms();
        making::keep(&host.folder, &record).await?;
        tracing::info!(vm = %id, name = wish.name, point = %record.point_id, "recovered VM is running");
    }
    let looks = Looks::new(&record, !wish.evidence_received.is_empty());
    tokio::select! {
        result = watch(host, &mut record, &console, looks) => result,
        never = readiness::ask(host, id) => match never {},
    }
}

/// Follows the VM's life. Never returns but with an error.
async fn watch(
    host: &RecoveryHost,
    record: &mut Record,
    console: &Path,
    mut looks: Looks,
) -> anyhow::Result<std::convert::Infallible> {
    let vm = VmId(record.id);
    let mut looked: Option<tokio::time::Instant> = None;
    loop {
        if record.first_output_unix_ms == 0 && making::has_bytes(console.to_owned()).await {
            record.first_output_unix_ms = now_unix_ms();
            making::keep(&host.folder, record).await?;
            tracing::info!(vm = %record.id, name = record.name, "recovered VM has written its first output");
        }
        if looked.is_none_or(|at| at.elapsed() >= POWER_POLL) {
            looked = Some(tokio::time::Instant::now());
            match (making::power(host, vm).await, record.first_output_unix_ms) {
                (Ok(PowerState::Off), _) => show(host, record, State::Off),
                (Ok(PowerState::Running), 0) => show(host, record, State::Running),
                (Ok(PowerState::Running), _) => show(host, record, State::Booted),
                // Its disks must stay served while the host is hard to see.
                (Err(error), _) => {
                    tracing::warn!(vm = %record.id, error = format!("{error:#}"), "recovered VM can't be seen")
                }
            }
        } else if record.first_output_unix_ms != 0
            && host
                .board
                .recovered(&record.id.to_string())
                .is_some_and(|status| status.state() == State::Running)
        {
            show(host, record, State::Booted);
        }
        looks.look(host, record, console).await;
        let pause = if record.first_output_unix_ms == 0 {
            CONSOLE_POLL
        } else {
            POWER_POLL
        };
        tokio::time::sleep(pause).await;
    }
}

/// Chooses the point once, holds it, and opens its view.
async fn open(
    host: &RecoveryHost,
    id: Uuid,
    wish: &v1::RecoveredVm,
) -> anyhow::Result<(Record, ReplicaView)> {
    let (store, store_folder) =
        stores::target(wish.store.as_ref()).map_err(|problem| anyhow!(problem))?;
    let key = ReplicaKey::new(&wish.vault_key, &wish.item_id)?;
    let reader = making::reader(&store, &key, making::keys(wish)?).await?;
    let folder = host.folder.clone();
    let known = blocking(move || Record::read(&folder, id))
        .await
        .context("read the record of the recovered VM")?;
    let mut record = match known {
        Some(record)
            if record.store_folder == store_folder
                && record.vault_key == wish.vault_key
                && record.item_id == wish.item_id =>
        {
            record
        }
        Some(_) => bail!("the id is in use for a virtual machine of another replica"),
        None => {
            let mut record = Record::new(
                id,
                wish.name.clone(),
                store_folder,
                wish.vault_key.clone(),
                wish.item_id.clone(),
            );
            record.adapters = Adapters::of(wish);
            // Before the pin: a crash in between must not leave a pin that nobody knows of.
            making::keep(&host.folder, &record).await?;
            record
        }
    };
    let wanted = making::wanted_point(wish)?;
    let view = making::open(&host.folder, &mut record, &reader, wanted).await?;
    Ok((record, view))
}

/// Removes the VM with all it holds, however often it takes.
pub(super) async fn remove(host: &RecoveryHost, id: Uuid, stop: &CancellationToken) {
    let mut failures = 0;
    loop {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            result = making::remove(host, &host.folder, id) => result,
        };
        match result {
            Ok(()) => {
                host.board.drop_recovered(&id.to_string());
                return;
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(vm = %id, error = format!("{error:#}"), "recovered VM can't be removed yet");
                host.board.update_recovered(&id.to_string(), |status| {
                    status.findings = vec![finding::finding(
                        "CLEAN_UP_FAILED",
                        format!("recovered virtual machine {id} could not be removed: {error:#}"),
                        "A file of it is in use, or the storage account is away.",
                        "The engine tries again by itself. See the engine's log on the recovery host.",
                        false,
                    )];
                });
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(backoff::ship_delay(failures)) => {}
                }
            }
        }
    }
}

/// Also yes when its record can't be read at the moment.
async fn has_been_started(host: &RecoveryHost, id: Uuid) -> bool {
    let folder = host.folder.clone();
    match blocking(move || Record::read(&folder, id)).await {
        Ok(record) => record.is_some_and(|record| record.started_unix_ms > 0),
        Err(_) => true,
    }
}

fn set(host: &RecoveryHost, id: Uuid, state: State) {
    host.board
        .update_recovered(&id.to_string(), |status| status.set_state(state));
}

fn show(host: &RecoveryHost, record: &Record, state: State) {
    host.board
        .update_recovered(&record.id.to_string(), |status| {
            status.set_state(state);
            status.started_unix_ms = record.started_unix_ms;
            status.first_output_unix_ms = record.first_output_unix_ms;
        });
}

//! The end of an item on this host: nothing of it stays, and the replica goes when asked.
//!
//! Every step may be repeated, so a crash in between only costs time.

use engine_protocol::v1::replication_status::State;
use hypervisor::ErrorKind;

use super::pauses;
use super::shared::Item;
use super::status::Origin;
use super::trouble::Trouble;
use crate::backoff;
use crate::task::blocking;

/// Retires the item, however often it takes; then waits to be stopped.
pub(super) async fn run(item: &Item, delete_replica: bool) {
    let mut failures = 0;
    loop {
        let result = tokio::select! {
            biased;
            () = item.stop.cancelled() => return,
            result = once(item, delete_replica) => result,
        };
        match result {
            Ok(()) => break,
            // A newer activation owns the replica; the host is clean, which is all that is left to us.
            Err(trouble) if trouble.is_fenced() => break,
            Err(trouble) => {
                failures += 1;
                item.status.problem(Origin::Retire, &trouble, &item.spec);
                tokio::select! {
                    biased;
                    () = item.stop.cancelled() => return,
                    () = tokio::time::sleep(backoff::ship_delay(failures)) => {}
                }
            }
        }
    }
    item.status.clear(Origin::Retire);
    item.status.points(&[]);
    item.status.phase(State::Retired);
    tracing::info!(item = item.spec.item_id, delete_replica, "item is retired");
    item.stop.cancelled().await;
}

async fn once(item: &Item, delete_replica: bool) -> Result<(), Trouble> {
    let host = &item.context.hypervisor;
    for step in [
        host.clean_up(item.spec.vm).await,
        host.forget_all(item.spec.vm).await,
    ] {
        match step {
            // A VM that is off or gone holds nothing of ours.
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::VmNotFound | ErrorKind::VmNotRunning
                ) =>
            {
                return Err(error.into());
            }
            _ => {}
        }
    }
    item.pass(pauses::RETIRING).await;
    let mut beside = Vec::new();
    for disk in &item.spec.disks {
        match host.disk_path(item.spec.vm, *disk).await {
            Ok(path) => beside.push(path),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::VmNotFound | ErrorKind::DiskNotFound
                ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let files = item.files.clone();
    blocking(move || files.remove_all(&beside))
        .await
        .map_err(Trouble::io("remove what is kept of the item"))?;
    item.pass(pauses::RETIRING).await;
    if delete_replica {
        replica_store::delete_replica(&item.spec.store, &item.spec.key, item.spec.generation)
            .await?;
    }
    Ok(())
}

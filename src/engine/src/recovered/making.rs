//! What every recovered VM is made of: a point that is chosen once and held, its disks served, the VM above them; and
//! how all of it goes again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use engine_protocol::v1;
use hypervisor::nbd::NbdServer;
use hypervisor::{DiskSource, NewDisk, NewVirtualMachine, PowerState, VirtualMachine, VmId};
use replica_store::{PointSelector, ReplicaKey, ReplicaReader, ReplicaView, StoreTarget};
use replication_log::KeyRing;
use uuid::Uuid;

use super::conversion::{self, Conversion, Shape};
use super::hydration::{self, Copies};
use super::record::Record;
use super::{RecoveryHost, reverse, view};
use crate::replicator::policy;
use crate::stores;
use crate::task::blocking;
use crate::vm_config::VmConfig;

/// Keys of a wish.
pub(super) fn keys(wish: &v1::RecoveredVm) -> anyhow::Result<KeyRing> {
    match &wish.encryption {
        Some(encryption) => policy::keys(encryption).map_err(|problem| anyhow!(problem)),
        None => Ok(KeyRing::new()),
    }
}

/// Which point a wish asks for.
pub(super) fn wanted_point(wish: &v1::RecoveredVm) -> anyhow::Result<PointSelector> {
    if wish.point_id.is_empty() {
        return Ok(PointSelector::Newest);
    }
    let id = wish.point_id.parse();
    let id = id.with_context(|| format!("recovery point id {:?} is not a GUID", wish.point_id))?;
    Ok(PointSelector::Id(id))
}

/// Opens a replica.
pub(super) async fn reader(
    store: &StoreTarget,
    key: &ReplicaKey,
    keys: KeyRing,
) -> anyhow::Result<ReplicaReader> {
    ReplicaReader::open_with_keys(store, key, keys)
        .await
        .context("open the replica")
}

/// Opens and holds the point of a record, or `wanted` when it has none yet; which one it was is on disk afterwards.
pub(super) async fn open(
    records: &Path,
    record: &mut Record,
    reader: &ReplicaReader,
    wanted: PointSelector,
) -> anyhow::Result<ReplicaView> {
    let selector = if record.point_id.is_nil() {
        wanted
    } else {
        PointSelector::Id(record.point_id)
    };
    let view = reader
        .pinned_view(selector, &record.owner())
        .await
        .context("open the recovery point")?;
    let point = view.point().context("the view has no recovery point")?;
    if record.point_id != point.id {
        record.point_id = point.id;
        record.point_time_unix_ms = point.time_unix_ms;
        keep(records, record).await?;
    }
    Ok(view)
}

/// A VM that is there, with its disks served.
pub(super) struct Made {
    /// As long as this lives.
    pub server: NbdServer,
    /// What is on this host of its disks.
    pub copies: Copies,
    /// What its disks are read through.
    pub conversion: Option<Arc<Conversion>>,
}

/// The configuration of the VM at a point.
pub(super) fn vm_config(view: &ReplicaView) -> anyhow::Result<VmConfig> {
    let config = view
        .vm_config()
        .context("the recovery point holds no configuration")?;
    serde_json::from_value(config.clone()).context("configuration in the recovery point")
}

/// Serves the disks of a point, for as long as the server lives, and makes the VM above them, off. A VM that is there
/// already stays as it is.
pub(super) async fn make(
    host: &RecoveryHost,
    records: &Path,
    record: &mut Record,
    view: &ReplicaView,
) -> anyhow::Result<Made> {
    let folder = host.folder.join(record.id.to_string());
    blocking({
        let folder = folder.clone();
        move || std::fs::create_dir_all(folder)
    })
    .await
    .with_context(|| format!("create folder {}", folder.display()))?;
    let shape = conversion::shape(host, records, record, view, &folder).await?;
    let socket = folder.join("nbd.sock");
    // A drill ends soon: what it reads need not be kept.
    let copies = if record.instance.is_some() {
        hydration::open(view, folder.clone()).await
    } else {
        Vec::new()
    };
    let server = view::serve(view, &socket, &copies, shape.conversion.as_ref())
        .await
        .context("serve the disks of the recovery point")?;
    let machine = machine(record, view, &shape, &folder, &socket)?;
    if record.made {
        has_its_layers(&machine, &folder).await?;
    }
    let connected = machine.networks.iter();
    let connected = connected
        .filter(|network| network.segment.is_some())
        .count();
    host.hypervisor
        .create(machine)
        .await
        .context("create the virtual machine")?;
    host.board
        .update_recovered(&record.id.to_string(), |status| {
            status.connected_adapters = u32::try_from(connected).unwrap_or(u32::MAX);
        });
    Ok(Made {
        server,
        copies,
        conversion: shape.conversion,
    })
}

/// A layer made anew would be empty: its disk would be as at the point, beside others that are not, without a word.
async fn has_its_layers(machine: &NewVirtualMachine, folder: &Path) -> anyhow::Result<()> {
    for disk in &machine.disks {
        let DiskSource::Nbd { overlay, .. } = &disk.source else {
            continue;
        };
        let path = folder.join(overlay);
        let is_there = blocking({
            let path = path.clone();
            move || path.try_exists()
        });
        if !is_there
            .await
            .context("look for the virtual machine's disks")?
        {
            bail!(
                "{} is gone, with all that the guest wrote to that disk: bring it back, choose a recovery point anew, or undo the failover",
                path.display()
            );
        }
    }
    Ok(())
}

fn machine(
    record: &Record,
    view: &ReplicaView,
    shape: &Shape,
    folder: &Path,
    socket: &Path,
) -> anyhow::Result<NewVirtualMachine> {
    let config = vm_config(view)?;
    let disks = config
        .disks
        .iter()
        .enumerate()
        .map(|(number, disk)| {
            let stored = view
                .disks()
                .iter()
                .find(|stored| stored.id == disk.id.0)
                .with_context(|| format!("the replica has no disk {}", disk.id))?;
            Ok(NewDisk {
                // A new identity for the copy, the same at every try.
                id: reverse::own_disk(record.id, disk.id),
                source: DiskSource::Nbd {
                    socket: socket.to_owned(),
                    export: stored.id.to_string(),
                    size_bytes: stored.size_bytes,
                    overlay: PathBuf::from(format!("disk{number}.qcow2")),
                },
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let adapters = &config.network_adapters;
    let networks = record.adapters.networks(record.id, adapters);
    Ok(NewVirtualMachine {
        id: VmId(record.id),
        name: record.name.clone(),
        generation: shape.generation,
        memory_bytes: config.memory_bytes,
        processors: config.processors,
        os_type: config.os_type,
        folder: folder.to_owned(),
        disks,
        networks,
    })
}

/// Removes the VM, its folder, its hold on the point and its record; can be repeated.
pub(super) async fn remove(host: &RecoveryHost, records: &Path, id: Uuid) -> anyhow::Result<()> {
    let parent = records.to_owned();
    let record = blocking(move || Record::read(&parent, id)).await;
    host.hypervisor
        .remove(VmId(id))
        .await
        .context("remove the virtual machine")?;
    let folder = host.folder.join(id.to_string());
    blocking(move || match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
    .await
    .context("remove its folder")?;
    // A record that can't be read names no pin; the store shows pins of their owner by name to an operator.
    if let Ok(Some(record)) = &record {
        let_point_go(record).await?;
    }
    forget(records, id).await?;
    tracing::info!(vm = %id, "recovered VM is removed");
    Ok(())
}

/// Gives the point of a record back to retention.
pub(super) async fn let_point_go(record: &Record) -> anyhow::Result<()> {
    let key = ReplicaKey::new(&record.vault_key, &record.item_id)?;
    let store = stores::named(&record.store_folder).with_context(|| {
        format!(
            "no credential for {} has come from the orchestrator yet, so its recovery point can't be let go",
            record.store_folder.display()
        )
    })?;
    match ReplicaReader::open(&store, &key).await {
        Ok(reader) => reader
            .unpin(&record.owner())
            .await
            .context("let the recovery point go"),
        // The replica is gone, its pins with it.
        Err(error) if error.kind() == replica_store::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).context("let the recovery point go"),
    }
}

/// Removes the record: from here on the VM is not ours.
pub(super) async fn forget(records: &Path, id: Uuid) -> anyhow::Result<()> {
    let parent = records.to_owned();
    blocking(move || {
        conversion::remove(&parent, id)?;
        Record::remove(&parent, id)
    })
    .await
    .context("remove the record")
}

/// All VMs of the host.
pub(super) async fn machines(host: &RecoveryHost) -> anyhow::Result<Vec<VirtualMachine>> {
    host.hypervisor
        .virtual_machines()
        .await
        .context("look at the host's virtual machines")
}

/// Whether a VM runs.
pub(super) async fn power(host: &RecoveryHost, vm: VmId) -> anyhow::Result<PowerState> {
    machines(host)
        .await?
        .iter()
        .find(|machine| machine.id == vm)
        .map(|machine| machine.power_state)
        .context("the virtual machine is gone")
}

/// Size of the volume that holds `path`.
pub(super) fn volume_bytes(path: &Path) -> Option<u64> {
    Some(hypervisor::Volume::of(path).ok()?.total_bytes)
}

/// Whether a guest has written to its console.
pub(super) async fn has_bytes(path: PathBuf) -> bool {
    blocking(move || std::fs::metadata(path))
        .await
        .is_ok_and(|metadata| metadata.len() > 0)
}

/// Makes a record durable.
pub(super) async fn keep(records: &Path, record: &Record) -> anyhow::Result<()> {
    let (record, folder) = (record.clone(), records.to_owned());
    blocking(move || record.write(&folder))
        .await
        .context("keep the record of the recovered VM")
}

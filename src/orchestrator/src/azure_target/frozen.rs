//! One instant of a VM's disks, to be read: snapshots of managed disks, snapshots of page blobs, or page blobs whose VM is off.
//!
//! ```text
//!  managed disk ─► incremental snapshot `siterecovery-<vm>-<disk>-<generation>-<round>` ─► opened: a page blob somewhere
//!  page blob    ─► snapshot of the blob; of a VM that is off the blob itself
//!                └► ranges that hold anything, ranges that changed since the instant that the replica has
//! ```
//!
//! Disks of a VM that runs are frozen one beside the other, not at one instant; those of one that is off are.

use std::collections::BTreeSet;
use std::ops::Range;

use azure_compute::Kind;
use azure_storage::{Container, ErrorKind, Older, PAGE};
use bytes::Bytes;
use disk_image::vhd::fixed::FOOTER_LENGTH;
use futures::future::try_join_all;
use uuid::Uuid;

use super::back::{Guest, place_of, plan_of};
use super::blobs::Reach;
use super::record::{AzureVm, DiskBlob, WayBack};
use super::spec;
use super::steps::Work;
use super::trouble::Trouble;

/// For how long a snapshot is opened. A round that takes longer fails, and the next one goes on with what it shipped.
const OPEN_SECONDS: u32 = 24 * 3_600;

/// See the module.
pub(super) struct Frozen {
    pub(super) disks: Vec<FrozenDisk>,
    /// Snapshots that were opened.
    open: Vec<String>,
}

/// A disk of it.
pub(super) struct FrozenDisk {
    pub(super) disk: Uuid,
    pub(super) name: String,
    /// True virtual size in bytes.
    pub(super) bytes: u64,
    container: Container,
    blob: String,
    snapshot: Option<String>,
    /// What holds anything; everything else is zero.
    held: Vec<Range<u64>>,
    /// What changed since the instant that the replica has; none = it can't be told.
    pub(super) changed: Option<Vec<Range<u64>>>,
}

/// Whether the VM runs on page blobs, not on managed disks.
pub(super) fn is_of_blobs(vm: &AzureVm) -> bool {
    vm.plan.as_ref().is_some_and(|plan| !plan.blobs.is_empty())
}

/// No name is used for two instants: rounds of one generation are counted, and generations never come again.
fn name_of(vm: &AzureVm, index: usize, back: &WayBack, round: u64) -> String {
    format!("siterecovery-{}-{index}-{}-{round}", vm.id, back.generation)
}

/// Names of the snapshots that the next round needs: those of the instant that the replica has.
pub(super) fn names(vm: &AzureVm, back: &WayBack) -> Vec<String> {
    let Some(shipped) = &back.shipped else {
        return Vec::new();
    };
    if is_of_blobs(vm) {
        return shipped.snapshots.clone();
    }
    (0..vm.blobs.len())
        .map(|index| name_of(vm, index, back, shipped.round))
        .collect()
}

/// Removes snapshots of page blobs, but these.
pub(super) async fn sweep_blobs(
    reach: &Reach,
    vm: &AzureVm,
    keep: &[String],
) -> Result<(), Trouble> {
    let container = reach.base.container()?;
    for blob in &vm.blobs {
        container.delete_snapshots(&blob.blob, keep).await?;
    }
    Ok(())
}

/// Managed disks of a VM, in the order of its page blobs, which they were made of: ARM ids.
pub(super) fn managed_disks(vm: &AzureVm) -> Result<Vec<String>, Trouble> {
    let plan = plan_of(vm)?;
    let managed = |blob: &DiskBlob| {
        let uri = spec::uri(vm, &blob.blob);
        let mut all = plan.resources.iter();
        let found = all.find(|resource| {
            resource.kind == Kind::Disk
                && resource
                    .body
                    .pointer("/properties/creationData/sourceUri")
                    .is_some_and(|source| source == uri.as_str())
        });
        found.map(|resource| resource.id.clone()).ok_or_else(|| {
            Trouble::lasting(
                "AzureTargetNotPossible",
                format!("the plan of the VM has no managed disk for `{}`", blob.name),
                "Restore the orchestrator's data folder.",
            )
        })
    };
    vm.blobs.iter().map(managed).collect()
}

/// Refuses a VM that has other disks than it was made with: what is on those would be lost.
pub(super) fn check_disks(vm: &AzureVm, attached: &[String]) -> Result<(), Trouble> {
    let made = match is_of_blobs(vm) {
        true => plan_of(vm)?.blobs.clone(),
        false => managed_disks(vm)?,
    };
    let made: BTreeSet<String> = made.iter().map(|disk| disk.to_ascii_lowercase()).collect();
    let attached: BTreeSet<String> = attached.iter().cloned().collect();
    let named = |these: &BTreeSet<String>, those: &BTreeSet<String>| {
        let names = these.difference(those);
        let names = names.map(|disk| disk.rsplit('/').next().unwrap_or_default().to_owned());
        names.collect::<Vec<_>>().join(", ")
    };
    let (added, gone) = (named(&attached, &made), named(&made, &attached));
    if added.is_empty() && gone.is_empty() {
        return Ok(());
    }
    let said = |word, names: String| match names.as_str() {
        "" => String::new(),
        names => format!(" ({word}: {names})"),
    };
    Err(Trouble::lasting(
        "RecoveredDisksChanged",
        format!(
            "the VM in Azure has other disks than it was recovered with{}{}",
            said("attached since", added),
            said("not attached any more", gone)
        ),
        "Attach the disks that it was made with and move data of others to them; or cancel the failback.",
    ))
}

// === impl Frozen ===

impl Frozen {
    /// Freezes all disks under the number of the record's round.
    pub(super) async fn take(
        work: &Work<'_>,
        reach: &Reach,
        vm: &AzureVm,
        guest: Guest,
    ) -> Result<Self, Trouble> {
        let back = vm.back.as_ref().ok_or_else(super::back::overtaken)?;
        if is_of_blobs(vm) {
            return Self::of_blobs(reach, vm, back, guest).await;
        }
        let place = place_of(vm)?;
        let ids = managed_disks(vm)?;
        let taken = ids.iter().enumerate().map(|(index, disk)| {
            let name = name_of(vm, index, back, back.round);
            async move {
                work.target
                    .snapshot(place, disk, &name, &vm.id, &work.cancel)
                    .await
            }
        });
        let taken = try_join_all(taken).await?;
        let mut frozen = Self {
            disks: Vec::new(),
            open: Vec::new(),
        };
        for (index, (blob, snapshot)) in vm.blobs.iter().zip(taken).enumerate() {
            let disk = frozen
                .managed(work, reach, (vm, back), (index, blob, &snapshot))
                .await;
            match disk {
                Ok(disk) => frozen.disks.push(disk),
                Err(trouble) => {
                    frozen.close(work, vm).await;
                    return Err(trouble);
                }
            }
        }
        Ok(frozen)
    }

    async fn managed(
        &mut self,
        work: &Work<'_>,
        reach: &Reach,
        (vm, back): (&AzureVm, &WayBack),
        (index, blob, snapshot): (usize, &DiskBlob, &str),
    ) -> Result<FrozenDisk, Trouble> {
        let (target, cancel) = (work.target, &work.cancel);
        self.open.push(snapshot.to_owned());
        let access = target.open(snapshot, &vm.id, OPEN_SECONDS, cancel).await?;
        let (container, name) = reach.base.elsewhere(access.address())?;
        let mut disk = FrozenDisk::of(blob, container, name, None);
        disk.look().await?;
        let shipped = back.shipped.as_ref();
        if let Some(shipped) = shipped.filter(|shipped| shipped.round > 0) {
            let older = name_of(vm, index, back, shipped.round);
            let older = Kind::Snapshot.id_of(place_of(vm)?, &older);
            self.open.push(older.clone());
            match target.open(&older, &vm.id, OPEN_SECONDS, cancel).await {
                Ok(access) => disk.compare(Older::Address(access.address())).await,
                Err(error) => {
                    tracing::info!(vm = %vm.id, disk = %disk.disk, %error, "the snapshot of the last round can't be read; the disk is compared as a whole");
                }
            }
        }
        Ok(disk)
    }

    async fn of_blobs(
        reach: &Reach,
        vm: &AzureVm,
        back: &WayBack,
        guest: Guest,
    ) -> Result<Self, Trouble> {
        let container = reach.base.container()?;
        let mut disks = Vec::new();
        for blob in &vm.blobs {
            let snapshot = match guest {
                Guest::On => Some(container.snapshot(&blob.blob).await?),
                // Nobody writes to it.
                Guest::Off => None,
            };
            disks.push(FrozenDisk::of(
                blob,
                container.clone(),
                blob.blob.clone(),
                snapshot,
            ));
        }
        let known = back.shipped.as_ref();
        for (index, disk) in disks.iter_mut().enumerate() {
            disk.look().await?;
            if let Some(older) = known.and_then(|shipped| shipped.snapshots.get(index)) {
                disk.compare(Older::Snapshot(older)).await;
            }
        }
        Ok(Self {
            disks,
            open: Vec::new(),
        })
    }

    /// Names of page blobs' snapshots.
    pub(super) fn snapshots(&self) -> Vec<String> {
        let snapshots = self.disks.iter().filter_map(|disk| disk.snapshot.clone());
        snapshots.collect()
    }

    /// Removes the snapshots of page blobs that this instant has taken the place of.
    pub(super) async fn replace(&self, back: &WayBack) -> Result<(), Trouble> {
        let older = back.shipped.as_ref().map(|shipped| &shipped.snapshots);
        for (disk, older) in self.disks.iter().zip(older.into_iter().flatten()) {
            disk.container.delete_snapshot(&disk.blob, older).await?;
        }
        Ok(())
    }

    /// Addresses that were given out are worth nothing any more. What fails here is done before the snapshot is used again or removed.
    pub(super) async fn close(&self, work: &Work<'_>, vm: &AzureVm) {
        for snapshot in &self.open {
            if let Err(error) = work.target.close(snapshot, &vm.id, &work.cancel).await {
                tracing::warn!(vm = %vm.id, %error, "a snapshot of a disk may still be open; the next round closes it");
            }
        }
    }
}

// === impl FrozenDisk ===

impl FrozenDisk {
    fn of(blob: &DiskBlob, container: Container, name: String, snapshot: Option<String>) -> Self {
        Self {
            disk: blob.disk,
            name: blob.name.clone(),
            bytes: blob.bytes,
            container,
            blob: name,
            snapshot,
            held: Vec::new(),
            changed: None,
        }
    }

    /// Finds out what holds anything. A disk that has something behind the end of the source's is refused, or that would be lost.
    async fn look(&mut self) -> Result<(), Trouble> {
        let known = self.container.properties(&self.blob).await;
        let known = known.map_err(|error| self.unreadable(error))?;
        let Some(known) = known else {
            return Err(self.gone("it is not there"));
        };
        let end = known.length.saturating_sub(FOOTER_LENGTH);
        if end < self.bytes {
            return Err(self.misfit("is smaller than the source's"));
        }
        let snapshot = self.snapshot.as_deref();
        self.held = self
            .container
            .page_ranges(&self.blob, snapshot, 0..end)
            .await
            .map_err(|error| self.unreadable(error))?;
        for range in self.held.iter().filter(|range| range.end > self.bytes) {
            let mut at = range.start.max(self.bytes / PAGE * PAGE);
            while at < range.end {
                let to = range.end.min(at + (4 << 20));
                let read = self
                    .container
                    .get_range(&self.blob, snapshot, at..to)
                    .await
                    .map_err(|error| self.unreadable(error))?;
                let skip = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
                if read.bytes.iter().skip(skip).any(|byte| *byte != 0) {
                    return Err(self.misfit("holds data behind the end of the source's"));
                }
                at = to;
            }
        }
        Ok(())
    }

    /// What was frozen may be closed or removed under us, by somebody newer or because it was open for too long: the next round
    /// freezes anew.
    fn unreadable(&self, error: azure_storage::Error) -> Trouble {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::Forbidden => self.gone(error),
            _ => error.into(),
        }
    }

    fn gone(&self, why: impl std::fmt::Display) -> Trouble {
        Trouble::passing(
            "FrozenDiskGone",
            format!(
                "the frozen state of disk `{}` can't be read any more: {why}",
                self.name
            ),
            "It tries again by itself, with another one.",
        )
    }

    fn misfit(&self, what: &str) -> Trouble {
        Trouble::lasting(
            "RecoveredDiskGrown",
            format!("the disk `{}` in Azure {what}", self.name),
            "Bring partitions and disk back to the source's size in the recovered VM; or cancel the failback.",
        )
    }

    /// Asks what changed since an older state. When that can't be told, all of the disk is compared.
    async fn compare(&mut self, older: Older<'_>) {
        let asked = self
            .container
            .page_ranges_between(&self.blob, self.snapshot.as_deref(), older);
        match asked.await {
            Ok(changed) => {
                let mut all = changed.written;
                all.extend(changed.cleared);
                self.changed = Some(all);
            }
            Err(error) => {
                tracing::info!(disk = %self.disk, %error, "what changed since the last round can't be told; the disk is compared as a whole");
            }
        }
    }

    /// Its bytes.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Bytes, Trouble> {
        // They are in order, and there may be very many.
        let first = self.held.partition_point(|held| held.end <= range.start);
        let held = self.held.get(first);
        if held.is_none_or(|held| held.start >= range.end) {
            let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            return Ok(Bytes::from(vec![0; length]));
        }
        let snapshot = self.snapshot.as_deref();
        let read = self
            .container
            .get_range(&self.blob, snapshot, range.clone())
            .await
            .map_err(|error| self.unreadable(error))?;
        if read.bytes.len() as u64 != range.end - range.start {
            // Never taken for zeroes.
            return Err(Trouble::passing(
                "StorageAccountNotReachable",
                format!(
                    "the disk `{}` was read in part only, at {}",
                    self.name, range.start
                ),
                "It tries again by itself.",
            ));
        }
        Ok(read.bytes)
    }
}

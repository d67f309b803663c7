//! A recovery point becomes page blobs: one fixed VHD for each disk, slice by slice, each read back before it counts.
//!
//! ```text
//!  claim: number + 1, stored ─► every blob: made, or known to be this VM's and this point's; its sequence number raised
//!  slice: view of the point ─► what is not zero is put, `sequence number = claim` ─► read back, ranges asked for ─► equal ─► noted
//!  last slice ─► footer
//! ```
//!
//! A blob that somebody else has claimed since refuses the write (412): two processes that work on one VM can't mix their bytes, and
//! the older one stops. Bytes of a slice that was cut are the same bytes again: a point never changes.

use azure_storage::{Condition, Container, ErrorKind, PAGE, SequenceCondition};
use bytes::Bytes;
use disk_image::vhd::fixed::{FOOTER_LENGTH, footer};
use futures::{StreamExt as _, TryStreamExt as _};
use replica_store::{PointSelector, ReplicaReader, ReplicaView};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::blobs::{self, Reach};
use super::record::{self, AzureVm, DiskBlob};
use super::spec::padded;
use super::trouble::Trouble;
use crate::app::App;
use crate::gateway::desired::hex;
use crate::store::records::Stored;

/// Bytes of one write and one read.
const PIECE: u64 = 4 << 20;
/// Bytes of a slice, after which progress is stored.
const SLICE: u64 = 64 << 20;
/// Pieces of a slice under way at once.
const SIDE_BY_SIDE: usize = 8;

/// A claimed VM: what its disks are copied with.
pub(super) struct Claimed {
    reach: Reach,
    container: Container,
    view: ReplicaView,
    /// The number that the blobs carry.
    claim: u64,
}

/// Claims the blobs of a VM under a number that nobody else has, and makes those that are missing.
pub(super) async fn claim(
    app: &App,
    stored: Stored<AzureVm>,
) -> Result<(Claimed, Stored<AzureVm>), Trouble> {
    let reach = Reach::of(app, &stored.record).await?;
    let reader = reach.reader(app, &stored.record).await?;
    let view = view(&reader, &stored.record).await?;
    let mut next = stored.record.clone();
    next.claims += 1;
    if let Some(point) = view.point() {
        next.point_id = point.id.to_string();
        next.point_ms = point.time_unix_ms;
    }
    if next.blobs.is_empty() {
        next.blobs = view
            .disks()
            .iter()
            .map(|disk| DiskBlob {
                disk: disk.id,
                name: disk.name.clone(),
                bytes: disk.size_bytes,
                blob: format!("{}{}.vhd", blobs::folder(&stored.record), disk.id),
                done: 0,
                digest: String::new(),
            })
            .collect();
    }
    let container = reach.base.container()?;
    for blob in next.blobs.iter_mut().filter(|blob| blob.done > 0) {
        if container.properties(&blob.blob).await?.is_none() {
            // What was copied is gone with the blob: the new one is empty, and that is noted before there is one.
            tracing::warn!(vm = %stored.record.id, disk = %blob.disk, "the page blob of a disk is gone; it is copied from its beginning");
            blob.done = 0;
            blob.digest = String::new();
        }
    }
    // Compare-and-swap: of two that count up, one is told that it came too late.
    let stored = record::keep(app, &stored, next).await?;
    let claimed = Claimed {
        container,
        reach,
        view,
        claim: stored.record.claims,
    };
    for blob in &stored.record.blobs {
        claimed.take(&stored.record, blob).await?;
    }
    Ok((claimed, stored))
}

async fn view(reader: &ReplicaReader, vm: &AzureVm) -> Result<ReplicaView, Trouble> {
    let point = match vm.point_id.as_str() {
        "" => PointSelector::Newest,
        id => PointSelector::Id(id.parse().map_err(|_| {
            Trouble::lasting(
                "RecoveryPointNotFound",
                format!("the recovery point `{id}` has no GUID as its name"),
                "Choose another recovery point.",
            )
        })?),
    };
    Ok(reader.pinned_view(point, &vm.owner()).await?)
}

fn overtaken(blob: &str) -> Trouble {
    Trouble::passing(
        "Overtaken",
        format!("somebody newer writes the page blob {blob}"),
        "Another orchestrator goes on with it.",
    )
}

// === impl Claimed ===

impl Claimed {
    /// Makes a blob, or takes it over; from here on nobody of before can write to it.
    async fn take(&self, vm: &AzureVm, blob: &DiskBlob) -> Result<(), Trouble> {
        let length = padded(blob.bytes) + FOOTER_LENGTH;
        let marks = [("vm", vm.id.clone()), ("point", vm.point_id.clone())];
        if self.container.properties(&blob.blob).await?.is_none() {
            if blob.done > 0 {
                // An empty one would lack what counts as copied.
                return Err(vanished(blob));
            }
            let made = self
                .container
                .create_page_blob(&blob.blob, length, self.claim, &marks, Condition::NotExists)
                .await;
            match made {
                Ok(()) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::AlreadyExists | ErrorKind::ConditionNotMet
                    ) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let known = self.container.properties(&blob.blob).await?;
        let Some(known) = known else {
            return Err(vanished(blob));
        };
        let is_ours = marks
            .iter()
            .all(|(name, value)| known.metadata.iter().any(|(n, v)| n == name && v == value));
        if !is_ours || known.length != length {
            return Err(Trouble::lasting(
                "PageBlobForeign",
                format!("the blob {} is there and is not this VM's", blob.blob),
                "Look who made it; remove it if it is not needed, then start the failover again.",
            ));
        }
        let raised = self
            .container
            .raise_sequence_number(&blob.blob, self.claim)
            .await?;
        if raised > self.claim {
            return Err(overtaken(&blob.blob));
        }
        Ok(())
    }

    /// Copies the next slice and notes it. `None` when every disk is done.
    pub(super) async fn slice(
        &self,
        app: &App,
        stored: &Stored<AzureVm>,
        cancel: &CancellationToken,
    ) -> Result<Option<Stored<AzureVm>>, Trouble> {
        let vm = &stored.record;
        let Some(index) = vm.blobs.iter().position(|blob| blob.done < blob.bytes) else {
            return Ok(None);
        };
        let Some(blob) = vm.blobs.get(index) else {
            return Ok(None);
        };
        self.reach.renew(app, vm).await?;
        let end = blob.bytes.min(blob.done + SLICE);
        let digest = tokio::select! {
            () = cancel.cancelled() => return Err(Trouble::interrupted()),
            digest = self.copy(blob, end) => digest?,
        };
        if end == blob.bytes {
            self.footer(vm, blob).await?;
        }
        let mut next = vm.clone();
        if let Some(blob) = next.blobs.get_mut(index) {
            blob.done = end;
            blob.digest = digest;
        }
        if end == blob.bytes {
            tracing::info!(vm = %vm.id, disk = %blob.disk, bytes = blob.bytes, sha256 = %next.blobs.get(index).map_or("", |b| b.digest.as_str()),
                "a disk of a recovery point is in its page blob");
        }
        Ok(Some(record::keep(app, stored, next).await?))
    }

    /// Copies `blob.done..end` and gives the digest of everything up to `end`.
    async fn copy(&self, blob: &DiskBlob, end: u64) -> Result<String, Trouble> {
        let starts = (blob.done..end).step_by(usize::try_from(PIECE).unwrap_or(usize::MAX));
        let pieces: Vec<(u64, bool, [u8; 32])> = futures::stream::iter(starts)
            .map(|start| self.piece(blob, start, end.min(start + PIECE)))
            .buffered(SIDE_BY_SIDE)
            .try_collect()
            .await?;
        // What nobody wrote must hold nothing: a piece that is zero at the point was not put.
        let ranges = self
            .container
            .page_ranges(&blob.blob, None, blob.done..end.next_multiple_of(PAGE))
            .await?;
        for (start, is_zero, _) in &pieces {
            let over = end.min(start + PIECE);
            if *is_zero
                && ranges
                    .iter()
                    .any(|range| range.start < over && range.end > *start)
            {
                return Err(differs(blob, *start));
            }
        }
        let mut digest = Sha256::new();
        digest.update(blob.digest.as_bytes());
        for (start, _, piece) in &pieces {
            digest.update(start.to_le_bytes());
            digest.update(piece);
        }
        Ok(hex(&digest.finalize()))
    }

    /// One piece: read at the point, put if it holds anything, read back.
    async fn piece(
        &self,
        blob: &DiskBlob,
        start: u64,
        end: u64,
    ) -> Result<(u64, bool, [u8; 32]), Trouble> {
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        let bytes = self.view.read(blob.disk, start, length).await?;
        let digest = Sha256::digest(&bytes).into();
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok((start, true, digest));
        }
        let mut whole = bytes.to_vec();
        whole.resize(
            whole
                .len()
                .next_multiple_of(usize::try_from(PAGE).unwrap_or(512)),
            0,
        );
        let whole = Bytes::from(whole);
        self.put(&blob.blob, start, whole.clone()).await?;
        let range = start..start + whole.len() as u64;
        let back = self.container.get_range(&blob.blob, None, range).await?;
        if back.bytes != whole {
            return Err(differs(blob, start));
        }
        Ok((start, false, digest))
    }

    async fn footer(&self, vm: &AzureVm, blob: &DiskBlob) -> Result<(), Trouble> {
        let size = padded(blob.bytes);
        let made = u64::try_from(vm.point_ms / 1_000).unwrap_or_default();
        let footer = footer(size, blob.disk, made).map_err(|error| {
            Trouble::lasting(
                "DiskNotPossible",
                format!("disk `{}` can't become a VHD: {error}", blob.name),
                "Leave the disk out of the protection of this VM.",
            )
        })?;
        self.put(&blob.blob, size, Bytes::copy_from_slice(&footer))
            .await
    }

    async fn put(&self, blob: &str, at: u64, bytes: Bytes) -> Result<(), Trouble> {
        let condition = SequenceCondition::Equal(self.claim);
        match self.container.put_pages(blob, at, bytes, condition).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::SequenceNumberConditionNotMet => {
                Err(overtaken(blob))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn vanished(blob: &DiskBlob) -> Trouble {
    Trouble::passing(
        "PageBlobVanished",
        format!("the page blob {} vanished while it was claimed", blob.blob),
        "It tries again by itself.",
    )
}

fn differs(blob: &DiskBlob, at: u64) -> Trouble {
    Trouble::lasting(
        "PageBlobDiffers",
        format!(
            "the page blob {} does not hold what was written to it at {at}",
            blob.blob
        ),
        "Somebody else writes there, or the storage account is damaged: look who, then start the failover again.",
    )
}

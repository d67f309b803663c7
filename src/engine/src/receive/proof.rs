//! The whole proof: every byte of the local disks against every byte of a point.

use std::sync::Arc;

use disk_image::Access;
use hypervisor::DiskId;
use replica_store::{PointSelector, ReplicaReader};
use uuid::Uuid;

use super::image;
use super::todo::WINDOW;
use super::{ReceiveError, Receiver, off};
use crate::replicator::hashes::BLOCK;

/// What the disks of a VM are, compared with a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The point.
    pub point: Uuid,
    /// Each disk.
    pub disks: Vec<DiskProof>,
}

/// What one disk is, compared with a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskProof {
    /// The disk.
    pub disk: DiskId,
    /// Size of the local one, bytes.
    pub size_bytes: u64,
    /// BLAKE3 of the local one.
    pub here: String,
    /// BLAKE3 of the point's.
    pub there: String,
    /// Blocks of 4 KiB that differ.
    pub differing_blocks: u64,
}

impl Proof {
    /// Whether all disks are what the point has.
    pub fn is_equal(&self) -> bool {
        let mut disks = self.disks.iter();
        disks.all(|disk| disk.here == disk.there && disk.differing_blocks == 0)
    }
}

impl Receiver {
    /// Reads the local disks and the newest point of the recovered VM in whole, and compares them.
    pub async fn prove(&self) -> Result<Proof, ReceiveError> {
        let what = "read the newest point of the recovered virtual machine";
        let failed = || ReceiveError::store(what);
        let opened = ReplicaReader::open_with_keys(&self.store, &self.key, self.keys.clone()).await;
        let reader = opened.map_err(failed())?;
        let newest = reader.newest_of(self.origin).await.map_err(failed())?;
        let selector = newest.map_or(PointSelector::Newest, |point| PointSelector::Id(point.id));
        let view = reader.view(selector).await.map_err(failed())?;
        let point = view.point().map_or_else(Uuid::nil, |point| point.id);
        let mut disks = Vec::new();
        for local in self.target.disks().await? {
            let spec = view.disks().iter().find(|disk| disk.id == local.id.0);
            let size = spec.map(|disk| disk.size_bytes);
            let size = size.ok_or(ReceiveError::NotInPoint {
                disk: local.id,
                point,
            })?;
            let path = local.path.clone();
            let image = Arc::new(off(move || image::open(&path, Access::ReadOnly)).await?);
            let local_size = image.virtual_size();
            let (mut here, mut there) = (blake3::Hasher::new(), blake3::Hasher::new());
            let mut differing_blocks = 0;
            for at in (0..size.max(local_size)).step_by(WINDOW as usize) {
                let inside = size.saturating_sub(at).min(WINDOW) as usize;
                let theirs = match inside {
                    0 => bytes::Bytes::new(),
                    _ => {
                        let read = view.read(local.id.0, at, inside);
                        self.unless_stopped(async { read.await.map_err(failed()) })
                            .await?
                    }
                };
                let (image, path) = (image.clone(), local.path.clone());
                let length = local_size.saturating_sub(at).min(WINDOW) as usize;
                let ours = off(move || {
                    let mut data = vec![0; length];
                    image
                        .read_at(&mut data, at)
                        .map_err(ReceiveError::image("read", &path))?;
                    Ok(data)
                })
                .await?;
                let block = BLOCK as usize;
                let pairs = ours.chunks(block).zip(theirs.chunks(block));
                differing_blocks += pairs.filter(|(ours, theirs)| ours != theirs).count() as u64;
                here.update(&ours);
                there.update(&theirs);
            }
            disks.push(DiskProof {
                disk: local.id,
                size_bytes: local_size,
                here: here.finalize().to_hex().to_string(),
                there: there.finalize().to_hex().to_string(),
                differing_blocks,
            });
        }
        Ok(Proof { point, disks })
    }
}

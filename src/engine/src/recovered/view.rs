//! Serves a recovery point's disks over NBD.

use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use hypervisor::nbd::{self, BlockReader, NbdError, NbdExport, NbdServer};
use replica_store::ReplicaView;
use uuid::Uuid;

use super::conversion::Conversion;
use super::local_copy::LocalCopy;
use super::read_ahead::ReadAhead;
use crate::replicator::trouble::chain;

struct DiskOfView {
    view: ReplicaView,
    disk: Uuid,
    size_bytes: u64,
    ahead: ReadAhead,
    copy: Option<Arc<LocalCopy>>,
    conversion: Option<Arc<Conversion>>,
}

#[async_trait]
impl BlockReader for DiskOfView {
    async fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let read = async |offset, length| {
            let of_store = |offset, length| self.view.read(self.disk, offset, length);
            match &self.copy {
                Some(copy) => copy.read(offset, length, of_store).await,
                None => of_store(offset, length).await,
            }
        };
        let read = self.ahead.read(self.size_bytes, offset, length, read).await;
        let data = read.map_err(|error| {
            tracing::error!(disk = %self.disk, offset, length, error = chain(&error), "a recovered VM could not read its recovery point");
            io::Error::other(error)
        })?;
        Ok(match &self.conversion {
            Some(conversion) => conversion.convert(self.disk, offset, data),
            None => data,
        })
    }
}

/// Serves every disk of `view` at `socket`, out of its local copy where there is one, converted if that is needed; the
/// export's name is the disk's id.
pub async fn serve(
    view: &ReplicaView,
    socket: &Path,
    copies: &[Arc<LocalCopy>],
    conversion: Option<&Arc<Conversion>>,
) -> Result<NbdServer, NbdError> {
    let exports = view
        .disks()
        .iter()
        .map(|disk| NbdExport {
            name: disk.id.to_string(),
            size_bytes: disk.size_bytes,
            reader: Arc::new(DiskOfView {
                view: view.clone(),
                disk: disk.id,
                size_bytes: disk.size_bytes,
                ahead: ReadAhead::default(),
                copy: copies.iter().find(|copy| copy.disk() == disk.id).cloned(),
                conversion: conversion.cloned(),
            }),
        })
        .collect();
    nbd::serve(socket, exports).await
}

//! A disk copy in a blob, as the file of an image: read only, by ranges, and never two versions of it mixed.

use std::io;

use azure_storage::{Error, ErrorKind as Remote};
use disk_image::ImageFile;

use super::{Remote as Client, base, failed};
use crate::error::{ErrorKind, Result, StoreError};

/// Longest single request.
const RANGE: u64 = 4 << 20;

/// A blob that is read as an image.
pub(super) struct BlobFile {
    client: Client,
    blob: String,
    length: u64,
    etag: String,
}

impl BlobFile {
    /// Looks at the blob, whose name is relative to the container.
    pub(super) fn open(client: &Client, blob: &str) -> Result<BlobFile> {
        let found = client
            .wait(client.container.properties(blob))
            .map_err(|error| failed("look at", &base::place(client, blob), error))?;
        let found = found.ok_or_else(|| {
            StoreError::new(
                ErrorKind::Invalid,
                format!(
                    "the disk copy {} is not there: upload it, or name it as it is named in the container",
                    base::place(client, blob)
                ),
            )
        })?;
        Ok(BlobFile {
            client: client.clone(),
            blob: blob.to_owned(),
            length: found.length,
            etag: found.etag,
        })
    }

    fn range(&self, from: u64, to: u64) -> io::Result<bytes::Bytes> {
        let read = self.client.container.get_range(&self.blob, None, from..to);
        let content = self
            .client
            .wait(read)
            .map_err(|error: Error| match error.kind() {
                Remote::NotFound => io::ErrorKind::NotFound.into(),
                _ => io::Error::other(error),
            })?;
        if content.etag != self.etag {
            return Err(io::Error::other(
                "it was changed while it was read: leave it as it is until initial replication is complete",
            ));
        }
        Ok(content.bytes)
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl ImageFile for BlobFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        for part in buffer.chunks_mut(RANGE as usize) {
            let bytes = self.range(at, at + part.len() as u64)?;
            if bytes.len() != part.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            part.copy_from_slice(&bytes);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> io::Result<()> {
        read_only()
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn set_len(&self, _length: u64) -> io::Result<()> {
        read_only()
    }
}

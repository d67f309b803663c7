//! Journal objects: streamed in as blocks, read by ranges.
//!
//! An object of one block is put whole at its publication, which saves a request in every cycle. A larger one is staged
//! block by block while it is still being written. The mark in its metadata tells its writer, after a lost answer,
//! whether the object of that name is its own.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use azure_storage::{Condition, Error, ErrorKind, Outcome};
use bytes::{Bytes, BytesMut};
use replication_log::ReadAt;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::azure::{Remote, failed, is_refusal};
use crate::error::Result;
use crate::medium::{Object, Put, Staged, Version};

/// Bytes of one block.
const BLOCK: usize = 4 << 20;
/// Blocks on their way at once.
const AHEAD: usize = 4;
/// Metadata that only the writer of an object knows.
const MARK: &str = "mark";

/// An object on its way.
#[derive(Debug)]
pub(super) struct StagedBlob {
    remote: Remote,
    blob: String,
    mark: Uuid,
    buffer: BytesMut,
    ids: Vec<Vec<u8>>,
    sending: VecDeque<JoinHandle<std::result::Result<(), Error>>>,
}

impl StagedBlob {
    pub(super) fn new(remote: Remote, blob: String) -> Self {
        StagedBlob {
            remote,
            blob,
            mark: Uuid::new_v4(),
            buffer: BytesMut::new(),
            ids: Vec::new(),
            sending: VecDeque::new(),
        }
    }

    /// Sends what is buffered as a block of its own.
    fn send(&mut self) -> std::result::Result<(), Error> {
        while self.sending.len() >= AHEAD {
            self.settle_first()?;
        }
        // Blocks of others on their way to the same name have other ids, of the same length.
        let mut id = self.mark.as_bytes().to_vec();
        id.extend_from_slice(
            &u32::try_from(self.ids.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        self.ids.push(id.clone());
        let bytes = self.buffer.split().freeze();
        let (container, blob) = (self.remote.container.clone(), self.blob.clone());
        self.sending.push_back(
            self.remote
                .runtime
                .spawn(async move { container.stage_block(&blob, &id, bytes).await }),
        );
        Ok(())
    }

    fn settle_first(&mut self) -> std::result::Result<(), Error> {
        let Some(first) = self.sending.pop_front() else {
            return Ok(());
        };
        match self.remote.wait(first) {
            Ok(sent) => sent,
            // The runtime is shutting down.
            Err(_) => Err(Error::interrupted("put block")),
        }
    }

    fn place(&self) -> String {
        format!("{}/{}", self.remote.container.url(), self.blob)
    }
}

impl io::Write for StagedBlob {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = BLOCK - self.buffer.len();
        let taken = data.len().min(room);
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(BLOCK.min(data.len().max(64 << 10)));
        }
        self.buffer.extend_from_slice(&data[..taken]);
        if self.buffer.len() == BLOCK {
            let place = self.place();
            self.send()
                .map_err(|error| io::Error::other(failed("write", &place, error)))?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staged for StagedBlob {
    fn seal(&mut self) -> Result<()> {
        if self.ids.is_empty() {
            // All of it goes with its name.
            return Ok(());
        }
        let place = self.place();
        let failed = |error| failed("write", &place, error);
        if !self.buffer.is_empty() {
            self.send().map_err(failed)?;
        }
        while !self.sending.is_empty() {
            self.settle_first().map_err(failed)?;
        }
        Ok(())
    }

    fn publish(mut self: Box<Self>) -> Result<Put> {
        self.seal()?;
        let mark = self.mark.simple().to_string();
        let metadata = [(MARK, mark.clone())];
        let buffer = std::mem::take(&mut self.buffer).freeze();
        let container = &self.remote.container;
        let done = self.remote.wait(async {
            if self.ids.is_empty() {
                container
                    .put_block_blob(&self.blob, buffer, &metadata, Condition::NotExists)
                    .await
            } else {
                container
                    .commit_blocks(&self.blob, &self.ids, &metadata, Condition::NotExists)
                    .await
            }
        });
        let error = match done {
            Ok(etag) => return Ok(Put::Done(Version::Etag(etag))),
            Err(error) => error,
        };
        let discarded = error.code() == Some("InvalidBlockList");
        if is_refusal(&error) && error.outcome() == Outcome::NotDone {
            return Ok(Put::Refused);
        }
        if !is_refusal(&error) && !discarded {
            return Err(failed("write", &self.place(), error));
        }
        let there = self
            .remote
            .wait(container.properties(&self.blob))
            .map_err(|error| failed("look at", &self.place(), error).unknown())?;
        match there {
            Some(found)
                if found
                    .metadata
                    .iter()
                    .any(|(name, value)| name == MARK && *value == mark) =>
            {
                Ok(Put::Done(Version::Etag(found.etag)))
            }
            Some(_) => Ok(Put::Refused),
            None => Err(failed("write", &self.place(), error)),
        }
    }
}

impl Drop for StagedBlob {
    fn drop(&mut self) {
        // Blocks without a name are nobody's; there is no need to send more of them.
        for sending in &self.sending {
            sending.abort();
        }
    }
}

/// How much is read ahead of a small read. The object never changes, so it may be kept.
const READ_AHEAD: u64 = 1 << 20;

#[derive(Debug)]
struct ReadBlob {
    remote: Remote,
    blob: String,
    length: u64,
    kept: Mutex<(u64, Bytes)>,
}

pub(super) fn open(
    remote: &Remote,
    blob: &str,
) -> std::result::Result<Option<Arc<dyn Object>>, Error> {
    let found = remote.wait(remote.container.properties(blob))?;
    Ok(found.map(|found| {
        Arc::new(ReadBlob {
            remote: remote.clone(),
            blob: blob.to_owned(),
            length: found.length,
            kept: Mutex::default(),
        }) as Arc<dyn Object>
    }))
}

impl ReadAt for ReadBlob {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = checked_end(buf, offset, self.length)?;
        if buf.is_empty() {
            return Ok(());
        }
        if buf.len() as u64 >= READ_AHEAD {
            return read_range(&self.remote, &self.blob, offset, buf);
        }
        let part = |start: u64, bytes: &Bytes| {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            bytes.get(from..from + buf.len()).map(|_| from)
        };
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(from) = part(kept.0, &kept.1) {
                buf.copy_from_slice(&kept.1[from..from + buf.len()]);
                return Ok(());
            }
        }
        let until = (offset + READ_AHEAD).max(end).min(self.length);
        let content = self
            .remote
            .wait(
                self.remote
                    .container
                    .get_range(&self.blob, None, offset..until),
            )
            .map_err(|error| reading(&self.blob, error))?;
        let bytes = content.bytes;
        let Some(wanted) = bytes.get(..buf.len()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        buf.copy_from_slice(wanted);
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = (offset, bytes);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

pub(super) fn checked_end(buf: &[u8], offset: u64, length: u64) -> io::Result<u64> {
    offset
        .checked_add(buf.len() as u64)
        .filter(|end| *end <= length)
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Reads a range in pieces that the service has checksums for, several at once.
pub(super) fn read_range(
    remote: &Remote,
    blob: &str,
    offset: u64,
    buf: &mut [u8],
) -> io::Result<()> {
    let piece = azure_storage::CHECKED_RANGE as usize;
    let reads = buf.chunks_mut(piece).enumerate().map(|(index, part)| {
        let start = offset + (index * piece) as u64;
        async move {
            let range = start..start + part.len() as u64;
            let content = remote.container.get_range(blob, None, range).await?;
            let complete = content.bytes.len() == part.len();
            if complete {
                part.copy_from_slice(&content.bytes);
            }
            Ok::<bool, Error>(complete)
        }
    });
    let done = remote.wait(async {
        use futures::{StreamExt as _, TryStreamExt as _};
        futures::stream::iter(reads)
            .buffer_unordered(AHEAD)
            .try_fold(true, |all, one| std::future::ready(Ok(all && one)))
            .await
    });
    match done {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Err(reading(blob, error)),
    }
}

/// As readers of objects expect it: `NotFound` when it is gone, anything else as it is.
pub(super) fn reading(blob: &str, error: Error) -> io::Error {
    if error.kind() == ErrorKind::NotFound {
        return io::Error::new(io::ErrorKind::NotFound, error);
    }
    io::Error::other(failed("read", blob, error))
}

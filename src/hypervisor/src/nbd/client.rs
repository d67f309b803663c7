//! Reads an export: data, and extents of meta contexts.
//!
//! Several calls may be under way at once; each is answered when its own answer is whole. A call whose future is
//! dropped leaves the connection usable. What breaks the connection or the protocol ends it for all calls, those
//! under way and later ones; the caller connects anew.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::timeout;

use super::NbdError;
use super::handshake::Handshake;
use super::pipeline::{Gathered, Pipeline};
use super::wire::*;
use crate::extents::{Extent, ExtentSet};

/// A guest's write may wait for old data to be copied, and so may we; beyond this something is wrong.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Block status is asked in pieces: lengths on the wire have 32 bits.
const STATUS_PIECE: u64 = 1 << 30;

/// A connection to one export of an NBD server.
#[derive(Debug)]
pub struct NbdClient {
    pipeline: Pipeline,
    size_bytes: u64,
    /// Name and number of each negotiated context, in the order of the request.
    contexts: Vec<(String, u32)>,
}

impl NbdClient {
    /// Connects to `export` and negotiates all of `contexts`, such as `qemu:dirty-bitmap:NAME`.
    ///
    /// # Errors
    /// When the server has no such export, or not all of the contexts.
    pub async fn connect(
        socket: &Path,
        export: &str,
        contexts: &[String],
    ) -> Result<Self, NbdError> {
        let Handshake {
            reader,
            writer,
            size_bytes,
            contexts,
        } = timeout(ANSWER_TIMEOUT, Handshake::with(socket, export, contexts))
            .await
            .unwrap_or(Err(NbdError::Timeout(ANSWER_TIMEOUT.as_secs())))?;
        Ok(Self {
            pipeline: Pipeline::new(reader, writer),
            size_bytes,
            contexts,
        })
    }

    /// Size of the export in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether the connection can still be used.
    pub fn is_usable(&self) -> bool {
        self.pipeline.is_usable()
    }

    /// Reads `length` bytes at `offset`, in requests of at most 32 MiB.
    ///
    /// # Errors
    /// When the range is not inside the export, or the server fails.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Bytes, NbdError> {
        self.check_range(offset, length as u64)?;
        if length == 0 {
            return Ok(Bytes::new());
        }
        if length <= MAX_PAYLOAD {
            return self.read_piece(offset, length).await.map(BytesMut::freeze);
        }
        let mut all = BytesMut::with_capacity(length);
        while all.len() < length {
            let piece = (length - all.len()).min(MAX_PAYLOAD);
            let bytes = self.read_piece(offset + all.len() as u64, piece).await?;
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    async fn read_piece(&self, offset: u64, length: usize) -> Result<BytesMut, NbdError> {
        let gathered = Gathered::data(length);
        let answer = self
            .pipeline
            .request(CMD_READ, offset, length as u32, gathered);
        match answer.await? {
            Gathered::Data { bytes, .. } => Ok(bytes),
            Gathered::Status { .. } => Err(self.nonsense("a read was answered by a status")),
        }
    }

    /// The ranges of the whole export for which `wanted` says yes to the flags of a context, for each
    /// negotiated context in the order of [`NbdClient::connect`].
    ///
    /// # Errors
    /// When the server fails or reports nonsense.
    pub async fn extents(
        &self,
        wanted: impl Fn(u32) -> bool + Send + Sync,
    ) -> Result<Vec<ExtentSet>, NbdError> {
        let mut ranges: Vec<Vec<Extent>> = vec![Vec::new(); self.contexts.len()];
        let mut offset = 0;
        while offset < self.size_bytes && !self.contexts.is_empty() {
            let piece = (self.size_bytes - offset).min(STATUS_PIECE);
            let gathered = Gathered::status(self.contexts.len());
            let request = self
                .pipeline
                .request(CMD_BLOCK_STATUS, offset, piece as u32, gathered);
            let Gathered::Status { chunks, .. } = request.await? else {
                return Err(self.nonsense("a status was answered by data"));
            };
            offset += self
                .status(offset, piece, &chunks, &mut ranges, &wanted)
                .map_err(|text| self.nonsense(text))?;
        }
        Ok(ranges
            .into_iter()
            .map(|ranges| ExtentSet::from_unsorted(ranges).clip(self.size_bytes))
            .collect())
    }

    /// One answer to a block status request. Returns how far all contexts are known from `offset`.
    fn status(
        &self,
        offset: u64,
        length: u64,
        chunks: &[Bytes],
        ranges: &mut [Vec<Extent>],
        wanted: &impl Fn(u32) -> bool,
    ) -> Result<u64, &'static str> {
        let mut known = vec![0u64; ranges.len()];
        for chunk in chunks {
            let mut cursor = Cursor(chunk);
            let number = cursor.u32().ok_or("short block status")?;
            let index = self.contexts.iter().position(|(_, id)| *id == number);
            let (Some(known), Some(ranges)) = (
                index.and_then(|index| known.get_mut(index)),
                index.and_then(|index| ranges.get_mut(index)),
            ) else {
                return Err("block status of a context that was not asked");
            };
            if *known != 0 {
                return Err("block status of a context that was told already");
            }
            while let (Some(size), Some(flags)) = (cursor.u32(), cursor.u32()) {
                if size == 0 || *known >= length {
                    return Err("block status of an empty or unasked range");
                }
                if wanted(flags) {
                    ranges.push(Extent {
                        offset: offset + *known,
                        length: u64::from(size),
                    });
                }
                *known += u64::from(size);
            }
        }
        match known.into_iter().min() {
            // The last range may go on behind the end of the request.
            Some(advance) if advance > 0 => Ok(advance.min(length)),
            _ => Err("no block status for one of the contexts"),
        }
    }

    /// The server makes no sense: the connection ends.
    fn nonsense(&self, text: &str) -> NbdError {
        let error = NbdError::protocol(text);
        self.pipeline.end(&error);
        error
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(NbdError::Command {
                command: "read",
                offset,
                code: EINVAL,
                message: format!("{length} bytes reach beyond the end at {}", self.size_bytes),
            }),
        }
    }
}

//! A file in memory that keeps what a power cut would keep apart from what it would lose.
//!
//! `write_at` and `set_len` change the volatile bytes; `flush` makes them durable. The log of
//! writes since the last flush lets a test build any state a real disk may be in after a power
//! cut: each write since then may be there, missing, or there in part.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ImageFile;

/// One change since the last flush.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// Bytes written at an offset.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// The length was set.
    Length(u64),
}

#[derive(Debug, Default)]
struct State {
    /// Shared with `durable`, or with the maker, until one of them changes.
    volatile: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    pending: Vec<Change>,
    operations: u64,
    fail_after: Option<u64>,
}

/// Longest file: made-up lengths in hostile images must fail as they do on a full disk.
const MAX_LENGTH: u64 = 512 << 20;

/// A file in memory with separate volatile and durable bytes. For tests of crashes and errors.
#[derive(Debug, Default)]
pub struct MemoryFile {
    state: Mutex<State>,
}

impl MemoryFile {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file whose durable content is `bytes`; shared bytes are copied when they change.
    pub fn from_bytes(bytes: impl Into<Arc<Vec<u8>>>) -> Self {
        let bytes = bytes.into();
        let state = State {
            durable: bytes.clone(),
            volatile: bytes,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// What a reader of the running system sees.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().volatile.to_vec()
    }

    /// What certainly survives a power cut now.
    pub fn durable_bytes(&self) -> Vec<u8> {
        self.lock().durable.to_vec()
    }

    /// Number of writes, length changes and flushes so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Number of writes and length changes that a power cut may lose.
    pub fn unflushed(&self) -> usize {
        self.lock().pending.len()
    }

    /// All changing operations after the first `operations` of them fail: the power is off.
    pub fn fail_after(&self, operations: u64) {
        self.lock().fail_after = Some(operations);
    }

    /// A state the file may be in after a power cut now: the durable bytes plus, for the change
    /// number `i` since the last flush, its first `keep(i, length)` bytes (a change of the length
    /// happens when that is not 0).
    pub fn after_power_cut(&self, mut keep: impl FnMut(usize, usize) -> usize) -> Vec<u8> {
        let state = self.lock();
        let mut bytes = state.durable.to_vec();
        for (i, change) in state.pending.iter().enumerate() {
            match change {
                Change::Write { offset, data } => {
                    let kept = keep(i, data.len()).min(data.len());
                    put(&mut bytes, &data[..kept], *offset);
                }
                Change::Length(length) => {
                    if keep(i, 1) > 0 {
                        bytes.resize(*length as usize, 0);
                    }
                }
            }
        }
        bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another test thread leaves plain bytes behind, which are still usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self) -> io::Result<()> {
        if self
            .fail_after
            .is_some_and(|limit| self.operations >= limit)
        {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        Ok(())
    }
}

impl ImageFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.lock();
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start
            .checked_add(buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(
            state
                .volatile
                .get(start..end)
                .ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.count()?;
        check_length(offset.saturating_add(data.len() as u64))?;
        put(Arc::make_mut(&mut state.volatile), data, offset);
        state.pending.push(Change::Write {
            offset,
            data: data.to_vec(),
        });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.count()?;
        for change in std::mem::take(&mut state.pending) {
            match change {
                Change::Write { offset, data } => {
                    put(Arc::make_mut(&mut state.durable), &data, offset)
                }
                Change::Length(length) => {
                    Arc::make_mut(&mut state.durable).resize(length as usize, 0)
                }
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().volatile.len() as u64)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.count()?;
        check_length(length)?;
        Arc::make_mut(&mut state.volatile).resize(length as usize, 0);
        state.pending.push(Change::Length(length));
        Ok(())
    }
}

fn check_length(length: u64) -> io::Result<()> {
    if length > MAX_LENGTH {
        Err(io::ErrorKind::StorageFull.into())
    } else {
        Ok(())
    }
}

fn put(bytes: &mut Vec<u8>, data: &[u8], offset: u64) {
    let start = offset as usize;
    let end = start + data.len();
    if data.is_empty() {
        return;
    }
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(data);
}

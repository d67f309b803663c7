//! Appending cycles to the journal.
//!
//! The object is written and made durable without the section; naming it is the one step in the
//! section, and before it nothing has happened.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

use replication_log::ReadAt;
use replication_log::journal::{
    BuildOptions, ContentId, Finished, JournalBuilder, JournalDisk, JournalError, JournalErrorKind,
    JournalHeader, JournalReader,
};

use crate::base;
use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::manifest::{Manifest, OtherState};
use crate::medium::{Put, Staged};
use crate::model::{DiskSpec, Generation, Position};
use crate::overlay::{check_identity, open_object, read_front};
use crate::replica::{JournalNames, Replica};
use crate::writer::{CyclePlan, JournalObject};

/// Builder of a cycle that streams into the store.
pub(crate) type Builder = JournalBuilder<Outbox>;

/// What is packed waits here until it is sent.
#[derive(Debug)]
pub(crate) struct Outbox {
    staged: Box<dyn Staged>,
    packed: Vec<u8>,
}

impl Outbox {
    /// Bytes that wait.
    pub(crate) fn unsent(&self) -> u64 {
        self.packed.len() as u64
    }

    /// Hands them to the medium. After a failure any part of them may have come there.
    pub(crate) fn send(&mut self, replica: &Replica) -> Result<()> {
        self.staged
            .write_all(&self.packed)
            .map_err(|error| writing(replica, error))?;
        self.packed.clear();
        Ok(())
    }
}

impl Write for Outbox {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.packed.extend_from_slice(data);
        Ok(data.len())
    }

    /// They go only when they are sent.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const BUFFER: usize = 1 << 20;

impl Replica {
    /// The disks as of the newest cycle.
    pub(crate) fn head_disks(&self) -> Result<Vec<DiskSpec>> {
        let (manifest, journal) = self.settled()?;
        self.disks_at_head(&manifest.value, &journal)
    }

    fn disks_at_head(&self, manifest: &Manifest, journal: &JournalNames) -> Result<Vec<DiskSpec>> {
        for object in journal.values().rev() {
            match read_front(self, &object.name) {
                Ok(front) => return Ok(named(manifest, front.present_disks())),
                // A damaged object must not keep newer cycles out: they may be what heals it.
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        Ok(manifest.disks.clone())
    }
}

/// Disks of a header, with the names that the manifest knows.
pub(crate) fn named(manifest: &Manifest, disks: &[JournalDisk]) -> Vec<DiskSpec> {
    disks
        .iter()
        .map(|disk| DiskSpec {
            id: disk.id,
            size_bytes: disk.size_bytes,
            name: manifest.name_of(disk.id),
        })
        .collect()
}

/// A disk may join when its base is ready, grow, or be missing; nothing else.
pub(crate) fn check_next_disks(
    manifest: &Manifest,
    before: &[DiskSpec],
    next: &[JournalDisk],
) -> Result<()> {
    for (at, disk) in next.iter().enumerate() {
        let spec = DiskSpec {
            id: disk.id,
            size_bytes: disk.size_bytes,
            name: String::new(),
        };
        base::padded_size(&spec)?;
        let refused = |what: &str| {
            Err(StoreError::new(
                ErrorKind::Conflict,
                format!("disk {} can't be in this cycle: {what}", disk.id),
            ))
        };
        if next[..at].iter().any(|earlier| earlier.id == disk.id) {
            return refused("it is there twice");
        }
        let size = match before.iter().find(|known| known.id == disk.id) {
            Some(known) => known.size_bytes,
            None => match manifest.other(disk.id) {
                Some(other) if other.state != OtherState::Ready => {
                    return refused("its base is not complete");
                }
                _ => match manifest.stored_disk(disk.id) {
                    Some(known) => known.size_bytes,
                    None => return refused("it has no base in the store, begin the disk first"),
                },
            },
        };
        if disk.size_bytes < size {
            return refused("it was made smaller, exclude it and add it anew");
        }
    }
    if next.is_empty() {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            "a cycle needs at least one disk",
        ));
    }
    Ok(())
}

/// Starts the object of a position.
pub(crate) fn begin(
    replica: &Replica,
    generation: Generation,
    plan: &CyclePlan,
) -> Result<(Builder, Vec<JournalDisk>)> {
    replica.locked(generation, |locked| {
        let (manifest, base, _) = locked.complete()?;
        let manifest = &manifest.value;
        let journal = replica.journal(manifest, base)?;
        let head = journal.last_key_value().map_or(base, |(head, _)| *head);
        let position = plan.position;
        if position > head.next() || position <= base {
            return Err(gap(replica, position, base, head));
        }
        let before = replica.disks_at_head(manifest, &journal)?;
        let disks = journal_disks(plan.disks.as_ref().unwrap_or(&before));
        if position == head.next() {
            check_next_disks(manifest, &before, &disks)?;
        }
        let header = JournalHeader {
            item: replica.item_id.clone(),
            generation: generation.0,
            position: position.0,
            time_unix_ms: plan.time_unix_ms,
            disks: disks.clone(),
        };
        let name = layout::journal_object(generation, position);
        let staged = replica.medium.stage(&name)?;
        let keys = replica.keys();
        let options = BuildOptions {
            compression: plan.compression,
            encryption: keys.active().is_some().then_some(&*keys),
            merged: None,
        };
        let outbox = Outbox {
            staged,
            packed: Vec::new(),
        };
        let builder = JournalBuilder::with_options(outbox, header, options)
            .map_err(|error| building(replica, error))?;
        Ok((builder, disks))
    })
}

/// Maps an error of building: the caller's request, or the store's medium.
pub(crate) fn building(replica: &Replica, error: JournalError) -> StoreError {
    let text = error.to_string();
    match (error.kind(), error.into_io()) {
        (JournalErrorKind::Invalid, _) => StoreError::new(ErrorKind::Invalid, text),
        (_, Ok(source)) => writing(replica, source),
        (_, Err(_)) => StoreError::new(ErrorKind::Io, text),
    }
}

fn writing(replica: &Replica, error: io::Error) -> StoreError {
    let place = replica.medium.describe(layout::JOURNAL);
    StoreError::io("write journal object to", &place, error)
}

/// Makes a streamed object visible that was packed to its end.
pub(crate) fn commit(
    replica: &Replica,
    generation: Generation,
    position: Position,
    disks: Vec<JournalDisk>,
    (mut outbox, finished): (Outbox, Finished),
) -> Result<Finished> {
    outbox.send(replica)?;
    let object = Sealed {
        position,
        content: finished.content,
        disks,
    };
    publish(replica, generation, &object, outbox.staged)?;
    Ok(finished)
}

/// Takes a finished object from elsewhere, verifies all of it, makes it visible.
pub(crate) fn append(
    replica: &Replica,
    generation: Generation,
    object: &JournalObject,
) -> Result<Position> {
    replica.locked(generation, |locked| locked.complete().map(drop))?;
    match object {
        JournalObject::Bytes(bytes) => {
            let sealed = inspect(replica, generation, bytes.as_ref())?;
            copy(replica, generation, &sealed, bytes.as_ref())
        }
        JournalObject::File(path) => {
            let open = || File::open(path).map_err(|error| StoreError::io("open", path, error));
            let before = digest(open()?).map_err(|error| StoreError::io("read", path, error))?;
            let sealed = inspect(replica, generation, open()?)?;
            let hashed = Hashed {
                inner: BufReader::with_capacity(BUFFER, open()?),
                hasher: blake3::Hasher::new(),
                expected: before,
            };
            copy(replica, generation, &sealed, hashed)
        }
    }
}

/// A file whose bytes must be those that were verified.
struct Hashed<R> {
    inner: R,
    hasher: blake3::Hasher,
    expected: blake3::Hash,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        if n == 0 && !buf.is_empty() && self.hasher.finalize() != self.expected {
            return Err(io::Error::other(
                "the journal object was changed while it was appended",
            ));
        }
        Ok(n)
    }
}

fn digest(file: File) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(BufReader::with_capacity(BUFFER, file))?;
    Ok(hasher.finalize())
}

fn copy(
    replica: &Replica,
    generation: Generation,
    sealed: &Sealed,
    mut source: impl Read,
) -> Result<Position> {
    let name = layout::journal_object(generation, sealed.position);
    let mut staged = replica.medium.stage(&name)?;
    let mut buffer = vec![0u8; BUFFER];
    loop {
        let n = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(|error| {
                StoreError::io("read", "the journal object that is to be appended", error)
            })?,
        };
        if n == 0 {
            break;
        }
        staged
            .write_all(&buffer[..n])
            .map_err(|error| writing(replica, error))?;
    }
    publish(replica, generation, sealed, staged)?;
    Ok(sealed.position)
}

/// What an object is that has no name yet.
struct Sealed {
    position: Position,
    content: ContentId,
    disks: Vec<JournalDisk>,
}

fn inspect<R: ReadAt>(replica: &Replica, generation: Generation, object: R) -> Result<Sealed> {
    let damaged = |error: JournalError| {
        StoreError::new(
            ErrorKind::Invalid,
            format!("the journal object that is to be appended is damaged: {error}"),
        )
    };
    let keys = replica.keys();
    let reader = JournalReader::open_with_keys(object, &keys).map_err(damaged)?;
    reader.verify().map_err(damaged)?;
    let header = reader.header();
    if header.item != replica.item_id || header.generation != generation.0 {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            "the journal object that is to be appended names another item or generation",
        ));
    }
    if reader.merged().is_some() {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            "the journal object that is to be appended stands for several cycles: send each by itself",
        ));
    }
    Ok(Sealed {
        position: Position(header.position),
        content: reader.content(),
        disks: header.disks.clone(),
    })
}

fn publish(
    replica: &Replica,
    generation: Generation,
    object: &Sealed,
    mut staged: Box<dyn Staged>,
) -> Result<()> {
    staged.seal()?;
    let position = object.position;
    replica.locked(generation, |locked| {
        let (manifest, base, _) = locked.complete()?;
        let manifest = &manifest.value;
        let mut journal = replica.journal(manifest, base)?;
        let head = journal.last_key_value().map_or(base, |(head, _)| *head);
        if position == head.next() {
            let before = replica.disks_at_head(manifest, &journal)?;
            check_next_disks(manifest, &before, &object.disks)?;
            if let Put::Done(_) = staged.publish()? {
                return locked.confirm();
            }
            // Another process of this generation was faster.
            journal = replica.journal(manifest, base)?;
        }
        // The outcome of an earlier attempt was unknown: the same content is that attempt.
        if let Some(held) = journal.get(&position) {
            let stored = open_object(replica, &held.name)?;
            check_identity(replica, &stored, position, held)?;
            if stored.content() == object.content {
                replica.medium.settle(layout::JOURNAL)?;
                return locked.confirm();
            }
            return Err(StoreError::new(
                ErrorKind::Conflict,
                format!(
                    "position {} of replica {} holds another cycle already: look at the state before sending on",
                    position.0,
                    replica.place()
                ),
            ));
        }
        Err(gap(replica, position, base, head))
    })
}

fn gap(replica: &Replica, position: Position, base: Position, head: Position) -> StoreError {
    StoreError::new(
        ErrorKind::Conflict,
        format!(
            "position {} does not follow the journal of replica {}, which reaches from {} to {}: send {}",
            position.0,
            replica.place(),
            base.0,
            head.0,
            head.next().0
        ),
    )
}

/// Disks as a header has them.
fn journal_disks(disks: &[DiskSpec]) -> Vec<JournalDisk> {
    disks
        .iter()
        .map(|disk| JournalDisk {
            id: disk.id,
            size_bytes: disk.size_bytes,
        })
        .collect()
}

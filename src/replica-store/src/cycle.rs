//! Appending cycles to the journal.
//!
//! The object is written and synced as a temporary without the lock; naming it is the one locked
//! step, and before it nothing has happened.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use replication_log::ReadAt;
use replication_log::journal::{
    ContentId, Finished, JournalBuilder, JournalDisk, JournalError, JournalErrorKind,
    JournalHeader, JournalReader,
};

use crate::durable::Temporary;
use crate::error::{ErrorKind, Result, StoreError};
use crate::model::{Generation, Position};
use crate::overlay::{check_object, open_object};
use crate::replica::Replica;
use crate::writer::JournalObject;

/// Builder of a cycle that streams into the store.
pub(crate) type Builder = JournalBuilder<BufWriter<Temporary>>;

const BUFFER: usize = 1 << 20;

/// Starts the object of `position`.
pub(crate) fn begin(
    replica: &Replica,
    generation: Generation,
    position: Position,
    time_unix_ms: i64,
) -> Result<Builder> {
    replica.locked(generation, |locked| {
        let (manifest, base, _) = locked.complete()?;
        let head = replica.head(base)?;
        if position > head.next() || position <= base {
            return Err(gap(replica, position, base, head));
        }
        let header = JournalHeader {
            item: replica.layout.item_id().to_owned(),
            generation: generation.0,
            position: position.0,
            time_unix_ms,
            disks: manifest
                .disks
                .iter()
                .map(|disk| JournalDisk {
                    id: disk.id,
                    size_bytes: disk.size_bytes,
                })
                .collect(),
        };
        let temporary = replica.durable.temporary(&replica.layout.journal())?;
        JournalBuilder::new(BufWriter::with_capacity(BUFFER, temporary), header)
            .map_err(|error| building(replica, error))
    })
}

/// Maps an error of building: the caller's request, or the store's medium.
pub(crate) fn building(replica: &Replica, error: JournalError) -> StoreError {
    let text = error.to_string();
    match (error.kind(), error.into_io()) {
        (JournalErrorKind::Invalid, _) => StoreError::new(ErrorKind::Invalid, text),
        (_, Ok(source)) => {
            StoreError::io("write journal object to", &replica.layout.journal(), source)
        }
        (_, Err(_)) => StoreError::new(ErrorKind::Io, text),
    }
}

/// Ends a streamed object and makes it visible.
pub(crate) fn commit(
    replica: &Replica,
    generation: Generation,
    position: Position,
    builder: Builder,
) -> Result<Finished> {
    let (buffered, finished) = builder.finish().map_err(|error| building(replica, error))?;
    let temporary = buffered.into_inner().map_err(|error| {
        StoreError::io(
            "write journal object to",
            &replica.layout.journal(),
            error.into_error(),
        )
    })?;
    publish(replica, generation, position, finished.content, temporary)?;
    Ok(finished)
}

/// Takes a finished object from elsewhere, verifies all of it, makes it visible.
pub(crate) fn append(
    replica: &Replica,
    generation: Generation,
    object: &JournalObject,
) -> Result<Position> {
    let journal = replica.layout.journal();
    let mut temporary = replica.locked(generation, |locked| {
        locked.complete()?;
        replica.durable.temporary(&journal)
    })?;
    let writing = |error| StoreError::io("write journal object to", &journal, error);
    match object {
        JournalObject::Bytes(bytes) => temporary.write_all(bytes).map_err(writing)?,
        JournalObject::File(path) => {
            let file = File::open(path).map_err(|error| StoreError::io("open", path, error))?;
            let mut buffered = BufReader::with_capacity(BUFFER, file);
            std::io::copy(&mut buffered, &mut temporary).map_err(writing)?;
        }
    }
    // What will be named is verified, not what was read.
    let (position, content) = inspect(replica, generation, temporary.as_file())?;
    publish(replica, generation, position, content, temporary)?;
    Ok(position)
}

fn inspect<R: ReadAt>(
    replica: &Replica,
    generation: Generation,
    object: R,
) -> Result<(Position, ContentId)> {
    let damaged = |error: JournalError| {
        StoreError::new(
            ErrorKind::Invalid,
            format!("the journal object that is to be appended is damaged: {error}"),
        )
    };
    let reader = JournalReader::open(object).map_err(damaged)?;
    reader.verify().map_err(damaged)?;
    let position = Position(reader.header().position);
    let manifest = replica.manifest()?;
    let item = replica.layout.item_id();
    let name = Path::new("the journal object that is to be appended");
    check_object(&reader, item, &manifest.disks, position, generation, name).map_err(|_| {
        StoreError::new(
            ErrorKind::Invalid,
            "the journal object that is to be appended names another item, generation or set of disks",
        )
    })?;
    Ok((position, reader.content()))
}

fn publish(
    replica: &Replica,
    generation: Generation,
    position: Position,
    content: ContentId,
    temporary: Temporary,
) -> Result<()> {
    temporary.sync()?;
    replica.locked(generation, |locked| {
        let (manifest, base, _) = locked.complete()?;
        let journal = replica.journal(base)?;
        let head = journal.last_key_value().map_or(base, |(head, _)| *head);
        if position == head.next() {
            let path = replica.layout.journal_object(generation, position);
            return temporary.publish_synced(&path);
        }
        // The outcome of an earlier attempt was unknown: the same content is that attempt.
        if let Some((owner, path)) = journal.get(&position) {
            let stored = open_object(path)?;
            let item = replica.layout.item_id();
            check_object(&stored, item, &manifest.disks, position, *owner, path)?;
            if stored.content() == content {
                return replica.durable.sync_folder(&replica.layout.journal());
            }
            return Err(StoreError::new(
                ErrorKind::Conflict,
                format!(
                    "position {} of replica {} holds another cycle already: look at the state before sending on",
                    position.0,
                    replica.layout.item().display()
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
            replica.layout.item().display(),
            base.0,
            head.0,
            head.next().0
        ),
    )
}

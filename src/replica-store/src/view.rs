//! All disks as of one position: `base + journal (base_position, position]`.
//!
//! Why a view stays right while the applier moves base from b to q ≤ position: what it writes to
//! base lies in ranges that the journal (b, q] changes, and those the view reads from the journal,
//! not from base. Once the applier has removed (b, q] the view finds an object missing, reads the
//! manifest again and goes on with base at q. When q goes *past* the position (nobody holds it),
//! the applier has raised `floor` in the manifest before its first write; the view looks after
//! each read, so it answers `Expired`, never bytes of another time.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use uuid::Uuid;

use crate::base;
use crate::error::{ErrorKind, Result, StoreError};
use crate::frames::FrameCache;
use crate::model::{DiskSpec, Position};
use crate::overlay::{Overlay, Source};
use crate::replica::{BaseState, Manifest, Replica};

/// How often a read tries again when the applier overtakes it.
const RACES: usize = 100;

#[derive(Debug)]
pub(crate) struct View {
    replica: Replica,
    id: Uuid,
    disks: Vec<DiskSpec>,
    position: Position,
    bases: Vec<File>,
    snapshot: RwLock<Arc<Snapshot>>,
    frames: FrameCache,
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Snapshot {
    base: Position,
    overlay: Overlay,
}

/// The manifest that was last looked at. The open file keeps its inode number from being reused.
#[derive(Debug)]
struct Seen {
    #[cfg_attr(not(unix), allow(dead_code))]
    file: File,
}

impl View {
    /// `None`: the head.
    pub(crate) fn open(replica: &Replica, position: Option<Position>) -> Result<View> {
        let (manifest, snapshot, position) = take_snapshot(replica, position, None)?;
        let mut bases = Vec::with_capacity(manifest.disks.len());
        for disk in &manifest.disks {
            let path = replica.layout.base(disk.id);
            let file = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
            let length = file
                .metadata()
                .map_err(|error| StoreError::io("inspect", &path, error))?
                .len();
            if length < base::padded_size(disk)? {
                return Err(StoreError::corrupt(&path, "it is shorter than its disk"));
            }
            bases.push(file);
        }
        let view = View {
            replica: replica.clone(),
            id: manifest.id,
            disks: manifest.disks,
            position,
            bases,
            snapshot: RwLock::new(Arc::new(snapshot)),
            frames: FrameCache::default(),
            seen: Mutex::new(None),
        };
        view.check_kept()?;
        Ok(view)
    }

    pub(crate) fn disks(&self) -> &[DiskSpec] {
        &self.disks
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    pub(crate) fn read(&self, disk: Uuid, offset: u64, length: usize) -> Result<Vec<u8>> {
        let (index, spec) = base::find(&self.disks, disk)?;
        base::check_range(spec, offset, length)?;
        let mut buf = vec![0u8; length];
        for _ in 0..RACES {
            let snapshot = self
                .snapshot
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let read = self.read_with(&snapshot, index, offset, &mut buf);
            self.check_kept()?;
            match read {
                Ok(()) => return Ok(buf),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let (_, fresh, _) =
                        take_snapshot(&self.replica, Some(self.position), Some(self.id))?;
                    if fresh.base == snapshot.base {
                        return Err(error);
                    }
                    *self
                        .snapshot
                        .write()
                        .unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::new(
            ErrorKind::Io,
            "the applier overtakes every read: try again",
        ))
    }

    fn read_with(
        &self,
        snapshot: &Snapshot,
        index: usize,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let path = self.replica.layout.base(self.disks[index].id);
        let overlay = &snapshot.overlay;
        for (range, source) in overlay.disks[index].cover(offset..offset + buf.len() as u64) {
            let start = (range.start - offset) as usize;
            let length = (range.end - range.start) as usize;
            let out = &mut buf[start..start + length];
            match source {
                None => base::read(&self.bases[index], &path, range.start, out)?,
                Some(Source::Zeroes) => out.fill(0),
                Some(Source::Frame { object, frame, at }) => {
                    let object = &overlay.objects[object as usize];
                    let raw = self.frames.read(object, frame)?;
                    let at = at as usize;
                    let piece = raw.get(at..at + length).ok_or_else(|| {
                        StoreError::corrupt(&object.path, "an entry lies outside its frame")
                    })?;
                    out.copy_from_slice(piece);
                }
            }
        }
        Ok(())
    }

    /// Whether the applier has left the position alone up to now.
    fn check_kept(&self) -> Result<()> {
        let path = self.replica.layout.manifest();
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.replica.missing());
            }
            other => other.map_err(|error| StoreError::io("open", &path, error))?,
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen
            .as_ref()
            .is_some_and(|seen| same_file(&seen.file, &file))
        {
            return Ok(());
        }
        let manifest = self.replica.manifest()?;
        check_position(&self.replica, &manifest, self.position, Some(self.id))?;
        *seen = Some(Seen { file });
        Ok(())
    }
}

#[cfg(unix)]
fn same_file(a: &File, b: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_a: &File, _b: &File) -> bool {
    false
}

fn check_position(
    replica: &Replica,
    manifest: &Manifest,
    position: Position,
    id: Option<Uuid>,
) -> Result<Position> {
    if id.is_some_and(|id| id != manifest.id) {
        return Err(replica.missing());
    }
    match manifest.base {
        BaseState::Complete {
            position: base,
            floor,
        } if floor <= position => Ok(base),
        BaseState::Complete { .. } => Err(StoreError::new(
            ErrorKind::Expired,
            format!(
                "position {} of replica {} was retired: choose a younger recovery point, and pin it while it is used",
                position.0,
                replica.layout.item().display()
            ),
        )),
        _ => Err(StoreError::new(
            ErrorKind::NotFound,
            format!(
                "replica {} has no recovery points yet: initial replication has not finished",
                replica.layout.item().display()
            ),
        )),
    }
}

fn take_snapshot(
    replica: &Replica,
    position: Option<Position>,
    id: Option<Uuid>,
) -> Result<(Manifest, Snapshot, Position)> {
    for _ in 0..RACES {
        let (manifest, journal) = replica.settled()?;
        let head = journal.last_key_value().map(|(head, _)| *head);
        let base_position = match manifest.base {
            BaseState::Complete { position, .. } => position,
            _ => Position::BASE,
        };
        let head = head.unwrap_or(base_position);
        let wanted = position.unwrap_or(head);
        let base = check_position(replica, &manifest, wanted, id)?;
        if wanted > head {
            return Err(StoreError::corrupt(
                &replica.layout.journal(),
                format!("position {} is missing", wanted.0),
            ));
        }
        match merge(replica, &manifest, base, wanted, &journal) {
            Ok(overlay) => return Ok((manifest, Snapshot { base, overlay }, wanted)),
            // An object went away between listing and opening: the applier was here.
            Err(error)
                if error.kind() == ErrorKind::NotFound && replica.manifest()? != manifest => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::new(
        ErrorKind::Io,
        "the applier overtakes every attempt to open the view: try again",
    ))
}

/// Merges the journal (base, to].
pub(crate) fn merge(
    replica: &Replica,
    manifest: &Manifest,
    base: Position,
    to: Position,
    journal: &crate::replica::JournalNames,
) -> Result<Overlay> {
    let mut overlay = Overlay::new(manifest.disks.len());
    for (position, (generation, path)) in journal {
        if *position > base && *position <= to {
            let place = (*position, *generation);
            overlay.add(replica.layout.item_id(), &manifest.disks, place, path)?;
        }
    }
    Ok(overlay)
}

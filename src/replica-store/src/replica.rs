//! What is stored of one replica, and the rules of changing it: lock, generation, manifest.
//!
//! Every mutation runs inside [`Replica::locked`]: it holds the OS lock and has compared the stored
//! generation with the writer's own, so a stale writer can't change a byte, however late its call
//! comes. The manifest says how far base is. While the applier moves base it first raises `floor`:
//! positions below it are given up, and whoever still shows one finds out before it believes a read.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::durable::{Durable, LockGuard, TEMPORARY};
use crate::error::{ErrorKind, Result, StoreError};
use crate::layout::{Layout, parse_journal_name};
use crate::model::{DiskSpec, Generation, Pin, Position, RecoveryPoint, ReplicaState};
use crate::stored;

pub(crate) const KIND_MANIFEST: &str = "manifest";
pub(crate) const KIND_GENERATION: &str = "generation";
pub(crate) const KIND_POINT: &str = "point";
pub(crate) const KIND_PIN: &str = "pin";

/// Disks and how far base is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// Made with the replica: a deleted and re-created one is another, whatever its name.
    pub(crate) id: Uuid,
    pub(crate) item: String,
    pub(crate) disks: Vec<DiskSpec>,
    pub(crate) base: BaseState,
}

/// How far base is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub(crate) enum BaseState {
    Empty,
    Partial,
    Complete {
        /// Base holds everything up to here.
        position: Position,
        /// Base may hold parts of everything up to here: equal to `position` when at rest.
        floor: Position,
    },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct StoredGeneration {
    pub(crate) generation: Generation,
}

/// How often a reader tries again when the applier moves things under it.
const RACES: usize = 100;

/// Journal objects by position.
pub(crate) type JournalNames = BTreeMap<Position, (Generation, PathBuf)>;

/// One replica in a folder. Synchronous; the public types call it from blocking threads.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) durable: Durable,
    pub(crate) layout: Layout,
}

/// Proof that the lock is held and the generation was compared.
pub(crate) struct Locked<'a> {
    pub(crate) replica: &'a Replica,
    _guard: LockGuard,
}

impl Replica {
    /// Holds the lock for `act`, as the writer of this generation.
    pub(crate) fn locked<T>(
        &self,
        generation: Generation,
        act: impl FnOnce(&Locked<'_>) -> Result<T>,
    ) -> Result<T> {
        let guard = self.durable.lock(&self.layout.lock(), false)?;
        self.check_generation(generation)?;
        act(&Locked {
            replica: self,
            _guard: guard,
        })
    }

    /// Holds the lock for `act`, as somebody who changes neither base nor journal.
    pub(crate) fn locked_by_reader<T>(
        &self,
        act: impl FnOnce(&Locked<'_>) -> Result<T>,
    ) -> Result<T> {
        let guard = self.durable.lock(&self.layout.lock(), false)?;
        act(&Locked {
            replica: self,
            _guard: guard,
        })
    }

    pub(crate) fn stored_generation(&self) -> Result<Option<Generation>> {
        let path = self.layout.generation();
        let stored: Option<StoredGeneration> = stored::read(KIND_GENERATION, &path)?;
        Ok(stored.map(|stored| stored.generation))
    }

    fn check_generation(&self, generation: Generation) -> Result<()> {
        match self.stored_generation()? {
            Some(stored) if stored == generation => Ok(()),
            Some(stored) => Err(fenced(&self.layout, generation, stored)),
            None => Err(self.missing()),
        }
    }

    pub(crate) fn manifest(&self) -> Result<Manifest> {
        self.find_manifest()?.ok_or_else(|| self.missing())
    }

    pub(crate) fn find_manifest(&self) -> Result<Option<Manifest>> {
        let path = self.layout.manifest();
        let Some(manifest): Option<Manifest> = stored::read(KIND_MANIFEST, &path)? else {
            return Ok(None);
        };
        let sane = match manifest.base {
            BaseState::Complete { position, floor } => position <= floor,
            _ => true,
        };
        if !sane || manifest.item != self.layout.item_id() {
            return Err(StoreError::corrupt(&path, "it contradicts itself"));
        }
        Ok(Some(manifest))
    }

    pub(crate) fn missing(&self) -> StoreError {
        StoreError::new(
            ErrorKind::NotFound,
            format!(
                "no replica at {}: it was removed, or replication never began",
                self.layout.item().display()
            ),
        )
    }

    /// Objects younger than base, without gaps. Older ones are leftovers of a cut applier.
    pub(crate) fn journal(&self, base: Position) -> Result<JournalNames> {
        let folder = self.layout.journal();
        let mut names = JournalNames::new();
        for (name, path) in list(&folder)? {
            let Some((generation, position)) = parse_journal_name(&name) else {
                continue;
            };
            if position > base && names.insert(position, (generation, path)).is_some() {
                return Err(StoreError::corrupt(
                    &folder,
                    format!("position {} is there twice", position.0),
                ));
            }
        }
        for (expected, found) in (base.0 + 1..).zip(names.keys()) {
            if found.0 != expected {
                return Err(StoreError::corrupt(
                    &folder,
                    format!("position {expected} is missing"),
                ));
            }
        }
        Ok(names)
    }

    pub(crate) fn head(&self, base: Position) -> Result<Position> {
        let names = self.journal(base)?;
        Ok(names.last_key_value().map_or(base, |(head, _)| *head))
    }

    pub(crate) fn state(&self) -> Result<ReplicaState> {
        let (manifest, journal) = self.settled()?;
        Ok(match manifest.base {
            BaseState::Empty => ReplicaState::Empty,
            BaseState::Partial => ReplicaState::Partial,
            BaseState::Complete { position, .. } => ReplicaState::Complete {
                base_position: position,
                head_position: journal.last_key_value().map_or(position, |(head, _)| *head),
            },
        })
    }

    /// Manifest and journal that belong together, without the lock: the applier removes objects
    /// only after the manifest says so, hence the listing is good when the manifest did not change.
    pub(crate) fn settled(&self) -> Result<(Manifest, JournalNames)> {
        for _ in 0..RACES {
            let before = self.manifest()?;
            let journal = match before.base {
                BaseState::Complete { position, .. } => self.journal(position),
                _ => Ok(JournalNames::new()),
            };
            let after = self.manifest()?;
            if before == after {
                return Ok((after, journal?));
            }
        }
        Err(StoreError::new(
            ErrorKind::Io,
            format!(
                "replica {} changes faster than it can be read: try again",
                self.layout.item().display()
            ),
        ))
    }

    /// Points of a complete replica, oldest first, with their files.
    pub(crate) fn points(&self) -> Result<Vec<(PathBuf, RecoveryPoint)>> {
        let BaseState::Complete { .. } = self.manifest()?.base else {
            return Ok(Vec::new());
        };
        let mut points = Vec::new();
        for (_, path) in list(&self.layout.points())? {
            // It may have been retired since the listing.
            if let Some(point) = stored::read::<RecoveryPoint>(KIND_POINT, &path)? {
                points.push((path, point));
            }
        }
        // Floor is read after the points: what a racing applier has given up is not shown.
        let BaseState::Complete { floor, .. } = self.manifest()?.base else {
            return Ok(Vec::new());
        };
        points.retain(|(_, point)| point.position >= floor);
        points.sort_by_key(|(_, point)| (point.position, point.time_unix_ms, point.id));
        Ok(points)
    }

    pub(crate) fn pins(&self) -> Result<Vec<Pin>> {
        let mut pins = Vec::new();
        for (_, path) in list(&self.layout.pins())? {
            if let Some(pin) = stored::read(KIND_PIN, &path)? {
                pins.push(pin);
            }
        }
        pins.sort_by(|a: &Pin, b: &Pin| a.owner.cmp(&b.owner));
        Ok(pins)
    }
}

impl Locked<'_> {
    pub(crate) fn put_manifest(&self, manifest: &Manifest) -> Result<()> {
        self.put(&self.replica.layout.manifest(), KIND_MANIFEST, manifest)
    }

    pub(crate) fn put<T: Serialize>(&self, path: &Path, kind: &str, value: &T) -> Result<()> {
        self.replica
            .durable
            .replace(path, &stored::encode(kind, value)?)
    }

    /// Positions of a complete base; `Conflict` while initial replication is not finished.
    pub(crate) fn complete(&self) -> Result<(Manifest, Position, Position)> {
        let manifest = self.replica.manifest()?;
        match manifest.base {
            BaseState::Complete { position, floor } => Ok((manifest, position, floor)),
            _ => Err(StoreError::new(
                ErrorKind::Conflict,
                format!(
                    "replica {} has no complete base yet: finish initial replication first",
                    self.replica.layout.item().display()
                ),
            )),
        }
    }

    /// Removes temporaries that a killed writer left.
    pub(crate) fn sweep(&self) -> Result<()> {
        let layout = &self.replica.layout;
        for folder in [
            layout.item().to_owned(),
            layout.journal(),
            layout.points(),
            layout.pins(),
        ] {
            let stale = list_all(&folder)?
                .into_iter()
                .filter(|(name, _)| name.starts_with(TEMPORARY))
                .map(|(_, path)| path)
                .collect::<Vec<_>>();
            self.replica.durable.remove_files(&folder, &stale)?;
        }
        Ok(())
    }
}

pub(crate) fn fenced(layout: &Layout, own: Generation, stored: Generation) -> StoreError {
    StoreError::new(
        ErrorKind::Fenced,
        format!(
            "replica {} belongs to generation {}, this writer has {}: another engine took over, stop replicating",
            layout.item().display(),
            stored.0,
            own.0
        ),
    )
}

/// Names and paths in a folder without temporaries, sorted. A missing folder is empty.
pub(crate) fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut all = list_all(folder)?;
    all.retain(|(name, _)| !name.starts_with(TEMPORARY));
    Ok(all)
}

fn list_all(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |error| StoreError::io("list", folder, error);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push((name, entry.path()));
        }
    }
    names.sort();
    Ok(names)
}

//! What is stored of one replica, and the rules of changing it: section, generation, manifest.
//!
//! Every mutation runs inside [`Replica::locked`]: it is in the section and has compared the stored
//! generation with the writer's own. Where the medium excludes for certain (a folder), a stale writer
//! so can't change a byte, however late its call comes. Where it does not (Azure Storage), three things
//! make a stale writer harmless: the manifest is replaced under its version, journal objects and points
//! carry the generation and count only where the manifest's epochs say so, and base compares the fence.
//! What was acknowledged counts: [`Locked::confirm`] looks at the generation once more *after* the
//! write, and a take-over changes the generation *before* it looks at the journal.
//!
//! The manifest says how far base is. While the applier moves base it first raises `floor`: positions
//! below it are given up, and whoever still shows one finds out before it believes a read.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use replication_log::KeyRing;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::compact::Compaction;
use crate::error::{ErrorKind, Outcome, Result, StoreError};
use crate::layout::{self, ObjectName};
use crate::manifest::{BaseState, Manifest};
use crate::medium::{BaseWrite, Fence, Guard, Medium, Newer, Put, Section, Version};
use crate::model::{Generation, Pin, Position, ReplicaState};
use crate::points::PointCache;
use crate::stored;

pub(crate) const KIND_MANIFEST: &str = "manifest";
pub(crate) const KIND_GENERATION: &str = "generation";
pub(crate) const KIND_POINT: &str = "point";
pub(crate) const KIND_PIN: &str = "pin";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredGeneration {
    pub(crate) generation: Generation,
    /// The replica was removed by the owner of this generation: the tombstone that keeps a stale
    /// engine from making it anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) removed: bool,
}

/// An object as it was last seen.
#[derive(Clone, Debug)]
pub(crate) struct Seen<T> {
    pub(crate) value: Arc<T>,
    pub(crate) version: Version,
}

/// How often a reader or a conditional write tries again when others move things under it.
pub(crate) const RACES: usize = 100;

/// A journal object that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JournalName {
    /// The first position that it has; its own, unless it is a merged one.
    pub(crate) first: Position,
    /// Who wrote it.
    pub(crate) generation: Generation,
    pub(crate) name: String,
    /// Bytes in the store.
    pub(crate) length: u64,
}

/// The objects that count, by the last position that they have; each begins behind the one before.
pub(crate) type JournalNames = BTreeMap<Position, JournalName>;

/// Base of a disk that is open for writing, and the fence that it was opened under.
type OpenBase = (Fence, Arc<dyn BaseWrite>);

/// One replica. Synchronous; the public types call it from blocking threads.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) medium: Arc<dyn Medium>,
    pub(crate) item_id: String,
    pub(crate) keys: RwLock<Arc<KeyRing>>,
    pub(crate) points: PointCache,
    pub(crate) compaction: Compaction,
    generation: Mutex<Option<Seen<StoredGeneration>>>,
    manifest: Mutex<Option<Seen<Manifest>>>,
    bases: Mutex<HashMap<Uuid, OpenBase>>,
    /// Short sections of one process do not meet, whatever the medium excludes.
    short: Mutex<()>,
}

/// Proof of being in the section with the generation compared.
pub(crate) struct Locked<'a> {
    pub(crate) replica: &'a Replica,
    generation: Option<Generation>,
    _guard: Box<dyn Guard>,
}

impl Replica {
    pub(crate) fn new(
        medium: Arc<dyn Medium>,
        item_id: &str,
        keys: Arc<KeyRing>,
        compaction: Compaction,
    ) -> Self {
        Replica {
            medium,
            item_id: item_id.to_owned(),
            keys: RwLock::new(keys),
            points: PointCache::default(),
            compaction,
            generation: Mutex::default(),
            manifest: Mutex::default(),
            bases: Mutex::default(),
            short: Mutex::default(),
        }
    }

    pub(crate) fn keys(&self) -> Arc<KeyRing> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.clone()
    }

    /// Where it is, for messages.
    pub(crate) fn place(&self) -> String {
        self.medium.describe("")
    }

    /// Enters the section for `act`, as the writer of this generation.
    pub(crate) fn locked<T>(
        &self,
        generation: Generation,
        act: impl FnOnce(&Locked<'_>) -> Result<T>,
    ) -> Result<T> {
        let _one = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        let guard = self.medium.enter(Section::Short, false)?;
        self.check_generation(generation)?;
        act(&Locked {
            replica: self,
            generation: Some(generation),
            _guard: guard,
        })
    }

    /// Enters the section for `act`, as somebody who changes neither base nor journal.
    pub(crate) fn locked_by_reader<T>(
        &self,
        act: impl FnOnce(&Locked<'_>) -> Result<T>,
    ) -> Result<T> {
        let _one = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        let guard = self.medium.enter(Section::Short, false)?;
        act(&Locked {
            replica: self,
            generation: None,
            _guard: guard,
        })
    }

    /// Enters the section in which only base is written, by several tasks at once.
    pub(crate) fn shared<T>(
        &self,
        generation: Generation,
        act: impl FnOnce(&Manifest) -> Result<T>,
    ) -> Result<T> {
        let _guard = self.medium.enter(Section::Shared, false)?;
        // The medium's fence refuses a stale writer: then it need not be looked for before each write.
        let known = self.medium.compares_fence().then(|| self.last_manifest());
        if let Some(manifest) = known.flatten() {
            return act(&manifest);
        }
        self.check_generation(generation)?;
        act(&self.manifest()?.value)
    }

    fn last_manifest(&self) -> Option<Arc<Manifest>> {
        let slot = self.manifest.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map(|seen| seen.value.clone())
    }

    pub(crate) fn stored_generation(&self) -> Result<Option<Seen<StoredGeneration>>> {
        self.look(
            &self.generation,
            KIND_GENERATION,
            layout::GENERATION,
            |_| true,
        )
    }

    pub(crate) fn check_generation(&self, generation: Generation) -> Result<()> {
        match self.stored_generation()?.map(|seen| *seen.value) {
            Some(stored) if stored.generation != generation => {
                Err(fenced(self, generation, stored.generation))
            }
            Some(stored) if !stored.removed => Ok(()),
            _ => Err(self.missing()),
        }
    }

    /// Who has passed a writer that base refuses: another owner, which is final, or another opening or round of this
    /// one, which is not.
    pub(crate) fn passed_by(&self, generation: Generation, error: StoreError) -> StoreError {
        if error.kind() != ErrorKind::Overtaken {
            return error;
        }
        match self.check_generation(generation) {
            Err(owner) if matches!(owner.kind(), ErrorKind::Fenced | ErrorKind::NotFound) => {
                match error.outcome() {
                    Outcome::NotDone => owner,
                    Outcome::Unknown => owner.unknown(),
                }
            }
            _ => error,
        }
    }

    pub(crate) fn manifest(&self) -> Result<Seen<Manifest>> {
        self.find_manifest()?.ok_or_else(|| self.missing())
    }

    pub(crate) fn find_manifest(&self) -> Result<Option<Seen<Manifest>>> {
        let found = self.look(
            &self.manifest,
            KIND_MANIFEST,
            layout::MANIFEST,
            |manifest: &Manifest| manifest.is_sane() && manifest.item == self.item_id,
        )?;
        let base_at = found.as_ref().map(|seen| seen.value.base_at.as_deref());
        match base_at {
            Some(base_at) if base_at.is_some() != self.medium.base_place().is_some() => {
                Err(crate::apart::elsewhere(&self.place(), base_at))
            }
            _ => Ok(found),
        }
    }

    /// Reads an object unless it still is what was seen.
    fn look<T: DeserializeOwned>(
        &self,
        slot: &Mutex<Option<Seen<T>>>,
        kind: &str,
        name: &str,
        is_sane: impl Fn(&T) -> bool,
    ) -> Result<Option<Seen<T>>> {
        let known = slot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|seen| (seen.value.clone(), seen.version.clone()));
        let found = match &known {
            Some((_, version)) => self.medium.get_newer(name, version)?,
            None => match self.medium.get(name)? {
                Some((content, version)) => Newer::Changed(content, version),
                None => Newer::Gone,
            },
        };
        let fresh = match found {
            Newer::Unchanged => return Ok(known.map(|(value, version)| Seen { value, version })),
            Newer::Gone => None,
            Newer::Changed(content, version) => {
                let place = self.medium.describe(name);
                let value: T = stored::decode(kind, &place, &content)?;
                if !is_sane(&value) {
                    return Err(StoreError::corrupt(&place, "it contradicts itself"));
                }
                Some((Arc::new(value), version))
            }
        };
        let seen = |(value, version)| Seen { value, version };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = fresh.clone().map(seen);
        Ok(fresh.map(seen))
    }

    pub(crate) fn missing(&self) -> StoreError {
        StoreError::new(
            ErrorKind::NotFound,
            format!(
                "no replica at {}: it was removed, or replication never began",
                self.place()
            ),
        )
    }

    /// Objects that count and are younger than base, without gaps. Older ones are leftovers of a cut
    /// applier, others those of a writer that was superseded, or are merged into one that counts.
    pub(crate) fn journal(&self, manifest: &Manifest, base: Position) -> Result<JournalNames> {
        let mut names = JournalNames::new();
        let place = || self.medium.describe(layout::JOURNAL);
        for listed in self.medium.list(layout::JOURNAL)? {
            let Some(named) = ObjectName::parse(&listed.name) else {
                continue;
            };
            let position = named.position();
            let (counts, first, generation) = match named {
                ObjectName::Cycle(generation, _) => {
                    let owner = manifest.epoch_at(position);
                    let counts = owner.is_none_or(|owner| owner == generation)
                        && manifest.span_at(position).is_none();
                    (counts, position, generation)
                }
                ObjectName::Merged(span) => (
                    manifest.span_at(position) == Some(&span),
                    span.first,
                    span.generation,
                ),
            };
            if position <= base || !counts {
                continue;
            }
            let object = JournalName {
                first,
                generation,
                name: format!("{}{}", layout::JOURNAL, listed.name),
                length: listed.length,
            };
            if names.insert(position, object).is_some() {
                return Err(StoreError::corrupt(
                    &place(),
                    format!("position {} is there twice", position.0),
                ));
            }
        }
        let mut before = base;
        for (last, object) in &names {
            if object.first != before.next() {
                return Err(StoreError::corrupt(
                    &place(),
                    format!("position {} is missing", before.next().0),
                ));
            }
            before = *last;
        }
        Ok(names)
    }

    pub(crate) fn head(&self, manifest: &Manifest, base: Position) -> Result<Position> {
        let names = self.journal(manifest, base)?;
        Ok(names.last_key_value().map_or(base, |(head, _)| *head))
    }

    pub(crate) fn state(&self) -> Result<ReplicaState> {
        let (manifest, journal) = self.settled()?;
        Ok(match manifest.value.base {
            BaseState::Empty => ReplicaState::Empty,
            BaseState::Partial => ReplicaState::Partial,
            BaseState::Complete { position, .. } => ReplicaState::Complete {
                base_position: position,
                head_position: journal.last_key_value().map_or(position, |(head, _)| *head),
            },
        })
    }

    /// Manifest and journal that belong together, without the section: the applier removes objects
    /// only after the manifest says so, hence the listing is good when the manifest did not change.
    pub(crate) fn settled(&self) -> Result<(Seen<Manifest>, JournalNames)> {
        for _ in 0..RACES {
            let before = self.manifest()?;
            let journal = match before.value.complete() {
                Some((base, _)) => self.journal(&before.value, base),
                None => Ok(JournalNames::new()),
            };
            let after = self.manifest()?;
            if before.value == after.value {
                return Ok((after, journal?));
            }
        }
        Err(StoreError::new(
            ErrorKind::Io,
            format!(
                "replica {} changes faster than it can be read: try again",
                self.place()
            ),
        ))
    }

    pub(crate) fn pins(&self) -> Result<Vec<Pin>> {
        let mut pins = Vec::new();
        for listed in self.medium.list(layout::PINS)? {
            let name = format!("{}{}", layout::PINS, listed.name);
            if let Some((content, _)) = self.medium.get(&name)? {
                let place = self.medium.describe(&name);
                pins.push(stored::decode(KIND_PIN, &place, &content)?);
            }
        }
        pins.sort_by(|a: &Pin, b: &Pin| a.owner.cmp(&b.owner));
        Ok(pins)
    }

    /// Base of a disk, opened for writing under the manifest's fence and kept open.
    pub(crate) fn base(&self, manifest: &Manifest, disk: Uuid) -> Result<Arc<dyn BaseWrite>> {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((fence, base)) = bases.get(&disk)
            && *fence == manifest.fence
        {
            return Ok(base.clone());
        }
        let base = crate::base::open(self, manifest, disk)?;
        bases.insert(disk, (manifest.fence, base.clone()));
        Ok(base)
    }

    /// Forgets open bases: after one was made anew or removed.
    pub(crate) fn forget_bases(&self) {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        bases.clear();
    }
}

impl Locked<'_> {
    /// Of the writer; 0 for a reader.
    pub(crate) fn generation(&self) -> Generation {
        self.generation.unwrap_or_default()
    }

    /// Changes the manifest; `act` gives the new one, or `None` for no change, and is called again when
    /// somebody else was faster.
    pub(crate) fn change(
        &self,
        mut act: impl FnMut(&Manifest) -> Result<Option<Manifest>>,
    ) -> Result<Arc<Manifest>> {
        for _ in 0..RACES {
            let seen = self.replica.manifest()?;
            let Some(new) = act(&seen.value)? else {
                return Ok(seen.value);
            };
            if let Some(new) = self.replace_manifest(&seen, new)? {
                return Ok(new);
            }
            if let Some(generation) = self.generation {
                self.replica.check_generation(generation)?;
            }
        }
        Err(StoreError::new(
            ErrorKind::Io,
            format!(
                "the manifest of {} changes faster than it can be replaced: try again",
                self.replica.place()
            ),
        ))
    }

    /// Replaces the manifest that was seen; `None` when it is another by now.
    pub(crate) fn replace_manifest(
        &self,
        seen: &Seen<Manifest>,
        new: Manifest,
    ) -> Result<Option<Arc<Manifest>>> {
        let content = stored::encode(KIND_MANIFEST, &new)?;
        let medium = &self.replica.medium;
        match medium.replace(layout::MANIFEST, &content, &seen.version)? {
            Put::Refused => Ok(None),
            Put::Done(version) => Ok(Some(self.keep(new, version))),
        }
    }

    /// Writes the first manifest of a replica.
    pub(crate) fn put_manifest(&self, new: Manifest) -> Result<Option<Arc<Manifest>>> {
        let content = stored::encode(KIND_MANIFEST, &new)?;
        match self.replica.medium.put_new(layout::MANIFEST, &content)? {
            Put::Refused => Ok(None),
            Put::Done(version) => Ok(Some(self.keep(new, version))),
        }
    }

    fn keep(&self, new: Manifest, version: Version) -> Arc<Manifest> {
        let value = Arc::new(new);
        let seen = Seen {
            value: value.clone(),
            version,
        };
        let slot = &self.replica.manifest;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        value
    }

    /// After a write that is to be acknowledged: this generation still is the owner. Where sections
    /// exclude for certain that is known.
    pub(crate) fn confirm(&self) -> Result<()> {
        match self.generation {
            Some(generation) if self.replica.medium.compares_fence() => self
                .replica
                .check_generation(generation)
                .map_err(StoreError::unknown),
            _ => Ok(()),
        }
    }

    /// Refuses when the manifest is no longer this one: another opening or another owner came in between.
    pub(crate) fn is_at(&self, manifest: &Manifest) -> Result<()> {
        if let Some(generation) = self.generation {
            self.replica.check_generation(generation)?;
        }
        if *self.replica.manifest()?.value == *manifest {
            return Ok(());
        }
        Err(StoreError::new(
            ErrorKind::Overtaken,
            format!(
                "replica {} was opened again since, by another engine or another task of this one",
                self.replica.place()
            ),
        ))
    }

    /// Refuses when one of these disks is (again) a disk of the replica.
    pub(crate) fn is_without(&self, disks: &[Uuid]) -> Result<()> {
        if let Some(generation) = self.generation {
            self.replica.check_generation(generation)?;
        }
        let manifest = self.replica.manifest()?.value;
        let back = disks
            .iter()
            .find(|disk| manifest.stored_disk(**disk).is_some());
        match back {
            None => Ok(()),
            Some(disk) => Err(StoreError::new(
                ErrorKind::Overtaken,
                format!(
                    "disk {disk} of replica {} came back while its base was to be removed",
                    self.replica.place()
                ),
            )),
        }
    }

    /// Manifest and positions of a complete base; `Conflict` while initial replication is not finished.
    pub(crate) fn complete(&self) -> Result<(Seen<Manifest>, Position, Position)> {
        let manifest = self.replica.manifest()?;
        match manifest.value.complete() {
            Some((position, floor)) => Ok((manifest, position, floor)),
            None => Err(incomplete(self.replica)),
        }
    }
}

pub(crate) fn incomplete(replica: &Replica) -> StoreError {
    StoreError::new(
        ErrorKind::Conflict,
        format!(
            "replica {} has no complete base yet: finish initial replication first",
            replica.place()
        ),
    )
}

pub(crate) fn fenced(replica: &Replica, own: Generation, stored: Generation) -> StoreError {
    StoreError::new(
        ErrorKind::Fenced,
        format!(
            "replica {} belongs to generation {}, this writer has {}: another engine took over, stop replicating",
            replica.place(),
            stored.0,
            own.0
        ),
    )
}

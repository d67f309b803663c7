//! Background verification: every stored byte that a point needs is read again and checked.
//!
//! ```text
//! round:  journal objects, one by one ─► the head, disk by disk ─► result, next round
//!         every frame by its checksum     base and journal merged, compared with the block hashes
//!                                         that the engine keeps of what it sent
//! ```
//!
//! It goes on where it stopped: the place is in the store, with the findings, so a restart loses at most
//! one budget. Base carries no checksums of its own (it is a plain VHD that must boot); its proof are
//! the engine's hashes, see [`BlockCheck`]. Without them base is only read. A finding names disk, range,
//! object and the points that are affected; it ends nothing: the engine sends the range again with its
//! next cycle, and from there on points are whole.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use replication_log::journal::EntryData;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::manifest::Manifest;
use crate::medium::Put;
use crate::model::{Damage, DiskSpec, Generation, Position};
use crate::overlay::{Overlay, Source, check_identity, open_object};
use crate::replica::{JournalName, JournalNames, RACES, Replica};
use crate::stored;
use crate::view::{Show, View};

const KIND_VERIFIED: &str = "verified";
/// One read of the head.
const PIECE: u64 = 1 << 20;
/// How closely damage in a piece is looked at.
const BLOCK: u64 = 4096;
/// More findings than anyone reads.
const MAX_FINDINGS: usize = 1000;

/// Hashes of blocks that somebody keeps besides the store.
pub trait BlockCheck: Debug + Send + Sync {
    /// The position that the hashes reflect. They are used while that is the head.
    fn position(&self) -> Position;

    /// Ranges of the disk, inside `offset..offset + data.len()`, whose hashes are known and differ.
    fn differing(&self, disk: Uuid, offset: u64, data: &[u8]) -> Vec<Range<u64>>;
}

/// What is to be verified in one call.
#[derive(Clone, Debug)]
pub struct VerifyRequest {
    /// Stop after about so many bytes were read, and go on there next time.
    pub budget_bytes: u64,
    /// Present time, for the result.
    pub now_unix_ms: i64,
    /// What base is compared with.
    pub check: Option<Arc<dyn BlockCheck>>,
}

/// How far verification is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Of which replica.
    replica: Uuid,
    /// The round that is under way.
    pub round: Option<VerifyRound>,
    /// The last round that came to its end.
    pub last: Option<VerifyRound>,
}

/// One round over everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyRound {
    /// When it began.
    pub started_unix_ms: i64,
    /// When it ended; 0 while it is under way.
    pub finished_unix_ms: i64,
    /// Journal objects up to here were read: points up to here are covered.
    pub through: Position,
    /// Where the head is read next: disk and offset.
    cursor: Option<(Uuid, u64)>,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Whether all of the head was compared with block hashes, not only read.
    pub compared: bool,
    /// What is wrong (at most 1,000).
    pub findings: Vec<Finding>,
}

/// Something that can't be read, or is not what was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Where. Sending the range again with the next cycle heals what comes after.
    #[serde(flatten)]
    pub damage: Damage,
    /// Recovery points that show it.
    pub points: Vec<Uuid>,
}

impl VerifyRound {
    /// Drops findings that no disk can have: the file may have been written by anybody.
    fn keep_possible(&mut self) {
        self.findings.truncate(MAX_FINDINGS);
        self.findings.retain(|finding| {
            let damage = &finding.damage;
            let end = damage.offset.checked_add(damage.length);
            damage.length > 0 && end.is_some_and(|end| end <= crate::base::MAX_DISK)
        });
    }
}

/// What was found, before the points that it affects are known.
struct Found {
    damage: Damage,
    place: Place,
}

enum Place {
    /// This frame of the object at a position; `None`: all of it.
    Object(Position, Option<u32>),
    Base,
}

/// See [`crate::ReplicaReader::verification`].
pub(crate) fn load(replica: &Replica) -> Result<Option<Verification>> {
    let id = replica.manifest()?.value.id;
    let Some((content, _)) = replica.medium.get(layout::VERIFIED)? else {
        return Ok(None);
    };
    let place = replica.medium.describe(layout::VERIFIED);
    match stored::decode::<Verification>(KIND_VERIFIED, &place, &content) {
        Ok(mut known) if known.replica == id => {
            let rounds = known.round.iter_mut().chain(&mut known.last);
            rounds.for_each(VerifyRound::keep_possible);
            Ok(Some(known))
        }
        Ok(_) => Ok(None),
        // It is only a result: a new round makes it anew.
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        Err(error) => Err(error),
    }
}

fn store(replica: &Replica, generation: Generation, state: &Verification) -> Result<()> {
    let content = stored::encode(KIND_VERIFIED, state)?;
    replica.locked(generation, |_| {
        for _ in 0..RACES {
            let put = match replica.medium.get(layout::VERIFIED)? {
                Some((_, seen)) => replica.medium.replace(layout::VERIFIED, &content, &seen)?,
                None => replica.medium.put_new(layout::VERIFIED, &content)?,
            };
            if let Put::Done(_) = put {
                return Ok(());
            }
        }
        Err(StoreError::new(
            ErrorKind::Io,
            "another process writes results of verification all the time: try again",
        ))
    })
}

/// See [`crate::ReplicaWriter::verify`].
pub(crate) fn verify(
    replica: &Arc<Replica>,
    generation: Generation,
    request: &VerifyRequest,
) -> Result<Verification> {
    replica.check_generation(generation)?;
    let manifest = replica.manifest()?.value;
    if manifest.complete().is_none() {
        return Err(crate::replica::incomplete(replica));
    }
    let mut state = load(replica)?.unwrap_or_default();
    state.replica = manifest.id;
    let mut round = state.round.take().unwrap_or_else(|| VerifyRound {
        started_unix_ms: request.now_unix_ms,
        compared: true,
        ..VerifyRound::default()
    });
    let mut work = Work {
        replica,
        budget: request.budget_bytes.max(1),
        found: Vec::new(),
    };
    let is_finished = work.journal(&mut round)? && work.head(&mut round, request)?;
    let found = std::mem::take(&mut work.found);
    let findings = with_points(replica, &found)?;
    round.findings.extend(findings);
    round.findings.truncate(MAX_FINDINGS);
    if is_finished {
        round.finished_unix_ms = request.now_unix_ms;
        state.last = Some(round);
    } else {
        state.round = Some(round);
    }
    store(replica, generation, &state)?;
    Ok(state)
}

struct Work<'a> {
    replica: &'a Arc<Replica>,
    budget: u64,
    found: Vec<Found>,
}

impl Work<'_> {
    fn spend(&mut self, round: &mut VerifyRound, bytes: u64) {
        round.read_bytes = round.read_bytes.saturating_add(bytes);
        self.budget = self.budget.saturating_sub(bytes);
    }

    fn find(&mut self, damage: Damage, place: Place) {
        if self.found.len() < MAX_FINDINGS {
            self.found.push(Found { damage, place });
        }
    }

    /// Reads the objects that the round has not read yet; says whether there are none left.
    fn journal(&mut self, round: &mut VerifyRound) -> Result<bool> {
        for _ in 0..RACES {
            if let Some(done) = self.objects(round)? {
                return Ok(done);
            }
        }
        Ok(false)
    }

    /// As [`Work::journal`]; `None` when objects were moved into base, or merged, meanwhile.
    fn objects(&mut self, round: &mut VerifyRound) -> Result<Option<bool>> {
        let (seen, journal) = self.replica.settled()?;
        let manifest = &seen.value;
        let mut set = manifest.disks.clone();
        for (position, object) in &journal {
            if *position <= round.through {
                continue;
            }
            if self.budget == 0 {
                return Ok(Some(false));
            }
            match self.object(round, manifest, *position, object, &mut set) {
                Ok(()) => {}
                Err(error)
                    if error.kind() == ErrorKind::NotFound
                        && self.replica.manifest()?.value != seen.value =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
            round.through = *position;
        }
        if round.through == Position::BASE {
            round.through = manifest.complete().map_or(Position::BASE, |(base, _)| base);
        }
        Ok(Some(true))
    }

    fn object(
        &mut self,
        round: &mut VerifyRound,
        manifest: &Manifest,
        position: Position,
        object: &JournalName,
        set: &mut Vec<DiskSpec>,
    ) -> Result<()> {
        let place = self.replica.medium.describe(&object.name);
        let damage = |disk: Uuid, offset: u64, length: u64| Damage {
            disk,
            offset,
            length,
            place: place.clone(),
            position,
        };
        let opened = open_object(self.replica, &object.name).and_then(|reader| {
            check_identity(self.replica, &reader, position, object)?;
            Ok(reader)
        });
        let reader = match opened {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                for disk in set.iter() {
                    let all = damage(disk.id, 0, disk.size_bytes);
                    self.find(all, Place::Object(position, None));
                }
                return Ok(());
            }
            other => other?,
        };
        *set = crate::cycle::named(manifest, reader.present_disks());
        for (index, frame) in (0u32..).zip(reader.frames()) {
            self.spend(round, u64::from(frame.stored_length()));
            let error = match reader.read_frame(index) {
                Ok(_) => continue,
                Err(error) => StoreError::journal(&place, error),
            };
            if error.kind() != ErrorKind::Corrupt {
                return Err(error);
            }
            for (at, disk) in reader.header().disks.iter().enumerate() {
                for entry in reader.entries(at) {
                    if matches!(entry.data, EntryData::Frame { frame, .. } if frame == index) {
                        let range = damage(disk.id, entry.offset, entry.length);
                        self.find(range, Place::Object(position, Some(index)));
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the head from where the round stopped; says whether it came to the end.
    fn head(&mut self, round: &mut VerifyRound, request: &VerifyRequest) -> Result<bool> {
        let view = View::open(self.replica, Show::Head)?;
        let check = request
            .check
            .as_ref()
            .filter(|check| check.position() == view.position());
        let mut disks = view.disks().to_vec();
        disks.sort_by_key(|disk| disk.id);
        for disk in disks {
            let mut at = match round.cursor {
                Some((cursor, _)) if disk.id < cursor => continue,
                Some((cursor, offset)) if disk.id == cursor => offset,
                _ => 0,
            };
            while at < disk.size_bytes {
                round.cursor = Some((disk.id, at));
                if self.budget == 0 {
                    return Ok(false);
                }
                let length = PIECE.min(disk.size_bytes - at);
                match view.read(disk.id, at, length as usize) {
                    Ok(data) => match check {
                        Some(check) => self.compare(&view, check.as_ref(), &disk, at, &data),
                        None => round.compared = false,
                    },
                    Err(error) => match error.kind() {
                        ErrorKind::Corrupt => {
                            self.look_closer(&view, check, &disk, at..at + length, round)?;
                        }
                        // Base has moved past the head of then: the next call goes on.
                        ErrorKind::Expired | ErrorKind::NotFound => return Ok(false),
                        _ => return Err(error),
                    },
                }
                self.spend(round, length);
                at += length;
            }
            round.cursor = Some((disk.id, at));
        }
        Ok(true)
    }

    fn base_damage(&self, view: &View, disk: &DiskSpec, range: &Range<u64>) -> Damage {
        Damage {
            disk: disk.id,
            offset: range.start,
            length: range.end - range.start,
            place: self.replica.medium.describe(&layout::base(disk.id)),
            position: view.position(),
        }
    }

    fn compare(
        &mut self,
        view: &View,
        check: &dyn BlockCheck,
        disk: &DiskSpec,
        at: u64,
        data: &[u8],
    ) {
        for range in check.differing(disk.id, at, data) {
            let damage = self.base_damage(view, disk, &range);
            self.find(damage, Place::Base);
        }
    }

    /// Goes through a range block by block of which something can't be read. A block that no damaged
    /// object explains is base's.
    fn look_closer(
        &mut self,
        view: &View,
        check: Option<&Arc<dyn BlockCheck>>,
        disk: &DiskSpec,
        range: Range<u64>,
        round: &VerifyRound,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let block = at..range.end.min(at + BLOCK);
            match view.read(disk.id, at, (block.end - at) as usize) {
                Ok(data) => {
                    if let Some(check) = check {
                        self.compare(view, check.as_ref(), disk, at, &data);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    let known = self.found.iter().map(|found| &found.damage);
                    let known = known.chain(round.findings.iter().map(|finding| &finding.damage));
                    let is_known = known.into_iter().any(|damage| {
                        damage.disk == disk.id
                            && damage.offset < block.end
                            && block.start < damage.offset + damage.length
                    });
                    if !is_known && view.is_base(disk.id, &block) {
                        let damage = self.base_damage(view, disk, &block);
                        self.find(damage, Place::Base);
                    }
                }
                Err(error) => return Err(error),
            }
            at = block.end;
        }
        Ok(())
    }
}

/// Which points show what was found: the journal is merged once more, and at each point it is looked
/// where the range comes from.
fn with_points(replica: &Replica, found: &[Found]) -> Result<Vec<Finding>> {
    let mut findings: Vec<Finding> = found
        .iter()
        .map(|found| Finding {
            damage: found.damage.clone(),
            points: Vec::new(),
        })
        .collect();
    if findings.is_empty() {
        return Ok(findings);
    }
    let points = replica.summaries()?;
    let (seen, journal): (_, JournalNames) = replica.settled()?;
    let manifest = &seen.value;
    let (base, _) = manifest
        .complete()
        .ok_or_else(|| crate::replica::incomplete(replica))?;
    let mut overlay = Overlay::merge(replica, manifest, base, base, &journal)?;
    let mut at = base;
    for point in &points {
        overlay.extend(replica, manifest, at, point.position, &journal)?;
        at = at.max(point.position);
        for (found, finding) in found.iter().zip(&mut findings) {
            if overlay.set.iter().all(|disk| disk.id != found.damage.disk) {
                continue;
            }
            let range = found.damage.offset..found.damage.offset + found.damage.length;
            let shows = overlay
                .cover(found.damage.disk, range)
                .into_iter()
                .any(|(_, source)| found.place.is_source(&overlay, source));
            if shows {
                finding.points.push(point.id);
            }
        }
    }
    Ok(findings)
}

impl Place {
    fn is_source(&self, overlay: &Overlay, source: Option<Source>) -> bool {
        let position = |object: u32| overlay.objects.get(object as usize).map(|o| o.position);
        match (self, source) {
            (Place::Base, None) => true,
            (Place::Object(at, None), Some(Source::Lost { object })) => {
                position(object) == Some(*at)
            }
            (Place::Object(at, Some(wanted)), Some(Source::Frame { object, frame, .. })) => {
                position(object) == Some(*at) && frame == *wanted
            }
            _ => false,
        }
    }
}

/// See [`crate::ReplicaReader::verify_point`].
pub(crate) fn verify_view(view: &View, progress: &mut dyn FnMut(u64)) -> Result<Vec<Damage>> {
    let mut damaged: Vec<Damage> = Vec::new();
    for disk in view.disks().to_vec() {
        let mut at = 0;
        while at < disk.size_bytes {
            let length = PIECE.min(disk.size_bytes - at);
            match view.read(disk.id, at, length as usize) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    if damaged.len() < MAX_FINDINGS {
                        damaged.push(Damage {
                            disk: disk.id,
                            offset: at,
                            length,
                            place: error.to_string(),
                            position: view.position(),
                        });
                    }
                }
                Err(error) => return Err(error),
            }
            at += length;
            progress(length);
        }
    }
    Ok(damaged)
}

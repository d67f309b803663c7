//! Recovery points and the pins that hold them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::manifest::Manifest;
use crate::medium::{Listed, Put};
use crate::model::{Generation, Pin, PointKind, PointSelector, Position, RecoveryPoint};
use crate::replica::{KIND_PIN, KIND_POINT, Locked, RACES, Replica};
use crate::retention::{self, PointAge};
use crate::stored;

/// A point as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StoredPoint {
    #[serde(flatten)]
    pub(crate) point: RecoveryPoint,
    /// Who wrote it; 0 in points of the first release.
    #[serde(default)]
    pub(crate) generation: Generation,
    /// Time that replication ran until then, see [`crate::retention`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clock_ms: Option<i64>,
    /// For how long nobody may delete it, as promised when it was made.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) immutable_hours: u32,
}

fn is_zero(hours: &u32) -> bool {
    *hours == 0
}

/// What retention, pins and names need of a point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) id: Uuid,
    pub(crate) time_unix_ms: i64,
    pub(crate) kind: PointKind,
    pub(crate) position: Position,
    generation: Generation,
    clock_ms: Option<i64>,
    immutable_hours: u32,
}

impl Summary {
    fn of(stored: &StoredPoint) -> Self {
        Summary {
            id: stored.point.id,
            time_unix_ms: stored.point.time_unix_ms,
            kind: stored.point.kind,
            position: stored.point.position,
            generation: stored.generation,
            clock_ms: stored.clock_ms,
            immutable_hours: stored.immutable_hours,
        }
    }

    /// What the name of an object says.
    fn of_name(name: &str) -> Option<Self> {
        let mut parts = name.splitn(3, '-');
        let time_unix_ms = parts.next()?.parse().ok()?;
        let position = Position(parts.next()?.parse().ok()?);
        let id = parts.next()?.parse().ok()?;
        Some(Summary {
            id,
            time_unix_ms,
            kind: PointKind::Crash,
            position,
            generation: Generation::default(),
            clock_ms: None,
            immutable_hours: 0,
        })
    }

    fn order(&self) -> (Position, i64, Uuid) {
        (self.position, self.time_unix_ms, self.id)
    }

    pub(crate) fn name(&self) -> String {
        layout::point(self.time_unix_ms, self.position, self.id)
    }

    pub(crate) fn age(&self) -> PointAge {
        PointAge {
            id: self.id,
            position: self.position,
            time_unix_ms: self.time_unix_ms,
            kind: self.kind,
            clock_ms: self.clock_ms,
            immutable_hours: self.immutable_hours,
        }
    }
}

/// A point in memory. Configurations of VMs may be large and seldom differ: points share them.
#[derive(Debug)]
struct Cached {
    summary: Summary,
    changed_bytes: u64,
    sent_bytes: u64,
    group_point_id: Option<Uuid>,
    vm_config: Arc<serde_json::Value>,
}

impl Cached {
    fn point(&self) -> RecoveryPoint {
        RecoveryPoint {
            id: self.summary.id,
            time_unix_ms: self.summary.time_unix_ms,
            kind: self.summary.kind,
            position: self.summary.position,
            vm_config: (*self.vm_config).clone(),
            changed_bytes: self.changed_bytes,
            sent_bytes: self.sent_bytes,
            group_point_id: self.group_point_id,
        }
    }
}

/// A point's object is written once under a name that holds its id, and never changes: each is read once.
/// Which of them are there says a listing, each time anew.
#[derive(Debug, Default)]
pub(crate) struct PointCache {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The replica they are of: one that was removed and made anew is another.
    replica: Uuid,
    points: HashMap<String, Arc<Cached>>,
    /// Damaged ones. They are read again each time: somebody may have put a copy back.
    unreadable: BTreeSet<String>,
    configs: HashMap<blake3::Hash, Arc<serde_json::Value>>,
}

impl Known {
    fn keep(&mut self, name: &str, stored: StoredPoint) {
        let summary = Summary::of(&stored);
        let point = stored.point;
        let hash = blake3::hash(point.vm_config.to_string().as_bytes());
        let config = self.configs.entry(hash);
        let vm_config = config.or_insert_with(|| Arc::new(point.vm_config)).clone();
        let cached = Cached {
            summary,
            changed_bytes: point.changed_bytes,
            sent_bytes: point.sent_bytes,
            group_point_id: point.group_point_id,
            vm_config,
        };
        self.unreadable.remove(name);
        self.points.insert(name.to_owned(), Arc::new(cached));
    }

    /// Forgets what is not listed any more.
    fn retain(&mut self, listed: &[Listed]) {
        let names: HashSet<&str> = listed.iter().map(|listed| listed.name.as_str()).collect();
        self.points.retain(|name, _| names.contains(name.as_str()));
        self.unreadable.retain(|name| names.contains(name.as_str()));
        self.configs
            .retain(|_, config| Arc::strong_count(config) > 1);
    }
}

impl Replica {
    /// What is known of the points of a complete replica, oldest first.
    pub(crate) fn summaries(&self) -> Result<Vec<Summary>> {
        let shown = self.shown()?;
        Ok(shown.iter().map(|cached| cached.summary).collect())
    }

    /// As [`Replica::summaries`], with those that can't be read, by what their names say: somebody may put a copy of their
    /// objects back, so retention judges them like any other, and what they stand on stays until then.
    pub(crate) fn held_summaries(&self) -> Result<Vec<Summary>> {
        let mut held = self.summaries()?;
        held.extend(
            self.unreadable_points()
                .iter()
                .filter_map(|name| Summary::of_name(name)),
        );
        held.sort_by_key(Summary::order);
        Ok(held)
    }

    /// All points with everything, oldest first.
    pub(crate) fn points(&self) -> Result<Vec<RecoveryPoint>> {
        let shown = self.shown()?;
        Ok(shown.iter().map(|cached| cached.point()).collect())
    }

    /// Point objects that are damaged, by name, as the last look at the points found them: nobody can recover to them,
    /// and they take nothing from the others.
    pub(crate) fn unreadable_points(&self) -> Vec<String> {
        let known = self.points.known.lock();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        known.unreadable.iter().cloned().collect()
    }

    fn shown(&self) -> Result<Vec<Arc<Cached>>> {
        for _ in 0..RACES {
            let before = self.manifest()?.value;
            if before.complete().is_none() {
                return Ok(Vec::new());
            }
            let listed = self.medium.list(layout::POINTS)?;
            let mut points = self.read_points(before.id, &listed)?;
            // Floor is read after the points: what a racing applier has given up is not shown.
            let after = self.manifest()?.value;
            if after.id == before.id {
                points.retain(|point| is_shown(&after, &point.summary));
                points.sort_by_key(|point| point.summary.order());
                return Ok(points);
            }
        }
        Err(self.missing())
    }

    /// The points of a listing; those that were retired since may be missing.
    fn read_points(&self, replica: Uuid, listed: &[Listed]) -> Result<Vec<Arc<Cached>>> {
        let lock = || {
            let known = self.points.known.lock();
            known.unwrap_or_else(PoisonError::into_inner)
        };
        let unread: Vec<&Listed> = {
            let mut known = lock();
            if known.replica != replica {
                *known = Known {
                    replica,
                    ..Known::default()
                };
            }
            known.retain(listed);
            let points = &known.points;
            let is_new = |listed: &&Listed| !points.contains_key(&listed.name);
            listed.iter().filter(is_new).collect()
        };
        // Nobody waits for the store while it is read; who comes meanwhile reads it too.
        for listed in unread {
            match self.read_point(&listed.name) {
                Ok(Some(stored)) => {
                    let mut known = lock();
                    if known.replica == replica {
                        known.keep(&listed.name, stored);
                    }
                }
                // It was retired since the listing.
                Ok(None) => {}
                // One damaged object must not take the other points away.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    let mut known = lock();
                    if known.replica == replica {
                        known.unreadable.insert(listed.name.clone());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let known = lock();
        let found = listed
            .iter()
            .filter_map(|listed| known.points.get(&listed.name));
        Ok(found.cloned().collect())
    }

    /// Read from the store: `None` when it was retired meanwhile.
    pub(crate) fn full_point(&self, summary: &Summary) -> Result<Option<RecoveryPoint>> {
        let name = summary.name();
        let stored = self.read_point(name.strip_prefix(layout::POINTS).unwrap_or(&name))?;
        Ok(stored.map(|stored| stored.point))
    }

    fn read_point(&self, name: &str) -> Result<Option<StoredPoint>> {
        let name = format!("{}{name}", layout::POINTS);
        let Some((content, _)) = self.medium.get(&name)? else {
            return Ok(None);
        };
        let place = self.medium.describe(&name);
        stored::decode(KIND_POINT, &place, &content).map(Some)
    }
}

/// Not given up, and not the point of a writer that was superseded before it made the position.
fn is_shown(manifest: &Manifest, point: &Summary) -> bool {
    let Some((_, floor)) = manifest.complete() else {
        return false;
    };
    let owned = manifest
        .epoch_at(point.position)
        .is_none_or(|owner| point.generation >= owner);
    owned && point.position >= floor && !manifest.hides(point.position)
}

/// See [`crate::ReplicaWriter::add_point`].
pub(crate) fn add(
    replica: &Replica,
    generation: Generation,
    immutable_hours: u32,
    point: &RecoveryPoint,
) -> Result<()> {
    replica.locked(generation, |locked| {
        let (manifest, base, floor) = locked.complete()?;
        if stored_already(locked, point)? {
            return locked.confirm();
        }
        let head = replica.head(&manifest.value, base)?;
        let is_gone = |manifest: &Manifest| !manifest.takes_points_at(point.position);
        if point.position < floor || point.position > head || is_gone(&manifest.value) {
            let kind = if point.position <= head {
                ErrorKind::Expired
            } else {
                ErrorKind::Conflict
            };
            return Err(StoreError::new(
                kind,
                format!(
                    "recovery point {} is at position {}, replica {} can show {} to {}",
                    point.id,
                    point.position.0,
                    replica.place(),
                    floor.0,
                    head.0
                ),
            ));
        }
        put(locked, immutable_hours, point)?;
        // Where sections do not exclude: compaction that began meanwhile did not see the point.
        if is_gone(&replica.manifest()?.value) {
            let name = layout::point(point.time_unix_ms, point.position, point.id);
            replica.medium.remove(&[name])?;
            return Err(StoreError::new(
                ErrorKind::Expired,
                format!(
                    "recovery point {} comes too late: the journal of replica {} was merged at its position {}",
                    point.id,
                    replica.place(),
                    point.position.0
                ),
            ));
        }
        locked.confirm()
    })
}

/// Whether the same point is there; `Conflict` when another one has its id. Figures don't count: a cycle that is sent once
/// more may be packed at another level. An object that is damaged makes room for the point.
pub(crate) fn stored_already(locked: &Locked<'_>, point: &RecoveryPoint) -> Result<bool> {
    let replica = locked.replica;
    let suffix = format!("-{}", point.id.simple());
    for listed in replica.medium.list(layout::POINTS)? {
        if !listed.name.ends_with(&suffix) {
            continue;
        }
        match replica.read_point(&listed.name) {
            Ok(None) => {}
            Ok(Some(stored)) if is_same(&stored.point, point) => {
                replica.medium.settle(layout::POINTS)?;
                return Ok(true);
            }
            Ok(Some(_)) => return Err(other_content(point)),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let name = format!("{}{}", layout::POINTS, listed.name);
                // Another opening may have put the point there meanwhile.
                replica.medium.remove_while(
                    &[name],
                    &|| match replica.read_point(&listed.name) {
                        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(()),
                        Err(error) => Err(error),
                        Ok(_) => Err(StoreError::new(
                            ErrorKind::Overtaken,
                            format!(
                                "point {} of replica {} was damaged and is not any more",
                                point.id,
                                replica.place()
                            ),
                        )),
                    },
                )?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn is_same(a: &RecoveryPoint, b: &RecoveryPoint) -> bool {
    (a.id, a.time_unix_ms, a.kind, a.position) == (b.id, b.time_unix_ms, b.kind, b.position)
}

fn other_content(point: &RecoveryPoint) -> StoreError {
    StoreError::new(
        ErrorKind::Conflict,
        format!("recovery point {} exists with other content", point.id),
    )
}

/// Stores a point with what the store knows of it.
pub(crate) fn put(locked: &Locked<'_>, immutable_hours: u32, point: &RecoveryPoint) -> Result<()> {
    let replica = locked.replica;
    let newest = replica.summaries()?.last().map(Summary::age);
    let stored = StoredPoint {
        point: point.clone(),
        generation: locked.generation(),
        clock_ms: Some(retention::next_clock(newest.as_ref(), point.time_unix_ms)),
        immutable_hours,
    };
    let name = layout::point(point.time_unix_ms, point.position, point.id);
    let content = stored::encode(KIND_POINT, &stored)?;
    match replica.medium.put_new(&name, &content)? {
        Put::Done(_) => Ok(()),
        Put::Refused => Err(other_content(point)),
    }
}

/// The point that is meant.
pub(crate) fn select(replica: &Replica, selector: PointSelector) -> Result<RecoveryPoint> {
    let points = replica.summaries()?;
    let found = match selector {
        PointSelector::Newest => points.last(),
        PointSelector::Id(id) => points.iter().find(|point| point.id == id),
    };
    let full = match found {
        Some(summary) => replica.full_point(summary)?,
        None => None,
    };
    full.ok_or_else(|| {
        let what = match selector {
            PointSelector::Newest => "any recovery point yet".to_owned(),
            PointSelector::Id(id) => format!("recovery point {id}: it may have expired"),
        };
        StoreError::new(
            ErrorKind::NotFound,
            format!("replica {} does not have {what}", replica.place()),
        )
    })
}

/// See [`crate::ReplicaReader::pin`].
pub(crate) fn pin(
    replica: &Replica,
    selector: PointSelector,
    owner: &str,
) -> Result<(Pin, RecoveryPoint)> {
    if owner.is_empty() || owner.len() > 1024 {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            "the owner of a pin has 1 to 1,024 bytes",
        ));
    }
    replica.locked_by_reader(|locked| {
        let point = select(replica, selector)?;
        let pin = Pin {
            owner: owner.to_owned(),
            point_id: point.id,
            position: point.position,
        };
        put_pin(replica, &pin)?;
        // A round of maintenance that was planned without this pin is refused from here on; one that
        // was faster has raised floor, and the pin came too late.
        let kept = locked.change(|manifest| match manifest.complete() {
            Some((_, floor))
                if floor <= pin.position
                    && !manifest.hides(pin.position)
                    && !manifest.retiring.contains(&pin.point_id) =>
            {
                let mut new = manifest.clone();
                new.pins_set = new.pins_set.wrapping_add(1);
                Ok(Some(new))
            }
            _ => Err(StoreError::new(
                ErrorKind::Expired,
                format!(
                    "recovery point {} of replica {} was retired: choose a younger one",
                    point.id,
                    replica.place()
                ),
            )),
        });
        if let Err(error) = kept {
            // It holds nothing; left behind it would only hold back what comes later.
            let _ = replica.medium.remove(&[layout::pin(owner)]);
            return Err(error);
        }
        Ok((pin, point))
    })
}

fn put_pin(replica: &Replica, pin: &Pin) -> Result<()> {
    let name = layout::pin(&pin.owner);
    let content = stored::encode(KIND_PIN, pin)?;
    for _ in 0..RACES {
        let put = match replica.medium.get(&name)? {
            Some((_, version)) => replica.medium.replace(&name, &content, &version)?,
            None => replica.medium.put_new(&name, &content)?,
        };
        if let Put::Done(_) = put {
            return Ok(());
        }
    }
    Err(StoreError::new(
        ErrorKind::Io,
        "another process sets a pin of the same owner all the time: try again",
    ))
}

/// See [`crate::ReplicaReader::unpin`].
pub(crate) fn unpin(replica: &Replica, owner: &str) -> Result<()> {
    let name = layout::pin(owner);
    if replica.medium.get(&name)?.is_none() {
        return Ok(());
    }
    replica.locked_by_reader(|_| replica.medium.remove(&[name]))
}

/// A point that somebody promised to keep.
pub(crate) fn first_immutable(replica: &Replica, now_unix_ms: i64) -> Result<Option<(Uuid, i64)>> {
    let points = replica.summaries()?;
    Ok(points
        .iter()
        .filter_map(|point| {
            let until = point.age().immutable_until_unix_ms();
            (now_unix_ms < until).then_some((point.id, until))
        })
        .max_by_key(|(_, until)| *until))
}

//! Recovery points and the pins that hold them.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::manifest::Manifest;
use crate::medium::Put;
use crate::model::{Generation, Pin, PointKind, PointSelector, Position, RecoveryPoint};
use crate::replica::{KIND_PIN, KIND_POINT, Locked, Replica};
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

/// What is kept in memory of a point: all but the VM's configuration, which may be large.
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

/// Points never change, so each is read once.
#[derive(Debug, Default)]
pub(crate) struct PointCache {
    known: Mutex<HashMap<String, Summary>>,
}

impl Replica {
    /// Points of a complete replica, oldest first.
    pub(crate) fn summaries(&self) -> Result<Vec<Summary>> {
        if self.manifest()?.value.complete().is_none() {
            return Ok(Vec::new());
        }
        let listed = self.medium.list(layout::POINTS)?;
        let mut known = {
            let mut known = self
                .points
                .known
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *known)
        };
        let names: HashSet<&str> = listed.iter().map(|listed| listed.name.as_str()).collect();
        known.retain(|name, _| names.contains(name.as_str()));
        let mut failed = None;
        for listed in &listed {
            if known.contains_key(&listed.name) {
                continue;
            }
            match self.read_point(&listed.name) {
                Ok(Some(stored)) => {
                    known.insert(listed.name.clone(), Summary::of(&stored));
                }
                // It may have been retired since the listing.
                Ok(None) => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let mut points: Vec<Summary> = known.values().copied().collect();
        let mut cached = self
            .points
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        cached.extend(known);
        drop(cached);
        if let Some(error) = failed {
            return Err(error);
        }
        // Floor is read after the points: what a racing applier has given up is not shown.
        let manifest = self.manifest()?;
        points.retain(|point| is_shown(&manifest.value, point));
        points.sort_by_key(Summary::order);
        Ok(points)
    }

    /// All points with everything, oldest first.
    pub(crate) fn points(&self) -> Result<Vec<RecoveryPoint>> {
        let mut points = Vec::new();
        for summary in self.summaries()? {
            points.extend(self.full_point(&summary)?);
        }
        Ok(points)
    }

    /// `None` when it was retired meanwhile.
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
    owned && point.position >= floor
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
        if point.position < floor || point.position > head {
            let kind = if point.position < floor {
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
        locked.confirm()
    })
}

/// Whether the same point is there; `Conflict` when it is there with other content.
pub(crate) fn stored_already(locked: &Locked<'_>, point: &RecoveryPoint) -> Result<bool> {
    let replica = locked.replica;
    let suffix = format!("-{}", point.id.simple());
    for listed in replica.medium.list(layout::POINTS)? {
        if !listed.name.ends_with(&suffix) {
            continue;
        }
        if replica
            .read_point(&listed.name)?
            .is_some_and(|stored| stored.point == *point)
        {
            replica.medium.settle(layout::POINTS)?;
            return Ok(true);
        }
        return Err(other_content(point));
    }
    Ok(false)
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
            Some((_, floor)) if floor <= pin.position => {
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
    for _ in 0..crate::replica::RACES {
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

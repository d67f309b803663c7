//! Recovery points and the pins that hold them.

use crate::error::{ErrorKind, Result, StoreError};
use crate::model::{Generation, Pin, PointSelector, RecoveryPoint};
use crate::replica::{KIND_PIN, KIND_POINT, Replica, list};
use crate::stored;

/// See [`crate::ReplicaWriter::add_point`].
pub(crate) fn add(replica: &Replica, generation: Generation, point: &RecoveryPoint) -> Result<()> {
    let folder = replica.layout.points();
    replica.locked(generation, |locked| {
        let (_, base, floor) = locked.complete()?;
        let suffix = format!("-{}", point.id.simple());
        for (name, path) in list(&folder)? {
            if !name.ends_with(&suffix) {
                continue;
            }
            let stored: Option<RecoveryPoint> = stored::read(KIND_POINT, &path)?;
            if stored.as_ref() == Some(point) {
                return replica.durable.sync_folder(&folder);
            }
            return Err(StoreError::new(
                ErrorKind::Conflict,
                format!("recovery point {} exists with other content", point.id),
            ));
        }
        let head = replica.head(base)?;
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
                    replica.layout.item().display(),
                    floor.0,
                    head.0
                ),
            ));
        }
        locked.put(&replica.layout.point(point), KIND_POINT, point)
    })
}

/// The point that is meant.
pub(crate) fn select(replica: &Replica, selector: PointSelector) -> Result<RecoveryPoint> {
    let mut points = replica.points()?.into_iter().map(|(_, point)| point);
    let found = match selector {
        PointSelector::Newest => points.next_back(),
        PointSelector::Id(id) => points.find(|point| point.id == id),
    };
    found.ok_or_else(|| {
        let what = match selector {
            PointSelector::Newest => "any recovery point yet".to_owned(),
            PointSelector::Id(id) => format!("recovery point {id}: it may have expired"),
        };
        StoreError::new(
            ErrorKind::NotFound,
            format!(
                "replica {} does not have {what}",
                replica.layout.item().display()
            ),
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
        // Selected under the lock: what the applier gave up before is not shown any more.
        let point = select(replica, selector)?;
        let pin = Pin {
            owner: owner.to_owned(),
            point_id: point.id,
            position: point.position,
        };
        locked.put(&replica.layout.pin(owner), KIND_PIN, &pin)?;
        Ok((pin, point))
    })
}

/// See [`crate::ReplicaReader::unpin`].
pub(crate) fn unpin(replica: &Replica, owner: &str) -> Result<()> {
    let path = replica.layout.pin(owner);
    if !path.exists() {
        return Ok(());
    }
    replica.locked_by_reader(|_| {
        let folder = replica.layout.pins();
        replica.durable.remove_files(&folder, &[path])
    })
}

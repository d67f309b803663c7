//! The reading side of a replica, for recovery, drills, proof and failback.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use replication_log::KeyRing;
use uuid::Uuid;

use crate::blocking::blocking;
use crate::changed::{self, Changed};
use crate::error::Result;
use crate::model::{
    Damage, DiskSpec, Generation, Pin, PointSelector, Position, RecoveryPoint, ReplicaKey,
    ReplicaState, StoreTarget,
};
use crate::options::{self, WriterOptions};
use crate::points;
use crate::replica::Replica;
use crate::verify::{self, Verification};
use crate::view::{Show, View};

/// Reads one replica; needs no generation, and write access only for pins. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReplicaReader {
    replica: Arc<Replica>,
}

impl ReplicaReader {
    /// Opens a replica; `NotFound` when there is none.
    pub async fn open(target: &StoreTarget, key: &ReplicaKey) -> Result<ReplicaReader> {
        Self::open_with_keys(target, key, KeyRing::new()).await
    }

    /// As [`ReplicaReader::open`], with the keys that journal objects may need.
    pub async fn open_with_keys(
        target: &StoreTarget,
        key: &ReplicaKey,
        keys: KeyRing,
    ) -> Result<ReplicaReader> {
        let reader = ReplicaReader {
            replica: options::replica(
                target,
                key,
                WriterOptions {
                    keys,
                    ..WriterOptions::default()
                },
            )?,
        };
        reader.run(|replica| replica.manifest().map(drop)).await?;
        Ok(reader)
    }

    /// Names this replica: one that was deleted and made anew is another.
    pub async fn replica_id(&self) -> Result<Uuid> {
        self.run(|replica| Ok(replica.manifest()?.value.id)).await
    }

    /// How far the replica is.
    pub async fn state(&self) -> Result<ReplicaState> {
        self.run(|replica| replica.state()).await
    }

    /// The disks as of the newest cycle.
    pub async fn disks(&self) -> Result<Vec<DiskSpec>> {
        self.run(|replica| replica.head_disks()).await
    }

    /// All points, oldest first; none before initial replication has finished.
    pub async fn points(&self) -> Result<Vec<RecoveryPoint>> {
        self.run(|replica| replica.points()).await
    }

    /// The newest point, once the replica belongs to a generation: none while it belongs to an older one, or has no point
    /// of this one yet. `Fenced` when it belongs to a newer one.
    pub async fn newest_of(&self, generation: Generation) -> Result<Option<RecoveryPoint>> {
        self.run(move |replica| changed::newest_of(replica, generation))
            .await
    }

    /// The disks as of a point. Not held: when the point is retired, reads say `Expired`.
    pub async fn view(&self, point: PointSelector) -> Result<ReplicaView> {
        let (view, point) = self
            .run(move |replica| {
                let point = points::select(replica, point)?;
                Ok((View::open(replica, Show::Position(point.position))?, point))
            })
            .await?;
        Ok(ReplicaView::new(view, Some(point)))
    }

    /// Holds a point in the store under the owner's name, also over restarts, until
    /// [`ReplicaReader::unpin`]. An owner holds one point; another replaces it.
    pub async fn pin(&self, point: PointSelector, owner: &str) -> Result<Pin> {
        let owner = owner.to_owned();
        self.run(move |replica| Ok(points::pin(replica, point, &owner)?.0))
            .await
    }

    /// [`ReplicaReader::pin`], then the view of it: stays right while the applier runs.
    pub async fn pinned_view(&self, point: PointSelector, owner: &str) -> Result<ReplicaView> {
        let owner = owner.to_owned();
        let (view, point) = self
            .run(move |replica| {
                let (pin, point) = points::pin(replica, point, &owner)?;
                Ok((View::open(replica, Show::Position(pin.position))?, point))
            })
            .await?;
        Ok(ReplicaView::new(view, Some(point)))
    }

    /// How far the background verification is; none when it never ran.
    pub async fn verification(&self) -> Result<Option<Verification>> {
        self.run(|replica| verify::load(replica)).await
    }

    /// Reads all of a point and says what can't be read, in ranges of at most 1 MiB (their `place` says
    /// why). `progress` hears of bytes that were gone through.
    pub async fn verify_point(
        &self,
        point: PointSelector,
        mut progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<Vec<Damage>> {
        self.run(move |replica| {
            let point = points::select(replica, point)?;
            let view = View::open(replica, Show::Position(point.position))?;
            verify::verify_view(&view, &mut progress)
        })
        .await
    }

    /// Lets go of what the owner holds; fine when it holds nothing.
    pub async fn unpin(&self, owner: &str) -> Result<()> {
        let owner = owner.to_owned();
        self.run(move |replica| points::unpin(replica, &owner))
            .await
    }

    /// All pins, sorted by owner.
    pub async fn pins(&self) -> Result<Vec<Pin>> {
        self.run(|replica| replica.pins()).await
    }

    async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Arc<Replica>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let replica = self.replica.clone();
        blocking(move || act(&replica)).await
    }
}

/// The generation that owns a replica, or has removed it; every writer of a lower one is refused. `None` says only that
/// nothing is there: never was, or is out of sight, as on a volume that is not mounted. Changes nothing.
pub async fn owner_generation(
    target: &StoreTarget,
    key: &ReplicaKey,
) -> Result<Option<Generation>> {
    let replica = options::replica(target, key, WriterOptions::default())?;
    blocking(move || {
        let seen = replica.stored_generation()?;
        Ok(seen.map(|seen| seen.value.generation))
    })
    .await
}

/// All disks as of one journal position. Cheap to clone, readable from several tasks at once.
#[derive(Clone, Debug)]
pub struct ReplicaView {
    view: Arc<View>,
    point: Option<Arc<RecoveryPoint>>,
}

impl ReplicaView {
    pub(crate) fn new(view: View, point: Option<RecoveryPoint>) -> Self {
        ReplicaView {
            view: Arc::new(view),
            point: point.map(Arc::new),
        }
    }

    /// The disks.
    pub fn disks(&self) -> &[DiskSpec] {
        self.view.disks()
    }

    /// The position that is shown.
    pub fn position(&self) -> Position {
        self.view.position()
    }

    /// The point that is shown; none for a head view.
    pub fn point(&self) -> Option<&RecoveryPoint> {
        self.point.as_deref()
    }

    /// Configuration of the VM at the point.
    pub fn vm_config(&self) -> Option<&serde_json::Value> {
        self.point().map(|point| &point.vm_config)
    }

    /// Where the disks may differ from what they were at a position that `by` wrote, by what the journal says; reads no
    /// data. `None` when it can't be known any more, or that position is another's: then everything may differ.
    pub async fn changed_since(
        &self,
        position: Position,
        by: Generation,
    ) -> Result<Option<Changed>> {
        let view = self.view.clone();
        blocking(move || changed::since(&view, position, Some(by))).await
    }

    /// As [`ReplicaView::changed_since`], of the position of a point that is kept: whoever wrote it, it is what lies there.
    pub async fn changed_behind(&self, point: &RecoveryPoint) -> Result<Option<Changed>> {
        let (view, position) = (self.view.clone(), point.position);
        blocking(move || changed::since(&view, position, None)).await
    }

    /// What of these ranges may hold anything but zeroes, by what is known without reading data. What is left out reads as zeroes.
    pub fn not_zero(&self, disk: Uuid, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        self.view.not_zero(disk, ranges)
    }

    /// Reads from a disk, at most 64 MiB at once; every journal frame is verified. `Expired` once
    /// the point is retired, `NotFound` once the replica is removed: never bytes of another time.
    pub async fn read(&self, disk: Uuid, offset: u64, length: usize) -> Result<Bytes> {
        let view = self.view.clone();
        blocking(move || view.read(disk, offset, length))
            .await
            .map(Bytes::from)
    }
}

//! The words of a replica: key, generation, position, disks, points, state.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::azure::AzureTarget;
use crate::error::{ErrorKind, StoreError};

/// Where replicas are kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
// There are a handful of them, one per replica: a box would only be in the way.
#[allow(clippy::large_enum_variant)]
pub enum StoreTarget {
    /// A folder of this machine, or one that is mounted.
    Folder(PathBuf),
    /// A container of an Azure Storage account.
    Azure(AzureTarget),
    /// Two of them; see [`StoreTarget::with_log`].
    Apart {
        /// Where base is.
        base: Box<StoreTarget>,
        /// Where everything else is.
        log: Box<StoreTarget>,
    },
}

impl StoreTarget {
    /// Keeps base here and journal, points and all other objects in a log account: the way to use a
    /// premium account, which takes page blobs only. The same place twice is that place.
    pub fn with_log(self, log: StoreTarget) -> StoreTarget {
        if self == log {
            return self;
        }
        StoreTarget::Apart {
            base: Box::new(self),
            log: Box::new(log),
        }
    }
}

/// Names one replica in a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaKey {
    vault_key: String,
    item_id: String,
}

impl ReplicaKey {
    /// Both parts become folder names: 1 to 128 of `A-Z a-z 0-9 . _ -`, no leading dot.
    pub fn new(
        vault_key: impl Into<String>,
        item_id: impl Into<String>,
    ) -> Result<Self, StoreError> {
        let key = ReplicaKey {
            vault_key: vault_key.into(),
            item_id: item_id.into(),
        };
        for (what, name) in [("vault key", &key.vault_key), ("item id", &key.item_id)] {
            let plain = name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if name.is_empty() || name.len() > 128 || name.starts_with('.') || !plain {
                return Err(StoreError::new(
                    ErrorKind::Invalid,
                    format!(
                        "{what} {name:?} can't name a folder: use 1 to 128 letters, digits, '.', '_' or '-', not starting with '.'"
                    ),
                ));
            }
        }
        Ok(key)
    }

    /// Folder of the vault.
    pub fn vault_key(&self) -> &str {
        &self.vault_key
    }

    /// Folder of the protected item inside the vault's.
    pub fn item_id(&self) -> &str {
        &self.item_id
    }
}

impl fmt::Display for ReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vault_key, self.item_id)
    }
}

/// Fencing generation: one activation of replication, handed out by the orchestrator, only ever grows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Journal position of the whole VM. The completed base is position 0; every cycle adds one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// Position of a just completed base.
    pub const BASE: Position = Position(0);

    /// The position that the next journal object must have.
    pub fn next(self) -> Position {
        Position(self.0.saturating_add(1))
    }
}

/// How far the base of a disk is that is to join, see [`crate::ReplicaWriter::begin_disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskStart {
    /// It is all zero: write what is not zero.
    Empty,
    /// An earlier attempt was cut: compare with `base_read`, write what differs.
    Partial,
    /// It is complete, only no cycle has named the disk yet: compare with `base_read`, send what differs
    /// in the cycle that takes it in.
    Ready,
    /// The disk is, or was, part of cycles that the store still needs: there is nothing to fill. Compare
    /// with [`crate::ReplicaWriter::last_view`] and send what differs in the cycle that takes it in.
    Known,
}

/// A disk of the replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The virtual disk's GUID; names its folder.
    pub id: Uuid,
    /// True virtual size in bytes (the stored VHD is padded to whole MiB).
    pub size_bytes: u64,
    /// Name for people, for example the file name on the source host.
    pub name: String,
}

/// How consistent a recovery point is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PointKind {
    /// All disks at one instant, as after a power loss.
    #[default]
    Crash,
    /// The guest's file systems (and applications) were quiesced.
    Application,
}

/// A moment to which the VM can be recovered: a journal position and what else that takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecoveryPoint {
    /// Names the point.
    pub id: Uuid,
    /// The instant at which the source was frozen.
    pub time_unix_ms: i64,
    /// How consistent it is.
    pub kind: PointKind,
    /// The disks as of this position.
    pub position: Position,
    /// Configuration of the VM at that instant; the store does not look inside.
    pub vm_config: serde_json::Value,
    /// Bytes that changed on the source since the point before.
    pub changed_bytes: u64,
    /// Bytes that were sent to the store for it.
    pub sent_bytes: u64,
    /// Shared by the points that VMs of one group took at one instant; none when it was taken alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_point_id: Option<Uuid>,
}

/// How far a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// Just created: nothing was written to base.
    Empty,
    /// Initial replication has begun and not finished: compare with `base_read`, or write all.
    Partial,
    /// Usable: points exist.
    Complete {
        /// Base holds the disks as of this position.
        base_position: Position,
        /// Newest journal position.
        head_position: Position,
    },
}

/// How long recovery points are kept. Ages are times in which replication ran, see
/// [`crate::expired_points`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// All points younger than this are kept; 0 keeps only the newest (and what tiers keep).
    pub hours: u32,
    /// What is kept beyond that, see [`RetentionPolicy::with_tiers`].
    pub tiers: [Option<RetentionTier>; RetentionPolicy::MAX_TIERS],
    /// No point younger than this is retired, whatever the rest says. New points carry it with them
    /// (see [`crate::ReplicaWriter::set_immutability_hours`]), so a later policy can't shorten it.
    pub immutability_hours: u32,
    /// The newest application-consistent point is kept until it is so old, even if the rest would
    /// retire it; 0 = no such exception.
    pub latest_application_hours: u32,
}

/// Keeps one point of every period: the oldest application-consistent one, or else the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionTier {
    /// Length of a period.
    pub every_seconds: u64,
    /// Until it is so old.
    pub for_seconds: u64,
}

impl RetentionPolicy {
    /// Most tiers of a policy.
    pub const MAX_TIERS: usize = 8;

    /// Keeps all points for so long, nothing else.
    pub const fn hours(hours: u32) -> Self {
        RetentionPolicy {
            hours,
            tiers: [None; Self::MAX_TIERS],
            immutability_hours: 0,
            latest_application_hours: 0,
        }
    }

    /// Adds tiers; `None` when there are more than [`RetentionPolicy::MAX_TIERS`] or one has no period.
    pub fn with_tiers(mut self, tiers: &[RetentionTier]) -> Option<Self> {
        if tiers.len() > Self::MAX_TIERS || tiers.iter().any(|tier| tier.every_seconds == 0) {
            return None;
        }
        self.tiers = [None; Self::MAX_TIERS];
        for (slot, tier) in self.tiers.iter_mut().zip(tiers) {
            *slot = Some(*tier);
        }
        Some(self)
    }
}

/// What one round of maintenance did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaintenanceReport {
    /// Points that were retired.
    pub expired_points: Vec<Uuid>,
    /// Base before and after.
    pub base_position_before: Position,
    /// Base afterwards; the same when nothing was to be done.
    pub base_position_after: Position,
    /// Bytes moved from the journal into base.
    pub applied_bytes: u64,
    /// Journal objects that are gone.
    pub removed_journal_objects: u64,
    /// Journal objects that a merged one has taken the place of.
    pub merged_journal_objects: u64,
    /// Why some of the journal stays as it is although merging it would pay: damage, a key that is missing,
    /// no room. Points are not affected.
    pub not_merged: Option<String>,
    /// Objects of recovery points that are damaged, by name: nobody can recover to these points; others are not affected.
    pub unreadable_points: Vec<String>,
    /// What could not be read and holds base back until it is written again (at most 1,000 findings):
    /// send these ranges of the source in the next cycle.
    pub damage: Vec<Damage>,
}

/// A range of a disk that a damaged journal object leaves unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// Which disk.
    pub disk: Uuid,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The damaged object.
    pub place: String,
    /// Its position: points from here on are affected, up to the cycle that writes the range again.
    pub position: Position,
}

/// Which point to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointSelector {
    /// The newest point.
    Newest,
    /// This one.
    Id(Uuid),
}

/// Something that keeps a point from being retired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// Who holds it, for example a recovered VM's id.
    pub owner: String,
    /// The point that is held.
    pub point_id: Uuid,
    /// Its position.
    pub position: Position,
}

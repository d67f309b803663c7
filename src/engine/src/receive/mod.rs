//! Failback at the source: the disks of a VM that is off are brought to what its recovered copy wrote.
//!
//! ```text
//! recovered VM ─► replica (journal, points of generation `origin`) ─► newest point ─┐
//!                                                                                 ▼
//! disk as of p, and what was written here since ─► blocks that may differ ─► compared ─► differing ones written
//!        │                                              ▲
//!        ├─ what the journal changed behind p ──────────┤     headers of the journal only
//!        └─ what differs from the map of block hashes ──┘     the local disk only; nothing when it surely is as of p
//! ```
//!
//! Rounds go on for as long as the order says: each brings the disks to the newest point of `origin`, and the next one needs
//! to look only at what came since. Nothing is received before the replica belongs to `origin`. Where no map or no journal
//! tells what may differ, everything is compared: slower, never wrong.
//!
//! Order of durable steps of a round, each of which may be cut and is done again ([`record`]):
//!
//! ```text
//! "on its way" ─► blocks ─► flush ─► read back ─► maps: position ─► state: position ─► "arrived"
//! ```
//!
//! Promise: "arrived" is said only of disks that hold the point, bit by bit; no byte is written unless the order in force
//! permits it at that moment and the VM is off; the maps tell of the same position as the disks, so the activation that
//! follows compares with them and asks the store for nothing.
//! What may go wrong is a [`ReceiveError`]; the round is repeated. Volumes are never filled up ([`room`]).
//!
//! A VM that was deleted, or disks that were lost, are made again before the first step if the order says so ([`lost`]): with
//! the identity that they had, and empty, so that all their blocks differ from what the maps tell.

mod error;
mod held;
mod image;
mod left_out;
mod lost;
mod proof;
pub mod record;
pub mod room;
mod round;
mod todo;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::{DiskId, VmId};
use replica_store::{Generation, RecoveryPoint, ReplicaKey, ReplicaReader, StoreTarget};
use replication_log::KeyRing;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use error::ReceiveError;
pub use held::HeldVm;
pub use proof::{DiskProof, Proof};

use crate::backoff;
use crate::replicator::pauses::Pauses;
use crate::replicator::throttle::{Class, Throttle};
use crate::replicator::trouble::chain;
use crate::vm_config::VmConfig;

/// Between two looks for a newer point.
const POLL: Duration = Duration::from_secs(2);

/// A VM or an image that is in use is no problem for a person before so many failures.
const BUSY_TRIES: u32 = 3;

/// Nothing was written yet; the record says where to.
pub const UNDER_WAY: &str = "receive-under-way";
/// Some blocks are written.
pub const WRITING: &str = "receive-writing";
/// All blocks are written and durable.
pub const FLUSHED: &str = "receive-flushed";
/// They were read back; the maps do not know.
pub const PROVEN: &str = "receive-proven";
/// The maps know, the state does not.
pub const MAPPED: &str = "receive-mapped";
/// The state knows, the record does not.
pub const SETTLED: &str = "receive-settled";
/// The record says so, nobody was told.
pub const ARRIVED: &str = "receive-arrived";

/// Something of the VM is gone; the record says "on its way", nothing is made yet.
pub const LOST: &str = "receive-lost";
/// It was made again, empty.
pub const MADE: &str = "receive-made";

/// All of them.
pub const PLACES: [&str; 9] = [
    UNDER_WAY, WRITING, FLUSHED, PROVEN, MAPPED, SETTLED, ARRIVED, LOST, MADE,
];

/// A disk of the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDisk {
    /// Virtual disk id.
    pub id: DiskId,
    /// Name for people.
    pub name: String,
    /// Its image.
    pub path: PathBuf,
}

/// The VM that is written to.
#[async_trait]
pub trait Target: Send + Sync {
    /// Its replicated disks. Fails unless it is off.
    async fn disks(&self) -> Result<Vec<LocalDisk>, ReceiveError>;

    /// Whether the order lets it make again what is gone of the VM.
    fn may_make(&self) -> bool {
        false
    }

    /// Makes again what is gone: the VM as it was at a point, off, and disks, empty. What is there stays as it is.
    async fn make(&self, like: &VmConfig) -> Result<(), ReceiveError> {
        Err(ReceiveError::VmMissing(like.name.clone()))
    }

    /// The right to write, for as long as the answer is kept: no other order is taken meanwhile. Keep it for one batch.
    async fn may_write(&self) -> Result<Box<dyn Send + '_>, ReceiveError>;

    /// The names of the disks that the recovered VM has and that are none of ours: nothing of them is brought.
    fn leaves_out(&self, _names: Vec<String>) {}

    /// The disks hold what the order wants. Durable when it returns, and said from then on.
    async fn received(&self) -> Result<(), ReceiveError>;
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Written to the disks so far.
    pub received_bytes: u64,
    /// What may differ still.
    pub to_receive_bytes: u64,
}

/// What a round came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Came {
    /// The replica does not belong to the recovered VM yet, or has no point of it.
    Waits,
    /// The disks hold the newest point already.
    Current(RecoveryPoint),
    /// They do now.
    Arrived(RecoveryPoint),
}

/// How long to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The recovered VM runs: again and again.
    Stopped,
    /// The recovered VM is off, and everything is shipped: until the disks hold the newest point.
    Equal,
}

/// Brings the disks of one VM to what its recovered copy ships.
pub struct Receiver {
    /// The protected item.
    pub item_id: String,
    /// Its VM.
    pub vm: VmId,
    /// Where the replica is.
    pub store: StoreTarget,
    /// Which one.
    pub key: ReplicaKey,
    /// Keys that its journal may need.
    pub keys: KeyRing,
    /// The generation under which the recovered VM ships.
    pub origin: Generation,
    /// `<data>/state`.
    pub state_folder: PathBuf,
    /// The VM that is written to.
    pub target: Arc<dyn Target>,
    /// Shares the way to the store.
    pub throttle: Arc<dyn Throttle>,
    /// How urgent it is: whether anybody has a VM that runs meanwhile.
    pub class: Class,
    /// Room for the images.
    pub free_bytes: room::FreeBytes,
    /// Test stops.
    pub pauses: Arc<dyn Pauses>,
    /// How far it is.
    pub progress: watch::Sender<Progress>,
    /// Ends it at its next safe place.
    pub stop: CancellationToken,
}

impl Receiver {
    /// Rounds until the order is carried out, or another one came. `tell` hears what stands in the way; `None` = nothing.
    pub async fn run(&self, until: Until, tell: &(dyn Fn(Option<&ReceiveError>) + Send + Sync)) {
        let mut failures = 0;
        // What a life before this one held.
        self.let_go().await;
        loop {
            let wait = match self.step(until).await {
                Ok(Step::Done) => {
                    tell(None);
                    break;
                }
                Ok(step) => {
                    failures = 0;
                    tell(None);
                    if step == Step::Again {
                        continue;
                    }
                    POLL
                }
                Err(error) if error.is_end() => break,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(
                        item = self.item_id,
                        error = chain(&error),
                        "the disks can't be brought to the newest point now"
                    );
                    // A VM that is being turned off takes its time.
                    if failures > BUSY_TRIES || !error.is_busy() {
                        tell(Some(&error));
                    }
                    if let ReceiveError::NoRoom(lack) = &error {
                        // That may last for days, in which the store tidies up as ever.
                        self.let_go().await;
                        // A round looks at whole disks: not before there is room for what it finds.
                        tokio::select! {
                            biased;
                            () = self.stop.cancelled() => break,
                            () = self.room_comes(lack) => {}
                        }
                    }
                    backoff::ship_delay(failures)
                }
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.let_go().await;
    }

    async fn step(&self, until: Until) -> Result<Step, ReceiveError> {
        match (self.round().await?, until) {
            (Came::Waits, _) => Ok(Step::Wait),
            (Came::Arrived(_), Until::Stopped) => {
                self.target.received().await?;
                Ok(Step::Again)
            }
            // Something may have come while this one was received.
            (Came::Arrived(_), Until::Equal) => Ok(Step::Again),
            (Came::Current(_), Until::Stopped) => {
                self.target.received().await?;
                Ok(Step::Wait)
            }
            (Came::Current(point), Until::Equal) => {
                self.target.received().await?;
                tracing::info!(
                    item = self.item_id,
                    point = %point.id,
                    position = point.position.0,
                    "the disks hold everything that the recovered virtual machine wrote"
                );
                Ok(Step::Done)
            }
        }
    }

    /// Nothing is held in the store any more. Best effort: what is left of it goes with the next round, or is let go of
    /// here by the next order.
    async fn let_go(&self) {
        let reader = ReplicaReader::open(&self.store, &self.key).await;
        let done = match reader {
            Ok(reader) => reader.unpin(&self.owner()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(
                item = self.item_id,
                error = chain(&error),
                "a recovery point may stay held in the store"
            );
        }
    }

    fn owner(&self) -> String {
        format!("receive {}", self.item_id)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Again,
    Wait,
    Done,
}

/// File work that may block.
async fn off<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReceiveError> + Send + 'static,
) -> Result<T, ReceiveError> {
    crate::task::blocking(move || Ok(work()))
        .await
        .map_err(ReceiveError::io("run file work"))?
}

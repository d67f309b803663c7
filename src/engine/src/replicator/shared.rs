//! What the two halves of an item's replication, capture and shipping, share.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::{Hypervisor, TrackingId};
use replica_store::fault::Faults;
use replica_store::{DiskSpec, ReplicaReader, ReplicaWriter};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::pauses::Pauses;
use super::policy::Policy;
use super::spec::Spec;
use super::state::{CycleRecord, ItemFiles, ItemState};
use super::status::StatusLine;
use super::throttle::{Class, Throttle};
use super::trouble::Trouble;
use crate::board::Board;
use crate::task::blocking;

/// Free bytes on the volume of a path; `None` when it can't be found out.
pub type FreeBytes = Arc<dyn Fn(&Path) -> Option<u64> + Send + Sync>;

/// What all items of an engine share.
pub struct Context {
    /// The host.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where status goes.
    pub board: Arc<Board>,
    /// `<data>/state`.
    pub state_folder: PathBuf,
    /// Test stops.
    pub pauses: Arc<dyn Pauses>,
    /// Milliseconds since the Unix epoch, for retention.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Faults in the durable steps of the store, for crash tests; `None` in the product.
    pub store_faults: Option<Arc<dyn Faults>>,
    /// Free bytes on a volume, for captures.
    pub free_bytes: FreeBytes,
    /// Limits what is sent to stores.
    pub throttle: Arc<dyn Throttle>,
}

/// One item at work.
pub(super) struct Item {
    pub context: Arc<Context>,
    pub spec: Spec,
    pub files: ItemFiles,
    pub status: StatusLine,
    pub stop: CancellationToken,
    pub policy: watch::Receiver<Policy>,
}

/// Durable state, spool and store of one item.
pub(super) struct Shared {
    state: tokio::sync::Mutex<ItemState>,
    spool: Mutex<VecDeque<CycleRecord>>,
    /// Counts how often captured cycles were given up. Held while the spool or what it builds on changes.
    given_up: tokio::sync::Mutex<u64>,
    waiting: watch::Sender<usize>,
    writer: tokio::sync::Mutex<Option<ReplicaWriter>>,
    /// Ends both halves: the item stops, or one half has found that it must.
    pub halt: CancellationToken,
}

/// What the next cycle builds on.
#[derive(Clone, Copy)]
pub(super) struct Captured {
    /// Tracking that began at the newest captured instant.
    pub tracking: Option<TrackingId>,
    /// Its position.
    pub position: u64,
    given_up: u64,
}

impl Item {
    pub async fn pass(&self, place: &'static str) {
        self.context.pauses.pass(place).await;
    }

    /// Returns when `bytes` may be sent to the store.
    pub async fn may_send(&self, bytes: u64, class: Class) {
        self.context
            .throttle
            .acquire(&self.spec.item_id, bytes, class)
            .await;
    }
}

impl Shared {
    pub fn new(state: ItemState, spool: Vec<CycleRecord>, halt: CancellationToken) -> Self {
        Self {
            halt,
            given_up: tokio::sync::Mutex::default(),
            state: tokio::sync::Mutex::new(state),
            waiting: watch::Sender::new(spool.len()),
            spool: Mutex::new(spool.into()),
            writer: tokio::sync::Mutex::default(),
        }
    }

    pub async fn state(&self) -> ItemState {
        self.state.lock().await.clone()
    }

    /// Changes the state: durable first, then visible.
    pub async fn update(
        &self,
        item: &Item,
        change: impl FnOnce(&mut ItemState),
    ) -> Result<(), Trouble> {
        let mut state = self.state.lock().await;
        let mut new = state.clone();
        change(&mut new);
        if new != *state {
            let (files, written) = (item.files.clone(), new.clone());
            blocking(move || files.store(&written))
                .await
                .map_err(Trouble::io("keep the state of the item"))?;
            item.status.figures(&new);
            *state = new;
        }
        Ok(())
    }

    /// The instant up to which everything is captured.
    pub async fn captured(&self) -> Captured {
        let given_up = self.given_up.lock().await;
        let newest = self
            .lock_spool()
            .back()
            .map(|record| (Some(record.tracking), record.position));
        let (tracking, position) = match newest {
            Some(newest) => newest,
            None => {
                let state = self.state.lock().await;
                (state.tracking, state.shipped)
            }
        };
        Captured {
            tracking,
            position,
            given_up: *given_up,
        }
    }

    /// Makes a captured cycle durable and lets it wait for the store. `false` = what it builds on was given up
    /// meanwhile: with the gap before it, it would make the replica silently wrong, so it is dropped.
    pub async fn keep(
        &self,
        item: &Item,
        base: Captured,
        record: CycleRecord,
    ) -> Result<bool, Trouble> {
        let given_up = self.given_up.lock().await;
        let (files, kept, fits) = (
            item.files.clone(),
            record.clone(),
            *given_up == base.given_up,
        );
        blocking(move || {
            if fits {
                files.store_record(&kept)
            } else {
                files.remove_record(&kept)
            }
        })
        .await
        .map_err(Trouble::io("keep the record of a captured cycle"))?;
        if fits {
            let count = {
                let mut spool = self.lock_spool();
                spool.push_back(record);
                spool.len()
            };
            item.status.backlog(count as u64);
            self.waiting.send_replace(count);
        }
        Ok(fits)
    }

    /// The oldest cycle that waits.
    pub fn front(&self) -> Option<CycleRecord> {
        self.lock_spool().front().cloned()
    }

    /// The oldest cycle is done with and its files are gone.
    pub fn pop(&self, item: &Item) {
        let count = {
            let mut spool = self.lock_spool();
            spool.pop_front();
            spool.len()
        };
        item.status.backlog(count as u64);
        self.waiting.send_replace(count);
    }

    /// How many cycles wait; wakes at each change.
    pub fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.subscribe()
    }

    /// Drops all captured cycles, and whatever is being captured on top of them; then changes the state.
    pub async fn give_up(
        &self,
        item: &Item,
        change: impl FnOnce(&mut ItemState),
    ) -> Result<(), Trouble> {
        let mut given_up = self.given_up.lock().await;
        *given_up += 1;
        let records: Vec<CycleRecord> = self.lock_spool().drain(..).collect();
        let files = item.files.clone();
        // Newest first: a crash in between leaves a spool without a gap.
        blocking(move || {
            records
                .iter()
                .rev()
                .try_for_each(|record| files.remove_record(record))
        })
        .await
        .map_err(Trouble::io("drop captured cycles"))?;
        item.status.backlog(0);
        let changed = self.update(item, change).await;
        self.waiting.send_replace(0);
        changed
    }

    /// The store's writing side; opened at first use and after [`Shared::close_store`].
    pub async fn writer(&self, item: &Item) -> Result<ReplicaWriter, Trouble> {
        let mut writer = self.writer.lock().await;
        if let Some(writer) = &*writer {
            return Ok(writer.clone());
        }
        let state = self.state().await;
        if state.complete {
            // An empty mount point must not be filled with a second replica.
            match ReplicaReader::open(&item.spec.store, &item.spec.key).await {
                Ok(_) => {}
                Err(error) if error.kind() == replica_store::ErrorKind::NotFound => {
                    return Err(Trouble::ReplicaMissing);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let disks: Vec<DiskSpec> = state
            .disks
            .iter()
            .map(|disk| DiskSpec {
                id: disk.id.0,
                size_bytes: disk.size_bytes,
                name: disk.name.clone(),
            })
            .collect();
        let (store, key, generation) = (&item.spec.store, &item.spec.key, item.spec.generation);
        let opened = match &item.context.store_faults {
            None => ReplicaWriter::open(store, key, generation, &disks).await?,
            Some(faults) => {
                ReplicaWriter::open_with_faults(faults.clone(), store, key, generation, &disks)
                    .await?
            }
        };
        *writer = Some(opened.clone());
        Ok(opened)
    }

    /// Opens the store anew at next use: after an error nothing of it is taken for granted.
    pub async fn close_store(&self) {
        *self.writer.lock().await = None;
    }

    fn lock_spool(&self) -> std::sync::MutexGuard<'_, VecDeque<CycleRecord>> {
        // Each change is one call on the queue, so a panic elsewhere leaves it whole.
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What was ordered last of one VM, on disk before it is obeyed or confirmed; and what we owe the VM.
//!
//! ```text
//! <data>/state/guards/<vault>/<item>.json    the newest order that is known, whether it is carried out, and its point;
//!                                            whether we shut the VM down and so have to start it once it may run
//! ```
//!
//! Promise: an order older than the newest one known is never obeyed, also after a restart, so a guard stays when its item
//! is forgotten. Whoever starts the VM holds [`Keeper::critical`] from asking the guard until it runs, and an order is
//! taken outside of that only: none comes between. A guard that can't be read permits nothing.

use std::io;
use std::path::{Path, PathBuf};

use hypervisor::VmId;
use protection::Generation;
use protection::life::{Guard, SourceOrder, Taken};
use replica_store::ReplicaKey;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard, watch};
use uuid::Uuid;

use crate::durable::{self, Access};
use crate::task::blocking;

const VERSION: u32 = 1;
const FOLDER: &str = "guards";

/// What is kept of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    version: u32,
    vault_key: String,
    item_id: String,
    /// The VM.
    pub vm: VmId,
    /// The newest order.
    pub guard: Guard<SourceOrder>,
    /// We shut it down, or were ordered to let it run: it is started when it may be. A VM that a user turned off is not.
    pub owes_start: bool,
    /// Of an order to ship the rest that is carried out: the point that holds every write.
    pub point: Option<Uuid>,
}

/// The guard of one VM. There is one of these for each item in a process.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    kept: Mutex<Kept>,
    version: watch::Sender<u64>,
}

impl Keeper {
    /// The guard that an item has; `None` = nothing was ever ordered.
    ///
    /// # Errors
    /// When it can't be read, or is another item's: then nobody knows what may run.
    pub async fn open(state_folder: &Path, key: &ReplicaKey) -> io::Result<Option<Self>> {
        let path = path(state_folder, key);
        let read = path.clone();
        let Some(kept) = blocking(move || durable::read_json::<Kept>(&read)).await? else {
            return Ok(None);
        };
        if kept.version != VERSION
            || kept.vault_key != key.vault_key()
            || kept.item_id != key.item_id()
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is of another version or item", path.display()),
            ));
        }
        Ok(Some(Self::of(path, kept)))
    }

    /// A guard for the first order that an item gets.
    pub async fn begin(
        state_folder: &Path,
        key: &ReplicaKey,
        vm: VmId,
        epoch: Generation,
        order: SourceOrder,
    ) -> io::Result<Self> {
        let path = path(state_folder, key);
        let kept = Kept {
            version: VERSION,
            vault_key: key.vault_key().to_owned(),
            item_id: key.item_id().to_owned(),
            vm,
            guard: Guard::new(epoch, order),
            owes_start: matches!(order, SourceOrder::Run(_)),
            point: None,
        };
        write(&path, &kept).await?;
        Ok(Self::of(path, kept))
    }

    fn of(path: PathBuf, kept: Kept) -> Self {
        Self {
            path,
            kept: Mutex::new(kept),
            version: watch::Sender::new(0),
        }
    }

    /// Takes an order, if it is newer; it is on disk when this returns.
    pub async fn take(&self, vm: VmId, epoch: Generation, order: SourceOrder) -> io::Result<Taken> {
        let mut kept = self.kept.lock().await;
        let mut new = kept.clone();
        let taken = new.guard.take(epoch, order);
        if taken == Taken::New {
            if new.vm != vm {
                // Another VM under the item's name: the one before is nobody's business any more.
                new.vm = vm;
                new.owes_start = false;
            }
            new.owes_start |= matches!(order, SourceOrder::Run(_));
            if order == SourceOrder::LeaveOff {
                // It lives elsewhere for good: whoever protects it anew must not have us start it beside that copy.
                new.owes_start = false;
            }
            new.point = None;
            self.keep(&mut kept, new).await?;
        }
        Ok(taken)
    }

    /// A copy of what is kept.
    pub async fn kept(&self) -> Kept {
        self.kept.lock().await.clone()
    }

    /// No order is taken while this is held.
    pub async fn critical(&self) -> Critical<'_> {
        Critical {
            keeper: self,
            kept: self.kept.lock().await,
        }
    }

    /// The VM is about to be shut down by an order.
    pub async fn owe_start(&self) -> io::Result<()> {
        self.critical().await.set_owes_start(true).await
    }

    /// The point that holds every write is in the store, and the VM is off.
    pub async fn shipped(&self, point: Uuid) -> io::Result<()> {
        let mut kept = self.kept.lock().await;
        if !matches!(kept.guard.order, SourceOrder::ShipRest(_)) || kept.guard.done {
            return Ok(());
        }
        let mut new = kept.clone();
        new.guard.done = true;
        new.point = Some(point);
        self.keep(&mut kept, new).await
    }

    /// The disks hold what the order of this number wants. Says nothing of another order.
    pub async fn received(&self, epoch: Generation) -> io::Result<()> {
        let mut kept = self.kept.lock().await;
        let is_receiving = matches!(
            kept.guard.order,
            SourceOrder::Receive | SourceOrder::ReceiveRest
        );
        if kept.guard.epoch != epoch || !is_receiving || kept.guard.done {
            return Ok(());
        }
        let mut new = kept.clone();
        new.guard.done = true;
        self.keep(&mut kept, new).await
    }

    /// Wakes at each change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Durable first, then visible.
    async fn keep(&self, kept: &mut Kept, new: Kept) -> io::Result<()> {
        if *kept != new {
            write(&self.path, &new).await?;
            *kept = new;
            self.version.send_modify(|version| *version += 1);
        }
        Ok(())
    }
}

/// Between the question to the guard and the action.
pub struct Critical<'a> {
    keeper: &'a Keeper,
    kept: MutexGuard<'a, Kept>,
}

impl Critical<'_> {
    /// What is kept.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// See [`Kept::owes_start`].
    pub async fn set_owes_start(&mut self, owes_start: bool) -> io::Result<()> {
        let new = Kept {
            owes_start,
            ..self.kept.clone()
        };
        self.keeper.keep(&mut self.kept, new).await
    }
}

fn path(state_folder: &Path, key: &ReplicaKey) -> PathBuf {
    state_folder
        .join(FOLDER)
        .join(key.vault_key())
        .join(format!("{}.json", key.item_id()))
}

async fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let (path, kept) = (path.to_owned(), kept.clone());
    blocking(move || {
        if let Some(folder) = path.parent() {
            durable::create_folder(folder)?;
        }
        durable::replace_json(&path, &kept, Access::Plain)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: VmId = VmId(Uuid::from_u128(7));
    const LICENCE: Generation = Generation(3);

    fn key() -> ReplicaKey {
        ReplicaKey::new("vault-1", "item-1").unwrap()
    }

    async fn begin(folder: &Path) -> Keeper {
        let order = SourceOrder::Replicate(LICENCE);
        Keeper::begin(folder, &key(), VM, LICENCE, order)
            .await
            .unwrap()
    }

    async fn again(folder: &Path) -> Keeper {
        Keeper::open(folder, &key()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn an_order_that_is_older_than_the_newest_is_dropped_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Keeper::open(folder.path(), &key()).await.unwrap().is_none());
        let keeper = begin(folder.path()).await;
        let hold = keeper.take(VM, Generation(9), SourceOrder::Hold).await;
        assert_eq!(hold.unwrap(), Taken::New);
        let keeper = again(folder.path()).await;
        let late = SourceOrder::Replicate(Generation(8));
        let stale = keeper.take(VM, Generation(8), late).await.unwrap();
        assert_eq!(stale, Taken::Stale);
        let same = keeper.take(VM, Generation(9), SourceOrder::Hold).await;
        assert_eq!(same.unwrap(), Taken::Again);
        let other = keeper.take(VM, Generation(9), SourceOrder::LeaveOff).await;
        assert_eq!(other.unwrap(), Taken::Contradiction);
        assert_eq!(keeper.kept().await.guard.order, SourceOrder::Hold);
    }

    #[tokio::test]
    async fn a_vm_that_was_left_for_good_is_not_started_when_it_is_protected_anew() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = begin(folder.path()).await;
        keeper.owe_start().await.unwrap();
        let left = keeper.take(VM, Generation(9), SourceOrder::LeaveOff).await;
        assert_eq!(left.unwrap(), Taken::New);
        let anew = SourceOrder::Replicate(Generation(10));
        let keeper = again(folder.path()).await;
        keeper.take(VM, Generation(10), anew).await.unwrap();
        assert!(!keeper.kept().await.owes_start);
    }

    #[tokio::test]
    async fn a_write_that_was_cut_leaves_the_order_of_before() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = begin(folder.path()).await;
        let file = path(folder.path(), &key());
        let whole = std::fs::read(&file).unwrap();
        // Cut before the new file took the old one's place.
        let temporary = file.with_file_name(".item-1.json.new");
        std::fs::write(&temporary, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(again(folder.path()).await.kept().await, keeper.kept().await);
        let taken = keeper.take(VM, Generation(4), SourceOrder::Hold).await;
        assert_eq!(taken.unwrap(), Taken::New);
        assert_eq!(again(folder.path()).await.kept().await, keeper.kept().await);
    }

    #[tokio::test]
    async fn a_guard_that_could_not_be_written_is_not_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = begin(folder.path()).await;
        std::fs::remove_dir_all(folder.path()).unwrap();
        std::fs::write(folder.path(), "no folder").unwrap();
        let taken = keeper.take(VM, Generation(9), SourceOrder::Hold).await;
        taken.unwrap_err();
        assert_eq!(keeper.kept().await.guard.epoch, LICENCE);
        std::fs::remove_file(folder.path()).unwrap();
        std::fs::create_dir(folder.path()).unwrap();
    }

    #[tokio::test]
    async fn a_damaged_guard_and_one_of_another_item_are_errors_and_no_new_beginning() {
        let folder = tempfile::tempdir().unwrap();
        begin(folder.path()).await;
        let file = path(folder.path(), &key());
        let other = ReplicaKey::new("vault-1", "item-2").unwrap();
        std::fs::copy(&file, path(folder.path(), &other)).unwrap();
        let error = Keeper::open(folder.path(), &other).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        std::fs::write(&file, "{").unwrap();
        let error = Keeper::open(folder.path(), &key()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn what_is_shipped_and_what_is_owed_outlive_a_restart_and_belong_to_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = begin(folder.path()).await;
        let ship = SourceOrder::ShipRest(LICENCE);
        keeper.take(VM, Generation(4), ship).await.unwrap();
        keeper.owe_start().await.unwrap();
        let point = Uuid::from_u128(5);
        keeper.shipped(point).await.unwrap();
        let kept = again(folder.path()).await.kept().await;
        assert!(kept.owes_start && kept.guard.done);
        assert_eq!(kept.point, Some(point));
        // Told is told.
        keeper.shipped(Uuid::from_u128(6)).await.unwrap();
        assert_eq!(keeper.kept().await.point, Some(point));
        keeper
            .take(VM, Generation(5), SourceOrder::Hold)
            .await
            .unwrap();
        let kept = again(folder.path()).await.kept().await;
        assert!(kept.owes_start, "it still was us");
        assert_eq!((kept.point, kept.guard.done), (None, false));
    }
}

//! What is kept of a VM in Azure, from before anything of it is made until all of it is gone: `~azure-vm/<vm id>`.

use azure_compute::{Place, TargetPlan};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::store::records::{self, AzurePlace, Item, LogStore, Record, Stored};
use crate::store::{Expect, StoreError};

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AzureVm {
    /// VM id, which is the recovery's id in Azure, too.
    pub id: String,
    /// Item's key.
    pub item: String,
    /// Which protection of the item this is: `Item::correlation_id`. Of an item that was dropped and enabled anew, it is another.
    #[serde(default)]
    pub correlation_id: String,
    /// Drill's job; none = outside of drills.
    pub drill: Option<String>,
    /// Recovery point; the one that is really used once it was opened.
    pub point_id: String,
    /// Its instant; 0 = not known yet.
    pub point_ms: i64,
    /// Where the replica lies.
    pub replica: ReplicaPlace,
    /// How often its page blobs were claimed: the number under which they may be written.
    pub claims: u64,
    /// Page blobs, one for each disk; known once the point was opened.
    pub blobs: Vec<DiskBlob>,
    /// Where in Azure; known from the plan on.
    pub place: Option<Place>,
    /// What is made; stored before it is made.
    pub plan: Option<TargetPlan>,
    /// How far it is.
    pub stage: Stage,
    /// When it ran first.
    pub started_unix_ms: i64,
    /// Highest number of an order that was begun to be carried out: who comes with an older one comes too late.
    #[serde(default)]
    pub epoch: u64,
    /// The highest fence that was raised for it.
    #[serde(default)]
    pub fenced: u64,
    /// It is off, or about to be.
    #[serde(default)]
    pub off: bool,
    /// Its way back; none outside of failbacks.
    #[serde(default)]
    pub back: Option<WayBack>,
}

/// How far a VM is shipped into its replica, under one generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayBack {
    /// Under which it ships.
    pub generation: u64,
    /// Frozen states that were begun, which names their snapshots: one that was cut is never gone on with.
    pub round: u64,
    /// Snapshots may be there.
    pub has_snapshots: bool,
    /// The newest instant that the replica has.
    pub shipped: Option<Shipped>,
    /// Bytes that went into the store for all rounds.
    pub sent_bytes: u64,
    /// The VM is off, and all that it wrote is in the replica.
    pub rest: bool,
}

/// An instant of a VM that its replica has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipped {
    /// The replica that has it.
    pub replica: uuid::Uuid,
    /// There.
    pub position: u64,
    /// Time of its point.
    pub point_ms: i64,
    /// Round that froze it.
    pub round: u64,
    /// Snapshots of page blobs, in the order of the disks; those of managed disks are named by the round.
    pub snapshots: Vec<String>,
}

impl Record for AzureVm {
    const KIND: &'static str = "azure-vm";
}

/// How far a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// It is to be made.
    Noted,
    /// Its disks are in page blobs, as at the point.
    Materialised,
    /// What is made is decided.
    Planned,
    /// No writer of before can write to the replica any more.
    Fenced,
    /// It runs.
    Made,
    /// It is nobody's but its owner's: only the record is left of it.
    Left,
}

/// A replica, as the item had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaPlace {
    /// Vault's folder name.
    pub vault_key: String,
    /// Item's name.
    pub item_id: String,
    /// Storage account's ARM id.
    pub storage_id: String,
    /// Its container.
    pub azure: Option<AzurePlace>,
    /// Where everything but base is; absent = there too.
    pub log: Option<LogStore>,
}

/// A disk of the point on its way into a page blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBlob {
    /// The disk's GUID.
    pub disk: uuid::Uuid,
    /// Name for people.
    pub name: String,
    /// True virtual size in bytes.
    pub bytes: u64,
    /// Blob's name in the container.
    pub blob: String,
    /// Bytes that are there and were read back.
    pub done: u64,
    /// SHA-256 over the slices that are done, each chained to those before, in lower-case hexadecimal.
    pub digest: String,
}

// === impl AzureVm ===

impl AzureVm {
    /// Who holds the point.
    #[must_use]
    pub fn owner(&self) -> String {
        format!("azure-{}", self.id)
    }

    /// Whether it belongs to this protection of the item.
    #[must_use]
    pub fn is_of(&self, item: &Item) -> bool {
        self.item.eq_ignore_ascii_case(&item.id) && self.correlation_id == item.correlation_id
    }

    /// Whether it stands for the item outside of drills: there is no room for another one, and it has to go before it is absent.
    #[must_use]
    pub fn stands_for(&self, item: &Item) -> bool {
        self.drill.is_none() && self.stage != Stage::Left && self.is_of(item)
    }

    /// Whether the protection that it was made for is over: it may run in production, and nobody takes it away by mistake.
    #[must_use]
    pub fn is_dropped(&self, item: Option<&Item>) -> bool {
        self.drill.is_none()
            && self.stage != Stage::Left
            && !item.is_some_and(|item| self.is_of(item))
    }

    /// Bytes of all disks: done, and in all.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let done = self.blobs.iter().map(|blob| blob.done).sum();
        (done, self.blobs.iter().map(|blob| blob.bytes).sum())
    }
}

// === impl ReplicaPlace ===

impl ReplicaPlace {
    /// Of an item.
    #[must_use]
    pub fn of(item: &Item) -> Self {
        Self {
            vault_key: item.vault_key.clone(),
            item_id: item.id.rsplit('/').next().unwrap_or_default().to_owned(),
            storage_id: item.storage_id.clone(),
            azure: item.azure.clone(),
            log: item.log.clone(),
        }
    }

    /// As the rest of this program names places.
    #[must_use]
    pub fn place(&self) -> records::Place<'_> {
        records::Place {
            storage_id: &self.storage_id,
            folder: "",
            azure: self.azure.as_ref(),
        }
    }
}

/// Key of a VM.
#[must_use]
pub fn key(vm_id: &str) -> String {
    format!("~azure-vm/{vm_id}")
}

/// One.
///
/// # Errors
/// Failures of the store.
pub async fn get(app: &App, vm_id: &str) -> Result<Option<Stored<AzureVm>>, StoreError> {
    records::get(app.store.as_ref(), &key(vm_id)).await
}

/// All.
///
/// # Errors
/// Failures of the store.
pub async fn all(app: &App) -> Result<Vec<AzureVm>, StoreError> {
    let stored = records::list::<AzureVm>(app.store.as_ref(), "~azure-vm/").await?;
    Ok(stored.into_iter().map(|vm| vm.record).collect())
}

/// Writes the next state of one, if nobody came between.
///
/// # Errors
/// A conflict; failures of the store.
pub async fn keep(
    app: &App,
    stored: &Stored<AzureVm>,
    next: AzureVm,
) -> Result<Stored<AzureVm>, StoreError> {
    let change = records::put(stored.key.as_str(), &next, Expect::Etag(stored.etag))?;
    let etags = app.store.apply(vec![change]).await?;
    Ok(Stored {
        key: stored.key.clone(),
        etag: etags.first().copied().unwrap_or_default(),
        record: next,
    })
}

//! A replica in a container of Azure Storage.
//!
//! ```text
//! <vault_key>/<item_id>/generation, manifest, points/..., pins/...     block blobs, changed under their ETag
//! <vault_key>/<item_id>/journal/<generation>-<position>.hrl            block blob, staged in blocks, then committed
//! <vault_key>/<item_id>/<disk>/base.vhd                                page blob; its sequence number is the fence
//! <vault_key>/<item_id>/<disk>/base.vhd.<i>of<n>                       the same as stripes of 4 MiB
//! <vault_key>/<item_id>/.round                                         leased during a round of maintenance
//! <vault_key>/<item_id>/.journal                                       which log account base belongs to, if it does
//! ```
//!
//! Every write is refused by the service itself when its condition doesn't hold (ETag, absence, sequence number), so
//! nothing rests on locks. A call that ended unknown and is refused when repeated is looked at: small objects by their
//! content, journal objects by a mark that only their writer knows.
//!
//! The code is synchronous, as [`Medium`] wants it: it runs on blocking threads and waits for the client's futures.

mod base;
mod copy;
mod edges;
mod objects;
mod removal;
mod target;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use azure_storage::{Condition, Container, Error, Outcome, PAGE};
use bytes::Bytes;
use disk_image::ImageFile;
use tokio::runtime::Handle;
use uuid::Uuid;

pub use target::AzureTarget;
pub(crate) use target::Holds;

use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::medium::{
    BaseWrite, Fence, Guard, Listed, Medium, Newer, Object, Put, Section, Staged, Still, Version,
};
use crate::model::ReplicaKey;

/// Metadata of the blob that says whose base is.
const OWNER: &str = "journal";

/// Names that begin so are ours alone.
const OWN: &str = ".round";

/// Removals and other small calls that are under way at once.
const SIDE_BY_SIDE: usize = 8;

const ROUND_LEASE_SECONDS: u8 = 60;

/// Somebody who waits for a round looks again after this, then after twice as long, and goes on without it in the end:
/// two rounds at once only waste work.
const ROUND_LOOK: Duration = Duration::from_millis(50);
const ROUND_LOOKS: u32 = 9;

/// The client with the runtime that carries it.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) container: Container,
    runtime: Handle,
}

impl Remote {
    /// Waits for the client on this thread, which must be one that may block.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

/// The medium of one replica.
#[derive(Debug)]
pub(crate) struct AzureMedium {
    remote: Remote,
    /// `<vault_key>/<item_id>/`.
    root: String,
    stripes: u32,
}

impl AzureMedium {
    pub(crate) fn new(target: &AzureTarget, key: &ReplicaKey, holds: Holds) -> Result<Self> {
        let runtime = Handle::try_current().map_err(|_| {
            StoreError::new(
                ErrorKind::Io,
                "a replica in Azure Storage is opened on a thread of the runtime",
            )
        })?;
        Ok(AzureMedium {
            remote: Remote {
                container: target.open(holds)?,
                runtime,
            },
            root: format!("{}/{}/", key.vault_key(), key.item_id()),
            stripes: target.stripe_count(),
        })
    }

    fn blob(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    fn container(&self) -> &Container {
        &self.remote.container
    }

    /// After a refusal that may be about our own lost write: is what is there what we wrote?
    fn ours(&self, name: &str, content: &[u8]) -> Result<Put> {
        match self.get(name)? {
            Some((stored, version)) if stored == content => Ok(Put::Done(version)),
            _ => Ok(Put::Refused),
        }
    }

    fn put(&self, name: &str, content: &[u8], condition: Condition<'_>) -> Result<Put> {
        let blob = self.blob(name);
        let body = Bytes::copy_from_slice(content);
        let put = self
            .remote
            .wait(self.container().put_block_blob(&blob, body, &[], condition));
        match put {
            Ok(etag) => Ok(Put::Done(Version::Etag(etag))),
            Err(error) if is_refusal(&error) => match error.outcome() {
                Outcome::NotDone => Ok(Put::Refused),
                Outcome::Unknown => self.ours(name, content),
            },
            Err(error) => Err(failed("write", &self.describe(name), error)),
        }
    }
}

fn is_refusal(error: &Error) -> bool {
    matches!(
        error.kind(),
        azure_storage::ErrorKind::AlreadyExists
            | azure_storage::ErrorKind::ConditionNotMet
            | azure_storage::ErrorKind::NotFound
    ) && error.code() != Some("ContainerNotFound")
}

/// The store's error for one of the client's, while `doing` something with `place`.
pub(crate) fn failed(doing: &str, place: &str, error: Error) -> StoreError {
    use azure_storage::ErrorKind as Remote;
    let (kind, advice) = match error.kind() {
        Remote::NotFound if error.code() == Some("ContainerNotFound") => (
            ErrorKind::NotFound,
            ": the container is not there; create the storage account anew or restore the container",
        ),
        Remote::NotFound => (ErrorKind::NotFound, ": it is not there"),
        Remote::SequenceNumberConditionNotMet => (
            ErrorKind::Overtaken,
            ": the replica was opened again since, by another engine or another task of this one",
        ),
        Remote::ConditionNotMet | Remote::AlreadyExists => {
            (ErrorKind::Conflict, ": somebody else changed it")
        }
        Remote::Unauthorized => (
            ErrorKind::ReadOnly,
            ": the credential has expired; a new one comes from the orchestrator",
        ),
        Remote::Forbidden => (
            ErrorKind::ReadOnly,
            ": the storage account refuses access; check its firewall and the account's rights",
        ),
        Remote::Unsupported => (ErrorKind::Invalid, ": this storage account can't do it"),
        Remote::Invalid => (ErrorKind::Invalid, ""),
        Remote::TooLarge => (ErrorKind::Corrupt, ": no object of ours is as long"),
        _ => (ErrorKind::Io, ": retried by itself"),
    };
    let outcome = match error.outcome() {
        Outcome::NotDone => crate::Outcome::NotDone,
        Outcome::Unknown => crate::Outcome::Unknown,
    };
    StoreError::remote(kind, outcome, format!("{doing} {place}{advice}"), error)
}

impl Medium for AzureMedium {
    fn describe(&self, name: &str) -> String {
        format!(
            "{}/{}{name}",
            self.container().url().trim_end_matches('/'),
            self.root
        )
    }

    fn get(&self, name: &str) -> Result<Option<(Vec<u8>, Version)>> {
        let found = self
            .remote
            .wait(self.container().get(&self.blob(name)))
            .map_err(|error| failed("read", &self.describe(name), error))?;
        Ok(found.map(|content| (content.bytes.to_vec(), Version::Etag(content.etag))))
    }

    fn get_newer(&self, name: &str, known: &Version) -> Result<Newer> {
        let Version::Etag(etag) = known else {
            return Ok(match self.get(name)? {
                Some((content, version)) => Newer::Changed(content, version),
                None => Newer::Gone,
            });
        };
        let newer = self
            .remote
            .wait(self.container().get_newer(&self.blob(name), etag))
            .map_err(|error| failed("read", &self.describe(name), error))?;
        Ok(match newer {
            azure_storage::Newer::Unchanged => Newer::Unchanged,
            azure_storage::Newer::Gone => Newer::Gone,
            azure_storage::Newer::Changed(content) => {
                Newer::Changed(content.bytes.to_vec(), Version::Etag(content.etag))
            }
        })
    }

    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
        self.put(name, content, Condition::NotExists)
    }

    fn replace(&self, name: &str, content: &[u8], seen: &Version) -> Result<Put> {
        match seen {
            Version::Etag(etag) => self.put(name, content, Condition::Matches(etag)),
            Version::File(..) => Ok(Put::Refused),
        }
    }

    fn remove(&self, names: &[String]) -> Result<()> {
        for name in names {
            for blob in self.blobs(name)? {
                self.remote
                    .wait(self.remove_blob(&blob, Condition::None))
                    .map_err(|error| failed("remove", &self.describe(name), error))?;
            }
        }
        Ok(())
    }

    fn remove_while(&self, names: &[String], still: Still<'_>) -> Result<()> {
        names.iter().try_for_each(|name| {
            // Parts that come meanwhile are of somebody else.
            let blobs = self.blobs(name)?;
            self.remove_seen(name, still, || self.see(blobs.clone()))
        })
    }

    fn clear(&self, keep: &str, still: Still<'_>) -> Result<()> {
        let (keep, owner) = (self.blob(keep), self.blob(layout::BASE_OWNER));
        // Base of a replica whose journal is elsewhere is not ours to remove.
        let others = self.base_owner()?.is_some();
        self.remove_seen("", still, || {
            self.see_all(|name| {
                name != keep && !(others && (name == owner || layout::is_base(name)))
            })
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let whole = self.blob(prefix);
        let listed = self
            .remote
            .wait(self.container().list(&whole, false))
            .map_err(|error| failed("list", &self.describe(prefix), error))?;
        Ok(listed
            .into_iter()
            .filter_map(|blob| {
                let name = blob.name.strip_prefix(&whole)?;
                (!name.starts_with(OWN)).then(|| Listed {
                    name: name.to_owned(),
                    length: blob.length,
                })
            })
            .collect())
    }

    fn settle(&self, _prefix: &str) -> Result<()> {
        // What a listing shows is durable.
        Ok(())
    }

    fn prepare(&self, _prefixes: &[&str]) -> Result<()> {
        // Names need no folders, and the container is the orchestrator's: its signature alone may create one.
        Ok(())
    }

    fn sweep(&self, _prefixes: &[&str]) -> Result<()> {
        // Blocks that were never committed are listed nowhere and removed by the service after a week.
        Ok(())
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Staged>> {
        Ok(Box::new(objects::StagedBlob::new(
            self.remote.clone(),
            self.blob(name),
        )))
    }

    fn open(&self, name: &str) -> Result<Option<Arc<dyn Object>>> {
        let opened = if layout::is_base(name) {
            base::open_for_reading(&self.remote, &self.blob(name))
        } else {
            objects::open(&self.remote, &self.blob(name))
        };
        opened.map_err(|error| failed("open", &self.describe(name), error))
    }

    fn base_create(&self, name: &str, length: u64, footer: &[u8], fence: Fence) -> Result<()> {
        base::create(
            &self.remote,
            &self.blob(name),
            self.stripes,
            length,
            footer,
            fence,
        )
    }

    fn base_fence(&self, name: &str, fence: Fence) -> Result<()> {
        base::fence(&self.remote, &self.blob(name), fence)
    }

    fn base_open(&self, name: &str, fence: Fence) -> Result<Option<Arc<dyn BaseWrite>>> {
        base::open_for_writing(&self.remote, &self.blob(name), fence)
    }

    fn open_copy(&self, name: &Path) -> Result<Box<dyn ImageFile>> {
        let blob = name.to_str().ok_or_else(|| {
            StoreError::new(
                ErrorKind::Invalid,
                format!("{} is no name of a blob", name.display()),
            )
        })?;
        Ok(Box::new(copy::BlobFile::open(&self.remote, blob)?))
    }

    fn base_owner(&self) -> Result<Option<String>> {
        let found = self
            .remote
            .wait(self.container().properties(&self.blob(layout::BASE_OWNER)))
            .map_err(|error| failed("look at", &self.describe(layout::BASE_OWNER), error))?;
        Ok(found.map(|found| {
            let mut metadata = found.metadata.into_iter();
            let journal = metadata.find(|(name, _)| name == OWNER);
            journal.map(|(_, journal)| journal).unwrap_or_default()
        }))
    }

    fn mark_base(&self, journal: &str) -> Result<Put> {
        // A page blob, because it may be all that the account takes.
        let marked = self.remote.wait(self.container().create_page_blob(
            &self.blob(layout::BASE_OWNER),
            PAGE,
            0,
            &[(OWNER, journal.to_owned())],
            Condition::NotExists,
        ));
        match marked {
            Ok(()) => Ok(Put::Done(Version::Etag(String::new()))),
            Err(error) if is_refusal(&error) => Ok(Put::Refused),
            Err(error) => Err(failed("write", &self.describe(layout::BASE_OWNER), error)),
        }
    }

    fn clear_base(&self, journal: &str, still: Still<'_>) -> Result<()> {
        if self.base_owner()?.as_deref() != Some(journal) {
            return Ok(());
        }
        self.remove_seen("", still, || self.see_all(layout::is_base))?;
        let owner = self.blob(layout::BASE_OWNER);
        self.remove_seen(layout::BASE_OWNER, still, || self.see(vec![owner.clone()]))
    }

    fn compares_fence(&self) -> bool {
        true
    }

    fn enter(&self, section: Section, _create: bool) -> Result<Box<dyn Guard>> {
        if section != Section::Maintenance {
            return Ok(Box::new(Nobody));
        }
        let blob = self.blob(OWN);
        let id = Uuid::new_v4();
        let taken = self.remote.wait(async {
            let made = self
                .container()
                .create_page_blob(&blob, 512, 0, &[], Condition::NotExists)
                .await;
            match made {
                Err(error) if !is_refusal(&error) => return Err(error),
                _ => {}
            }
            for look in 0..ROUND_LOOKS {
                if self
                    .container()
                    .acquire_lease(&blob, id, ROUND_LEASE_SECONDS)
                    .await?
                {
                    return Ok(true);
                }
                tokio::time::sleep(ROUND_LOOK * (1 << look)).await;
            }
            Ok(false)
        });
        let taken = taken.map_err(|error| failed("lease", &self.describe(OWN), error))?;
        if !taken {
            return Ok(Box::new(Nobody));
        }
        let renewing = self.remote.runtime.spawn({
            let (container, blob) = (self.container().clone(), blob.clone());
            async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    if !container.renew_lease(&blob, id).await.unwrap_or(true) {
                        return;
                    }
                }
            }
        });
        Ok(Box::new(Round {
            remote: self.remote.clone(),
            blob,
            id,
            renewing,
        }))
    }
}

#[derive(Debug)]
struct Nobody;

impl Guard for Nobody {}

/// The lease of a round of maintenance, renewed until it is dropped.
#[derive(Debug)]
struct Round {
    remote: Remote,
    blob: String,
    id: Uuid,
    renewing: tokio::task::JoinHandle<()>,
}

impl Guard for Round {}

impl Drop for Round {
    fn drop(&mut self) {
        self.renewing.abort();
        let (container, blob, id) = (
            self.remote.container.clone(),
            std::mem::take(&mut self.blob),
            self.id,
        );
        // Whether it is given back in time doesn't matter: it ends by itself.
        self.remote
            .runtime
            .spawn(async move { drop(container.release_lease(&blob, id).await) });
    }
}

//! Removing blobs: those that were seen, never those that somebody put there since.
//!
//! ```text
//! look (names, entity tags) ─► may it still go? ─► delete, if the tag is the one that was seen
//!      ▲                                           │
//!      └────────── it was written meanwhile ───────┘
//! ```
//!
//! A call may sleep anywhere in between while the replica gets another owner who makes the same names anew. What was
//! seen before the question was answered is of the time before; what is put there later has another tag.

use std::time::Duration;

use azure_storage::{Condition, Error, ErrorKind as Remote};
use futures::{StreamExt as _, TryStreamExt as _};

use super::{AzureMedium, SIDE_BY_SIDE, base, failed};
use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::medium::{Medium as _, Still};

/// Looks before it is given up: who writes a base that goes is refused before long.
const LOOKS: u32 = 5;
/// Between two looks, growing.
const PAUSE: Duration = Duration::from_millis(200);

/// A blob as it was seen.
pub(super) struct SeenBlob {
    pub(super) name: String,
    pub(super) etag: String,
}

impl AzureMedium {
    /// All blobs of an object: a base may have several.
    pub(super) fn blobs(&self, name: &str) -> Result<Vec<String>> {
        if !layout::is_base(name) {
            return Ok(vec![self.blob(name)]);
        }
        base::blobs_of(&self.remote, &self.blob(name))
            .map_err(|error| failed("look at", &self.describe(name), error))
    }

    /// Those of these blobs that are there.
    pub(super) fn see(&self, blobs: Vec<String>) -> std::result::Result<Vec<SeenBlob>, Error> {
        self.remote.wait(async {
            let mut seen = Vec::new();
            for name in blobs {
                if let Some(found) = self.container().properties(&name).await? {
                    seen.push(SeenBlob {
                        name,
                        etag: found.etag,
                    });
                }
            }
            Ok(seen)
        })
    }

    /// The blobs of this replica for which `which` holds.
    pub(super) fn see_all(
        &self,
        which: impl Fn(&str) -> bool,
    ) -> std::result::Result<Vec<SeenBlob>, Error> {
        let listed = self.remote.wait(self.container().list(&self.root, false))?;
        Ok(listed
            .into_iter()
            .filter(|blob| which(&blob.name))
            .map(|blob| SeenBlob {
                name: blob.name,
                etag: blob.etag,
            })
            .collect())
    }

    /// Removes what `look` sees, until it sees nothing.
    pub(super) fn remove_seen(
        &self,
        name: &str,
        still: Still<'_>,
        look: impl Fn() -> std::result::Result<Vec<SeenBlob>, Error>,
    ) -> Result<()> {
        let place = self.describe(name);
        for number in 0..LOOKS {
            if number > 0 {
                self.remote
                    .wait(async { tokio::time::sleep(PAUSE * number).await });
            }
            let seen = look().map_err(|error| failed("look at", &place, error))?;
            if seen.is_empty() {
                return Ok(());
            }
            still()?;
            let whole = self
                .remote
                .wait(self.remove_versions(seen))
                .map_err(|error| failed("remove", &place, error))?;
            if whole {
                return Ok(());
            }
        }
        Err(StoreError::new(
            ErrorKind::Io,
            format!("remove {place}: it is written all the time; stop its engine, then try again"),
        ))
    }

    /// `false` when one of them is another version by now.
    async fn remove_versions(&self, seen: Vec<SeenBlob>) -> std::result::Result<bool, Error> {
        futures::stream::iter(seen)
            .map(|blob| async move {
                let removed = self.remove_blob(&blob.name, Condition::Matches(&blob.etag));
                match removed.await {
                    Ok(()) => Ok(true),
                    Err(error) if error.kind() == Remote::ConditionNotMet => Ok(false),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(SIDE_BY_SIDE)
            .try_fold(true, |all, one| async move { Ok(all && one) })
            .await
    }

    /// Removes one blob; a lease on it is broken first.
    pub(super) async fn remove_blob(
        &self,
        blob: &str,
        condition: Condition<'_>,
    ) -> std::result::Result<(), Error> {
        match self.container().delete(blob, condition).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("LeaseIdMissing") => {
                self.container().break_lease(blob).await?;
                self.container().delete(blob, condition).await.map(drop)
            }
            Err(error) => Err(error),
        }
    }
}

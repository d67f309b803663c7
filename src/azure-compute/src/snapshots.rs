//! Frozen states of managed disks: made, opened for reading, closed, removed.
//!
//! ```text
//!  disk ─► PUT snapshot (incremental, with the recovery's id) ─► beginGetAccess: an address with a signature ─► read as a page blob
//!                                                              └ endGetAccess ─► DELETE
//! ```
//!
//! The address is a secret that opens the disk's content; it is never stored, logged or shown. Who died with one open closes it before it
//! opens another one, and before it removes the snapshot: the service refuses to remove what is open.

use std::collections::BTreeMap;
use std::fmt;

use arm_client::{CancellationToken, Method};
use serde_json::{Value, json};

use crate::bodies;
use crate::calls::{At, Sent};
use crate::error::{TargetError, TargetErrorKind};
use crate::resource::{Kind, Planned, path_of};
use crate::spec::Place;
use crate::tags::{self, OWNER_TAG, value_of};
use crate::target::{Target, foreign, last};

/// Address of a snapshot's content, with its signature. Not shown by `Debug`.
#[derive(Clone)]
pub struct Access(String);

impl Access {
    /// The address: `https://…blob.core.windows.net/<container>/<blob>?<signature>`.
    pub fn address(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access(..)")
    }
}

impl Target {
    /// Makes an incremental snapshot of a managed disk as it is now, and gives its id. One of this name that is there already counts
    /// as made, so a name is used for one instant only.
    ///
    /// # Errors
    /// When Azure refuses, or something foreign has the name.
    pub async fn snapshot(
        &self,
        place: &Place,
        disk_id: &str,
        name: &str,
        recovery_id: &str,
        cancel: &CancellationToken,
    ) -> Result<String, TargetError> {
        let mut body = bodies::snapshot(&place.location, disk_id);
        tags::mark(&mut body, &BTreeMap::new(), recovery_id);
        let planned = Planned {
            kind: Kind::Snapshot,
            name: name.to_owned(),
            id: Kind::Snapshot.id_of(place, name),
            owner: recovery_id.to_owned(),
            body,
            with_any_address: None,
        };
        Ok(self.ensure(&planned, cancel).await?.id)
    }

    /// Ids of all snapshots in the group that carry this recovery id.
    ///
    /// # Errors
    /// When they can't be listed.
    pub async fn snapshots(
        &self,
        place: &Place,
        recovery_id: &str,
    ) -> Result<Vec<String>, TargetError> {
        let about = format!("resource group {}", place.resource_group);
        let at = At {
            step: "looking for snapshots in",
            about: &about,
        };
        let all = self
            .calls
            .list(at, &Kind::Snapshot.list_path(place))
            .await?;
        let ours = all
            .iter()
            .filter(|found| value_of(found, OWNER_TAG) == Some(recovery_id))
            .filter_map(|found| found.get("id")?.as_str());
        Ok(ours.map(str::to_owned).collect())
    }

    /// Opens a snapshot for reading, for so long. What somebody has opened before is closed by it.
    ///
    /// # Errors
    /// When Azure refuses, or the snapshot is not there or not ours.
    pub async fn open(
        &self,
        snapshot_id: &str,
        recovery_id: &str,
        seconds: u32,
        cancel: &CancellationToken,
    ) -> Result<Access, TargetError> {
        let about = format!("snapshot {}", last(snapshot_id));
        let at = At {
            step: "opening",
            about: &about,
        };
        let body = json!({ "access": "Read", "durationInSeconds": seconds });
        let mut attempt = 0;
        loop {
            // An address that got lost with its answer stays good until it is closed; there is one at a time.
            if !self.close(snapshot_id, recovery_id, cancel).await? {
                return Err(missing(at));
            }
            attempt += 1;
            let path = action(snapshot_id, "beginGetAccess");
            let sent = self
                .calls
                .send(at, Method::Post, &path, Some(&body), cancel)
                .await;
            let error = match sent {
                Ok(answer) => match address(&answer) {
                    Some(address) => return Ok(Access(address)),
                    // Its result could not be fetched any more.
                    None => TargetError::of_code(at.step, &about, "", "the answer has no address"),
                },
                Err(Sent::Failed(error)) => return Err(error),
                Err(Sent::LookAgain(error)) => error,
            };
            if attempt >= self.calls.attempts() {
                return Err(error);
            }
            self.calls
                .back_off(at, attempt, error.retry_after(), cancel)
                .await?;
        }
    }

    /// Closes a snapshot: addresses that were given out are worth nothing any more. False when there is none of this recovery.
    ///
    /// # Errors
    /// When Azure refuses, or the snapshot is not ours.
    pub async fn close(
        &self,
        snapshot_id: &str,
        recovery_id: &str,
        cancel: &CancellationToken,
    ) -> Result<bool, TargetError> {
        let about = format!("snapshot {}", last(snapshot_id));
        let at = At {
            step: "closing",
            about: &about,
        };
        let mut attempt = 0;
        loop {
            let path = path_of(Kind::Snapshot, snapshot_id);
            let Some(found) = self.calls.settled(at, &path, cancel).await? else {
                return Ok(false);
            };
            if value_of(&found, OWNER_TAG) != Some(recovery_id) {
                return Err(foreign(at));
            }
            attempt += 1;
            let path = action(snapshot_id, "endGetAccess");
            let sent = self.calls.send(at, Method::Post, &path, None, cancel).await;
            match sent {
                Ok(_) => return Ok(true),
                Err(Sent::Failed(error)) => return Err(error),
                Err(Sent::LookAgain(error)) if attempt >= self.calls.attempts() => {
                    return Err(error);
                }
                Err(Sent::LookAgain(error)) => {
                    self.calls
                        .back_off(at, attempt, error.retry_after(), cancel)
                        .await?;
                }
            }
        }
    }

    /// Closes and removes a snapshot of this recovery; fine when it is gone.
    ///
    /// # Errors
    /// When Azure refuses, or the snapshot is not ours.
    pub async fn remove_snapshot(
        &self,
        snapshot_id: &str,
        recovery_id: &str,
        cancel: &CancellationToken,
    ) -> Result<(), TargetError> {
        if self.close(snapshot_id, recovery_id, cancel).await? {
            self.delete(Kind::Snapshot, snapshot_id, recovery_id, cancel)
                .await?;
        }
        Ok(())
    }
}

fn action(id: &str, word: &str) -> String {
    format!("{id}/{word}?api-version={}", Kind::Snapshot.api_version())
}

/// As the final answer has it, or, with some versions, the operation's own.
fn address(answer: &Value) -> Option<String> {
    let found = answer
        .get("accessSAS")
        .or_else(|| answer.pointer("/properties/output/accessSAS"))?;
    found.as_str().map(str::to_owned)
}

fn missing(at: At<'_>) -> TargetError {
    TargetError::new(
        TargetErrorKind::NotFound,
        at.step,
        at.about,
        "it does not exist",
        "another one is made by the next try",
    )
}

//! Leases: one holder of a blob at a time, for as long as it renews. Advice for the careful, no fence: a holder may
//! sleep past its lease's end, so whatever must never happen twice carries a sequence number or an ETag as well.

use azure_storage_blob::models::{BlobClientAcquireLeaseOptions, BlobClientBreakLeaseOptions};
use uuid::Uuid;

use crate::container::{Container, from_sdk};
use crate::error::{ErrorKind, Result};

impl Container {
    /// Takes the lease of a blob for 15 to 60 seconds under an id of our own, so that asking twice is asking once.
    /// False when somebody else holds it.
    pub async fn acquire_lease(&self, name: &str, id: Uuid, seconds: u8) -> Result<bool> {
        let options = BlobClientAcquireLeaseOptions {
            proposed_lease_id: Some(id.hyphenated().to_string()),
            ..Default::default()
        };
        held(
            self.blob(name)
                .acquire_lease(i32::from(seconds.clamp(15, 60)), Some(options))
                .await
                .map(drop),
            "acquire lease",
        )
    }

    /// Holds it for as long again. False when it is lost.
    pub async fn renew_lease(&self, name: &str, id: Uuid) -> Result<bool> {
        held(
            self.blob(name)
                .renew_lease(id.hyphenated().to_string(), None)
                .await
                .map(drop),
            "renew lease",
        )
    }

    /// Gives it back. False when it was lost already.
    pub async fn release_lease(&self, name: &str, id: Uuid) -> Result<bool> {
        held(
            self.blob(name)
                .release_lease(id.hyphenated().to_string(), None)
                .await
                .map(drop),
            "release lease",
        )
    }

    /// Ends anybody's lease at once. False when there is none.
    pub async fn break_lease(&self, name: &str) -> Result<bool> {
        let options = BlobClientBreakLeaseOptions {
            break_period: Some(0),
            ..Default::default()
        };
        held(
            self.blob(name).break_lease(Some(options)).await.map(drop),
            "break lease",
        )
    }
}

fn held(result: azure_core::Result<()>, doing: &str) -> Result<bool> {
    match result.map_err(|error| from_sdk(error, doing)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConditionNotMet => Ok(false),
        Err(error) => Err(error),
    }
}

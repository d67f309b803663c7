//! Snapshots of a blob: made, removed one by one or all at once.

use azure_core::http::Method;
use azure_storage_blob::models::BlobClientCreateSnapshotResultHeaders as _;

use crate::container::{Container, from_sdk, not_understood};
use crate::error::{ErrorKind, Result};

impl Container {
    /// Makes an immutable copy of a blob as it is now, and gives its name. It is not repeated after an unknown end.
    pub async fn snapshot(&self, name: &str) -> Result<String> {
        let made = self
            .blob(name)
            .create_snapshot(None)
            .await
            .map_err(|error| from_sdk(error, "snapshot blob"))?;
        made.snapshot()
            .ok()
            .flatten()
            .ok_or_else(|| not_understood(name, "x-ms-snapshot"))
    }

    /// Removes one snapshot of a blob; fine when it is not there.
    pub async fn delete_snapshot(&self, name: &str, snapshot: &str) -> Result<()> {
        let request = self.request(Method::Delete, name, Some(snapshot));
        gone(self.transport.execute(&request).await.map(drop))
    }

    /// Removes all snapshots of a blob, which itself stays; fine when there are none, or no blob.
    pub async fn delete_snapshots(&self, name: &str) -> Result<()> {
        let mut request = self.request(Method::Delete, name, None);
        request.insert_header("x-ms-delete-snapshots", "only");
        gone(self.transport.execute(&request).await.map(drop))
    }
}

fn gone(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

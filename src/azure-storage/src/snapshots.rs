//! Snapshots of a blob: made, listed, removed one by one.

use azure_core::http::Method;
use azure_storage_blob::models::{
    BlobClientCreateSnapshotResultHeaders as _, BlobContainerClientListBlobsOptions,
    ListBlobsIncludeItem, ListBlobsResponse,
};
use futures::TryStreamExt as _;

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

    /// Names of a blob's snapshots, oldest first; none when there is no such blob.
    pub async fn snapshots(&self, name: &str) -> Result<Vec<String>> {
        let failed = |error| from_sdk(error, "list snapshots");
        let options = BlobContainerClientListBlobsOptions {
            prefix: Some(name.to_owned()),
            include: Some(vec![ListBlobsIncludeItem::Snapshots]),
            ..Default::default()
        };
        let pages = self.sdk.list_blobs(Some(options)).map_err(failed)?;
        let mut pages = pages.into_pages();
        let mut found = Vec::new();
        while let Some(page) = pages.try_next().await.map_err(failed)? {
            let page: ListBlobsResponse = page.into_model().map_err(failed)?;
            let ours = page.blob_items.into_iter();
            let ours = ours.filter(|item| item.name.as_deref() == Some(name));
            found.extend(ours.filter_map(|item| item.snapshot));
        }
        found.retain(|snapshot| !snapshot.is_empty());
        found.sort_unstable();
        Ok(found)
    }

    /// Removes all snapshots of a blob but these; the blob stays. One by one: a blob that is a VM's disk is leased by Compute, and
    /// what is asked of the blob itself is refused.
    pub async fn delete_snapshots(&self, name: &str, keep: &[String]) -> Result<()> {
        for snapshot in self.snapshots(name).await? {
            if !keep.contains(&snapshot) {
                self.delete_snapshot(name, &snapshot).await?;
            }
        }
        Ok(())
    }
}

fn gone(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

//! Block blobs: whole objects that are put at once, or staged block by block and then given their name.

use azure_core::http::RequestContent;
use azure_storage_blob::models::{
    BlockBlobClientCommitBlockListOptions, BlockBlobClientCommitBlockListResultHeaders as _,
    BlockBlobClientUploadOptions, BlockLookupList,
};
use bytes::Bytes;

use crate::container::{Condition, Container, from_sdk, metadata_of, not_understood};
use crate::error::Result;

impl Container {
    /// Puts a whole blob in one call; gives its version.
    pub async fn put_block_blob(
        &self,
        name: &str,
        bytes: Bytes,
        metadata: &[(&str, String)],
        condition: Condition<'_>,
    ) -> Result<String> {
        let mut options = BlockBlobClientUploadOptions {
            metadata: metadata_of(metadata),
            // One request, whatever the size: blobs put in one call are small.
            partition_size: std::num::NonZero::new(bytes.len().max(1) as u64),
            parallel: std::num::NonZero::new(1),
            ..Default::default()
        };
        match condition {
            Condition::None => {}
            Condition::NotExists => options = options.if_not_exists(),
            Condition::Matches(etag) => options.if_match = Some(etag.to_owned().into()),
        }
        let put = self
            .blob(name)
            .block_blob_client()
            .upload(bytes.into(), Some(options))
            .await
            .map_err(|error| from_sdk(error, "put blob"))?;
        put.etag
            .map(|etag| etag.to_string())
            .ok_or_else(|| not_understood(name, "etag"))
    }

    /// Stores a block that belongs to no blob yet. All ids of one blob have the same length; at most 4,000 MiB.
    pub async fn stage_block(&self, name: &str, id: &[u8], bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        self.blob(name)
            .block_blob_client()
            .stage_block(id, length, bytes.into(), None)
            .await
            .map_err(|error| from_sdk(error, "put block"))?;
        Ok(())
    }

    /// Makes staged blocks, in this order, a blob; gives its version. Other blocks staged for the name are gone then.
    pub async fn commit_blocks(
        &self,
        name: &str,
        ids: &[Vec<u8>],
        metadata: &[(&str, String)],
        condition: Condition<'_>,
    ) -> Result<String> {
        let mut options = BlockBlobClientCommitBlockListOptions {
            metadata: metadata_of(metadata),
            ..Default::default()
        };
        match condition {
            Condition::None => {}
            Condition::NotExists => options.if_none_match = Some("*".to_owned().into()),
            Condition::Matches(etag) => options.if_match = Some(etag.to_owned().into()),
        }
        let blocks = BlockLookupList {
            uncommitted: Some(ids.to_vec()),
            ..BlockLookupList::default()
        };
        let doing = "put block list";
        let blocks: RequestContent<BlockLookupList, azure_core::http::XmlFormat> =
            blocks.try_into().map_err(|error| from_sdk(error, doing))?;
        let made = self
            .blob(name)
            .block_blob_client()
            .commit_block_list(blocks, Some(options))
            .await
            .map_err(|error| from_sdk(error, doing))?;
        made.etag()
            .ok()
            .flatten()
            .map(|etag| etag.to_string())
            .ok_or_else(|| not_understood(name, "etag"))
    }
}

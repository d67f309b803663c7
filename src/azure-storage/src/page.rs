//! Page blobs: fixed disks, written in place, 512 bytes at a time, at most 4 MiB a call.
//!
//! A write carries a condition on the blob's sequence number, so that the service itself refuses a stale writer.

use std::ops::Range;

use azure_core::http::Method;
use azure_storage_blob::models::{
    HttpRange, PageBlobClientClearPagesOptions, PageBlobClientCreateOptions,
    PageBlobClientListPageRangesOptions, PageBlobClientResizeOptions,
    PageBlobClientSetSequenceNumberOptions, PageBlobClientSetSequenceNumberResultHeaders as _,
    PageBlobClientUploadPagesOptions, PageList, SequenceNumberActionType,
};
use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::container::{Condition, Container, from_sdk, metadata_of, not_understood};
use crate::error::{Error, ErrorKind, Result};

/// Unit of offsets and lengths.
pub const PAGE: u64 = 512;

/// Most bytes of one Put Page.
pub const MAX_PUT_PAGE: u64 = 4 << 20;

/// What must hold for a write of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceCondition {
    /// Nothing.
    None,
    /// The blob's sequence number is at most this.
    AtMost(u64),
    /// It is exactly this.
    Equal(u64),
}

/// What a page blob is compared with: an older state of it.
#[derive(Clone, Copy)]
pub enum Older<'a> {
    /// A snapshot of the blob.
    Snapshot(&'a str),
    /// An incremental snapshot of the same managed disk, by its address with its signature
    /// (`x-ms-previous-snapshot-url`, service version 2019-07-07 and later). Not shown by `Debug`.
    Address(&'a str),
}

impl std::fmt::Debug for Older<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Older::Snapshot(name) => f.debug_tuple("Snapshot").field(name).finish(),
            Older::Address(_) => f.write_str("Address(..)"),
        }
    }
}

/// Ranges that changed since a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedRanges {
    /// Hold other bytes than then.
    pub written: Vec<Range<u64>>,
    /// Hold nothing any more.
    pub cleared: Vec<Range<u64>>,
}

impl Container {
    /// Creates a page blob, all zeroes, or makes an existing one that again if the condition allows.
    pub async fn create_page_blob(
        &self,
        name: &str,
        length: u64,
        sequence_number: u64,
        metadata: &[(&str, String)],
        condition: Condition<'_>,
    ) -> Result<()> {
        aligned(name, 0, length)?;
        let mut options = PageBlobClientCreateOptions {
            blob_sequence_number: Some(signed(sequence_number)?),
            metadata: metadata_of(metadata),
            ..Default::default()
        };
        match condition {
            Condition::None => {}
            Condition::NotExists => options = options.if_not_exists(),
            Condition::Matches(etag) => options.if_match = Some(etag.to_owned().into()),
        }
        self.blob(name)
            .page_blob_client()
            .create(length, Some(options))
            .await
            .map_err(|error| from_sdk(error, "create page blob"))?;
        Ok(())
    }

    /// Writes whole pages, at most [`MAX_PUT_PAGE`] bytes.
    pub async fn put_pages(
        &self,
        name: &str,
        offset: u64,
        bytes: Bytes,
        condition: SequenceCondition,
    ) -> Result<()> {
        let length = bytes.len() as u64;
        aligned(name, offset, length)?;
        if length == 0 || length > MAX_PUT_PAGE {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{length} bytes of {name} in one call; at least one page and at most {MAX_PUT_PAGE}"
                ),
            ));
        }
        let (at_most, equal) = split(condition)?;
        let options = PageBlobClientUploadPagesOptions {
            if_sequence_number_less_than_or_equal_to: at_most,
            if_sequence_number_equal_to: equal,
            ..Default::default()
        };
        self.blob(name)
            .page_blob_client()
            .upload_pages(
                bytes.into(),
                length,
                HttpRange::new(offset, length),
                Some(options),
            )
            .await
            .map_err(|error| from_sdk(error, "put pages"))?;
        Ok(())
    }

    /// Makes whole pages zero, however many.
    pub async fn clear_pages(
        &self,
        name: &str,
        range: Range<u64>,
        condition: SequenceCondition,
    ) -> Result<()> {
        aligned(name, range.start, range.end.saturating_sub(range.start))?;
        if range.is_empty() {
            return Ok(());
        }
        let (at_most, equal) = split(condition)?;
        let options = PageBlobClientClearPagesOptions {
            if_sequence_number_less_than_or_equal_to: at_most,
            if_sequence_number_equal_to: equal,
            ..Default::default()
        };
        self.blob(name)
            .page_blob_client()
            .clear_pages(range.into(), Some(options))
            .await
            .map_err(|error| from_sdk(error, "clear pages"))?;
        Ok(())
    }

    /// Ranges of a page blob (or of a snapshot) that hold bytes, merged, in order; of the part `within`.
    pub async fn page_ranges(
        &self,
        name: &str,
        snapshot: Option<&str>,
        within: Range<u64>,
    ) -> Result<Vec<Range<u64>>> {
        if within.is_empty() {
            return Ok(Vec::new());
        }
        let failed = |error| from_sdk(error, "get page ranges");
        let options = PageBlobClientListPageRangesOptions {
            range: Some(within.into()),
            snapshot: snapshot.map(str::to_owned),
            ..Default::default()
        };
        let mut pages = self
            .blob(name)
            .page_blob_client()
            .list_page_ranges(Some(options))
            .map_err(failed)?;
        let mut ranges = Vec::new();
        while let Some(page) = pages.try_next().await.map_err(failed)? {
            let list: PageList = page.into_model().map_err(failed)?;
            ranges.extend(
                list.page_ranges
                    .iter()
                    .filter_map(|range| half_open(range.start, range.end)),
            );
        }
        Ok(merge(ranges))
    }

    /// Ranges that changed since an older snapshot. The SDK has no call for it; emulators answer with all ranges.
    pub async fn page_ranges_since(&self, name: &str, older: &str) -> Result<ChangedRanges> {
        self.page_ranges_between(name, None, Older::Snapshot(older))
            .await
    }

    /// As [`Container::page_ranges_since`], of the blob or of one of its snapshots, which is newer than the older one.
    pub async fn page_ranges_between(
        &self,
        name: &str,
        snapshot: Option<&str>,
        older: Older<'_>,
    ) -> Result<ChangedRanges> {
        let mut changed = ChangedRanges::default();
        let mut marker: Option<String> = None;
        loop {
            let mut request = self.request(Method::Get, name, snapshot);
            {
                let mut query = request.url_mut().query_pairs_mut();
                query.append_pair("comp", "pagelist");
                if let Older::Snapshot(older) = older {
                    query.append_pair("prevsnapshot", older);
                }
                if let Some(marker) = &marker {
                    query.append_pair("marker", marker);
                }
            }
            if let Older::Address(address) = older {
                request.insert_header("x-ms-previous-snapshot-url", address.to_owned());
            }
            let answer = self.transport.execute(&request).await?;
            let text = std::str::from_utf8(&answer.body)
                .ok()
                .filter(|text| text.contains("<PageList"))
                .filter(|text| {
                    text.contains("</PageList>")
                        || text.contains("<PageList/>")
                        || text.contains("<PageList />")
                })
                .ok_or_else(|| not_understood(name, "list of ranges"))?;
            // What can't be read is never taken for unchanged.
            let ranges = |element| -> Result<Vec<Range<u64>>> {
                let ranges = elements(text, element).map(range_of);
                let ranges: Option<Vec<Range<u64>>> = ranges.collect();
                ranges.ok_or_else(|| not_understood(name, "list of ranges"))
            };
            changed.written.extend(ranges("PageRange")?);
            changed.cleared.extend(ranges("ClearRange")?);
            marker = elements(text, "NextMarker").next().map(str::to_owned);
            if marker.is_none() {
                break;
            }
        }
        changed.written = merge(changed.written);
        changed.cleared = merge(changed.cleared);
        Ok(changed)
    }

    /// Sets the length of a page blob; what is new is zero.
    pub async fn resize_page_blob(
        &self,
        name: &str,
        length: u64,
        etag: Option<&str>,
    ) -> Result<()> {
        aligned(name, 0, length)?;
        let options = PageBlobClientResizeOptions {
            if_match: etag.map(|etag| etag.to_owned().into()),
            ..Default::default()
        };
        self.blob(name)
            .page_blob_client()
            .resize(length, Some(options))
            .await
            .map_err(|error| from_sdk(error, "resize page blob"))?;
        Ok(())
    }

    /// Raises the sequence number to `number`, never lowers it; gives what it is now.
    pub async fn raise_sequence_number(&self, name: &str, number: u64) -> Result<u64> {
        let options = PageBlobClientSetSequenceNumberOptions {
            blob_sequence_number: Some(signed(number)?),
            ..Default::default()
        };
        let set = self
            .blob(name)
            .page_blob_client()
            .set_sequence_number(SequenceNumberActionType::Max, Some(options))
            .await
            .map_err(|error| from_sdk(error, "set sequence number"))?;
        set.blob_sequence_number()
            .ok()
            .flatten()
            .and_then(|number| u64::try_from(number).ok())
            .ok_or_else(|| not_understood(name, "x-ms-blob-sequence-number"))
    }
}

fn aligned(name: &str, offset: u64, length: u64) -> Result<()> {
    if offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("{length} bytes at {offset} of {name} are no whole pages of {PAGE} bytes"),
    ))
}

fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| {
        Error::new(
            ErrorKind::Invalid,
            format!("{number} is more than a sequence number can be"),
        )
    })
}

fn split(condition: SequenceCondition) -> Result<(Option<i64>, Option<i64>)> {
    Ok(match condition {
        SequenceCondition::None => (None, None),
        SequenceCondition::AtMost(number) => (Some(signed(number)?), None),
        SequenceCondition::Equal(number) => (None, Some(signed(number)?)),
    })
}

/// The service gives first and last byte.
fn half_open(start: Option<i64>, end: Option<i64>) -> Option<Range<u64>> {
    let (start, end) = (u64::try_from(start?).ok()?, u64::try_from(end?).ok()?);
    (start <= end).then(|| start..end + 1)
}

/// Contents of all elements of a name, in order. Written and cleared ranges alternate as they lie in the blob, which
/// the SDK's model of this answer doesn't take.
fn elements<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&open)?;
        let (content, after) = after.split_once(&close)?;
        rest = after;
        Some(content)
    })
    .filter(|content| !content.is_empty())
}

fn range_of(content: &str) -> Option<Range<u64>> {
    let number = |name| elements(content, name).next()?.trim().parse().ok();
    half_open(number("Start"), number("End"))
}

/// Sorted, touching ones joined: emulators give each write its own range.
pub(crate) fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_ranges_are_one() {
        assert_eq!(
            merge(vec![1024..2048, 0..1024, 4096..8192]),
            vec![0..2048, 4096..8192]
        );
    }
}

//! Base: a fixed VHD as one page blob, or as stripes of 4 MiB over several.
//!
//! ```text
//! n = 1   <disk>/base.vhd          the VHD as it is: what a virtual machine in Azure boots from
//! n > 1   <disk>/base.vhd.0of4     unit 0, 4, 8 ...      each blob has limits of its own
//!         <disk>/base.vhd.1of4     unit 1, 5, 9 ...      the blobs' lengths add up to the VHD's
//! ```
//!
//! What is there decides, not the setting: a base keeps its layout for as long as it lives. The fence is the sequence
//! number of every blob of it. Put Page and Clear Pages carry `sequence number <= fence`, so a writer whose fence was
//! passed is refused by the service. Setting a length has no such condition; it only ever grows, to what the manifest
//! says, and is done under the version that was seen.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use azure_storage::{Condition, Error, ErrorKind as Remoted, MAX_PUT_PAGE, SequenceCondition};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use replication_log::ReadAt;

use super::edges::{self, Change};
use super::objects::{checked_end, reading};
use super::{Remote, failed};
use crate::error::{ErrorKind, Result, StoreError};
use crate::medium::{BaseWrite, Fence, Object, Piece};

/// Unit of stripes, and the most that one Put Page takes.
const UNIT: u64 = MAX_PUT_PAGE;

/// Writes and reads of one base under way at once; the client's own limit is below it for emulators.
const SIDE_BY_SIDE: usize = 16;

/// How often creating is tried when somebody else does the same.
const RACES: usize = 5;

/// The blobs of one base.
#[derive(Clone, Debug)]
struct Stripes {
    blobs: Vec<String>,
}

/// A range of one blob, and where in the VHD it is.
struct Part {
    blob: usize,
    offset: u64,
    vhd: Range<u64>,
}

impl Stripes {
    fn new(blob: &str, count: u32) -> Self {
        let blobs = match count {
            0 | 1 => vec![blob.to_owned()],
            count => (0..count).map(|n| format!("{blob}.{n}of{count}")).collect(),
        };
        Stripes { blobs }
    }

    /// Length of blob `index` when the VHD has this length.
    fn length_of(&self, index: usize, vhd: u64) -> u64 {
        let (count, index) = (self.blobs.len() as u64, index as u64);
        let (units, rest) = (vhd / UNIT, vhd % UNIT);
        let whole = units / count + u64::from(units % count > index);
        whole * UNIT + if units % count == index { rest } else { 0 }
    }

    /// Cuts a range of the VHD where the blob changes.
    fn parts(&self, range: Range<u64>) -> impl Iterator<Item = Part> {
        let count = self.blobs.len() as u64;
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let (unit, within) = (at / UNIT, at % UNIT);
            let end = if count == 1 {
                range.end
            } else {
                range.end.min((unit + 1) * UNIT)
            };
            let part = Part {
                blob: usize::try_from(unit % count).unwrap_or(0),
                offset: if count == 1 {
                    at
                } else {
                    unit / count * UNIT + within
                },
                vhd: at..end,
            };
            at = end;
            Some(part)
        })
    }
}

/// The layout that is there, with the VHD's length.
async fn find(remote: &Remote, blob: &str) -> std::result::Result<Option<(Stripes, u64)>, Error> {
    if let Some(found) = remote.container.properties(blob).await? {
        return Ok(Some((Stripes::new(blob, 1), found.length)));
    }
    let listed = remote.container.list(&format!("{blob}."), false).await?;
    let count = listed.iter().find_map(|listed| {
        let (index, count) = listed
            .name
            .strip_prefix(blob)?
            .strip_prefix('.')?
            .split_once("of")?;
        (index == "0").then(|| count.parse::<u32>().ok()).flatten()
    });
    let Some(count) = count.filter(|count| (2..=64).contains(count)) else {
        return Ok(None);
    };
    let stripes = Stripes::new(blob, count);
    let lengths: Vec<u64> = stripes
        .blobs
        .iter()
        .filter_map(|name| listed.iter().find(|listed| listed.name == *name))
        .map(|listed| listed.length)
        .collect();
    // The first one is made last: all of them are there, or base is not.
    if lengths.len() != stripes.blobs.len() {
        return Ok(None);
    }
    Ok(Some((stripes, lengths.iter().sum())))
}

/// Every blob that belongs to this base, whatever state it is in.
pub(super) fn blobs_of(remote: &Remote, blob: &str) -> std::result::Result<Vec<String>, Error> {
    remote.wait(async {
        let mut blobs = vec![blob.to_owned()];
        let listed = remote.container.list(&format!("{blob}."), false).await?;
        blobs.extend(listed.into_iter().map(|listed| listed.name));
        Ok(blobs)
    })
}

pub(super) fn create(
    remote: &Remote,
    blob: &str,
    stripes: u32,
    length: u64,
    footer: &[u8],
    fence: Fence,
) -> Result<()> {
    let place = place(remote, blob);
    let made = remote.wait(async {
        let stripes = match find(remote, blob).await? {
            Some((found, _)) => found,
            None => Stripes::new(blob, stripes),
        };
        for (index, name) in stripes.blobs.iter().enumerate().rev() {
            create_blob(remote, name, stripes.length_of(index, length), fence).await?;
        }
        Ok(stripes)
    });
    let stripes = made.map_err(|error| failed("create", &place, error))?;
    let base = Base {
        remote: remote.clone(),
        place,
        stripes,
        fence,
    };
    let at = length.saturating_sub(footer.len() as u64);
    base.write(&[Piece::Data(at, Bytes::copy_from_slice(footer))])
}

/// Makes one blob all zeroes, unless somebody with a higher fence has it.
async fn create_blob(
    remote: &Remote,
    name: &str,
    length: u64,
    fence: Fence,
) -> std::result::Result<(), Error> {
    let mut last = None;
    for _ in 0..RACES {
        let found = remote.container.properties(name).await?;
        if let Some(found) = &found
            && found.sequence_number.is_some_and(|number| number > fence.0)
        {
            return Err(Error::fenced(name));
        }
        let condition = match &found {
            None => Condition::NotExists,
            Some(found) => Condition::Matches(&found.etag),
        };
        match remote
            .container
            .create_page_blob(name, length, fence.0, &[], condition)
            .await
        {
            Ok(()) => return Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    Remoted::AlreadyExists | Remoted::ConditionNotMet | Remoted::NotFound
                ) && error.code() != Some("ContainerNotFound") =>
            {
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::interrupted("create page blob")))
}

pub(super) fn fence(remote: &Remote, blob: &str, fence: Fence) -> Result<()> {
    let place = place(remote, blob);
    remote
        .wait(async {
            let Some((stripes, _)) = find(remote, blob).await? else {
                // It will be created under this fence.
                return Ok(());
            };
            for name in &stripes.blobs {
                if remote
                    .container
                    .raise_sequence_number(name, fence.0)
                    .await?
                    > fence.0
                {
                    return Err(Error::fenced(name));
                }
            }
            Ok(())
        })
        .map_err(|error| failed("fence", &place, error))
}

pub(super) fn open_for_writing(
    remote: &Remote,
    blob: &str,
    fence: Fence,
) -> Result<Option<Arc<dyn BaseWrite>>> {
    let place = place(remote, blob);
    let found = remote
        .wait(find(remote, blob))
        .map_err(|error| failed("open", &place, error))?;
    Ok(found.map(|(stripes, _)| {
        Arc::new(Base {
            remote: remote.clone(),
            place,
            stripes,
            fence,
        }) as Arc<dyn BaseWrite>
    }))
}

pub(super) fn open_for_reading(
    remote: &Remote,
    blob: &str,
) -> std::result::Result<Option<Arc<dyn Object>>, Error> {
    let found = remote.wait(find(remote, blob))?;
    Ok(found.map(|(stripes, length)| {
        Arc::new(BaseRead {
            remote: remote.clone(),
            blob: blob.to_owned(),
            stripes,
            length,
        }) as Arc<dyn Object>
    }))
}

/// Where a blob is, for messages.
pub(super) fn place(remote: &Remote, blob: &str) -> String {
    format!("{}/{blob}", remote.container.url())
}

/// Base, open for writing.
#[derive(Debug)]
struct Base {
    remote: Remote,
    place: String,
    stripes: Stripes,
    fence: Fence,
}

impl Base {
    async fn carry_out(&self, change: Change) -> std::result::Result<(), Error> {
        let condition = SequenceCondition::AtMost(self.fence.0);
        match change {
            Change::Put(offset, bytes) => {
                let end = offset + bytes.len() as u64;
                for part in self.stripes.parts(offset..end) {
                    let from = usize::try_from(part.vhd.start - offset).unwrap_or(0);
                    let to = usize::try_from(part.vhd.end - offset).unwrap_or(0);
                    let name = &self.stripes.blobs[part.blob];
                    self.remote
                        .container
                        .put_pages(name, part.offset, bytes.slice(from..to), condition)
                        .await?;
                }
            }
            Change::Clear(range) => {
                for part in self.stripes.parts(range) {
                    let length = part.vhd.end - part.vhd.start;
                    let name = &self.stripes.blobs[part.blob];
                    self.remote
                        .container
                        .clear_pages(name, part.offset..part.offset + length, condition)
                        .await?;
                }
            }
            Change::Mend { pages, patches } => {
                let mut bytes = self.read(pages.clone()).await?;
                for (offset, patch) in patches {
                    let from = usize::try_from(offset - pages.start).unwrap_or(0);
                    if let Some(target) = bytes.get_mut(from..from + patch.len()) {
                        target.copy_from_slice(&patch);
                    }
                }
                let bytes = Bytes::from(bytes);
                return Box::pin(self.carry_out(Change::Put(pages.start, bytes))).await;
            }
        }
        Ok(())
    }

    async fn read(&self, range: Range<u64>) -> std::result::Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0));
        for part in self.stripes.parts(range) {
            let length = part.vhd.end - part.vhd.start;
            let name = &self.stripes.blobs[part.blob];
            let content = self
                .remote
                .container
                .get_range(name, None, part.offset..part.offset + length)
                .await?;
            bytes.extend_from_slice(&content.bytes);
        }
        Ok(bytes)
    }
}

impl BaseWrite for Base {
    fn length(&self) -> Result<u64> {
        let mut sum = 0u64;
        for name in &self.stripes.blobs {
            let found = self
                .remote
                .wait(self.remote.container.properties(name))
                .map_err(|error| failed("look at", &self.place, error))?;
            let Some(found) = found else {
                return Err(StoreError::new(
                    ErrorKind::NotFound,
                    format!("{} is not there any more", self.place),
                ));
            };
            sum += found.length;
        }
        Ok(sum)
    }

    fn write(&self, pieces: &[Piece]) -> Result<()> {
        let changes = edges::changes(pieces).ok_or_else(|| {
            StoreError::new(
                ErrorKind::Invalid,
                format!("changes of {} overlap or lie beyond all disks", self.place),
            )
        })?;
        self.remote
            .wait(
                futures::stream::iter(changes)
                    .map(|change| self.carry_out(change))
                    .buffer_unordered(SIDE_BY_SIDE)
                    .try_collect::<Vec<()>>(),
            )
            .map(drop)
            .map_err(|error| failed("write", &self.place, error))
    }

    fn flush(&self) -> Result<()> {
        // What the service acknowledges is durable.
        Ok(())
    }

    fn resize(&self, length: u64) -> Result<()> {
        self.remote
            .wait(async {
                for (index, name) in self.stripes.blobs.iter().enumerate() {
                    let wanted = self.stripes.length_of(index, length);
                    let Some(found) = self.remote.container.properties(name).await? else {
                        return Err(Error::interrupted("resize page blob"));
                    };
                    if found
                        .sequence_number
                        .is_some_and(|number| number > self.fence.0)
                    {
                        return Err(Error::fenced(name));
                    }
                    if found.length < wanted {
                        self.remote
                            .container
                            .resize_page_blob(name, wanted, Some(&found.etag))
                            .await?;
                    }
                }
                Ok(())
            })
            .map_err(|error| failed("resize", &self.place, error))
    }
}

/// Base, open for reading. Nothing is kept: the applier moves base while it is read.
#[derive(Debug)]
struct BaseRead {
    remote: Remote,
    blob: String,
    stripes: Stripes,
    length: u64,
}

impl ReadAt for BaseRead {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = checked_end(buf, offset, self.length)?;
        let mut reads = Vec::new();
        let mut rest = buf;
        for part in self.stripes.parts(offset..end) {
            let length = usize::try_from(part.vhd.end - part.vhd.start).unwrap_or(0);
            let (mut now, later) = rest.split_at_mut(length.min(rest.len()));
            rest = later;
            let mut at = part.offset;
            // In pieces that the service has checksums for.
            while !now.is_empty() {
                let take = now.len().min(UNIT as usize);
                let (piece, more) = now.split_at_mut(take);
                now = more;
                let name = &self.stripes.blobs[part.blob];
                let range = at..at + take as u64;
                at = range.end;
                reads.push(async move {
                    let content = self.remote.container.get_range(name, None, range).await?;
                    let complete = content.bytes.len() == piece.len();
                    if complete {
                        piece.copy_from_slice(&content.bytes);
                    }
                    Ok::<bool, Error>(complete)
                });
            }
        }
        let done = self.remote.wait(
            futures::stream::iter(reads)
                .buffer_unordered(SIDE_BY_SIDE)
                .try_fold(true, |all, one| std::future::ready(Ok(all && one))),
        );
        match done {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(reading(&self.blob, error)),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn stripes_hold_every_byte_once(count in 1u32..9, length in 0u64..(64 << 20), start in 0u64..(64 << 20)) {
            let stripes = Stripes::new("b", count);
            let length = length / 512 * 512;
            let sum: u64 = (0..stripes.blobs.len()).map(|n| stripes.length_of(n, length)).sum();
            prop_assert_eq!(sum, length);
            let mut at = start.min(length);
            let mut seen = std::collections::BTreeMap::<usize, u64>::new();
            for part in stripes.parts(at..length) {
                prop_assert_eq!(part.vhd.start, at);
                at = part.vhd.end;
                let end = part.offset + (part.vhd.end - part.vhd.start);
                prop_assert!(end <= stripes.length_of(part.blob, length));
                // Within one blob offsets only grow.
                prop_assert!(seen.insert(part.blob, end).is_none_or(|before| before <= part.offset));
            }
            prop_assert_eq!(at, length);
        }
    }
}

//! Room on the volumes that disks are filled on: other VMs of the host write there, too, and a full volume stops them.
//!
//! ```text
//! what differs ─► how far images grow, by volume ─► enough beside the reserve? ─ no ──► nothing is written
//! each batch   ─► enough for it beside the reserve? ─────────────────────────── no ──► waits here, goes on by itself
//! ```
//!
//! Promise: nothing is added to an image when less than the reserve would be left on its volume. What replaces bytes that the
//! image holds already needs no room. Of a disk of which nothing tells what differs, its growth is known only as it is
//! written, so that such a disk is judged batch by batch.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use disk_image::DiskImage;

use super::todo;
use super::{ReceiveError, Receiver};

/// Left free on a volume for what the host's other VMs write, as on a recovery host.
pub const RESERVE_BYTES: u64 = 1 << 30;
/// How often a volume without room is looked at.
const POLL: Duration = Duration::from_secs(5);
/// After this time it is found out anew what is needed: the recovered VM may have given back what it had written.
const STALE: Duration = Duration::from_secs(600);

/// Free bytes of the volume of a path; `None` = it can't be told, and nothing is held up.
pub type FreeBytes = Arc<dyn Fn(&Path) -> Option<u64> + Send + Sync>;

/// A volume has too little room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// A folder on it.
    pub folder: PathBuf,
    /// What is to be added.
    pub needed_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
}

impl Lack {
    /// What must become free.
    pub fn missing_bytes(&self) -> u64 {
        let wanted = self.needed_bytes.saturating_add(RESERVE_BYTES);
        wanted.saturating_sub(self.free_bytes)
    }
}

/// What one image will grow by, at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Growth {
    pub folder: PathBuf,
    pub bytes: u64,
}

/// How many of these bytes an image does not hold yet.
pub(super) fn growth(image: &DiskImage, ranges: &[Range<u64>]) -> u64 {
    let held = ranges.iter().map(|range| {
        let held = image.allocated(range.clone());
        held.iter().map(|extent| extent.length).sum::<u64>()
    });
    todo::total(ranges).saturating_sub(held.sum())
}

/// The first volume on which images can't grow as they must. `volume` names the volume of a folder.
pub(super) fn lack<V: PartialEq>(
    growths: &[Growth],
    volume: impl Fn(&Path) -> V,
    free_bytes: impl Fn(&Path) -> Option<u64>,
) -> Option<Lack> {
    let volumes: Vec<V> = growths.iter().map(|one| volume(&one.folder)).collect();
    growths.iter().zip(&volumes).find_map(|(one, its)| {
        let same = growths
            .iter()
            .zip(&volumes)
            .filter(|(_, other)| *other == its);
        let needed_bytes = same.map(|(other, _)| other.bytes).sum();
        let free_bytes = free_bytes(&one.folder)?;
        let lacks = needed_bytes > 0 && free_bytes < RESERVE_BYTES.saturating_add(needed_bytes);
        lacks.then(|| Lack {
            folder: one.folder.clone(),
            needed_bytes,
            free_bytes,
        })
    })
}

/// Which volume a folder is on.
#[cfg(unix)]
fn volume(folder: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Some(std::fs::metadata(folder).ok()?.dev())
}

/// Which volume a folder is on, as far as its name tells.
#[cfg(not(unix))]
fn volume(folder: &Path) -> Option<std::ffi::OsString> {
    let first = folder.components().next()?;
    Some(first.as_os_str().to_ascii_lowercase())
}

impl Receiver {
    /// Refuses to begin when the images can't grow as they must.
    pub(super) fn check_room(&self, growths: &[Growth]) -> Result<(), ReceiveError> {
        match lack(growths, volume, |folder| (self.free_bytes)(folder)) {
            Some(lack) => Err(ReceiveError::NoRoom(lack)),
            None => Ok(()),
        }
    }

    /// Whether a batch may be written to an image.
    pub(super) fn check_batch(&self, path: &Path, bytes: u64) -> Result<(), ReceiveError> {
        let folder = path.parent().unwrap_or(path).to_owned();
        self.check_room(&[Growth { folder, bytes }])
    }

    /// Returns when there is room for what could not be written, or that is not known any more.
    pub(super) async fn room_comes(&self, lack: &Lack) {
        let enough = lack.needed_bytes.saturating_add(RESERVE_BYTES);
        let comes = async {
            while (self.free_bytes)(&lack.folder).is_some_and(|free| free < enough) {
                tokio::time::sleep(POLL).await;
            }
        };
        // Either way a round looks again.
        let _ = tokio::time::timeout(STALE, comes).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn grows(folder: &str, bytes: u64) -> Growth {
        Growth {
            folder: PathBuf::from(folder),
            bytes,
        }
    }

    /// `/a/…` and `/b/…` are two volumes.
    fn judged(growths: &[Growth], a: Option<u64>, b: Option<u64>) -> Option<Lack> {
        let volume = |folder: &Path| folder.starts_with("/a");
        lack(growths, volume, |folder| if volume(folder) { a } else { b })
    }

    #[test]
    fn disks_of_one_volume_are_added_up_and_the_reserve_stays_free() {
        let both = [grows("/a/vm", 3 * GIB), grows("/a/other", 2 * GIB)];
        assert_eq!(judged(&both, Some(6 * GIB), Some(0)), None);
        let lack = judged(&both, Some(6 * GIB - 1), Some(0)).unwrap();
        assert_eq!((lack.needed_bytes, lack.free_bytes), (5 * GIB, 6 * GIB - 1));
        let apart = [grows("/a/vm", 3 * GIB), grows("/b/vm", 2 * GIB)];
        assert_eq!(judged(&apart, Some(4 * GIB), Some(3 * GIB)), None);
        let lack = judged(&apart, Some(4 * GIB), Some(2 * GIB)).unwrap();
        assert_eq!(lack.folder, Path::new("/b/vm"));
    }

    #[test]
    fn what_replaces_bytes_needs_no_room_and_an_unknown_volume_holds_nothing_up() {
        assert_eq!(judged(&[grows("/a", 0)], Some(0), None), None);
        assert_eq!(judged(&[grows("/a", GIB)], None, None), None);
    }
}

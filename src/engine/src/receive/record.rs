//! Which point the disks of a VM are on their way to, or have arrived at.
//!
//! ```text
//! <data>/state/<item>.hashes/receive.json     beside the maps of block hashes, and removed with them
//! ```
//!
//! Promise: it says "on its way" durably before the first byte is written, and "arrived" only after the last one is durable
//! and was read back. On its way a disk is neither what it was nor what it is to be: no VM may be started from it.

use std::io;
use std::path::{Path, PathBuf};

use hypervisor::{DiskId, VmId};
use replica_store::{Generation, Position};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::durable::{self, Access};
use crate::replicator::kept::Known;
use crate::replicator::state::ImageMark;

const VERSION: u32 = 1;
const FILE: &str = "receive.json";

/// What is known of an item's disks as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    version: u32,
    /// Whose disks.
    pub vm: VmId,
    /// The replica.
    pub replica: Uuid,
    /// The point.
    pub point: Uuid,
    /// Its position.
    pub position: Position,
    /// Who wrote it.
    pub by: Generation,
    /// The disks hold the point, and these are their images since; `None` = on its way.
    pub arrived: Option<Vec<Arrived>>,
}

/// An image that holds a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrived {
    /// The disk.
    pub disk: DiskId,
    /// Tells whether it was written since.
    pub mark: ImageMark,
}

impl Record {
    /// On the way to a point.
    pub fn under_way(vm: VmId, replica: Uuid, point: Uuid, to: Known) -> Self {
        Self {
            version: VERSION,
            vm,
            replica,
            point,
            position: to.position,
            by: to.by,
            arrived: None,
        }
    }

    /// Arrived, with these images.
    #[must_use]
    pub fn at(self, images: Vec<Arrived>) -> Self {
        Self {
            arrived: Some(images),
            ..self
        }
    }

    /// Whether the disks hold the point.
    pub fn has_arrived(&self) -> bool {
        self.arrived.is_some()
    }

    /// Whether an image is what it was when it held the point.
    pub fn is_untouched(&self, disk: DiskId, now: &ImageMark) -> bool {
        let known = self.arrived.iter().flatten();
        known
            .into_iter()
            .any(|known| known.disk == disk && known.mark == *now)
    }

    /// The record of an item, by the folder of its maps; none when its disks were never brought anywhere.
    ///
    /// # Errors
    /// When it can't be read: then nobody knows what the disks are.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        let found = durable::read_json::<Self>(&path(folder))?;
        match found {
            Some(record) if record.version != VERSION => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} is of version {}, this engine knows {VERSION}",
                    path(folder).display(),
                    record.version
                ),
            )),
            found => Ok(found),
        }
    }

    /// Makes it durable.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        if !folder.is_dir() {
            durable::create_folder(folder)?;
        }
        durable::replace_json(&path(folder), self, Access::Plain)
    }

    /// Nothing is known any more.
    pub fn remove(folder: &Path) -> io::Result<()> {
        durable::remove(&path(folder))
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

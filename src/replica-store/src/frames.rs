//! Unpacked, verified frames of journal objects, the recently used ones kept in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{ErrorKind, Result, StoreError};
use crate::medium::{Medium, Object};
use crate::overlay::OverlayObject;

/// 64 frames of at most 256 KiB: 16 MiB for a view.
const FRAMES: usize = 64;
/// Open files of one view.
const FILES: usize = 64;

/// A cache that several threads may read through.
#[derive(Debug)]
pub(crate) struct FrameCache {
    inner: Mutex<Inner>,
    most: usize,
}

impl Default for FrameCache {
    fn default() -> Self {
        FrameCache::of(FRAMES)
    }
}

/// When it was last used, and its raw bytes.
type Cached = (u64, Arc<Vec<u8>>);

#[derive(Debug, Default)]
struct Inner {
    tick: u64,
    /// By name: a merged object has the position of one that it replaces.
    frames: HashMap<(Arc<str>, u32), Cached>,
    files: HashMap<Arc<str>, Arc<dyn Object>>,
}

impl FrameCache {
    /// Keeps so many frames.
    pub(crate) fn of(most: usize) -> Self {
        FrameCache {
            inner: Mutex::default(),
            most,
        }
    }

    /// `NotFound` when the object is gone.
    pub(crate) fn read(
        &self,
        medium: &dyn Medium,
        object: &OverlayObject,
        index: u32,
    ) -> Result<Arc<Vec<u8>>> {
        let key = (object.name.clone(), index);
        let file = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.tick += 1;
            let now = inner.tick;
            if let Some((used, raw)) = inner.frames.get_mut(&key) {
                *used = now;
                return Ok(raw.clone());
            }
            inner.files.get(&object.name).cloned()
        };
        // Reading and unpacking happen outside the lock: readers of other frames go on.
        let file = match file {
            Some(file) => file,
            None => medium.open(&object.name)?.ok_or_else(|| {
                StoreError::new(
                    ErrorKind::NotFound,
                    format!("open {}: it is not there", object.place),
                )
            })?,
        };
        let frame = object
            .frames
            .get(index as usize)
            .ok_or_else(|| StoreError::corrupt(&object.place, "no such frame"))?;
        let raw = frame
            .read(&*file)
            .map_err(|error| StoreError::journal(&object.place, error))?;
        let raw = Arc::new(raw);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.files.len() >= FILES {
            inner.files.clear();
        }
        inner.files.insert(object.name.clone(), file);
        if inner.frames.len() >= self.most {
            let oldest = inner.frames.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                inner.frames.remove(&oldest);
            }
        }
        let now = inner.tick;
        inner.frames.insert(key, (now, raw.clone()));
        Ok(raw)
    }
}

//! What happens to blobs behind the service's back: guests write to disks, other services keep disks in containers of their own.

use std::ops::Range;
use std::time::Duration;

use super::blobs::{Data, Lease};
use super::pages::Pages;
use super::server::{Double, lock};

impl Double {
    /// Puts the content of a page blob as it is now into another container, which is made if it is missing; false when
    /// there is no such blob. Both are `container/name`.
    pub fn keep_blob(&self, from: &str, to: &str) -> bool {
        let mut account = lock(&self.shared.account);
        let found = from
            .split_once('/')
            .and_then(|(container, name)| account.containers.get(container)?.blobs.get(name))
            .cloned();
        let (Some(mut blob), Some((container, name))) = (found, to.split_once('/')) else {
            return false;
        };
        blob.snapshots.clear();
        blob.lease = None;
        let keep = account.containers.entry(container.to_owned()).or_default();
        keep.blobs.insert(name.to_owned(), blob);
        true
    }

    /// Removes a container with everything in it.
    pub fn drop_container(&self, name: &str) {
        lock(&self.shared.account).containers.remove(name);
    }

    /// Removes a blob of `container/name`.
    pub fn drop_blob(&self, path: &str) {
        if let Some((container, name)) = path.split_once('/')
            && let Some(keep) = lock(&self.shared.account).containers.get_mut(container)
        {
            keep.blobs.remove(name);
        }
    }

    /// Names of all containers, sorted.
    pub fn containers(&self) -> Vec<String> {
        let account = lock(&self.shared.account);
        let mut names: Vec<String> = account.containers.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// How many snapshots a page blob has, by `container/name`.
    pub fn snapshots(&self, path: &str) -> usize {
        let account = lock(&self.shared.account);
        let blob = path
            .split_once('/')
            .and_then(|(container, name)| account.containers.get(container)?.blobs.get(name));
        blob.map_or(0, |blob| blob.snapshots.len())
    }

    /// Compute leases the blob of a VM's disk without end, or gives it free.
    pub fn lease(&self, path: &str, is_leased: bool) {
        let mut account = lock(&self.shared.account);
        if let Some((container, name)) = path.split_once('/')
            && let Some(keep) = account.containers.get_mut(container)
            && let Some(blob) = keep.blobs.get_mut(name)
        {
            blob.lease = is_leased.then(|| Lease {
                id: "compute".to_owned(),
                seconds: 0,
                until: Duration::MAX,
            });
        }
    }

    /// A guest writes whole pages to a page blob of `container/name`.
    pub fn write(&self, path: &str, offset: u64, bytes: &[u8]) {
        self.change(path, |pages| pages.write(offset, bytes));
    }

    /// A guest gives whole pages of a page blob back: they hold nothing any more.
    pub fn clear(&self, path: &str, range: Range<u64>) {
        self.change(path, |pages| pages.clear(range));
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut Pages)) {
        let mut account = lock(&self.shared.account);
        if let Some((container, name)) = path.split_once('/')
            && let Some(keep) = account.containers.get_mut(container)
            && let Some(blob) = keep.blobs.get_mut(name)
            && let Data::Page { pages, .. } = &mut blob.data
        {
            change(pages);
        }
    }
}

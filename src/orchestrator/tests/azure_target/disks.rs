//! Managed disks and snapshots of the Compute double, kept as page blobs in the Storage double.
//!
//! ```text
//!  disks/<hash of the ARM id>      a disk or a snapshot, as it is
//!  md-<hash>/abcd                  a snapshot that is open: gone when it is closed
//! ```

#![allow(dead_code)] // each test program uses its part

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use azure_compute::double::{Disks, Double};
use azure_storage::double::Double as Storage;
use azure_storage::sas::Permissions;

/// See the file.
pub struct Managed {
    storage: Arc<Storage>,
}

fn hash(id: &str) -> String {
    let mut hasher = DefaultHasher::new();
    id.to_lowercase().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Where a disk lies, as container and name.
pub fn path_of(id: &str) -> String {
    format!("disks/{}", hash(id))
}

/// Has the Compute double keep its disks there.
pub fn keep(compute: &Double, storage: &Arc<Storage>) {
    compute.keep_disks(Managed {
        storage: Arc::clone(storage),
    });
}

impl Disks for Managed {
    fn import(&self, disk: &str, uri: &str) {
        let from = uri.strip_prefix(&format!("{}/", self.storage.endpoint()));
        let from = from.expect("a blob of the double");
        assert!(self.storage.keep_blob(from, &path_of(disk)), "{uri}");
    }

    fn freeze(&self, disk: &str, snapshot: &str) {
        assert!(self.storage.keep_blob(&path_of(disk), &path_of(snapshot)));
    }

    fn open(&self, snapshot: &str) -> String {
        let container = format!("md-{}", hash(snapshot));
        let to = format!("{container}/abcd");
        assert!(self.storage.keep_blob(&path_of(snapshot), &to));
        let rights = Permissions {
            list: false,
            ..Permissions::RECOVER
        };
        let request = azure_storage::sas::SasRequest {
            container,
            permissions: rights,
            protocols: azure_storage::sas::Protocols::HttpsAndHttp,
            now_unix_ms: now_ms(),
            lifetime_ms: 3_600_000,
        };
        let signature = azure_storage::sas::mint(self.storage.key(), &request).query;
        format!("{}/{to}?{signature}", self.storage.endpoint())
    }

    fn close(&self, snapshot: &str) {
        self.storage
            .drop_container(&format!("md-{}", hash(snapshot)));
    }

    fn lease(&self, uri: &str, is_leased: bool) {
        let path = uri.strip_prefix(&format!("{}/", self.storage.endpoint()));
        self.storage
            .lease(path.expect("a blob of the double"), is_leased);
    }

    fn remove(&self, id: &str) {
        self.storage.drop_blob(&path_of(id));
    }
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("after 1970").as_millis()).expect("small")
}

/// Containers of snapshots that are open.
pub fn open(storage: &Storage) -> Vec<String> {
    let all = storage.containers().into_iter();
    all.filter(|name| name.starts_with("md-")).collect()
}

/// What a disk holds, footer included.
pub fn content(storage: &Storage, path: &str) -> Vec<u8> {
    let uri = format!("{}/{path}", storage.endpoint());
    storage.look(&uri).expect("a disk").bytes
}

//! What the service keeps: containers, blobs, snapshots, blocks, leases.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::pages::Pages;

/// One storage account.
#[derive(Default)]
pub(super) struct Account {
    pub(super) containers: HashMap<String, Keep>,
    pub(super) versions: u64,
}

/// One container.
#[derive(Default)]
pub(super) struct Keep {
    pub(super) blobs: BTreeMap<String, Blob>,
    /// Blocks staged for names.
    pub(super) staged: HashMap<String, HashMap<String, Vec<u8>>>,
}

#[derive(Clone)]
pub(super) enum Data {
    Block(Vec<u8>),
    Page {
        length: u64,
        sequence: u64,
        pages: Pages,
    },
}

#[derive(Clone)]
pub(super) struct Blob {
    pub(super) data: Data,
    pub(super) etag: String,
    pub(super) metadata: Vec<(String, String)>,
    pub(super) snapshots: BTreeMap<String, (Data, Duration)>,
    pub(super) lease: Option<Lease>,
    pub(super) copied: bool,
}

#[derive(Clone)]
pub(super) struct Lease {
    pub(super) id: String,
    pub(super) seconds: u64,
    pub(super) until: Duration,
}

impl Data {
    pub(super) fn length(&self) -> u64 {
        match self {
            Data::Block(bytes) => bytes.len() as u64,
            Data::Page { length, .. } => *length,
        }
    }

    pub(super) fn read(&self, range: std::ops::Range<u64>) -> Vec<u8> {
        match self {
            Data::Block(bytes) => bytes
                .get(range.start as usize..range.end as usize)
                .unwrap_or_default()
                .to_vec(),
            Data::Page { pages, .. } => pages.read(range),
        }
    }
}

impl Account {
    /// A version that was never given before.
    pub(super) fn etag(&mut self) -> String {
        self.versions += 1;
        format!("\"0x8DD{:012X}\"", self.versions)
    }
}

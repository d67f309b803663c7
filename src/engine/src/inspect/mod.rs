//! `inspect` and `points`: what a file or a replica says about itself, for people and for scripts.
//!
//! ```text
//!   what is at the path?  VHDX VHD raw ─► image      "msctlog" ─► log       "SRJRNL" ─► journal
//!                         folder, URL ─► replica     "siterecovery" ─► stored    "SRBHASH" ─► hashes
//! ```
//!
//! Nothing is written, and nothing that is read is trusted. An encrypted journal object shows what stands in the clear
//! when its key is not at hand.

mod hashes;
mod image;
mod journal;
mod keys;
mod replica;
mod stored;
mod text;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use replication_log::KeyRing;
use serde_json::Value;

use crate::location;

pub use image::warnings as image_warnings;
pub use replica::points;
pub use text::text;

const EXAMPLES: &str = "\
Examples:
  siterecovery-engine inspect disk.vhdx
  siterecovery-engine inspect --parents /vms/web01 /vms/web01/os_3F2A.avhdx --json
  siterecovery-engine inspect disk.vhdx.7.hrl
  siterecovery-engine inspect --keys keys.txt /mnt/replicas/vault/item/journal/00000000000000000001-00000000000000000007.hrl
  siterecovery-engine inspect /mnt/replicas/vault/item
  AZURE_STORAGE_SAS_TOKEN='sv=...' siterecovery-engine inspect https://account.blob.core.windows.net/replicas/vault/item

Exit code 0: shown. 1: it can't be read, or it is damaged; standard error says where. 2: the command line is wrong.";

/// Options of `inspect`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Options {
    /// File, folder <store>/<vault>/<item>, or its URL (signature in AZURE_STORAGE_SAS_TOKEN).
    path: String,
    /// Folder in which parents of a differencing disk may be opened; may be repeated.
    #[arg(long, value_name = "FOLDER")]
    parents: Vec<PathBuf>,
    /// File with keys of encrypted journal objects: a line each, GUID and 64 hexadecimal digits.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk image, by its name or content.
    Image,
    /// A replication log as MS-HRL defines it.
    Log,
    /// A journal object.
    Journal,
    /// A small object of a store: manifest, point, pin, generation.
    Stored,
    /// A map of block hashes.
    Hashes,
}

impl Kind {
    /// Of the file at `path`. What a guest may write, the content of a raw image, decides nothing.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if matches!(
            extension.to_str(),
            Some("vhdx" | "avhdx" | "vhd" | "avhd" | "raw" | "img")
        ) {
            return Ok(Self::Image);
        }
        let mut magic = Vec::new();
        File::open(path)
            .with_context(|| format!("open {}", path.display()))?
            .take(16)
            .read_to_end(&mut magic)
            .with_context(|| format!("read {}", path.display()))?;
        Ok(match magic.as_slice() {
            magic if magic.starts_with(b"msctlog") => Self::Log,
            magic if magic.starts_with(b"SRJRNL") => Self::Journal,
            magic if magic.starts_with(b"siterecovery ") => Self::Stored,
            _ if hashes::is_map(path) => Self::Hashes,
            _ => Self::Image,
        })
    }
}

/// Looks at what the options name.
pub async fn run(options: &Options) -> anyhow::Result<Value> {
    if location::is_url(&options.path) {
        return replica::whole(&options.path).await;
    }
    let keys = keys_of(options.keys.as_deref())?;
    look(Path::new(&options.path), &options.parents, &keys).await
}

/// The keys of a file; none without one.
pub fn keys_of(path: Option<&Path>) -> anyhow::Result<KeyRing> {
    Ok(path.map(keys::read).transpose()?.unwrap_or_default())
}

/// Looks at `path` with nothing but the path: no parents, no keys.
pub async fn inspect(path: &Path) -> anyhow::Result<Value> {
    look(path, &[], &KeyRing::default()).await
}

async fn look(path: &Path, parents: &[PathBuf], keys: &KeyRing) -> anyhow::Result<Value> {
    let metadata = std::fs::metadata(path).with_context(|| format!("find {}", path.display()))?;
    if metadata.is_dir() {
        return replica::whole(&path.to_string_lossy()).await;
    }
    file(path, parents, keys)
}

/// Looks at the file at `path`.
pub fn file(path: &Path, parents: &[PathBuf], keys: &KeyRing) -> anyhow::Result<Value> {
    let result = match Kind::of(path)? {
        Kind::Image => image::inspect(path, parents),
        Kind::Log => journal::log(path),
        Kind::Journal => journal::object(path, keys),
        Kind::Stored => stored::inspect(path),
        Kind::Hashes => hashes::inspect(path),
    };
    result.with_context(|| format!("inspect {}", path.display()))
}

/// An instant as people write it.
pub(crate) fn rfc3339(unix_ms: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|time| {
            time.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| format!("{unix_ms} ms"))
}

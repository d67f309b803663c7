//! Small stored objects: one line of magic, kind, version and checksum, then JSON.
//!
//! ```text
//! siterecovery <kind> <version> <blake3 of the rest, hex>\n{...}
//! ```

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{ErrorKind, Result, StoreError};

const MAGIC: &str = "siterecovery";
const VERSION: u32 = 1;
/// A point carries a VM's configuration; nothing honest is larger.
pub(crate) const MAX_BYTES: u64 = 8 << 20;

/// Encodes an object.
pub(crate) fn encode<T: Serialize>(kind: &str, value: &T) -> Result<Vec<u8>> {
    let body = serde_json::to_vec(value).map_err(|error| {
        StoreError::new(
            ErrorKind::Invalid,
            format!("{kind} can't be stored: {error}"),
        )
    })?;
    if body.len() as u64 > MAX_BYTES - 256 {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            format!("{kind} of {} bytes is too large to be stored", body.len()),
        ));
    }
    let mut out = format!(
        "{MAGIC} {kind} {VERSION} {}\n",
        blake3::hash(&body).to_hex()
    );
    out.push_str(&String::from_utf8_lossy(&body));
    Ok(out.into_bytes())
}

/// Verifies and decodes an object that was read from `path`.
pub(crate) fn decode<T: DeserializeOwned>(kind: &str, path: &str, raw: &[u8]) -> Result<T> {
    if raw.len() as u64 > MAX_BYTES {
        return Err(StoreError::corrupt(path, "too large"));
    }
    let text = std::str::from_utf8(raw).map_err(|_| StoreError::corrupt(path, "no text"))?;
    let (line, body) = text
        .split_once('\n')
        .ok_or_else(|| StoreError::corrupt(path, "no header line"))?;
    let fields: Vec<&str> = line.split(' ').collect();
    let [magic, found, version, digest] = fields[..] else {
        return Err(StoreError::corrupt(path, "header line"));
    };
    if magic != MAGIC || found != kind {
        return Err(StoreError::corrupt(path, format!("it is no {kind}")));
    }
    if version.parse() != Ok(VERSION) {
        return Err(StoreError::corrupt(
            path,
            format!("version {version:?} is unknown to this program"),
        ));
    }
    if blake3::hash(body.as_bytes()).to_hex().as_str() != digest {
        return Err(StoreError::corrupt(path, "checksum"));
    }
    serde_json::from_str(body).map_err(|error| StoreError::corrupt(path, error))
}

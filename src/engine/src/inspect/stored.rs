//! Small objects of a store (manifest, point, pin, generation): a header line with a checksum, then JSON.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// Nothing honest is larger.
const MOST_BYTES: u64 = 8 << 20;

/// Shows the object and whether its checksum holds.
pub fn inspect(path: &Path) -> anyhow::Result<Value> {
    let mut raw = String::new();
    std::fs::File::open(path)?
        .take(MOST_BYTES + 1)
        .read_to_string(&mut raw)
        .context("it is no text")?;
    if raw.len() as u64 > MOST_BYTES {
        bail!("it is larger than any object of this kind");
    }
    decode(&raw)
}

fn decode(raw: &str) -> anyhow::Result<Value> {
    let (line, body) = raw.split_once('\n').context("it has no header line")?;
    let fields: Vec<&str> = line.split(' ').collect();
    let ["siterecovery", kind, version, digest] = fields[..] else {
        bail!("its header line is not that of a stored object");
    };
    if blake3::hash(body.as_bytes()).to_hex().as_str() != digest {
        bail!("its checksum does not hold: the {kind} is damaged");
    }
    let content: Value = serde_json::from_str(body).context("it holds no JSON")?;
    Ok(json!({
        "kind": format!("stored {kind}"),
        "version": version,
        "content": content,
        "verified": true,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_found() {
        let body = r#"{"a":1}"#;
        let good = format!(
            "siterecovery pin 1 {}\n{body}",
            blake3::hash(body.as_bytes()).to_hex()
        );
        let value = decode(&good).unwrap();
        assert_eq!(value["kind"], "stored pin");
        assert_eq!(value["content"]["a"], 1);
        assert!(decode(&good.replace(":1}", ":2}")).is_err());
        assert!(decode("siterecovery pin 1").is_err());
    }
}

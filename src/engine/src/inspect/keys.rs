//! A file with keys of journal objects, for the tools: a line each, GUID and 64 hexadecimal digits.
//!
//! Lines that are empty or begin with `#` are left out. No error shows a key.

use std::path::Path;

use anyhow::{Context as _, bail};
use replication_log::KeyRing;
use uuid::Uuid;

/// Reads the keys of `path`.
pub fn read(path: &Path) -> anyhow::Result<KeyRing> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read key file {}", path.display()))?;
    parse(&text).with_context(|| format!("key file {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<KeyRing> {
    let mut ring = KeyRing::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(id), Some(key), None) = (words.next(), words.next(), words.next()) else {
            bail!("line {number} is not a GUID and 64 hexadecimal digits");
        };
        let id: Uuid = id
            .parse()
            .ok()
            .with_context(|| format!("line {number} does not begin with a GUID"))?;
        let key = hexadecimal(key)
            .with_context(|| format!("the key of line {number} is not hexadecimal"))?;
        ring.insert(id, &key)
            .with_context(|| format!("line {number}"))?;
    }
    Ok(ring)
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_never_shown() {
        let id = Uuid::from_u128(5);
        let key = "0f".repeat(32);
        let ring = parse(&format!("# mine\n\n{id} {key}\n")).unwrap();
        assert_eq!(ring.ids().collect::<Vec<_>>(), [id]);
        for bad in [
            format!("{id}"),
            format!("{id} xyz"),
            format!("{id} {key}0f"),
            "x y".to_owned(),
        ] {
            let error = format!("{:#}", parse(&bad).unwrap_err());
            assert!(!error.contains(&key), "{error}");
            assert!(error.contains("line 1"), "{error}");
        }
    }
}

//! The last desired state, kept durable: replication goes on after a restart even when the orchestrator is away.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use engine_protocol::v1::DesiredState;
use prost::Message as _;

use crate::durable::{self, Access};

/// Format mark in front of the message, so that a foreign or older file is told apart.
const MAGIC: &[u8; 8] = b"SRDSIR01";

/// `<data>/state/desired.bin`.
#[derive(Clone, Debug)]
pub struct DesiredFile {
    path: PathBuf,
}

impl DesiredFile {
    /// In `state_folder`.
    pub fn new(state_folder: &Path) -> Self {
        Self {
            path: state_folder.join("desired.bin"),
        }
    }

    /// The state kept last. A damaged file is an error for the log, not a reason to stop: the orchestrator sends it again.
    pub fn read(&self) -> anyhow::Result<Option<DesiredState>> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", self.path.display()));
            }
        };
        let damaged = || format!("{} is damaged", self.path.display());
        let body = bytes.strip_prefix(MAGIC).with_context(damaged)?;
        let (checksum, message) = body.split_at_checked(4).with_context(damaged)?;
        anyhow::ensure!(checksum == crc32c::crc32c(message).to_le_bytes(), damaged());
        DesiredState::decode(message)
            .with_context(damaged)
            .map(Some)
    }

    /// Keeps `state`.
    pub fn write(&self, state: &DesiredState) -> anyhow::Result<()> {
        let message = state.encode_to_vec();
        let mut bytes = Vec::with_capacity(message.len() + 12);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&crc32c::crc32c(&message).to_le_bytes());
        bytes.extend_from_slice(&message);
        durable::replace(&self.path, &bytes, Access::Secret)
            .with_context(|| format!("write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_again_and_any_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = DesiredFile::new(folder.path());
        assert!(file.read().unwrap().is_none());
        let state = DesiredState {
            generation: 7,
            report_interval_ms: 500,
            ..DesiredState::default()
        };
        file.write(&state).unwrap();
        assert_eq!(file.read().unwrap(), Some(state));
        let good = std::fs::read(&file.path).unwrap();
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            std::fs::write(&file.path, &bad).unwrap();
            assert!(file.read().is_err(), "byte {index}");
            std::fs::write(&file.path, &good[..index]).unwrap();
            assert!(file.read().is_err(), "cut at {index}");
        }
    }
}

//! Reads a frozen disk from QEMU's NBD server, for the engine.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;

use crate::nbd::{NbdClient, NbdError};
use crate::{ErrorKind, FrozenReader, HypervisorError};

/// Reads over NBD; connects anew when the connection is out of step, as after a read that was dropped.
pub(super) struct NbdReader {
    step: String,
    socket: PathBuf,
    export: String,
    client: Mutex<Option<NbdClient>>,
}

impl NbdReader {
    /// A reader that connects at its first read. `step` begins its errors.
    pub(super) fn new(step: String, socket: PathBuf, export: String) -> Self {
        Self {
            step,
            socket,
            export,
            client: Mutex::new(None),
        }
    }

    /// Gives it a connection that is there already.
    pub(super) async fn keep(&self, client: NbdClient) {
        *self.client.lock().await = Some(client);
    }
}

#[async_trait]
impl FrozenReader for NbdReader {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        let mut slot = self.client.lock().await;
        let client = match slot.take().filter(NbdClient::is_usable) {
            Some(client) => slot.insert(client),
            None => slot.insert(connect_export(&self.socket, &self.export, &self.step).await?),
        };
        client
            .read(offset, length)
            .await
            .map_err(|error| from_nbd(self.step.clone(), error))
    }
}

async fn connect_export(
    socket: &Path,
    export: &str,
    step: &str,
) -> Result<NbdClient, HypervisorError> {
    NbdClient::connect(socket, export, &[])
        .await
        .map_err(|error| from_nbd(step.to_owned(), error))
}

pub(super) fn from_nbd(step: String, error: NbdError) -> HypervisorError {
    let kind = match &error {
        NbdError::Socket { .. } | NbdError::Connection(_) => ErrorKind::Io,
        NbdError::Protocol(_) => ErrorKind::Protocol,
        NbdError::Refused { .. } | NbdError::Command { .. } => ErrorKind::Refused,
        NbdError::Timeout(_) => ErrorKind::Timeout,
    };
    HypervisorError::with_source(kind, step, error)
}

//! Reads a frozen disk from QEMU's NBD server, for the engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;

use crate::nbd::{NbdClient, NbdError};
use crate::{ErrorKind, FrozenReader, HypervisorError};

/// Reads over NBD, several pieces at once over one connection; connects anew when that has ended.
pub(super) struct NbdReader {
    step: String,
    socket: PathBuf,
    export: String,
    client: Mutex<Option<Arc<NbdClient>>>,
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
        *self.client.lock().await = Some(Arc::new(client));
    }

    /// The connection. Only making a new one is waited for.
    async fn client(&self) -> Result<Arc<NbdClient>, HypervisorError> {
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| client.is_usable()) {
            return Ok(client.clone());
        }
        let client = connect_export(&self.socket, &self.export, &self.step).await?;
        Ok(slot.insert(Arc::new(client)).clone())
    }
}

#[async_trait]
impl FrozenReader for NbdReader {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        let client = self.client().await?;
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

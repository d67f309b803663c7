//! The Network Block Device protocol over Unix sockets, as far as virtual disks need it.
//!
//! [`NbdClient`] reads exports of QEMU with their dirty bitmaps (structured replies, meta contexts, block
//! status); [`serve`] offers read-only exports to QEMU. Fixed newstyle handshake on both sides, no TLS:
//! who may open the socket's folder may read the disk.
//!
//! What a peer sends is never trusted: lengths are bounded before memory is taken, and nonsense ends the
//! connection with an error.

#[cfg(unix)]
mod client;
#[cfg(unix)]
mod handshake;
#[cfg(unix)]
mod pipeline;
#[cfg_attr(not(unix), path = "nowhere.rs")]
mod server;
#[cfg(unix)]
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

#[cfg(unix)]
pub use client::NbdClient;
pub use server::{NbdServer, serve};

/// Content of an export.
#[async_trait]
pub trait BlockReader: Send + Sync + 'static {
    /// Exactly `length` bytes at `offset`; the range lies inside the export, `length` is at most 32 MiB.
    async fn read(&self, offset: u64, length: usize) -> io::Result<Bytes>;
}

/// What [`serve`] offers.
#[derive(Clone)]
pub struct NbdExport {
    /// Name that a client asks for.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Where the bytes come from.
    pub reader: Arc<dyn BlockReader>,
}

/// What may go wrong with a peer.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The socket can't be used.
    #[error("nbd socket {path}")]
    Socket {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("nbd connection")]
    Connection(#[from] io::Error),
    /// The peer broke the protocol.
    #[error("nbd peer broke the protocol: {0}")]
    Protocol(String),
    /// The server refused an option of the handshake.
    #[error("nbd server refused {what}: {reason}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its answer.
        reason: String,
    },
    /// The server could not carry out a command.
    #[error("nbd {command} at {offset} failed with error {code}: {message}")]
    Command {
        /// "read" or "block status".
        command: &'static str,
        /// Where.
        offset: u64,
        /// NBD error number (as errno on Linux).
        code: u32,
        /// The server's words, if any.
        message: String,
    },
    /// No answer in time.
    #[error("nbd server did not answer in {0} s")]
    Timeout(u64),
}

impl NbdError {
    #[cfg(unix)]
    fn protocol(text: impl Into<String>) -> Self {
        Self::Protocol(text.into())
    }
}

//! Serves read-only exports over a Unix socket.
//!
//! ```text
//!   accept ─► handshake (LIST, INFO, GO, EXPORT_NAME) ─► requests ─► reads side by side ─► replies in any order
//! ```
//!
//! A connection holds at most 32 MiB of answers at a time, so a client that asks and does not listen stops
//! only itself. A client that breaks the protocol loses its connection and nothing else happens.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::debug;

use super::wire::*;
use super::{NbdError, NbdExport};

/// A client that says nothing during the handshake is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// More options than any client needs before it chooses an export.
const MAX_OPTIONS: usize = 256;
/// Memory is counted in pieces of this size, as semaphore permits are few.
const PERMIT_BYTES: usize = 4096;
/// Reads of one connection that run side by side.
const MAX_READS: usize = 64;
/// Connections of one server; a VM needs one a disk.
const MAX_CONNECTIONS: usize = 256;

/// A running server; dropping it ends it, closes all connections and removes the socket.
#[derive(Debug)]
pub struct NbdServer {
    socket: PathBuf,
    task: JoinHandle<()>,
}

impl NbdServer {
    /// Where clients connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends the server and waits until no connection is left.
    pub async fn stop(mut self) {
        self.task.abort();
        // The only error is the cancellation that was just asked for.
        let _ = (&mut self.task).await;
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = std::fs::remove_file(&self.socket) {
            debug!(socket = %self.socket.display(), %error, "nbd socket was gone already");
        }
    }
}

/// Serves `exports` at `socket`, for the owner of this process only. A dead server's socket is replaced.
///
/// # Errors
/// When the socket can't be made, or another server listens on it.
pub async fn serve(socket: &Path, exports: Vec<NbdExport>) -> Result<NbdServer, NbdError> {
    let failed = |source| NbdError::Socket {
        path: socket.to_owned(),
        source,
    };
    if socket.exists() {
        if UnixStream::connect(socket).await.is_ok() {
            return Err(failed(std::io::ErrorKind::AddrInUse.into()));
        }
        std::fs::remove_file(socket).map_err(failed)?;
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let exports: Arc<HashMap<String, NbdExport>> = Arc::new(
        exports
            .into_iter()
            .map(|export| (export.name.clone(), export))
            .collect(),
    );
    let task = tokio::spawn(accept(listener, exports));
    Ok(NbdServer {
        socket: socket.to_owned(),
        task,
    })
}

async fn accept(listener: UnixListener, exports: Arc<HashMap<String, NbdExport>>) {
    // Dropping the set with this future ends all connections.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let exports = Arc::clone(&exports);
                connections.spawn(async move {
                    if let Err(error) = connection(stream, &exports).await {
                        debug!(%error, "nbd client left");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: let some connection end first.
                debug!(%error, "nbd accept");
                if connections.join_next().await.is_none() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn connection(
    stream: UnixStream,
    exports: &HashMap<String, NbdExport>,
) -> Result<(), NbdError> {
    let (reader, writer) = stream.into_split();
    let mut peer = Peer {
        reader: BufReader::new(reader),
        writer,
    };
    let export = timeout(HANDSHAKE_TIMEOUT, peer.handshake(exports))
        .await
        .unwrap_or(Err(NbdError::Timeout(HANDSHAKE_TIMEOUT.as_secs())))?;
    match export {
        Some(export) => transmission(peer, export).await,
        None => Ok(()),
    }
}

struct Peer {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Peer {
    /// `None`: the client has ended the talk politely.
    async fn handshake(
        &mut self,
        exports: &HashMap<String, NbdExport>,
    ) -> Result<Option<NbdExport>, NbdError> {
        let mut hello = Vec::with_capacity(18);
        hello.extend_from_slice(&MAGIC.to_be_bytes());
        hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        hello.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        self.writer.write_all(&hello).await?;
        let flags = self.reader.read_u32().await?;
        if flags & u32::from(FLAG_FIXED_NEWSTYLE) == 0 {
            return Err(NbdError::protocol(
                "client does not know the fixed newstyle handshake",
            ));
        }
        let no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        for _ in 0..MAX_OPTIONS {
            let magic = self.reader.read_u64().await?;
            let option = self.reader.read_u32().await?;
            let length = self.reader.read_u32().await? as usize;
            if magic != OPTION_MAGIC {
                return Err(NbdError::protocol("not an option"));
            }
            if length > MAX_OPTION {
                self.reply(option, REP_ERR_TOO_BIG, &[]).await?;
                return Err(NbdError::protocol("option too long"));
            }
            let mut body = vec![0; length];
            self.reader.read_exact(&mut body).await?;
            match option {
                OPT_ABORT => {
                    self.reply(option, REP_ACK, &[]).await?;
                    return Ok(None);
                }
                OPT_LIST if body.is_empty() => self.list(exports).await?,
                OPT_LIST => {
                    self.reply(option, REP_ERR_INVALID, b"LIST has no data")
                        .await?
                }
                OPT_EXPORT_NAME => {
                    // This old option has no error reply: an unknown name ends the connection.
                    let export =
                        find(exports, &body).ok_or_else(|| NbdError::protocol("unknown export"))?;
                    let mut answer = Vec::new();
                    answer.extend_from_slice(&export.size_bytes.to_be_bytes());
                    answer.extend_from_slice(&transmission_flags().to_be_bytes());
                    if !no_zeroes {
                        answer.extend_from_slice(&[0; 124]);
                    }
                    self.writer.write_all(&answer).await?;
                    return Ok(Some(export.clone()));
                }
                OPT_INFO | OPT_GO => {
                    if let Some(export) = self.info(option, &body, exports).await? {
                        return Ok(Some(export));
                    }
                }
                _ => self.reply(option, REP_ERR_UNSUP, &[]).await?,
            }
        }
        Err(NbdError::protocol("too many options"))
    }

    async fn list(&mut self, exports: &HashMap<String, NbdExport>) -> Result<(), NbdError> {
        let mut names: Vec<&String> = exports.keys().collect();
        names.sort();
        for name in names {
            let mut body = (name.len() as u32).to_be_bytes().to_vec();
            body.extend_from_slice(name.as_bytes());
            self.reply(OPT_LIST, REP_SERVER, &body).await?;
        }
        self.reply(OPT_LIST, REP_ACK, &[]).await
    }

    async fn info(
        &mut self,
        option: u32,
        body: &[u8],
        exports: &HashMap<String, NbdExport>,
    ) -> Result<Option<NbdExport>, NbdError> {
        let mut cursor = Cursor(body);
        let name = cursor
            .u32()
            .and_then(|length| cursor.bytes(length as usize));
        let count = cursor.u16();
        let (Some(name), Some(count)) = (name, count) else {
            self.reply(option, REP_ERR_INVALID, b"short option").await?;
            return Ok(None);
        };
        if cursor.0.len() != usize::from(count) * 2 {
            self.reply(
                option,
                REP_ERR_INVALID,
                b"wrong number of information requests",
            )
            .await?;
            return Ok(None);
        }
        let Some(export) = find(exports, name) else {
            self.reply(option, REP_ERR_UNKNOWN, b"no such export")
                .await?;
            return Ok(None);
        };
        let mut facts = INFO_EXPORT.to_be_bytes().to_vec();
        facts.extend_from_slice(&export.size_bytes.to_be_bytes());
        facts.extend_from_slice(&transmission_flags().to_be_bytes());
        self.reply(option, REP_INFO, &facts).await?;
        let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1u32, 64 << 10, MAX_PAYLOAD as u32] {
            sizes.extend_from_slice(&size.to_be_bytes());
        }
        self.reply(option, REP_INFO, &sizes).await?;
        self.reply(option, REP_ACK, &[]).await?;
        Ok((option == OPT_GO).then(|| export.clone()))
    }

    async fn reply(&mut self, option: u32, kind: u32, body: &[u8]) -> Result<(), NbdError> {
        let mut message = Vec::with_capacity(20 + body.len());
        message.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&(body.len() as u32).to_be_bytes());
        message.extend_from_slice(body);
        Ok(self.writer.write_all(&message).await?)
    }
}

fn transmission_flags() -> u16 {
    TRANSMISSION_HAS_FLAGS
        | TRANSMISSION_READ_ONLY
        | TRANSMISSION_SEND_FLUSH
        | TRANSMISSION_CAN_MULTI_CONN
}

fn find<'a>(exports: &'a HashMap<String, NbdExport>, name: &[u8]) -> Option<&'a NbdExport> {
    exports.get(std::str::from_utf8(name).ok()?)
}

async fn transmission(peer: Peer, export: NbdExport) -> Result<(), NbdError> {
    let Peer { mut reader, writer } = peer;
    let writer = Arc::new(Mutex::new(writer));
    let memory = Arc::new(Semaphore::new(MAX_PAYLOAD / PERMIT_BYTES));
    // Dropping the set with this future ends all reads.
    let mut reads = JoinSet::new();
    loop {
        let mut header = [0u8; 28];
        reader.read_exact(&mut header).await?;
        let mut cursor = Cursor(&header);
        let (magic, _flags, command) =
            (cursor.u32(), cursor.u16(), cursor.u16().unwrap_or(u16::MAX));
        let cookie = cursor.u64().unwrap_or_default();
        let offset = cursor.u64().unwrap_or_default();
        let length = cursor.u32().unwrap_or_default() as usize;
        if magic != Some(REQUEST_MAGIC) {
            return Err(NbdError::protocol("not a request"));
        }
        match command {
            CMD_DISC => {
                while reads.join_next().await.is_some() {}
                return Ok(());
            }
            CMD_FLUSH => answer(&writer, cookie, 0, &[]).await?,
            CMD_READ => {
                let inside = offset
                    .checked_add(length as u64)
                    .is_some_and(|end| end <= export.size_bytes);
                if length > MAX_PAYLOAD {
                    answer(&writer, cookie, EOVERFLOW, &[]).await?;
                } else if !inside {
                    answer(&writer, cookie, EINVAL, &[]).await?;
                } else {
                    while reads.len() >= MAX_READS {
                        reads.join_next().await;
                    }
                    while reads.try_join_next().is_some() {}
                    let permits = length.div_ceil(PERMIT_BYTES) as u32;
                    let Ok(permit) = Arc::clone(&memory).acquire_many_owned(permits).await else {
                        return Ok(());
                    };
                    let (source, writer) = (Arc::clone(&export.reader), Arc::clone(&writer));
                    reads.spawn(async move {
                        let (code, data) = match source.read(offset, length).await {
                            Ok(data) if data.len() == length => (0, data),
                            Ok(_) => (EIO, Bytes::new()),
                            Err(error) => {
                                debug!(offset, length, %error, "nbd read");
                                (EIO, Bytes::new())
                            }
                        };
                        // A broken connection shows itself at the next request.
                        let _ = answer(&writer, cookie, code, &data).await;
                        drop(permit);
                    });
                }
            }
            // A write would be followed by its data; as the export says read only, only a broken client sends one,
            // and its data can't be told from requests.
            1 => {
                answer(&writer, cookie, EPERM, &[]).await?;
                return Err(NbdError::protocol("write to a read-only export"));
            }
            _ => answer(&writer, cookie, EINVAL, &[]).await?,
        }
    }
}

async fn answer(
    writer: &Mutex<OwnedWriteHalf>,
    cookie: u64,
    code: u32,
    data: &[u8],
) -> Result<(), NbdError> {
    let mut header = [0u8; 16];
    header[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    header[4..8].copy_from_slice(&code.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    let mut writer = writer.lock().await;
    writer.write_all(&header).await?;
    writer.write_all(data).await?;
    Ok(())
}

//! Reads an export: data, and extents of meta contexts.
//!
//! One request at a time. A call that failed half way, or whose future was dropped half way, leaves the
//! stream out of step; the client then refuses further calls, and the caller connects anew.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::NbdError;
use super::wire::*;
use crate::extents::{Extent, ExtentSet};

/// A guest's write may wait for old data to be copied, and so may we; beyond this something is wrong.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Block status is asked in pieces: lengths on the wire have 32 bits.
const STATUS_PIECE: u64 = 1 << 30;
/// More status descriptors than QEMU ever sends at once (1 MiB of them).
const MAX_STATUS_PAYLOAD: usize = 16 << 20;

/// A connection to one export of an NBD server.
#[derive(Debug)]
pub struct NbdClient {
    stream: BufReader<UnixStream>,
    size_bytes: u64,
    /// Name and number of each negotiated context, in the order of the request.
    contexts: Vec<(String, u32)>,
    next_cookie: u64,
    in_step: bool,
}

struct Chunk {
    done: bool,
    kind: u16,
    payload: Bytes,
}

impl NbdClient {
    /// Connects to `export` and negotiates all of `contexts`, such as `qemu:dirty-bitmap:NAME`.
    ///
    /// # Errors
    /// When the server has no such export, or not all of the contexts.
    pub async fn connect(
        socket: &Path,
        export: &str,
        contexts: &[String],
    ) -> Result<Self, NbdError> {
        let work = async {
            let stream = UnixStream::connect(socket)
                .await
                .map_err(|source| NbdError::Socket {
                    path: socket.to_owned(),
                    source,
                })?;
            let mut client = Self {
                stream: BufReader::with_capacity(256 << 10, stream),
                size_bytes: 0,
                contexts: Vec::new(),
                next_cookie: 1,
                in_step: true,
            };
            client.handshake(export, contexts).await?;
            Ok(client)
        };
        timeout(ANSWER_TIMEOUT, work)
            .await
            .unwrap_or(Err(NbdError::Timeout(ANSWER_TIMEOUT.as_secs())))
    }

    /// Size of the export in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether the connection can still be used.
    pub fn is_usable(&self) -> bool {
        self.in_step
    }

    async fn handshake(&mut self, export: &str, contexts: &[String]) -> Result<(), NbdError> {
        if self.stream.read_u64().await? != MAGIC || self.stream.read_u64().await? != OPTION_MAGIC {
            return Err(NbdError::protocol("not a newstyle NBD server"));
        }
        let flags = self.stream.read_u16().await?;
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(NbdError::protocol(
                "server offers no fixed newstyle handshake",
            ));
        }
        let answer = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        self.stream.write_all(&answer.to_be_bytes()).await?;

        self.send_option(OPT_STRUCTURED_REPLY, &[]).await?;
        self.expect_ack(OPT_STRUCTURED_REPLY, "structured replies")
            .await?;
        if !contexts.is_empty() {
            self.negotiate_contexts(export, contexts).await?;
        }
        self.go(export).await
    }

    async fn negotiate_contexts(
        &mut self,
        export: &str,
        contexts: &[String],
    ) -> Result<(), NbdError> {
        let mut body = Vec::new();
        push_string(&mut body, export);
        body.extend_from_slice(&(contexts.len() as u32).to_be_bytes());
        for context in contexts {
            push_string(&mut body, context);
        }
        self.send_option(OPT_SET_META_CONTEXT, &body).await?;
        let mut found = Vec::new();
        loop {
            let (kind, payload) = self
                .option_reply(OPT_SET_META_CONTEXT, "meta contexts")
                .await?;
            match kind {
                REP_ACK => break,
                REP_META_CONTEXT if found.len() < contexts.len() => {
                    let mut cursor = Cursor(&payload);
                    let number = cursor
                        .u32()
                        .ok_or_else(|| NbdError::protocol("short meta context"))?;
                    found.push((String::from_utf8_lossy(cursor.0).into_owned(), number));
                }
                _ => return Err(NbdError::protocol("unexpected answer to meta contexts")),
            }
        }
        for context in contexts {
            let entry = found
                .iter()
                .find(|(name, _)| name == context)
                .ok_or_else(|| NbdError::Refused {
                    what: format!("meta context {context} of export {export}"),
                    reason: "it has none of this name".to_owned(),
                })?;
            self.contexts.push(entry.clone());
        }
        Ok(())
    }

    async fn go(&mut self, export: &str) -> Result<(), NbdError> {
        let mut body = Vec::new();
        push_string(&mut body, export);
        body.extend_from_slice(&0u16.to_be_bytes());
        self.send_option(OPT_GO, &body).await?;
        let mut size = None;
        loop {
            let (kind, payload) = self
                .option_reply(OPT_GO, &format!("export {export}"))
                .await?;
            match kind {
                REP_ACK => break,
                REP_INFO => {
                    let mut cursor = Cursor(&payload);
                    if cursor.u16() == Some(INFO_EXPORT) {
                        size = cursor.u64();
                    }
                }
                _ => {
                    return Err(NbdError::protocol(
                        "unexpected answer to the choice of an export",
                    ));
                }
            }
        }
        self.size_bytes = size
            .filter(|size| *size <= i64::MAX as u64)
            .ok_or_else(|| NbdError::protocol("server told no usable size"))?;
        Ok(())
    }

    async fn send_option(&mut self, option: u32, body: &[u8]) -> Result<(), NbdError> {
        if body.len() > MAX_OPTION {
            return Err(NbdError::protocol("option too long to send"));
        }
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&(body.len() as u32).to_be_bytes());
        message.extend_from_slice(body);
        Ok(self.stream.write_all(&message).await?)
    }

    async fn option_reply(&mut self, option: u32, what: &str) -> Result<(u32, Bytes), NbdError> {
        let magic = self.stream.read_u64().await?;
        let echoed = self.stream.read_u32().await?;
        let kind = self.stream.read_u32().await?;
        let length = self.stream.read_u32().await? as usize;
        if magic != OPTION_REPLY_MAGIC || echoed != option {
            return Err(NbdError::protocol("answer does not belong to the option"));
        }
        if length > MAX_OPTION {
            return Err(NbdError::protocol("answer to an option is too long"));
        }
        let payload = self.exactly(length).await?;
        if kind & REP_ERROR_BIT != 0 {
            let text = String::from_utf8_lossy(&payload).into_owned();
            let number = kind & !REP_ERROR_BIT;
            let reason = if text.is_empty() {
                format!("error {number}")
            } else {
                text
            };
            return Err(NbdError::Refused {
                what: what.to_owned(),
                reason,
            });
        }
        Ok((kind, payload))
    }

    async fn expect_ack(&mut self, option: u32, what: &str) -> Result<(), NbdError> {
        match self.option_reply(option, what).await? {
            (REP_ACK, _) => Ok(()),
            _ => Err(NbdError::protocol(format!("unexpected answer to {what}"))),
        }
    }

    async fn exactly(&mut self, length: usize) -> Result<Bytes, NbdError> {
        let mut buffer = BytesMut::zeroed(length);
        self.stream.read_exact(&mut buffer).await?;
        Ok(buffer.freeze())
    }

    /// Reads `length` bytes at `offset`, in requests of at most 32 MiB.
    ///
    /// # Errors
    /// When the range is not inside the export, or the server fails.
    pub async fn read(&mut self, offset: u64, length: usize) -> Result<Bytes, NbdError> {
        self.check_range(offset, length as u64)?;
        let mut buffer = BytesMut::zeroed(length);
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(MAX_PAYLOAD);
            let work = read_piece(self, offset + done as u64, &mut buffer[done..done + piece]);
            timeout(ANSWER_TIMEOUT, work)
                .await
                .unwrap_or(Err(NbdError::Timeout(ANSWER_TIMEOUT.as_secs())))?;
            done += piece;
        }
        Ok(buffer.freeze())
    }

    /// The ranges of the whole export for which `wanted` says yes to the flags of a context, for each
    /// negotiated context in the order of [`NbdClient::connect`].
    ///
    /// # Errors
    /// When the server fails or reports nonsense.
    pub async fn extents(
        &mut self,
        wanted: impl Fn(u32) -> bool + Send,
    ) -> Result<Vec<ExtentSet>, NbdError> {
        let mut ranges: Vec<Vec<Extent>> = vec![Vec::new(); self.contexts.len()];
        let mut offset = 0;
        while offset < self.size_bytes && !self.contexts.is_empty() {
            let piece = (self.size_bytes - offset).min(STATUS_PIECE);
            let work = self.status_piece(offset, piece, &mut ranges, &wanted);
            offset += timeout(ANSWER_TIMEOUT, work)
                .await
                .unwrap_or(Err(NbdError::Timeout(ANSWER_TIMEOUT.as_secs())))?;
        }
        Ok(ranges
            .into_iter()
            .map(|ranges| ExtentSet::from_unsorted(ranges).clip(self.size_bytes))
            .collect())
    }

    /// One block status request. Returns how far all contexts are known from `offset`.
    async fn status_piece(
        &mut self,
        offset: u64,
        length: u64,
        ranges: &mut [Vec<Extent>],
        wanted: &(impl Fn(u32) -> bool + Send),
    ) -> Result<u64, NbdError> {
        let cookie = self.begin(CMD_BLOCK_STATUS, offset, length as u32).await?;
        let mut known = vec![0u64; ranges.len()];
        loop {
            let chunk = self
                .chunk(cookie, MAX_STATUS_PAYLOAD, "block status", offset)
                .await?;
            match chunk.kind {
                CHUNK_NONE => {}
                CHUNK_BLOCK_STATUS => {
                    let mut cursor = Cursor(&chunk.payload);
                    let number = cursor
                        .u32()
                        .ok_or_else(|| NbdError::protocol("short block status"))?;
                    let index = self
                        .contexts
                        .iter()
                        .position(|(_, id)| *id == number)
                        .filter(|index| known[*index] == 0)
                        .ok_or_else(|| {
                            NbdError::protocol("block status of a context that was not asked")
                        })?;
                    while let (Some(size), Some(flags)) = (cursor.u32(), cursor.u32()) {
                        if size == 0 || known[index] >= length {
                            return Err(NbdError::protocol(
                                "block status of an empty or unasked range",
                            ));
                        }
                        if wanted(flags) {
                            ranges[index].push(Extent {
                                offset: offset + known[index],
                                length: u64::from(size),
                            });
                        }
                        known[index] += u64::from(size);
                    }
                }
                _ => return Err(NbdError::protocol("unexpected chunk in a block status")),
            }
            if chunk.done {
                break;
            }
        }
        self.in_step = true;
        match known.into_iter().min() {
            // The last range may go on behind the end of the request.
            Some(advance) if advance > 0 => Ok(advance.min(length)),
            _ => Err(NbdError::protocol(
                "no block status for one of the contexts",
            )),
        }
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(NbdError::Command {
                command: "read",
                offset,
                code: EINVAL,
                message: format!("{length} bytes reach beyond the end at {}", self.size_bytes),
            }),
        }
    }

    /// Sends a request; until the caller has taken the whole answer the stream is out of step.
    async fn begin(&mut self, command: u16, offset: u64, length: u32) -> Result<u64, NbdError> {
        if !std::mem::replace(&mut self.in_step, false) {
            return Err(NbdError::protocol(
                "an earlier answer was not taken to its end",
            ));
        }
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut message = [0u8; 28];
        message[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        message[6..8].copy_from_slice(&command.to_be_bytes());
        message[8..16].copy_from_slice(&cookie.to_be_bytes());
        message[16..24].copy_from_slice(&offset.to_be_bytes());
        message[24..28].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&message).await?;
        Ok(cookie)
    }

    async fn chunk_header(&mut self, cookie: u64) -> Result<(bool, u16, usize), NbdError> {
        let magic = self.stream.read_u32().await?;
        if magic != STRUCTURED_REPLY_MAGIC {
            return Err(NbdError::protocol("not a structured reply"));
        }
        let flags = self.stream.read_u16().await?;
        let kind = self.stream.read_u16().await?;
        let echoed = self.stream.read_u64().await?;
        let length = self.stream.read_u32().await? as usize;
        if echoed != cookie {
            return Err(NbdError::protocol("answer to another request"));
        }
        Ok((flags & CHUNK_DONE != 0, kind, length))
    }

    async fn chunk(
        &mut self,
        cookie: u64,
        limit: usize,
        command: &'static str,
        offset: u64,
    ) -> Result<Chunk, NbdError> {
        let (done, kind, length) = self.chunk_header(cookie).await?;
        if length > limit {
            return Err(NbdError::protocol("chunk longer than what was asked"));
        }
        let payload = self.exactly(length).await?;
        if kind & CHUNK_ERROR_BIT != 0 {
            // Only a final error leaves the stream in step; anything else ends the connection.
            self.in_step = done;
            return Err(command_error(command, offset, &payload));
        }
        Ok(Chunk {
            done,
            kind,
            payload,
        })
    }
}

/// Reads one request's worth straight into the caller's buffer.
async fn read_piece(
    client: &mut NbdClient,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), NbdError> {
    let cookie = client.begin(CMD_READ, offset, buffer.len() as u32).await?;
    let mut filled = 0usize;
    loop {
        let (done, kind, length) = client.chunk_header(cookie).await?;
        match kind {
            CHUNK_NONE if length == 0 => {}
            CHUNK_OFFSET_DATA if length > 8 && length - 8 <= buffer.len() => {
                let at = client.stream.read_u64().await?;
                let target = slice_at(buffer, offset, at, length - 8)?;
                client.stream.read_exact(target).await?;
                filled += length - 8;
            }
            CHUNK_OFFSET_HOLE if length == 12 => {
                let at = client.stream.read_u64().await?;
                let hole = client.stream.read_u32().await? as usize;
                slice_at(buffer, offset, at, hole)?.fill(0);
                filled += hole;
            }
            _ if kind & CHUNK_ERROR_BIT != 0 && length <= MAX_OPTION => {
                let payload = client.exactly(length).await?;
                client.in_step = done;
                return Err(command_error("read", offset, &payload));
            }
            _ => return Err(NbdError::protocol("unexpected chunk in a read")),
        }
        if filled > buffer.len() {
            return Err(NbdError::protocol("more data than asked"));
        }
        if done {
            break;
        }
    }
    if filled != buffer.len() {
        return Err(NbdError::protocol("less data than asked"));
    }
    client.in_step = true;
    Ok(())
}

fn slice_at(buffer: &mut [u8], base: u64, at: u64, length: usize) -> Result<&mut [u8], NbdError> {
    at.checked_sub(base)
        .and_then(|start| usize::try_from(start).ok())
        .and_then(|start| buffer.get_mut(start..start.checked_add(length)?))
        .ok_or_else(|| NbdError::protocol("data outside the range that was asked"))
}

fn command_error(command: &'static str, offset: u64, payload: &[u8]) -> NbdError {
    let mut cursor = Cursor(payload);
    let code = cursor.u32().unwrap_or(EIO);
    let length = cursor.u16().unwrap_or(0);
    let message = cursor.bytes(usize::from(length)).unwrap_or_default();
    NbdError::Command {
        command,
        offset,
        code,
        message: String::from_utf8_lossy(message).into_owned(),
    }
}

fn push_string(body: &mut Vec<u8>, text: &str) {
    body.extend_from_slice(&(text.len() as u32).to_be_bytes());
    body.extend_from_slice(text.as_bytes());
}

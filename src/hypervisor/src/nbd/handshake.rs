//! The client's way into the transmission phase: structured replies, meta contexts, one export.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::NbdError;
use super::wire::*;

/// A connection that has come through it, and what was agreed.
pub(super) struct Handshake {
    pub(super) reader: BufReader<OwnedReadHalf>,
    pub(super) writer: OwnedWriteHalf,
    /// Size of the export.
    pub(super) size_bytes: u64,
    /// Name and number of each negotiated context, in the order of the request.
    pub(super) contexts: Vec<(String, u32)>,
}

impl Handshake {
    /// Connects to `export` and negotiates all of `contexts`.
    pub(super) async fn with(
        socket: &Path,
        export: &str,
        contexts: &[String],
    ) -> Result<Self, NbdError> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| NbdError::Socket {
                path: socket.to_owned(),
                source,
            })?;
        let (reader, writer) = stream.into_split();
        let mut handshake = Self {
            reader: BufReader::with_capacity(256 << 10, reader),
            writer,
            size_bytes: 0,
            contexts: Vec::new(),
        };
        handshake.run(export, contexts).await?;
        Ok(handshake)
    }

    async fn run(&mut self, export: &str, contexts: &[String]) -> Result<(), NbdError> {
        if self.reader.read_u64().await? != MAGIC || self.reader.read_u64().await? != OPTION_MAGIC {
            return Err(NbdError::protocol("not a newstyle NBD server"));
        }
        let flags = self.reader.read_u16().await?;
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(NbdError::protocol(
                "server offers no fixed newstyle handshake",
            ));
        }
        let answer = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        self.writer.write_all(&answer.to_be_bytes()).await?;

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
        Ok(self.writer.write_all(&message).await?)
    }

    async fn option_reply(&mut self, option: u32, what: &str) -> Result<(u32, Bytes), NbdError> {
        let magic = self.reader.read_u64().await?;
        let echoed = self.reader.read_u32().await?;
        let kind = self.reader.read_u32().await?;
        let length = self.reader.read_u32().await? as usize;
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
        self.reader.read_exact(&mut buffer).await?;
        Ok(buffer.freeze())
    }
}

fn push_string(body: &mut Vec<u8>, text: &str) {
    body.extend_from_slice(&(text.len() as u32).to_be_bytes());
    body.extend_from_slice(text.as_bytes());
}

//! Requests on their way over one connection: several at once, answered in any order.
//!
//! ```text
//! caller ─► flight under a new cookie ─► request ───────────────────► server
//! caller ◄─ flight is whole ◄─ receiver ◄─ chunks, each by its cookie ◄─┘
//! ```
//!
//! A flight whose caller has gone is received to its end, so the stream stays in step. Whatever breaks the connection or
//! the protocol ends everything: each caller under way hears the cause, and so does every later one. Nothing is read
//! from the server while nothing was asked.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::NbdError;
use super::client::ANSWER_TIMEOUT;
use super::wire::*;

/// Requests under way at once: what QEMU works on for one client (`MAX_NBD_REQUESTS`).
const MOST_UNDER_WAY: usize = 16;
/// More status descriptors than QEMU ever sends at once (1 MiB of them).
const MAX_STATUS_PAYLOAD: usize = 16 << 20;

/// One connection in its transmission phase.
#[derive(Debug)]
pub(super) struct Pipeline {
    requests: tokio::sync::Mutex<OwnedWriteHalf>,
    flights: Arc<Flights>,
    room: Arc<Semaphore>,
    receiver: JoinHandle<()>,
}

/// What an answer is made of, as far as it has come.
#[derive(Debug)]
pub(super) enum Gathered {
    /// Of a read.
    Data {
        /// As long as what was asked for.
        bytes: BytesMut,
        /// So much of it was told.
        filled: usize,
    },
    /// Of a block status.
    Status {
        /// Payloads.
        chunks: Vec<Bytes>,
        /// There may be so many.
        most: usize,
    },
}

/// A request that waits for its answer.
#[derive(Debug)]
struct Flight {
    offset: u64,
    gathered: Gathered,
    /// What the server could not do.
    failure: Option<NbdError>,
    caller: oneshot::Sender<Result<Gathered, NbdError>>,
    /// Room on the connection, taken until the answer is whole, even if nobody waits for it.
    _room: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
struct Flights {
    inner: Mutex<Inner>,
    /// A flight has begun.
    begun: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    last_cookie: u64,
    under_way: BTreeMap<u64, Flight>,
    /// Why the connection ended.
    ended: Option<NbdError>,
}

struct ChunkHeader {
    done: bool,
    kind: u16,
    cookie: u64,
    length: usize,
}

// === impl Pipeline ===

impl Pipeline {
    /// Takes over a connection behind its handshake.
    pub(super) fn new(reader: BufReader<OwnedReadHalf>, writer: OwnedWriteHalf) -> Self {
        let flights = Arc::new(Flights::default());
        let receiver = tokio::spawn(receive(reader, flights.clone()));
        Self {
            requests: tokio::sync::Mutex::new(writer),
            flights,
            room: Arc::new(Semaphore::new(MOST_UNDER_WAY)),
            receiver,
        }
    }

    /// Whether requests can still be made.
    pub(super) fn is_usable(&self) -> bool {
        self.flights.lock().ended.is_none()
    }

    /// Ends it for everybody.
    pub(super) fn end(&self, cause: &NbdError) {
        self.flights.end(cause);
    }

    /// Sends a request and waits for the whole answer.
    pub(super) async fn request(
        &self,
        command: u16,
        offset: u64,
        length: u32,
        gathered: Gathered,
    ) -> Result<Gathered, NbdError> {
        // Whoever holds room is bound to time himself. The semaphore is never closed.
        let room = self.room.clone().acquire_owned().await;
        let room = room.map_err(|_| NbdError::protocol("the connection was closed"))?;
        let (caller, answer) = oneshot::channel();
        let flight = Flight {
            offset,
            gathered,
            failure: None,
            caller,
            _room: room,
        };
        let work = async {
            self.send(command, offset, length, flight).await?;
            // Every flight lands or hears why not, unless the task was killed with its runtime.
            let ended = || NbdError::Connection(io::ErrorKind::ConnectionAborted.into());
            answer.await.unwrap_or_else(|_| Err(ended()))
        };
        timeout(ANSWER_TIMEOUT, work).await.unwrap_or_else(|_| {
            let cause = NbdError::Timeout(ANSWER_TIMEOUT.as_secs());
            self.end(&cause);
            Err(cause)
        })
    }

    async fn send(
        &self,
        command: u16,
        offset: u64,
        length: u32,
        flight: Flight,
    ) -> Result<(), NbdError> {
        let mut writer = self.requests.lock().await;
        let cookie = self.flights.begin(flight)?;
        let mut message = Vec::with_capacity(28);
        message.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        message.extend_from_slice(&0u16.to_be_bytes());
        message.extend_from_slice(&command.to_be_bytes());
        message.extend_from_slice(&cookie.to_be_bytes());
        message.extend_from_slice(&offset.to_be_bytes());
        message.extend_from_slice(&length.to_be_bytes());
        let half = HalfSent(Some(&self.flights));
        let sent = writer.write_all(&message).await;
        half.whole();
        sent.map_err(|error| {
            let cause = NbdError::Connection(error);
            self.end(&cause);
            cause
        })
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

/// Ends the connection when a request is dropped while it is being written: nothing may follow the half of it.
struct HalfSent<'a>(Option<&'a Flights>);

impl HalfSent<'_> {
    fn whole(mut self) {
        self.0 = None;
    }
}

impl Drop for HalfSent<'_> {
    fn drop(&mut self) {
        if let Some(flights) = self.0 {
            flights.end(&NbdError::protocol("a request was cut off half way"));
        }
    }
}

// === impl Flights ===

impl Flights {
    fn begin(&self, flight: Flight) -> Result<u64, NbdError> {
        let mut inner = self.lock();
        if let Some(cause) = &inner.ended {
            return Err(repeated(cause));
        }
        inner.last_cookie += 1;
        let cookie = inner.last_cookie;
        inner.under_way.insert(cookie, flight);
        drop(inner);
        self.begun.notify_one();
        Ok(cookie)
    }

    /// Returns when something is under way.
    async fn wait(&self) {
        loop {
            // A permit is kept for the one receiver, so none is missed in between.
            let begun = self.begun.notified();
            if !self.lock().under_way.is_empty() {
                return;
            }
            begun.await;
        }
    }

    fn take(&self, cookie: u64) -> Option<Flight> {
        self.lock().under_way.remove(&cookie)
    }

    fn put_back(&self, cookie: u64, flight: Flight) -> Result<(), NbdError> {
        let mut inner = self.lock();
        match &inner.ended {
            None => {
                inner.under_way.insert(cookie, flight);
                Ok(())
            }
            Some(cause) => {
                flight.fail(cause);
                Err(repeated(cause))
            }
        }
    }

    /// The first cause is kept.
    fn end(&self, cause: &NbdError) {
        let flights = {
            let mut inner = self.lock();
            if inner.ended.is_none() {
                inner.ended = Some(repeated(cause));
            }
            std::mem::take(&mut inner.under_way)
        };
        for flight in flights.into_values() {
            flight.fail(cause);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one call on the map.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Gathered ===

impl Gathered {
    /// For a read of so many bytes.
    pub(super) fn data(length: usize) -> Self {
        Self::Data {
            bytes: BytesMut::zeroed(length),
            filled: 0,
        }
    }

    /// For a status in at most so many chunks.
    pub(super) fn status(most: usize) -> Self {
        Self::Status {
            chunks: Vec::new(),
            most,
        }
    }
}

// === impl Flight ===

impl Flight {
    fn fail(self, cause: &NbdError) {
        // A caller that has gone does not want to know.
        self.caller.send(Err(repeated(cause))).ok();
    }

    /// Takes the payload of a chunk.
    async fn chunk(
        &mut self,
        stream: &mut BufReader<OwnedReadHalf>,
        header: &ChunkHeader,
    ) -> Result<(), NbdError> {
        let length = header.length;
        if header.kind & CHUNK_ERROR_BIT != 0 {
            if length > MAX_OPTION {
                return Err(NbdError::protocol("an error longer than any text"));
            }
            let command = match self.gathered {
                Gathered::Data { .. } => "read",
                Gathered::Status { .. } => "block status",
            };
            let payload = exactly(stream, length).await?;
            let failure = command_error(command, self.offset, &payload);
            self.failure.get_or_insert(failure);
            return Ok(());
        }
        match (&mut self.gathered, header.kind) {
            (_, CHUNK_NONE) if length == 0 => {}
            (Gathered::Data { bytes, filled }, CHUNK_OFFSET_DATA)
                if length > 8 && length - 8 <= bytes.len() =>
            {
                let at = stream.read_u64().await?;
                let target = slice_at(bytes, self.offset, at, length - 8)?;
                stream.read_exact(target).await?;
                *filled += length - 8;
            }
            (Gathered::Data { bytes, filled }, CHUNK_OFFSET_HOLE) if length == 12 => {
                let at = stream.read_u64().await?;
                let hole = stream.read_u32().await? as usize;
                slice_at(bytes, self.offset, at, hole)?.fill(0);
                *filled += hole;
            }
            (Gathered::Status { chunks, most }, CHUNK_BLOCK_STATUS)
                if length <= MAX_STATUS_PAYLOAD && chunks.len() < *most =>
            {
                chunks.push(exactly(stream, length).await?);
            }
            _ => return Err(NbdError::protocol("a chunk that does not fit the request")),
        }
        match &self.gathered {
            Gathered::Data { bytes, filled } if *filled > bytes.len() => {
                Err(NbdError::protocol("more data than asked"))
            }
            _ => Ok(()),
        }
    }

    /// The answer has come to its end. An error here is one of the connection.
    fn land(self) -> Result<(), NbdError> {
        match &self.gathered {
            Gathered::Data { bytes, filled }
                if self.failure.is_none() && *filled != bytes.len() =>
            {
                let cause = NbdError::protocol("less data than asked");
                self.fail(&cause);
                Err(cause)
            }
            _ => {
                let result = self.failure.map_or(Ok(self.gathered), Err);
                self.caller.send(result).ok();
                Ok(())
            }
        }
    }
}

/// Takes answers until the connection ends.
async fn receive(mut stream: BufReader<OwnedReadHalf>, flights: Arc<Flights>) {
    loop {
        flights.wait().await;
        if let Err(cause) = receive_chunk(&mut stream, &flights).await {
            return flights.end(&cause);
        }
    }
}

async fn receive_chunk(
    stream: &mut BufReader<OwnedReadHalf>,
    flights: &Flights,
) -> Result<(), NbdError> {
    let header = chunk_header(stream).await?;
    let Some(mut flight) = flights.take(header.cookie) else {
        return Err(NbdError::protocol("answer to a request that was not made"));
    };
    match flight.chunk(stream, &header).await {
        Ok(()) if header.done => flight.land(),
        Ok(()) => flights.put_back(header.cookie, flight),
        Err(cause) => {
            flight.fail(&cause);
            Err(cause)
        }
    }
}

async fn chunk_header(stream: &mut BufReader<OwnedReadHalf>) -> Result<ChunkHeader, NbdError> {
    if stream.read_u32().await? != STRUCTURED_REPLY_MAGIC {
        return Err(NbdError::protocol("not a structured reply"));
    }
    let flags = stream.read_u16().await?;
    Ok(ChunkHeader {
        done: flags & CHUNK_DONE != 0,
        kind: stream.read_u16().await?,
        cookie: stream.read_u64().await?,
        length: stream.read_u32().await? as usize,
    })
}

async fn exactly(stream: &mut BufReader<OwnedReadHalf>, length: usize) -> Result<Bytes, NbdError> {
    let mut buffer = BytesMut::zeroed(length);
    stream.read_exact(&mut buffer).await?;
    Ok(buffer.freeze())
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

/// The cause of an end, for one more caller.
fn repeated(cause: &NbdError) -> NbdError {
    match cause {
        NbdError::Connection(source) => {
            NbdError::Connection(io::Error::new(source.kind(), source.to_string()))
        }
        NbdError::Timeout(seconds) => NbdError::Timeout(*seconds),
        NbdError::Protocol(text) => NbdError::Protocol(text.clone()),
        // No other ends a connection.
        other => NbdError::protocol(other.to_string()),
    }
}

//! Fetches the rest of a disk while its VM runs, after the guest's own reads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{BLOCK, LocalCopy};

/// Fetched at once: 1 MiB.
const PIECE: u64 = 16;
/// Made durable at least so often, and room is asked for: 64 MiB.
const CHECKPOINT: u64 = 1024;

/// How a fill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// All of the disk is here, durably.
    Complete,
    /// It was told to stop; what is here is durable.
    Stopped,
    /// There is no room for more; what is here is durable.
    NoRoom,
    /// The copy is done without.
    Broken,
}

/// Fetches what is missing with `read`, until nothing is. `has_room` is asked at the beginning and at every checkpoint: the
/// guest's own writes need the same volume. A stop does not wait for a store that does not answer.
///
/// # Errors
/// Those of `read`, with what is here made durable; and a failed sync, as an error of the engine's own files.
pub async fn fill<E, F>(
    copy: &Arc<LocalCopy>,
    read: impl Fn(u64, usize) -> F,
    has_room: impl Fn() -> bool,
    stop: &CancellationToken,
) -> Result<Filled, E>
where
    F: Future<Output = Result<Bytes, E>>,
    E: From<io::Error>,
{
    let mut from = 0;
    let mut since = 0;
    let ended = loop {
        if copy.is_broken() {
            return Ok(Filled::Broken);
        }
        if stop.is_cancelled() {
            break Ok(Filled::Stopped);
        }
        let Some((first, blocks)) = copy.with_map(|map| map.missing(from, PIECE)) else {
            break Ok(Filled::Complete);
        };
        if since == 0 && !has_room() {
            break Ok(Filled::NoRoom);
        }
        guest_first(copy, stop).await;
        let start = first * BLOCK;
        let length = (blocks * BLOCK).min(copy.size_bytes - start);
        let piece = tokio::select! {
            piece = read(start, length as usize) => piece,
            () = stop.cancelled() => continue,
        };
        match piece {
            Ok(bytes) if bytes.len() as u64 == length => copy.keep(start, bytes).await,
            Ok(_) => break Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(error) => break Err(error),
        }
        from = first + blocks;
        since += blocks;
        if since >= CHECKPOINT {
            copy.checkpoint().await?;
            since = 0;
        }
    };
    copy.checkpoint().await?;
    ended
}

/// Waits until no read of the guest is under way in the store.
async fn guest_first(copy: &LocalCopy, stop: &CancellationToken) {
    loop {
        let idle = copy.idle.notified();
        tokio::pin!(idle);
        // From here on a read that ends is not missed.
        idle.as_mut().enable();
        if copy.reading.load(Ordering::Acquire) == 0 {
            return;
        }
        tokio::select! {
            () = idle => {}
            () = stop.cancelled() => return,
        }
    }
}

//! Makes base durable behind the writes that fill it, so that the flush at the end finds little left to do.
//!
//! What one flush is still at, the next one waits for: there is never more than one. An error of a flush ends the filling,
//! as one of the flush at the end would: what the system dropped is written again by the next try.

use replica_store::{ReplicaWriter, StoreError};
use tokio::task::JoinHandle;

use super::trouble::Trouble;
use crate::task::spawn_named;

/// Written between two flushes. The disk is kept busy, and is not flushed for trifles.
const STEP_BYTES: u64 = 64 << 20;

/// Flushes of one base.
pub(super) struct FlushBehind<'a> {
    writer: &'a ReplicaWriter,
    since: u64,
    running: Option<JoinHandle<Option<Result<(), StoreError>>>>,
}

impl<'a> FlushBehind<'a> {
    /// Nothing was written yet.
    pub fn new(writer: &'a ReplicaWriter) -> Self {
        Self {
            writer,
            since: 0,
            running: None,
        }
    }

    /// So many bytes were written.
    pub async fn wrote(&mut self, bytes: u64) -> Result<(), Trouble> {
        self.since += bytes;
        if self.since < STEP_BYTES {
            return Ok(());
        }
        if let Some(running) = &self.running {
            if !running.is_finished() {
                return Ok(());
            }
            self.settle().await?;
        }
        self.since = 0;
        let writer = self.writer.clone();
        self.running = Some(spawn_named("flush base", async move {
            writer.base_flush().await
        }));
        Ok(())
    }

    /// Waits for the one that is under way, and says how it ended.
    pub async fn settle(&mut self) -> Result<(), Trouble> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        match running.await {
            Ok(Some(result)) => Ok(result?),
            // It panicked, or the runtime ends: the flush at the end will tell.
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

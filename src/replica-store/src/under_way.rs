//! Writes to base that are under way, also those whose caller waits no longer.
//!
//! A write runs to its end on a thread of its own, through retries of minutes. Whoever gives a try up and begins
//! the next one must know that no write of the old one can land on top of the new one's. Where the medium compares
//! the fence, opening the replica again sees to that; elsewhere the writes must be waited for.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts the writes to base of all writers that were opened with it, see [`crate::WriterOptions::base_writes`].
/// Clones count together.
#[derive(Clone, Debug)]
pub struct BaseWrites(Arc<watch::Sender<Counts>>);

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// A higher fence refuses them.
    fenced: usize,
    /// Nothing does.
    unfenced: usize,
}

impl Counts {
    fn of(&mut self, is_fenced: bool) -> &mut usize {
        if is_fenced {
            &mut self.fenced
        } else {
            &mut self.unfenced
        }
    }
}

/// One write; it ends with this.
#[derive(Debug)]
pub(crate) struct UnderWay {
    counts: Arc<watch::Sender<Counts>>,
    is_fenced: bool,
}

impl Default for BaseWrites {
    fn default() -> Self {
        BaseWrites(Arc::new(watch::Sender::new(Counts::default())))
    }
}

impl BaseWrites {
    /// Whether none is under way.
    pub fn is_idle(&self) -> bool {
        let counts = self.0.borrow();
        counts.fenced + counts.unfenced == 0
    }

    /// Returns when none is under way any more that opening the replica again would not refuse.
    pub async fn settled(&self) {
        let mut counts = self.0.subscribe();
        // The sender lives as long as this.
        counts
            .wait_for(|counts| counts.unfenced == 0)
            .await
            .map(drop)
            .unwrap_or_default();
    }

    pub(crate) fn begin(&self, is_fenced: bool) -> UnderWay {
        self.0.send_modify(|counts| *counts.of(is_fenced) += 1);
        UnderWay {
            counts: self.0.clone(),
            is_fenced,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let is_fenced = self.is_fenced;
        self.counts.send_modify(|counts| *counts.of(is_fenced) -= 1);
    }
}

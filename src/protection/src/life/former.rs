//! A host that was the source before the VM went back to another one.
//!
//! It is told to hold, under the number that was in force when it was left, for as long as the item is there, and to let go of
//! the VM, which stays off, when the item ends. Neither number is ever the source's again, so what it says moves no life; and
//! when it becomes the source once more, every order that it gets is newer.

use serde::{Deserialize, Serialize};

use super::Life;
use super::orders::SourceOrder;
use crate::machine::Generation;

/// The numbers of a former source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Former {
    /// Of its order to hold.
    pub hold: Generation,
    /// Of its order to forget the VM.
    pub leave: Generation,
}

// === impl Former ===

impl Former {
    /// Who is left by a step from `before` to `after` of an [`super::Event::SourceMoved`].
    #[must_use]
    pub fn left(before: &Life, after: &Life) -> Self {
        Self {
            hold: before.source_epoch,
            leave: Generation(after.source_epoch.0.saturating_sub(1)),
        }
    }

    /// Its order while the item is there.
    #[must_use]
    pub fn held(self) -> (Generation, SourceOrder) {
        (self.hold, SourceOrder::Hold)
    }

    /// Its order after the end of the item.
    #[must_use]
    pub fn let_go(self) -> (Generation, SourceOrder) {
        (self.leave, SourceOrder::LeaveOff)
    }
}

//! The manifest: which disks there are, how far base is, whose journal objects count.
//!
//! The set of disks *at a position* is not in here: it is in the header of that position's journal
//! object, so it changes with the cycle itself, atomically. The manifest has the set as of base, and
//! the `others`: disks whose base exists and that are in no point as old as base (added later, or
//! excluded and needed by a younger cycle that took them in again).
//!
//! Nor are journal objects, except merged ones: a [`Span`] says that one object counts in place of those
//! of several positions. It is what makes compaction atomic, see [`crate::compact`].

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::medium::Fence;
use crate::model::{DiskSpec, Generation, Position};

/// Disks and how far base is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// Made with the replica: a deleted and re-created one is another, whatever its name.
    pub(crate) id: Uuid,
    pub(crate) item: String,
    /// Where base is, when that is elsewhere than the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base_at: Option<String>,
    /// The disks as of base, with their sizes then.
    pub(crate) disks: Vec<DiskSpec>,
    pub(crate) base: BaseState,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) others: Vec<OtherDisk>,
    /// Whose journal objects count from where on, ascending. Before the first any generation's does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) epochs: Vec<Epoch>,
    /// Orders the writers of base.
    #[serde(default)]
    pub(crate) fence: Fence,
    /// Counts pins that were set, so that a round of maintenance that did not see one is refused.
    #[serde(default)]
    pub(crate) pins_set: u64,
    /// Points at or behind floor that the last round of maintenance removes: nobody may pin them any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) retiring: Vec<Uuid>,
    /// Merged journal objects that count, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) spans: Vec<Span>,
    /// The merged object that is being made: it does not count yet, and inside of it no point begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) merging: Option<Span>,
}

/// Positions for which one merged object stands. Those before `last` can't be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) first: Position,
    pub(crate) last: Position,
    /// Who merged it.
    pub(crate) generation: Generation,
    /// Tells attempts apart.
    pub(crate) id: Uuid,
}

impl Span {
    /// Whether a position lies in it.
    pub(crate) fn has(&self, position: Position) -> bool {
        self.first <= position && position <= self.last
    }

    /// Whether a position lies in it and is not its end: nothing shows it any more.
    pub(crate) fn hides(&self, position: Position) -> bool {
        self.first <= position && position < self.last
    }
}

/// How far base is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub(crate) enum BaseState {
    Empty,
    Partial,
    Complete {
        /// Base holds everything up to here.
        position: Position,
        /// Base may hold parts of everything up to here: equal to `position` when at rest.
        floor: Position,
    },
}

/// A disk that is not in the set as of base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OtherDisk {
    /// Its size is that of its base.
    pub(crate) spec: DiskSpec,
    pub(crate) state: OtherState,
}

/// How far the base of another disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum OtherState {
    Empty,
    Partial,
    /// A cycle may take it in.
    Ready,
}

/// From `from` on only objects of `generation` count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Epoch {
    pub(crate) generation: Generation,
    pub(crate) from: Position,
}

impl Manifest {
    /// Base position of a complete replica.
    pub(crate) fn complete(&self) -> Option<(Position, Position)> {
        match self.base {
            BaseState::Complete { position, floor } => Some((position, floor)),
            _ => None,
        }
    }

    pub(crate) fn is_sane(&self) -> bool {
        let ordered = self
            .epochs
            .windows(2)
            .all(|pair| pair[0].from < pair[1].from && pair[0].generation < pair[1].generation);
        let base = self.complete().is_none_or(|(base, floor)| base <= floor);
        let mut ids: Vec<Uuid> = self.stored_disks().map(|disk| disk.id).collect();
        ids.sort_unstable();
        let once = ids.windows(2).all(|pair| pair[0] != pair[1]);
        let sized = self
            .stored_disks()
            .all(|disk| crate::base::padded_size(disk).is_ok());
        let apart = self
            .spans
            .windows(2)
            .all(|pair| pair[0].last < pair[1].first);
        let spans = self.spans.iter().chain(&self.merging);
        let wide = spans.into_iter().all(|span| span.first < span.last);
        ordered && base && once && sized && apart && wide
    }

    /// The merged object that counts at a position.
    pub(crate) fn span_at(&self, position: Position) -> Option<&Span> {
        let at = self.spans.partition_point(|span| span.last < position);
        self.spans.get(at).filter(|span| span.has(position))
    }

    /// Whether a merged object has swallowed a position.
    pub(crate) fn hides(&self, position: Position) -> bool {
        self.span_at(position)
            .is_some_and(|span| span.hides(position))
    }

    /// Whether a point may begin at a position.
    pub(crate) fn takes_points_at(&self, position: Position) -> bool {
        let soon = self.merging.is_some_and(|span| span.hides(position));
        !soon && !self.hides(position)
    }

    /// Whether this generation is the owner; older releases did not note one.
    pub(crate) fn is_owner(&self, generation: Generation) -> bool {
        self.epochs
            .last()
            .is_none_or(|epoch| epoch.generation == generation)
    }

    /// Whose objects count at a position; `None`: anybody's.
    pub(crate) fn epoch_at(&self, position: Position) -> Option<Generation> {
        self.epochs
            .iter()
            .rev()
            .find(|epoch| epoch.from <= position)
            .map(|epoch| epoch.generation)
    }

    /// Notes that `generation` writes from behind `head` on.
    pub(crate) fn begin_epoch(&mut self, generation: Generation, head: Position) {
        let from = head.next();
        // An owner that wrote nothing leaves no trace.
        self.epochs.retain(|epoch| epoch.from < from);
        if self.epochs.last().map(|epoch| epoch.generation) != Some(generation) {
            self.epochs.push(Epoch { generation, from });
        }
    }

    /// Every disk that has a base in the store, with the size of that base.
    pub(crate) fn stored_disks(&self) -> impl Iterator<Item = &DiskSpec> {
        self.disks
            .iter()
            .chain(self.others.iter().map(|other| &other.spec))
    }

    pub(crate) fn stored_disk(&self, id: Uuid) -> Option<&DiskSpec> {
        self.stored_disks().find(|disk| disk.id == id)
    }

    pub(crate) fn other(&self, id: Uuid) -> Option<&OtherDisk> {
        self.others.iter().find(|other| other.spec.id == id)
    }

    pub(crate) fn other_mut(&mut self, id: Uuid) -> Option<&mut OtherDisk> {
        self.others.iter_mut().find(|other| other.spec.id == id)
    }

    /// Name for people of a disk; its id when nobody gave one.
    pub(crate) fn name_of(&self, id: Uuid) -> String {
        self.stored_disk(id)
            .map_or_else(|| id.to_string(), |disk| disk.name.clone())
    }
}

//! The suite that every medium must pass: lives of a replica against a model in memory.
//!
//! ```text
//! life        random cycles; disks join, grow, go and come back; points, pins, retention, take-overs;
//!             after every step each point that is kept must read as the model says
//! hard_life   the same with calls that are done, not done, or done and reported as failed
//! killed      a short life that is cut at every n-th call of the medium, and resumed
//! two_writers, raised_fence, readers_during_maintenance, removal, damage, compaction: single promises
//! ```
//!
//! Run by this crate on a folder, and on Azure Storage by whoever has one (an emulator will do). Every
//! function panics with the seed when a promise is broken: the same seed does the same again.

mod compaction;
mod fence;
mod life;
mod model;
mod single;

use std::sync::Arc;

use crate::fault::Faults;
use crate::{ReplicaKey, StoreTarget};

pub use compaction::compaction;
pub use fence::{raised_fence, raised_fence_cut};
pub use life::{hard_life, killed, life};
pub use single::{damage, readers_during_maintenance, removal, two_writers};

/// Where a replica of the suite is: a place that nobody else uses.
#[derive(Clone, Debug)]
pub struct Place {
    /// The store.
    pub target: StoreTarget,
    /// The replica.
    pub key: ReplicaKey,
    faults: Option<Arc<dyn Faults>>,
    at_files: bool,
}

impl Place {
    /// A place in a store.
    pub fn new(target: StoreTarget, key: ReplicaKey) -> Self {
        Place {
            target,
            key,
            faults: None,
            at_files: false,
        }
    }

    /// Faults strike at each durable step of a folder, not at each call of the medium.
    pub fn at_files(mut self) -> Self {
        self.at_files = true;
        self
    }
}

/// How much of the suite is run.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Lives, each with a seed of its own.
    pub seeds: u64,
    /// Steps of a life.
    pub steps: u32,
    /// A life is cut at every so many calls; 1 = at each.
    pub stride: u64,
}

/// Runs all of it; `place` gives a new place for each number.
pub async fn run(effort: Effort, place: impl Fn(u64) -> Place) {
    let mut number = 0;
    let mut next = || {
        number += 1;
        place(number)
    };
    for seed in 0..effort.seeds {
        life(&next(), seed, effort.steps).await;
        hard_life(&next(), seed, effort.steps, 5).await;
    }
    let mut at = 0;
    while killed(&next(), effort.seeds, at).await {
        at += effort.stride;
    }
    two_writers(&next()).await;
    raised_fence(&next()).await;
    raised_fence_cut(&next()).await;
    readers_during_maintenance(&next()).await;
    removal(&next()).await;
    damage(&next()).await;
    compaction(&next()).await;
}

//! When the next freeze comes, and of which kind: pure but for [`meter`]; time is passed in, from any fixed instant.
//!
//! ```text
//!   captured, shipped ─► predict (churn, capture, ship) ─┐
//!   cycles that wait ──► ladder (degrade, recover) ──────┴─► plan: next instant, kind, report
//! ```
//!
//! Promise: a point is recoverable before the interval since the one before it is over, as far as the past tells; when
//! cycles can't keep up, the interval is doubled, with a reason, and comes back by itself when they would keep up
//! easily; missed instants do not pile up: after a pause there is one freeze, not many. Only monotonic time counts, so a
//! wall clock that jumps changes nothing.

pub mod ladder;
pub mod meter;
pub mod plan;
pub mod predict;

#[cfg(test)]
mod simulation;

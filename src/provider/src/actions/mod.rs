//! What is done, not kept: actions, for Terraform 1.14 and later.

mod arguments;
mod cancel;
mod drill;
mod drill_end;
mod failover;
mod follow;
mod report;

pub(crate) use cancel::CancelAction;
pub(crate) use drill::DrillAction;
pub(crate) use failover::FailoverAction;

//! What is done, not kept: actions, for Terraform 1.14 and later.

mod failover;
mod follow;

pub(crate) use failover::FailoverAction;

//! The control plane: orchestration API, jobs, engine gateway.

fn main() {}

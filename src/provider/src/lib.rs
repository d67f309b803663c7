//! The Terraform provider siterecovery: resources onto the orchestration API, the engine onto hosts.
//!
//! ```text
//!  provider.rs ── configuration, what there is
//!  session.rs ─── what all handlers share: API client, subscription, engine to deploy
//!  remote.rs ──── one resource's calls, with errors that point at the attribute at fault
//!  plain.rs ───── resources that are one PUT and one GET; their data sources by name come with them
//!  resources/, data_sources/, actions/, functions.rs, registration_key.rs
//!  docs.rs ────── documentation out of the schemas
//! ```
//!
//! Promises: a second plan is empty; figures that change by themselves never cause a difference; secrets reach
//! neither state nor log; what was made half is stored, so that the next apply mends it.

mod actions;
pub mod data_sources;
pub mod docs;
mod errors;
mod fields;
mod functions;
mod limits;
mod plain;
mod provider;
mod registration_key;
mod remote;
pub mod resources;
mod session;
mod timeouts;

pub use provider::SiteRecovery;
pub use session::Session;

/// The provider's source address.
pub const ADDRESS: &str = "registry.terraform.io/siterecovery/siterecovery";

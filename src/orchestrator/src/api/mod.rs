//! The orchestration API: ASR's REST surface over our store and jobs.
//!
//! ```text
//!  server (TLS) ─► entry (token, rights, limits) ─► route (path → resource, types, rest) ─► one file per resource
//!                                                                                            │
//!                           reply (JSON, 202 with both operation headers, ARM errors) ◄──────┘
//! ```

pub mod containers;
pub mod drill_report;
pub mod drill_schedules;
pub mod enable;
pub mod entry;
pub mod fabrics;
pub mod failover;
pub mod filter;
pub mod item_actions;
pub mod item_answer;
pub mod item_health;
pub mod item_rules;
pub mod jobs;
pub mod load;
pub mod mappings;
pub mod network_mappings;
pub mod networks;
pub mod nics;
pub mod operations;
pub mod other_host;
pub mod plain;
mod plan_part;
pub mod plans;
pub mod policies;
pub mod protectable_items;
pub mod protected_items;
pub mod recovery_points;
pub mod reply;
pub mod resource_groups;
pub mod route;
pub mod server;
pub mod services_providers;
pub mod site_networks;
pub mod storage_accounts;
pub mod test_failover;
pub mod vault_health;
pub mod vaults;

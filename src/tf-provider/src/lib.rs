//! Terraform plugin protocol 6.11: write a Terraform provider in Rust.
//!
//! A provider implements [`Provider`] and, for what it offers, [`Resource`], [`DataSource`], [`EphemeralResource`],
//! [`ListResource`], [`Action`] and [`Function`]. The server does the protocol: handshake, mutual TLS, exact values,
//! plans by the flags of the schema, checks of everything that Terraform would refuse, cancellation, logging.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use tf_provider::*;
//!
//! struct Acme;
//! struct Client { /* an API client */ }
//! struct Disk;
//!
//! #[async_trait]
//! impl Provider for Acme {
//!     type Client = Client;
//!     fn name(&self) -> &str { "acme" }
//!     fn schema(&self) -> Schema {
//!         Schema::new().attribute("endpoint", Attribute::string().optional().describe("API address."))
//!     }
//!     async fn configure(&self, _cx: &Context<Client>, config: &Object) -> Result<Option<Client>, Diagnostics> {
//!         if config.is_unknown("endpoint") { return Ok(None); }
//!         Ok(Some(Client {}))
//!     }
//!     fn resources(&self) -> Vec<Box<dyn Resource<Client>>> { vec![Box::new(Disk)] }
//! }
//!
//! #[async_trait]
//! impl Resource<Client> for Disk {
//!     fn type_name(&self) -> &str { "acme_disk" }
//!     fn schema(&self) -> Schema {
//!         Schema::new()
//!             .attribute("id", Attribute::string().computed().use_state_for_unknown())
//!             .attribute("name", Attribute::string().required().requires_replace())
//!             .attribute("size_gib", Attribute::number().optional().default(10).whole_in(1..=65536))
//!             .attribute("labels", Attribute::set(Type::String).optional())
//!     }
//!     fn identity(&self) -> Option<IdentitySchema> {
//!         Some(IdentitySchema::new().required("id", Type::String, "Id of the disk."))
//!     }
//!     async fn create(&self, cx: &Context<Client>, change: &Change, state: &mut ResourceState) -> Result<(), Diagnostics> {
//!         let _client = cx.client()?;
//!         let name = change.planned.require_str("name")?;
//!         state.value.set("id", format!("disk-{name}"));
//!         state.keep(); // from here on an error taints the disk instead of losing it
//!         Ok(())
//!     }
//!     async fn read(&self, cx: &Context<Client>, state: &mut ResourceState) -> Result<Presence, Diagnostics> {
//!         let _client = cx.client()?;
//!         let id = state.value.string("id");
//!         state.value.set("name", id.trim_start_matches("disk-"));
//!         Ok(Presence::Present)
//!     }
//!     async fn update(&self, _cx: &Context<Client>, change: &Change, _state: &mut ResourceState) -> Result<(), Diagnostics> {
//!         if change.changed("size_gib") { /* call the API */ }
//!         Ok(())
//!     }
//!     async fn delete(&self, _cx: &Context<Client>, _change: &Change) -> Result<(), Diagnostics> { Ok(()) }
//! }
//!
//! fn main() -> ExitCode {
//!     tf_provider::run(Acme, "registry.terraform.io/acme/acme")
//! }
//! ```
//!
//! What may go wrong: [`run`] prints why it could not start and exits with 1; a handler that breaks one of Terraform's
//! rules (unknown values after apply, an attribute that the schema lacks) gives an error that names the rule; a
//! panicking handler gives an error diagnostic while the others go on.

pub mod attribute;
mod checking;
mod conform;
pub mod context;
pub mod diagnostics;
pub mod function;
pub mod json;
mod launch;
pub mod logging;
mod members;
pub mod msgpack;
pub mod number;
pub mod object;
pub mod path;
mod planning;
#[cfg(test)]
mod planning_tests;
pub mod provider;
pub mod raw_state;
pub mod resource;
pub mod schema;
mod schema_check;
#[cfg(test)]
mod schema_check_tests;
mod server;
pub mod types;
pub mod value;
mod wire;

pub use async_trait::async_trait;

pub use attribute::{Attribute, AttributeKind, Nesting};
pub use context::{Cancel, ClientCapabilities, Context};
pub use diagnostics::{Diagnostic, Diagnostics, Severity};
pub use function::{Function, FunctionError, Parameter, Signature};
pub use launch::run;
pub use number::Number;
pub use object::Object;
pub use path::AttributePath;
pub use provider::{
    Action, DataSource, EphemeralResource, ListItem, ListResource, ListSink, Opened, Progress,
    Provider, Renewed,
};
pub use raw_state::RawState;
pub use resource::{Change, ImportKey, MoveSource, Plan, Presence, Resource, ResourceState};
pub use schema::{Block, BlockNesting, IdentityAttribute, IdentitySchema, NestedBlock, Schema};
pub use schema_check::SchemaKind;
pub use types::Type;
pub use value::{Refinements, Value};

/// Generated code of the protocol files.
#[allow(missing_docs, reason = "generated")]
#[allow(clippy::all, rust_2018_idioms, reason = "generated")]
pub mod proto {
    /// The protocol itself.
    pub mod tfplugin6 {
        tonic::include_proto!("tfplugin6");
    }
    /// Services of go-plugin.
    pub mod plugin {
        tonic::include_proto!("plugin");
    }
    /// Health service.
    pub mod health {
        tonic::include_proto!("grpc.health.v1");
    }
}

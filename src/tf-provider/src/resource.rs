//! Managed resources: what their author writes.
//!
//! The server does the rest: it plans by the flags of the schema, fills in and checks results, nulls write-only
//! values, keeps private bytes and identity, and stores partial state when a handler fails half way.

use async_trait::async_trait;

use crate::context::Context;
use crate::diagnostics::Diagnostics;
use crate::object::Object;
use crate::path::AttributePath;
use crate::raw_state::RawState;
use crate::schema::{IdentitySchema, Schema};

/// A stored object with what the provider keeps beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceState {
    /// Attributes by the schema.
    pub value: Object,
    /// Bytes that only the provider understands; stored with the object. Never for secrets: state files are readable.
    pub private: Vec<u8>,
    /// Identity by the identity schema; left `None`, the server copies attributes of the same names.
    pub identity: Option<Object>,
    pub(crate) kept: Option<Object>,
}

impl ResourceState {
    /// From attributes only.
    pub fn new(value: Object) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }

    /// Promises that the remote object exists as `value` says now: an error that follows stores this state
    /// (after a create: tainted) instead of losing the object. Unknown parts are stored as null.
    pub fn keep(&mut self) {
        self.kept = Some(self.value.clone());
    }

    /// What an error that follows would store; `None` before the first [`ResourceState::keep`].
    #[must_use]
    pub fn kept(&self) -> Option<&Object> {
        self.kept.as_ref()
    }
}

/// What is to be changed.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The stored object; `None` on create.
    pub prior: Option<Object>,
    /// The planned object, may hold unknowns.
    pub planned: Object,
    /// The configuration, with write-only values; empty on delete.
    pub config: Object,
    /// Identity, where the resource has one and it is known.
    pub identity: Option<Object>,
    /// Private bytes: of the plan on create and update, of the state on delete.
    pub private: Vec<u8>,
}

impl Change {
    /// True when the attribute differs between prior and planned object, or is not known.
    pub fn changed(&self, name: &str) -> bool {
        match &self.prior {
            Some(prior) => self.planned.get(name) != prior.get(name),
            None => !self.planned.is_null(name),
        }
    }
}

/// A plan that the default rules have filled in and the resource may adjust.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The stored object; `None` on create.
    pub prior: Option<Object>,
    /// The configuration; write-only values are here. Empty on delete.
    pub config: Object,
    /// What will be; only computed attributes that the configuration leaves out may be changed.
    pub planned: Object,
    /// Paths whose change needs a replacement.
    pub requires_replace: Vec<AttributePath>,
    /// Private bytes for apply; start as those of the state.
    pub private: Vec<u8>,
    /// Planned identity; `None` keeps the prior one.
    pub identity: Option<Object>,
    /// True when the object will be destroyed; `planned` is empty and cannot be changed then.
    pub destroy: bool,
}

impl Plan {
    /// True on create.
    pub fn is_create(&self) -> bool {
        self.prior.is_none()
    }

    /// True when something differs from the stored object.
    pub fn has_changes(&self) -> bool {
        self.destroy || self.prior.as_ref() != Some(&self.planned)
    }

    /// True when the attribute differs between prior and planned object, or is not known.
    pub fn changed(&self, name: &str) -> bool {
        self.prior
            .as_ref()
            .is_none_or(|prior| prior.get(name) != self.planned.get(name))
    }

    /// Asks for a replacement because of an attribute.
    pub fn replace(&mut self, path: impl Into<AttributePath>) {
        let path = path.into();
        if !self.requires_replace.contains(&path) {
            self.requires_replace.push(path);
        }
    }
}

/// Whether a read found the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is there and `state` describes it.
    Present,
    /// It is gone (only for a clear "not found", never for a refusal or a time-out).
    Gone,
}

/// What an import names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportKey {
    /// `terraform import` or an import block with `id`.
    Id(String),
    /// An import block with `identity`.
    Identity(Object),
}

impl ImportKey {
    /// The id, or this text attribute of the identity.
    pub fn id_or(&self, identity_attribute: &str) -> Result<String, Diagnostics> {
        match self {
            Self::Id(id) => Ok(id.clone()),
            Self::Identity(identity) => identity.require_str(identity_attribute).map(str::to_owned),
        }
    }
}

/// An object of another type that a `moved` block turns into this one.
#[derive(Debug)]
pub struct MoveSource {
    /// Full provider address, host/namespace/type.
    pub provider_address: String,
    /// Type name there.
    pub type_name: String,
    /// Schema version there.
    pub schema_version: i64,
    /// The stored object.
    pub state: RawState,
    /// Identity there, if any.
    pub identity: Option<RawState>,
    /// Private bytes there.
    pub private: Vec<u8>,
}

/// A managed resource type.
#[async_trait]
pub trait Resource<C: Send + Sync + 'static>: Send + Sync {
    /// Full type name with the provider's prefix.
    fn type_name(&self) -> &str;

    /// Attributes and blocks.
    fn schema(&self) -> Schema;

    /// Permanent key (Terraform 1.12 and later).
    fn identity(&self) -> Option<IdentitySchema> {
        None
    }

    /// Static checks beyond the schema's; values may be unknown; the remote system must not be asked.
    async fn validate(&self, _cx: &Context<C>, _config: &Object, _report: &mut Diagnostics) {}

    /// Adjusts the plan that the default rules made; also called for deletes (`plan.destroy`). Called several times
    /// for each change and must give the same answer each time.
    async fn plan(&self, _cx: &Context<C>, _plan: &mut Plan) -> Result<(), Diagnostics> {
        Ok(())
    }

    /// Creates the object. `state.value` starts as the plan; fill in what was unknown. Call [`ResourceState::keep`]
    /// as soon as the object exists and more can fail.
    async fn create(
        &self,
        cx: &Context<C>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics>;

    /// Refreshes `state`, which starts as the stored one (after an import: as the import's stub).
    async fn read(
        &self,
        cx: &Context<C>,
        state: &mut ResourceState,
    ) -> Result<Presence, Diagnostics>;

    /// Changes the object in place. `state.value` starts as the plan; on an error the prior state stays stored unless
    /// [`ResourceState::keep`] was called.
    async fn update(
        &self,
        cx: &Context<C>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics>;

    /// Deletes the object (`change.prior`); already gone is a success.
    async fn delete(&self, cx: &Context<C>, change: &Change) -> Result<(), Diagnostics>;

    /// Makes the stub that [`Resource::read`] completes. The default puts an id into the attribute `id`, and the
    /// attributes of an identity into attributes of the same names.
    async fn import(
        &self,
        _cx: &Context<C>,
        key: &ImportKey,
    ) -> Result<ResourceState, Diagnostics> {
        match key {
            ImportKey::Id(id) if self.schema().has_attribute("id") => {
                Ok(ResourceState::new(Object::new().with("id", id.as_str())))
            }
            ImportKey::Id(_) => Err(Diagnostics::error(
                "Import is not supported",
                format!("{} cannot be imported by an id.", self.type_name()),
            )),
            ImportKey::Identity(identity) => {
                let mut state = ResourceState::new(Object::new());
                for (name, value) in identity
                    .iter()
                    .filter(|(name, _)| self.schema().has_attribute(name))
                {
                    state.value.set(name, value.clone());
                }
                state.identity = Some(identity.clone());
                Ok(state)
            }
        }
    }

    /// Turns the stored object of an older schema version into the current shape. Cheap and offline: called at every
    /// plan. The current version never gets here.
    async fn upgrade(&self, version: i64, _old: &RawState) -> Result<Object, Diagnostics> {
        Err(Diagnostics::error(
            "State is too old",
            format!(
                "{} has no way to read state of schema version {version}.",
                self.type_name()
            ),
        ))
    }

    /// Turns a stored identity of an older version into the current shape.
    async fn upgrade_identity(&self, version: i64, _old: &RawState) -> Result<Object, Diagnostics> {
        Err(Diagnostics::error(
            "Identity is too old",
            format!(
                "{} has no way to read an identity of version {version}.",
                self.type_name()
            ),
        ))
    }

    /// Takes over an object of another type; `Ok(None)` for pairs it does not know.
    async fn move_state(
        &self,
        _cx: &Context<C>,
        _source: &MoveSource,
    ) -> Result<Option<ResourceState>, Diagnostics> {
        Ok(None)
    }
}

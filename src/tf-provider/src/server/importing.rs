//! Taking over existing objects: import, move from another type, generated configuration.

use crate::attribute::Nesting;
use crate::conform::conform_object;
use crate::diagnostics::Diagnostics;
use crate::members::{Members, each_object_mut};
use crate::object::Object;
use crate::proto::tfplugin6 as pb;
use crate::provider::Provider;
use crate::resource::{ImportKey, MoveSource, ResourceState};
use crate::schema::BlockNesting;
use crate::value::Value;
use crate::wire;

use super::core::{Call, Entry, find};
use super::reading::{identity_of, require_known};

/// The identity that goes with a stub: only when the handler knows it, a read completes the rest.
fn stub_identity<T: ?Sized>(
    entry: &Entry<T>,
    state: &ResourceState,
) -> Result<Option<pb::ResourceIdentityData>, Diagnostics> {
    match (&entry.identity, &state.identity) {
        (Some(schema), Some(_)) => identity_of(schema, state).map(Some),
        _ => Ok(None),
    }
}

pub(crate) async fn import<P: Provider>(
    call: Call<P>,
    request: pb::import_resource_state::Request,
) -> Result<pb::import_resource_state::Response, Diagnostics> {
    let entry = find(&call.core.resources, "resource", &request.type_name)?;
    let identity = wire::identity(request.identity.as_ref(), entry.identity.as_ref())?;
    let key = match identity {
        Some(identity) => ImportKey::Identity(identity),
        None if request.id.is_empty() => {
            return Err(Diagnostics::error(
                "Nothing to import",
                "Neither an id nor an identity was given.",
            ));
        }
        None => ImportKey::Id(request.id),
    };
    let cx = call.context(wire::capabilities(request.client_capabilities.as_ref()));
    let mut state = entry.part.import(&cx, &key).await?;
    if let (ImportKey::Identity(identity), None) = (&key, &state.identity) {
        state.identity = Some(identity.clone());
    }
    state.value = conform_object(state.value, &entry.schema)?;
    require_known(&state.value, "an import")?;
    let imported = pb::import_resource_state::ImportedResource {
        type_name: request.type_name,
        state: Some(wire::dynamic_object(&state.value, &entry.schema.ty())?),
        identity: stub_identity(entry, &state)?,
        private: state.private.into(),
    };
    Ok(pb::import_resource_state::Response {
        imported_resources: vec![imported],
        ..Default::default()
    })
}

pub(crate) async fn move_state<P: Provider>(
    call: Call<P>,
    request: pb::move_resource_state::Request,
) -> Result<pb::move_resource_state::Response, Diagnostics> {
    let entry = find(&call.core.resources, "resource", &request.target_type_name)?;
    let identity = request
        .source_identity
        .as_ref()
        .filter(|raw| !raw.json.is_empty());
    let source = MoveSource {
        provider_address: request.source_provider_address,
        type_name: request.source_type_name,
        schema_version: request.source_schema_version,
        state: wire::raw_state(request.source_state.as_ref())?,
        identity: identity.map(|raw| wire::raw_state(Some(raw))).transpose()?,
        private: request.source_private.to_vec(),
    };
    let cx = call.context(Default::default());
    let Some(mut state) = entry.part.move_state(&cx, &source).await? else {
        return Err(Diagnostics::error(
            "Move is not supported",
            format!(
                "{} cannot take over an object of {} ({}). Remove it from the state with a removed block and import it.",
                request.target_type_name, source.type_name, source.provider_address
            ),
        ));
    };
    state.value = conform_object(state.value, &entry.schema)?;
    require_known(&state.value, "a move")?;
    Ok(pb::move_resource_state::Response {
        target_state: Some(wire::dynamic_object(&state.value, &entry.schema.ty())?),
        target_identity: stub_identity(entry, &state)?,
        target_private: state.private.into(),
        diagnostics: Vec::new(),
    })
}

/// The state without everything that a user cannot write.
pub(crate) async fn generate_config<P: Provider>(
    call: Call<P>,
    request: pb::generate_resource_config::Request,
) -> Result<pb::generate_resource_config::Response, Diagnostics> {
    let entry = find(&call.core.resources, "resource", &request.type_name)?;
    let mut config = wire::config(request.state.as_ref(), &entry.schema)?;
    keep_configurable(entry.schema.block.members(), &mut config);
    let config = Some(wire::dynamic_object(&config, &entry.schema.ty())?);
    Ok(pb::generate_resource_config::Response {
        config,
        diagnostics: Vec::new(),
    })
}

fn keep_configurable(members: Members<'_>, object: &mut Object) {
    for (name, attribute) in members.attributes {
        let read_only = !attribute.required && !attribute.optional;
        // An optional id is nearly always the result of a creation, and Terraform treats it so as well.
        let optional_id = name == "id" && attribute.computed;
        let is_default = attribute.default.as_ref() == Some(object.get(name));
        if read_only || optional_id || attribute.write_only || is_default {
            object.set(name, Value::Null);
        }
    }
    for (name, inner, nesting) in members.nested() {
        each_object_mut(object.get_mut(name), nesting, &mut |object| {
            keep_configurable(inner, object)
        });
    }
    for (name, block) in members.blocks {
        // A block of nothing but nulls was never written.
        let empty = |object: &Object| object.values().all(Value::is_null);
        let (_, nesting) = block.inside();
        let written = object.object(name).is_none_or(|object| !empty(object));
        if block.nesting == BlockNesting::Single && nesting == Nesting::Single && !written {
            object.set(name, Value::Null);
        }
    }
}

//! Reads of resources and data sources, and upgrades of what an older version stored.

use crate::conform::{conform_object, conform_to, unknown_paths};
use crate::diagnostics::Diagnostics;
use crate::object::Object;
use crate::path::AttributePath;
use crate::planning::keep_stored_spelling;
use crate::proto::tfplugin6 as pb;
use crate::provider::Provider;
use crate::resource::{Presence, ResourceState};
use crate::schema::IdentitySchema;
use crate::value::Value;
use crate::wire;

use super::core::{Call, find};

/// Terraform stores only what is wholly known.
pub(crate) fn require_known(object: &Object, after: &str) -> Result<(), Diagnostics> {
    let mut unknown = Vec::new();
    unknown_paths(
        &Value::Object(object.clone()),
        &AttributePath::root(),
        &mut unknown,
    );
    if unknown.is_empty() {
        return Ok(());
    }
    let paths: Vec<String> = unknown.iter().map(ToString::to_string).collect();
    Err(Diagnostics::error(
        "Provider left values unknown",
        format!(
            "After {after} these are still unknown: {}. This is a bug of the provider, please report it.",
            paths.join(", ")
        ),
    ))
}

/// The identity of a state: what the handler set, else what was known before, else attributes of the same names.
pub(crate) fn identity_of(
    schema: &IdentitySchema,
    state: &ResourceState,
) -> Result<pb::ResourceIdentityData, Diagnostics> {
    let identity = state.identity.clone().unwrap_or_else(|| {
        let names = schema
            .attributes
            .iter()
            .map(|attribute| attribute.name.as_str());
        names
            .map(|name| (name, state.value.get(name).clone()))
            .collect()
    });
    let identity = conform_to(identity, &schema.ty())?;
    require_known(&identity, "this operation, in the identity,")?;
    wire::identity_data(identity, schema)
}

pub(crate) async fn resource<P: Provider>(
    call: Call<P>,
    request: pb::read_resource::Request,
) -> Result<pb::read_resource::Response, Diagnostics> {
    let entry = find(&call.core.resources, "resource", &request.type_name)?;
    let stored = wire::config(request.current_state.as_ref(), &entry.schema)?;
    let identity = wire::identity(request.current_identity.as_ref(), entry.identity.as_ref())?;
    let cx = call.context(wire::capabilities(request.client_capabilities.as_ref()));
    let mut state = ResourceState {
        value: stored.clone(),
        private: request.private.to_vec(),
        identity,
        kept: None,
    };
    if entry.part.read(&cx, &mut state).await? == Presence::Gone {
        return Ok(pb::read_resource::Response {
            new_state: Some(wire::dynamic_null()),
            ..Default::default()
        });
    }
    state.value = conform_object(state.value, &entry.schema)?;
    keep_stored_spelling(entry.schema.block.members(), &stored, &mut state.value);
    require_known(&state.value, "a read")?;
    Ok(pb::read_resource::Response {
        new_state: Some(wire::dynamic_object(&state.value, &entry.schema.ty())?),
        new_identity: entry
            .identity
            .as_ref()
            .map(|schema| identity_of(schema, &state))
            .transpose()?,
        private: state.private.into(),
        ..Default::default()
    })
}

pub(crate) async fn data_source<P: Provider>(
    call: Call<P>,
    request: pb::read_data_source::Request,
) -> Result<pb::read_data_source::Response, Diagnostics> {
    let entry = find(&call.core.data_sources, "data source", &request.type_name)?;
    let config = wire::config(request.config.as_ref(), &entry.schema)?;
    let cx = call.context(wire::capabilities(request.client_capabilities.as_ref()));
    let mut state = config.clone();
    entry.part.read(&cx, &config, &mut state).await?;
    let state = conform_object(state, &entry.schema)?;
    require_known(&state, "a read")?;
    Ok(pb::read_data_source::Response {
        state: Some(wire::dynamic_object(&state, &entry.schema.ty())?),
        ..Default::default()
    })
}

/// Called for every object at every plan, also when the version is the current one.
pub(crate) async fn upgrade_state<P: Provider>(
    call: Call<P>,
    request: pb::upgrade_resource_state::Request,
) -> Result<pb::upgrade_resource_state::Response, Diagnostics> {
    let entry = find(&call.core.resources, "resource", &request.type_name)?;
    let raw = wire::raw_state(request.raw_state.as_ref())?;
    let current = entry.schema.version;
    let object = match request.version {
        version if version == current => raw.decode(&entry.schema)?,
        version if version < current => entry.part.upgrade(version, &raw).await?,
        version => {
            return Err(Diagnostics::error(
                "State is from a newer provider",
                format!(
                    "The state has schema version {version}, this provider knows versions up to {current}. Use a newer \
                     version of the provider."
                ),
            ));
        }
    };
    let object = conform_object(object, &entry.schema)?;
    require_known(&object, "an upgrade")?;
    let upgraded_state = Some(wire::dynamic_object(&object, &entry.schema.ty())?);
    Ok(pb::upgrade_resource_state::Response {
        upgraded_state,
        diagnostics: Vec::new(),
    })
}

pub(crate) async fn upgrade_identity<P: Provider>(
    call: Call<P>,
    request: pb::upgrade_resource_identity::Request,
) -> Result<pb::upgrade_resource_identity::Response, Diagnostics> {
    let entry = find(&call.core.resources, "resource", &request.type_name)?;
    let Some(schema) = &entry.identity else {
        return Err(Diagnostics::error(
            "No identity",
            format!("{} has no identity.", request.type_name),
        ));
    };
    let raw = wire::raw_state(request.raw_identity.as_ref())?;
    let identity = if request.version == schema.version {
        crate::json::decode_state(raw.bytes(), &schema.ty()).map_err(|error| {
            Diagnostics::error(
                "Stored identity does not fit the schema",
                format!("{error}."),
            )
        })?
    } else {
        entry.part.upgrade_identity(request.version, &raw).await?
    };
    require_known(&identity, "an upgrade")?;
    Ok(pb::upgrade_resource_identity::Response {
        upgraded_identity: Some(wire::identity_data(identity, schema)?),
        diagnostics: Vec::new(),
    })
}

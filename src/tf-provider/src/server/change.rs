//! Plans and applies of managed resources.
//!
//! An apply that fails half way still answers with the state that is known, its private bytes and its identity, so
//! that nothing which exists is ever forgotten.

use crate::conform::{conform_object, null_unknown_members};
use crate::diagnostics::Diagnostics;
use crate::object::Object;
use crate::path::AttributePath;
use crate::planning::default_plan;
use crate::proto::tfplugin6 as pb;
use crate::provider::Provider;
use crate::resource::{Change, Plan, ResourceState};
use crate::wire;

use super::core::{Call, find};
use super::reading::{identity_of, require_known};

pub(crate) async fn plan<P: Provider>(
    call: Call<P>,
    request: pb::plan_resource_change::Request,
) -> Result<pb::plan_resource_change::Response, Diagnostics> {
    let entry = find(&call.core.resources, "resource", &request.type_name)?;
    let schema = &entry.schema;
    let prior = wire::object(request.prior_state.as_ref(), schema)?;
    let proposed = wire::object(request.proposed_new_state.as_ref(), schema)?;
    let identity = wire::identity(request.prior_identity.as_ref(), entry.identity.as_ref())?;
    // In the plan during apply the bytes of the first plan come back, where the client keeps them.
    let private = if request.planned_private.is_empty() {
        &request.prior_private
    } else {
        &request.planned_private
    };
    let cx = call.context(wire::capabilities(request.client_capabilities.as_ref()));
    let mut plan = Plan {
        prior,
        identity,
        private: private.to_vec(),
        ..Plan::default()
    };
    let Some(proposed) = proposed else {
        plan.destroy = true;
        entry.part.plan(&cx, &mut plan).await?;
        return Ok(pb::plan_resource_change::Response {
            planned_state: Some(wire::dynamic_null()),
            planned_private: plan.private.into(),
            ..Default::default()
        });
    };
    plan.config = wire::config(request.config.as_ref(), schema)?;
    let defaults = default_plan(
        schema.block.members(),
        plan.prior.as_ref(),
        &plan.config,
        proposed,
    );
    plan.planned = defaults.planned;
    plan.requires_replace = defaults.requires_replace;
    entry.part.plan(&cx, &mut plan).await?;
    let planned = conform_object(plan.planned, schema)?;
    let identity = plan.identity.zip(entry.identity.as_ref());
    Ok(pb::plan_resource_change::Response {
        planned_state: Some(wire::dynamic_object(&planned, &schema.ty())?),
        requires_replace: plan
            .requires_replace
            .iter()
            .map(AttributePath::to_proto)
            .collect(),
        planned_private: plan.private.into(),
        planned_identity: identity
            .map(|(identity, schema)| wire::identity_data(identity, schema))
            .transpose()?,
        ..Default::default()
    })
}

pub(crate) async fn apply<P: Provider>(
    call: Call<P>,
    request: pb::apply_resource_change::Request,
) -> Result<pb::apply_resource_change::Response, Diagnostics> {
    let entry = find(&call.core.resources, "resource", &request.type_name)?;
    let schema = &entry.schema;
    let prior = wire::object(request.prior_state.as_ref(), schema)?;
    let planned = wire::object(request.planned_state.as_ref(), schema)?;
    let identity = wire::identity(request.planned_identity.as_ref(), entry.identity.as_ref())?;
    let identity = identity.filter(Object::is_wholly_known);
    let config = wire::config(request.config.as_ref(), schema)?;
    let cx = call.context(Default::default());
    let mut change = Change {
        prior,
        planned: Object::new(),
        config,
        identity,
        private: request.planned_private.to_vec(),
    };

    let Some(planned) = planned else {
        let Some(prior) = change.prior.clone() else {
            return Ok(pb::apply_resource_change::Response {
                new_state: Some(wire::dynamic_null()),
                ..Default::default()
            });
        };
        change.config = Object::new();
        return match entry.part.delete(&cx, &change).await {
            Ok(()) => Ok(pb::apply_resource_change::Response {
                new_state: Some(wire::dynamic_null()),
                ..Default::default()
            }),
            Err(problems) => {
                let state = ResourceState {
                    value: prior,
                    private: change.private,
                    identity: change.identity,
                    kept: None,
                };
                answer(entry, Some(state), problems)
            }
        };
    };

    change.planned = planned.clone();
    let mut state = ResourceState {
        value: planned,
        private: change.private.clone(),
        identity: change.identity.clone(),
        kept: None,
    };
    let outcome = match &change.prior {
        None => entry.part.create(&cx, &change, &mut state).await,
        Some(_) => entry.part.update(&cx, &change, &mut state).await,
    };
    let problems = match outcome {
        Ok(()) => Diagnostics::new(),
        Err(problems) => {
            // What surely exists: the handler's promise, else what was there before.
            match state.kept.take().or(change.prior) {
                Some(known) => state.value = null_unknown_members(known),
                None => return answer(entry, None, problems),
            }
            problems
        }
    };
    answer(entry, Some(state), problems)
}

/// Builds the answer; a state that breaks the rules is repaired as far as possible and reported.
fn answer<T: ?Sized>(
    entry: &super::core::Entry<T>,
    state: Option<ResourceState>,
    mut problems: Diagnostics,
) -> Result<pb::apply_resource_change::Response, Diagnostics> {
    let Some(mut state) = state else {
        let new_state = Some(wire::dynamic_null());
        let diagnostics = problems.to_proto();
        return Ok(pb::apply_resource_change::Response {
            new_state,
            diagnostics,
            ..Default::default()
        });
    };
    match conform_object(state.value.clone(), &entry.schema) {
        Ok(value) => state.value = value,
        Err(misfit) => {
            // The object exists whatever shape the handler gave it: keep what fits of it, attribute by attribute.
            problems.extend(misfit);
            state.value = salvage(state.value, &entry.schema);
        }
    }
    if let Err(unknown) = require_known(&state.value, "an apply") {
        problems.extend(unknown);
        state.value = null_unknown_members(state.value);
    }
    let new_identity = match entry
        .identity
        .as_ref()
        .map(|schema| identity_of(schema, &state))
    {
        Some(Ok(identity)) => Some(identity),
        Some(Err(_)) if problems.has_errors() => None,
        Some(Err(broken)) => {
            problems.extend(broken);
            None
        }
        None => None,
    };
    Ok(pb::apply_resource_change::Response {
        new_state: Some(wire::dynamic_object(&state.value, &entry.schema.ty())?),
        private: state.private.into(),
        diagnostics: problems.to_proto(),
        new_identity,
        ..Default::default()
    })
}

fn salvage(value: Object, schema: &crate::schema::Schema) -> Object {
    let mut kept = Object::new();
    for (name, item) in value {
        let alone = Object::new().with(name.as_str(), item.clone());
        if conform_object(alone, schema).is_ok() {
            kept.set(name, item);
        }
    }
    conform_object(kept, schema).unwrap_or_default()
}

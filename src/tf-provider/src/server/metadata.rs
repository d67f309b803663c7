//! What the provider offers: schemas, names, functions. No call depends on an earlier one.

use crate::conform::conform;
use crate::diagnostics::Diagnostics;
use crate::function::FunctionError;
use crate::path::AttributePath;
use crate::proto::tfplugin6 as pb;
use crate::provider::Provider;
use crate::value::Value;
use crate::wire;

use super::core::{Call, Core};

fn capabilities() -> pb::ServerCapabilities {
    pb::ServerCapabilities {
        plan_destroy: true,
        get_provider_schema_optional: true,
        move_resource_state: true,
        generate_resource_config: true,
    }
}

/// Broken schemas are reported as a whole: Terraform would panic on some of them.
fn checked<P: Provider>(core: &Core<P>) -> Result<(), Diagnostics> {
    let problems = core.check();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Diagnostics::error(
        "The provider's schema is broken",
        format!(
            "This is a bug of the provider, please report it:\n{}",
            problems.join("\n")
        ),
    ))
}

pub(crate) async fn metadata<P: Provider>(
    call: Call<P>,
    _request: pb::get_metadata::Request,
) -> Result<pb::get_metadata::Response, Diagnostics> {
    use pb::get_metadata as message;
    let core = &call.core;
    Ok(message::Response {
        server_capabilities: Some(capabilities()),
        diagnostics: Vec::new(),
        data_sources: names(core.data_sources.keys(), |type_name| {
            message::DataSourceMetadata { type_name }
        }),
        resources: names(core.resources.keys(), |type_name| {
            message::ResourceMetadata { type_name }
        }),
        functions: names(core.functions.keys(), |name| message::FunctionMetadata {
            name,
        }),
        ephemeral_resources: names(core.ephemeral_resources.keys(), |type_name| {
            message::EphemeralMetadata { type_name }
        }),
        list_resources: names(core.list_resources.keys(), |type_name| {
            message::ListResourceMetadata { type_name }
        }),
        state_stores: Vec::new(),
        actions: names(core.actions.keys(), |type_name| message::ActionMetadata {
            type_name,
        }),
    })
}

fn names<'a, T>(names: impl Iterator<Item = &'a String>, make: impl Fn(String) -> T) -> Vec<T> {
    names.map(|name| make(name.clone())).collect()
}

pub(crate) async fn schemas<P: Provider>(
    call: Call<P>,
    _request: pb::get_provider_schema::Request,
) -> Result<pb::get_provider_schema::Response, Diagnostics> {
    let core = &call.core;
    checked(core)?;
    Ok(pb::get_provider_schema::Response {
        provider: Some(wire::schema(&core.schema)),
        resource_schemas: core
            .resources
            .iter()
            .map(|(name, entry)| (name.clone(), wire::schema(&entry.schema)))
            .collect(),
        data_source_schemas: core
            .data_sources
            .iter()
            .map(|(name, entry)| (name.clone(), wire::schema(&entry.schema)))
            .collect(),
        functions: core
            .functions
            .iter()
            .map(|(name, (_, signature))| (name.clone(), wire::function(signature)))
            .collect(),
        ephemeral_resource_schemas: core
            .ephemeral_resources
            .iter()
            .map(|(name, entry)| (name.clone(), wire::schema(&entry.schema)))
            .collect(),
        list_resource_schemas: core
            .list_resources
            .iter()
            .map(|(name, entry)| (name.clone(), wire::schema(&entry.schema)))
            .collect(),
        action_schemas: core
            .actions
            .iter()
            .map(|(name, entry)| {
                (
                    name.clone(),
                    pb::ActionSchema {
                        schema: Some(wire::schema(&entry.schema)),
                    },
                )
            })
            .collect(),
        server_capabilities: Some(capabilities()),
        ..Default::default()
    })
}

pub(crate) async fn identity_schemas<P: Provider>(
    call: Call<P>,
    _request: pb::get_resource_identity_schemas::Request,
) -> Result<pb::get_resource_identity_schemas::Response, Diagnostics> {
    let with_identity = call.core.resources.iter().filter_map(|(name, entry)| {
        entry
            .identity
            .as_ref()
            .map(|identity| (name.clone(), wire::identity_schema(identity)))
    });
    Ok(pb::get_resource_identity_schemas::Response {
        identity_schemas: with_identity.collect(),
        diagnostics: Vec::new(),
    })
}

pub(crate) async fn functions<P: Provider>(
    call: Call<P>,
    _request: pb::get_functions::Request,
) -> Result<pb::get_functions::Response, Diagnostics> {
    let functions = call.core.functions.iter();
    Ok(pb::get_functions::Response {
        functions: functions
            .map(|(name, (_, signature))| (name.clone(), wire::function(signature)))
            .collect(),
        diagnostics: Vec::new(),
    })
}

pub(crate) async fn call_function<P: Provider>(
    call: Call<P>,
    request: pb::call_function::Request,
) -> Result<pb::call_function::Response, Diagnostics> {
    let Some((function, signature)) = call.core.functions.get(&request.name) else {
        return Ok(refused(FunctionError::new(format!(
            "this provider has no function {:?}",
            request.name
        ))));
    };
    if request.arguments.len() < signature.parameters.len()
        || (signature.variadic.is_none() && request.arguments.len() > signature.parameters.len())
    {
        let wanted = signature.parameters.len();
        return Ok(refused(FunctionError::new(format!(
            "{} takes {wanted} arguments",
            request.name
        ))));
    }
    let mut arguments: Vec<Value> = Vec::new();
    for (index, argument) in request.arguments.iter().enumerate() {
        // The length check above makes sure that one of the two is there.
        let Some(parameter) = signature
            .parameters
            .get(index)
            .or(signature.variadic.as_ref())
        else {
            break;
        };
        let value = wire::value(Some(argument), &parameter.ty)?;
        if value.is_null() && !parameter.allow_null {
            return Ok(refused(FunctionError::argument(index, "must not be null")));
        }
        arguments.push(value);
    }
    match function.call(&arguments).await {
        Err(error) => Ok(refused(error)),
        Ok(value) => {
            let value = conform(value, &signature.returns, &AttributePath::root())?;
            let result = Some(wire::dynamic(&value, &signature.returns)?);
            Ok(pb::call_function::Response {
                result,
                error: None,
            })
        }
    }
}

fn refused(error: FunctionError) -> pb::call_function::Response {
    let function_argument = error.argument.and_then(|index| i64::try_from(index).ok());
    let error = pb::FunctionError {
        text: error.text,
        function_argument,
    };
    pb::call_function::Response {
        result: None,
        error: Some(error),
    }
}

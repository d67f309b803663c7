//! Between our types and the messages of the protocol.

use std::time::SystemTime;

use bytes::Bytes;

use crate::attribute::{Attribute, AttributeKind, Nesting};
use crate::conform::conform_to;
use crate::context::ClientCapabilities;
use crate::diagnostics::Diagnostics;
use crate::function::{Parameter, Signature};
use crate::members::{fill_blocks, null_object};
use crate::object::Object;
use crate::proto::tfplugin6 as pb;
use crate::raw_state::RawState;
use crate::schema::{Block, BlockNesting, IdentitySchema, NestedBlock, Schema};
use crate::types::Type;
use crate::value::Value;
use crate::{json, msgpack};

const MARKDOWN: i32 = pb::StringKind::Markdown as i32;

/// Reads a value of a type; an absent message is null.
pub(crate) fn value(message: Option<&pb::DynamicValue>, ty: &Type) -> Result<Value, Diagnostics> {
    let refuse = |problem: String| {
        Diagnostics::error(
            "Terraform sent a value that cannot be read",
            format!("{problem}."),
        )
    };
    match message {
        None => Ok(Value::Null),
        Some(message) if !message.msgpack.is_empty() => {
            msgpack::decode(&message.msgpack, ty).map_err(|problem| refuse(problem.to_string()))
        }
        Some(message) if !message.json.is_empty() => {
            json::decode(&message.json, ty).map_err(|problem| refuse(problem.to_string()))
        }
        Some(_) => Ok(Value::Null),
    }
}

/// Reads an object of a schema; `None` when it is null.
pub(crate) fn object(
    message: Option<&pb::DynamicValue>,
    schema: &Schema,
) -> Result<Option<Object>, Diagnostics> {
    match value(message, &schema.ty())? {
        Value::Null => Ok(None),
        Value::Object(object) => Ok(Some(object)),
        _ => Err(Diagnostics::error(
            "Terraform sent a value that cannot be read",
            "It is not an object.",
        )),
    }
}

/// Reads a configuration; a null one becomes an object of nulls.
pub(crate) fn config(
    message: Option<&pb::DynamicValue>,
    schema: &Schema,
) -> Result<Object, Diagnostics> {
    Ok(object(message, schema)?.unwrap_or_else(|| {
        let mut empty = null_object(&schema.ty());
        fill_blocks(schema.block.members(), &mut empty);
        empty
    }))
}

/// Writes a value.
pub(crate) fn dynamic(value: &Value, ty: &Type) -> Result<pb::DynamicValue, Diagnostics> {
    let msgpack = msgpack::encode(value, ty).map_err(|problem| {
        Diagnostics::error(
            "Provider made a value that cannot be sent",
            format!("{problem}. This is a bug of the provider, please report it."),
        )
    })?;
    Ok(pb::DynamicValue {
        msgpack: msgpack.into(),
        json: Bytes::new(),
    })
}

/// Writes an object of a schema.
pub(crate) fn dynamic_object(object: &Object, ty: &Type) -> Result<pb::DynamicValue, Diagnostics> {
    dynamic(&Value::Object(object.clone()), ty)
}

/// Writes a null.
pub(crate) fn dynamic_null() -> pb::DynamicValue {
    // One nil byte.
    pb::DynamicValue {
        msgpack: Bytes::from_static(&[0xC0]),
        json: Bytes::new(),
    }
}

/// Reads an identity; `None` when there is none.
pub(crate) fn identity(
    message: Option<&pb::ResourceIdentityData>,
    schema: Option<&IdentitySchema>,
) -> Result<Option<Object>, Diagnostics> {
    let (Some(message), Some(schema)) =
        (message.and_then(|data| data.identity_data.as_ref()), schema)
    else {
        return Ok(None);
    };
    match value(Some(message), &schema.ty())? {
        Value::Object(object) => Ok(Some(object)),
        _ => Ok(None),
    }
}

/// Writes an identity.
pub(crate) fn identity_data(
    identity: Object,
    schema: &IdentitySchema,
) -> Result<pb::ResourceIdentityData, Diagnostics> {
    let object = conform_to(identity, &schema.ty())?;
    Ok(pb::ResourceIdentityData {
        identity_data: Some(dynamic_object(&object, &schema.ty())?),
    })
}

/// Reads a stored object.
pub(crate) fn raw_state(message: Option<&pb::RawState>) -> Result<RawState, Diagnostics> {
    let message = message.cloned().unwrap_or_default();
    if message.json.is_empty() {
        return Err(Diagnostics::error(
            "Stored state cannot be read",
            "It is in the form of Terraform 0.11, which this provider never wrote, or it is empty.",
        ));
    }
    Ok(RawState::new(message.json.to_vec()))
}

/// Reads what the caller can do; nothing when the message is absent.
pub(crate) fn capabilities(message: Option<&pb::ClientCapabilities>) -> ClientCapabilities {
    message.map_or_else(ClientCapabilities::default, |message| ClientCapabilities {
        deferral_allowed: message.deferral_allowed,
        write_only_attributes_allowed: message.write_only_attributes_allowed,
        store_planned_private: message.store_planned_private,
        computed_blocks_allowed: message.computed_blocks_allowed,
    })
}

/// Writes a time.
pub(crate) fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

/// Writes a schema.
pub(crate) fn schema(schema: &Schema) -> pb::Schema {
    pb::Schema {
        version: schema.version,
        block: Some(block(&schema.block, schema.version)),
    }
}

fn block(block: &Block, version: i64) -> pb::schema::Block {
    pb::schema::Block {
        version,
        attributes: block.attributes.iter().map(attribute).collect(),
        block_types: block.blocks.iter().map(nested_block).collect(),
        description: block.description.clone(),
        description_kind: MARKDOWN,
        deprecated: block.deprecated.is_some(),
        deprecation_message: block.deprecated.clone().unwrap_or_default(),
        computed: false,
    }
}

fn attribute((name, attribute): &(String, Attribute)) -> pb::schema::Attribute {
    let (ty, nested_type) = match &attribute.kind {
        AttributeKind::Plain(ty) => (ty.to_bytes(), None),
        AttributeKind::Nested {
            attributes,
            nesting,
        } => {
            use pb::schema::object::NestingMode;
            let nesting = match nesting {
                Nesting::Single => NestingMode::Single,
                Nesting::List => NestingMode::List,
                Nesting::Set => NestingMode::Set,
                Nesting::Map => NestingMode::Map,
            };
            let attributes = attributes.iter().map(self::attribute).collect();
            let object = pb::schema::Object {
                attributes,
                nesting: nesting as i32,
                ..Default::default()
            };
            (Vec::new(), Some(object))
        }
    };
    pb::schema::Attribute {
        name: name.clone(),
        r#type: ty.into(),
        nested_type,
        description: attribute.description.clone(),
        required: attribute.required,
        optional: attribute.optional,
        computed: attribute.computed,
        sensitive: attribute.sensitive,
        description_kind: MARKDOWN,
        deprecated: attribute.deprecated.is_some(),
        write_only: attribute.write_only,
        deprecation_message: attribute.deprecated.clone().unwrap_or_default(),
    }
}

fn nested_block((name, nested): &(String, NestedBlock)) -> pb::schema::NestedBlock {
    use pb::schema::nested_block::NestingMode;
    let nesting = match nested.nesting {
        BlockNesting::Single => NestingMode::Single,
        BlockNesting::Group => NestingMode::Group,
        BlockNesting::List => NestingMode::List,
        BlockNesting::Set => NestingMode::Set,
        BlockNesting::Map => NestingMode::Map,
    };
    pb::schema::NestedBlock {
        type_name: name.clone(),
        block: Some(block(&nested.block, 0)),
        nesting: nesting as i32,
        min_items: nested.min_items,
        max_items: nested.max_items,
    }
}

/// Writes an identity schema.
pub(crate) fn identity_schema(schema: &IdentitySchema) -> pb::ResourceIdentitySchema {
    let attribute = |attribute: &crate::schema::IdentityAttribute| {
        pb::resource_identity_schema::IdentityAttribute {
            name: attribute.name.clone(),
            r#type: attribute.ty.to_bytes().into(),
            required_for_import: attribute.required_for_import,
            optional_for_import: !attribute.required_for_import,
            description: attribute.description.clone(),
        }
    };
    pb::ResourceIdentitySchema {
        version: schema.version,
        identity_attributes: schema.attributes.iter().map(attribute).collect(),
    }
}

/// Writes a function.
pub(crate) fn function(signature: &Signature) -> pb::Function {
    let parameter = |parameter: &Parameter| pb::function::Parameter {
        name: parameter.name.clone(),
        r#type: parameter.ty.to_bytes().into(),
        allow_null_value: parameter.allow_null,
        allow_unknown_values: parameter.allow_unknown,
        description: parameter.description.clone(),
        description_kind: MARKDOWN,
    };
    pb::Function {
        parameters: signature.parameters.iter().map(parameter).collect(),
        variadic_parameter: signature.variadic.as_ref().map(parameter),
        r#return: Some(pb::function::Return {
            r#type: signature.returns.to_bytes().into(),
        }),
        summary: signature.summary.clone(),
        description: signature.description.clone(),
        description_kind: MARKDOWN,
        deprecation_message: signature.deprecated.clone().unwrap_or_default(),
    }
}

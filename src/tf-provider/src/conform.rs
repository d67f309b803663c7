//! Brings what handlers return into the exact shape of the schema's type, so that resources stay short to write.
//!
//! Lists become sets, maps become objects, missing attributes become null; what cannot fit is an error with its path.

use std::collections::BTreeMap;

use crate::diagnostics::Diagnostics;
use crate::members::{fill_blocks, null_write_only};
use crate::object::Object;
use crate::path::AttributePath;
use crate::schema::Schema;
use crate::types::Type;
use crate::value::Value;

/// An object in the shape of the schema: complete, blocks filled, without write-only values.
pub(crate) fn conform_object(object: Object, schema: &Schema) -> Result<Object, Diagnostics> {
    let mut object = conform_to(object, &schema.ty())?;
    null_write_only(schema.block.members(), &mut object);
    fill_blocks(schema.block.members(), &mut object);
    Ok(object)
}

/// An object in the shape of an object type.
pub(crate) fn conform_to(object: Object, ty: &Type) -> Result<Object, Diagnostics> {
    match conform(Value::Object(object), ty, &AttributePath::root())? {
        Value::Object(object) => Ok(object),
        _ => Ok(Object::new()),
    }
}

fn misfit(path: &AttributePath, problem: &str) -> Diagnostics {
    Diagnostics::error_at(
        path.clone(),
        "Provider returned a value of the wrong shape",
        format!("{path}: {problem}. This is a bug of the provider, please report it."),
    )
}

pub(crate) fn conform(value: Value, ty: &Type, path: &AttributePath) -> Result<Value, Diagnostics> {
    Ok(match (value, ty) {
        (value @ (Value::Null | Value::Unknown(_)), _) => value,
        (Value::Dynamic(own, inner), Type::Dynamic) => {
            let inner = conform(*inner, &own, path)?;
            Value::Dynamic(own, Box::new(inner))
        }
        (value, Type::Dynamic) => {
            let own = type_of(&value);
            let inner = conform(value, &own, path)?;
            Value::Dynamic(Box::new(own), Box::new(inner))
        }
        (Value::Dynamic(_, inner), ty) => conform(*inner, ty, path)?,
        (value @ Value::String(_), Type::String)
        | (value @ Value::Bool(_), Type::Bool)
        | (value @ Value::Number(_), Type::Number) => value,
        (Value::List(items) | Value::Set(items) | Value::Tuple(items), Type::List(inner)) => {
            Value::List(elements(items, inner, path)?)
        }
        (Value::List(items) | Value::Set(items) | Value::Tuple(items), Type::Set(inner)) => {
            let convert = |item| conform(item, inner, path);
            Value::set(
                items
                    .into_iter()
                    .map(convert)
                    .collect::<Result<Vec<_>, _>>()?,
            )
        }
        (Value::List(items) | Value::Tuple(items), Type::Tuple(types))
            if items.len() == types.len() =>
        {
            let convert = |(index, (item, ty))| conform(item, ty, &path.clone().index(index));
            Value::Tuple(
                items
                    .into_iter()
                    .zip(types)
                    .enumerate()
                    .map(convert)
                    .collect::<Result<_, _>>()?,
            )
        }
        (Value::Map(entries), Type::Map(inner)) => Value::Map(keyed(entries, inner, path)?),
        (Value::Object(object), Type::Map(inner)) => {
            Value::Map(keyed(object.into_iter().collect(), inner, path)?)
        }
        (Value::Map(entries), Type::Object(types)) => {
            members(entries.into_iter().collect(), types, path)?
        }
        (Value::Object(object), Type::Object(types)) => members(object, types, path)?,
        (value, ty) => {
            return Err(misfit(
                path,
                &format!(
                    "{} where {} is wanted",
                    type_of(&value).to_json(),
                    ty.to_json()
                ),
            ));
        }
    })
}

fn elements(
    items: Vec<Value>,
    inner: &Type,
    path: &AttributePath,
) -> Result<Vec<Value>, Diagnostics> {
    let convert = |(index, item)| conform(item, inner, &path.clone().index(index));
    items.into_iter().enumerate().map(convert).collect()
}

fn keyed(
    entries: BTreeMap<String, Value>,
    inner: &Type,
    path: &AttributePath,
) -> Result<BTreeMap<String, Value>, Diagnostics> {
    let convert = |(key, item): (String, Value)| {
        let item = conform(item, inner, &path.clone().key(key.as_str()))?;
        Ok((key, item))
    };
    entries.into_iter().map(convert).collect()
}

fn members(
    mut object: Object,
    types: &BTreeMap<String, Type>,
    path: &AttributePath,
) -> Result<Value, Diagnostics> {
    let mut whole = Object::new();
    for (name, ty) in types {
        whole.set(
            name,
            conform(object.remove(name), ty, &path.clone().attribute(name))?,
        );
    }
    match object.iter().next() {
        Some((extra, _)) => Err(misfit(
            &path.clone().attribute(extra),
            "the schema has no such attribute",
        )),
        None => Ok(Value::Object(whole)),
    }
}

/// The type that a value shows by itself, for dynamic positions.
pub(crate) fn type_of(value: &Value) -> Type {
    match value {
        Value::Null | Value::Unknown(_) => Type::Dynamic,
        Value::Bool(_) => Type::Bool,
        Value::Number(_) => Type::Number,
        Value::String(_) => Type::String,
        Value::List(items) => Type::list(common_type(items.iter())),
        Value::Set(items) => Type::set(common_type(items.iter())),
        Value::Tuple(items) => Type::Tuple(items.iter().map(type_of).collect()),
        Value::Map(entries) => Type::map(common_type(entries.values())),
        Value::Object(object) => {
            Type::object(object.iter().map(|(name, value)| (name, type_of(value))))
        }
        Value::Dynamic(ty, _) => (**ty).clone(),
    }
}

fn common_type<'a>(values: impl Iterator<Item = &'a Value>) -> Type {
    let mut types = values.filter(|value| !value.is_null()).map(type_of);
    let first = types.next().unwrap_or(Type::Dynamic);
    if types.all(|ty| ty == first) {
        first
    } else {
        Type::Dynamic
    }
}

/// Paths of unknown parts; nothing after an apply or read may be unknown.
pub(crate) fn unknown_paths(value: &Value, path: &AttributePath, found: &mut Vec<AttributePath>) {
    match value {
        Value::Unknown(_) => found.push(path.clone()),
        Value::Dynamic(_, inner) => unknown_paths(inner, path, found),
        Value::List(items) | Value::Tuple(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| unknown_paths(item, &path.clone().index(index), found));
        }
        Value::Set(items) => items
            .iter()
            .for_each(|item| unknown_paths(item, path, found)),
        Value::Map(entries) => {
            entries.iter().for_each(|(key, item)| {
                unknown_paths(item, &path.clone().key(key.as_str()), found)
            });
        }
        Value::Object(object) => {
            object
                .iter()
                .for_each(|(name, item)| unknown_paths(item, &path.clone().attribute(name), found));
        }
        _ => {}
    }
}

/// Replaces unknown parts by null, for states that are stored half-made.
pub(crate) fn null_unknowns(value: Value) -> Value {
    let all = |items: Vec<Value>| items.into_iter().map(null_unknowns).collect::<Vec<_>>();
    match value {
        Value::Unknown(_) => Value::Null,
        Value::Dynamic(ty, inner) => Value::Dynamic(ty, Box::new(null_unknowns(*inner))),
        Value::List(items) => Value::List(all(items)),
        Value::Set(items) => Value::set(all(items)),
        Value::Tuple(items) => Value::Tuple(all(items)),
        Value::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, item)| (key, null_unknowns(item)))
                .collect(),
        ),
        Value::Object(object) => Value::Object(null_unknown_members(object)),
        known => known,
    }
}

/// [`null_unknowns`] for an object.
pub(crate) fn null_unknown_members(object: Object) -> Object {
    object
        .into_iter()
        .map(|(name, value)| (name, null_unknowns(value)))
        .collect()
}

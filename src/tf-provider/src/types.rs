//! Terraform's types and their JSON form, which travels in schemas and beside dynamic values.
//!
//! Promise: [`Type::to_json`] writes only what Terraform can parse (it panics on anything else), and
//! [`Type::from_json`] never panics and never recurses deeper than [`MAX_DEPTH`].

use std::collections::BTreeMap;

use serde_json::Value as Json;

/// Deepest nesting that is accepted in types and values that come from outside.
pub const MAX_DEPTH: usize = 64;

/// A type of Terraform's language.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// Text.
    String,
    /// A number of any precision.
    Number,
    /// `true` or `false`.
    Bool,
    /// Any type, decided by the value.
    Dynamic,
    /// Ordered elements of one type.
    List(Box<Type>),
    /// Unordered elements of one type, without duplicates.
    Set(Box<Type>),
    /// Elements of one type by text keys.
    Map(Box<Type>),
    /// Named attributes, each with its own type.
    Object(BTreeMap<String, Type>),
    /// Ordered elements, each with its own type.
    Tuple(Vec<Type>),
}

/// Why a type could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(String);

impl Type {
    /// List of `element`.
    pub fn list(element: Type) -> Self {
        Self::List(Box::new(element))
    }

    /// Set of `element`.
    pub fn set(element: Type) -> Self {
        Self::Set(Box::new(element))
    }

    /// Map with values of type `element`.
    pub fn map(element: Type) -> Self {
        Self::Map(Box::new(element))
    }

    /// Object with these attributes.
    pub fn object<N: Into<String>>(attributes: impl IntoIterator<Item = (N, Type)>) -> Self {
        Self::Object(
            attributes
                .into_iter()
                .map(|(name, ty)| (name.into(), ty))
                .collect(),
        )
    }

    /// True when a dynamic type is inside (or is it).
    pub fn has_dynamic(&self) -> bool {
        match self {
            Self::Dynamic => true,
            Self::String | Self::Number | Self::Bool => false,
            Self::List(inner) | Self::Set(inner) | Self::Map(inner) => inner.has_dynamic(),
            Self::Object(attributes) => attributes.values().any(Self::has_dynamic),
            Self::Tuple(items) => items.iter().any(Self::has_dynamic),
        }
    }

    /// The bytes for `type` fields of the protocol.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_json().to_string().into_bytes()
    }

    /// The JSON form.
    pub fn to_json(&self) -> Json {
        match self {
            Self::String => Json::from("string"),
            Self::Number => Json::from("number"),
            Self::Bool => Json::from("bool"),
            Self::Dynamic => Json::from("dynamic"),
            Self::List(inner) => Json::from(vec![Json::from("list"), inner.to_json()]),
            Self::Set(inner) => Json::from(vec![Json::from("set"), inner.to_json()]),
            Self::Map(inner) => Json::from(vec![Json::from("map"), inner.to_json()]),
            Self::Object(attributes) => {
                let members = attributes
                    .iter()
                    .map(|(name, ty)| (name.clone(), ty.to_json()))
                    .collect();
                Json::from(vec![Json::from("object"), Json::Object(members)])
            }
            Self::Tuple(items) => Json::from(vec![
                Json::from("tuple"),
                items.iter().map(Self::to_json).collect(),
            ]),
        }
    }

    /// Reads the JSON form from bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TypeError> {
        let json: Json =
            serde_json::from_slice(bytes).map_err(|_| TypeError("type is not JSON".to_owned()))?;
        Self::from_json(&json)
    }

    /// Reads the JSON form.
    pub fn from_json(json: &Json) -> Result<Self, TypeError> {
        Self::parse(json, 0)
    }

    fn parse(json: &Json, depth: usize) -> Result<Self, TypeError> {
        if depth > MAX_DEPTH {
            return Err(TypeError(format!(
                "type is nested deeper than {MAX_DEPTH} levels"
            )));
        }
        match json {
            Json::String(name) => match name.as_str() {
                "string" => Ok(Self::String),
                "number" => Ok(Self::Number),
                "bool" => Ok(Self::Bool),
                "dynamic" => Ok(Self::Dynamic),
                _ => Err(TypeError("unknown type name".to_owned())),
            },
            Json::Array(parts) => Self::parse_compound(parts, depth),
            _ => Err(TypeError("type must be a name or an array".to_owned())),
        }
    }

    fn parse_compound(parts: &[Json], depth: usize) -> Result<Self, TypeError> {
        let shape = || TypeError("malformed compound type".to_owned());
        let kind = parts.first().and_then(Json::as_str).ok_or_else(shape)?;
        let inner = parts.get(1).ok_or_else(shape)?;
        // Only objects may carry a third part (the names of optional attributes), which has no meaning for values.
        if parts.len() > 2 && !(kind == "object" && parts.len() == 3) {
            return Err(shape());
        }
        match kind {
            "list" => Ok(Self::list(Self::parse(inner, depth + 1)?)),
            "set" => Ok(Self::set(Self::parse(inner, depth + 1)?)),
            "map" => Ok(Self::map(Self::parse(inner, depth + 1)?)),
            "object" => inner
                .as_object()
                .ok_or_else(shape)?
                .iter()
                .map(|(name, ty)| Ok((name.clone(), Self::parse(ty, depth + 1)?)))
                .collect::<Result<_, _>>()
                .map(Self::Object),
            "tuple" => inner
                .as_array()
                .ok_or_else(shape)?
                .iter()
                .map(|ty| Self::parse(ty, depth + 1))
                .collect::<Result<_, _>>()
                .map(Self::Tuple),
            _ => Err(shape()),
        }
    }
}

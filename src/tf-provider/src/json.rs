//! JSON form of values, for stored state. Numbers keep their digits: they are read as raw text.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::number::Number;
use crate::object::Object;
use crate::types::{MAX_DEPTH, Type};
use crate::value::Value;

/// Why JSON does not hold a value of the type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct JsonError {
    path: String,
    problem: String,
}

impl JsonError {
    fn new(problem: impl Into<String>) -> Self {
        Self {
            path: "value".to_owned(),
            problem: problem.into(),
        }
    }

    fn inside(mut self, step: &str) -> Self {
        self.path = format!("{step} > {}", self.path);
        self
    }
}

/// Decodes strictly by type: missing or extra attributes are errors.
pub fn decode(json: &[u8], ty: &Type) -> Result<Value, JsonError> {
    Decoder { lenient: false }.value(raw(json)?, ty, 0)
}

/// Decodes an object, dropping attributes the type lacks and filling missing ones with null.
pub fn decode_state(json: &[u8], ty: &Type) -> Result<Object, JsonError> {
    match (Decoder { lenient: true }).value(raw(json)?, ty, 0)? {
        Value::Object(object) => Ok(object),
        _ => Err(JsonError::new("not an object")),
    }
}

fn raw(json: &[u8]) -> Result<&RawValue, JsonError> {
    serde_json::from_slice(json).map_err(|_| JsonError::new("not JSON"))
}

fn parse<'a, T: serde::Deserialize<'a>>(json: &'a RawValue, wanted: &str) -> Result<T, JsonError> {
    serde_json::from_str(json.get()).map_err(|_| JsonError::new(format!("not {wanted}")))
}

struct Decoder {
    lenient: bool,
}

impl Decoder {
    fn value(&self, json: &RawValue, ty: &Type, depth: usize) -> Result<Value, JsonError> {
        if depth > MAX_DEPTH {
            return Err(JsonError::new(format!(
                "nested deeper than {MAX_DEPTH} levels"
            )));
        }
        if json.get() == "null" {
            return Ok(Value::Null);
        }
        match ty {
            Type::String => self.string(json),
            Type::Number => self.number(json),
            Type::Bool => self.bool(json),
            Type::Dynamic => self.dynamic(json, depth),
            Type::List(inner) => self.elements(json, inner, depth).map(Value::List),
            Type::Set(inner) => self.elements(json, inner, depth).map(Value::set),
            Type::Tuple(types) => self.tuple(json, types, depth),
            Type::Map(inner) => {
                let entries: BTreeMap<String, &RawValue> = parse(json, "an object")?;
                let convert = |(key, item): (String, &RawValue)| {
                    let value = self
                        .value(item, inner, depth + 1)
                        .map_err(|error| error.inside(&key))?;
                    Ok((key, value))
                };
                entries
                    .into_iter()
                    .map(convert)
                    .collect::<Result<_, _>>()
                    .map(Value::Map)
            }
            Type::Object(types) => self.object(json, types, depth),
        }
    }

    // Like Terraform's own decoder, primitive types convert into each other where that is safe.
    fn string(&self, json: &RawValue) -> Result<Value, JsonError> {
        let text = json.get();
        match text.as_bytes().first() {
            Some(b'"') => parse(json, "a string").map(Value::String),
            Some(b'-' | b'0'..=b'9' | b't' | b'f') => Ok(Value::from(text)),
            _ => Err(JsonError::new("not a string")),
        }
    }

    fn number(&self, json: &RawValue) -> Result<Value, JsonError> {
        let number: Result<Number, _> = match json.get().as_bytes().first() {
            Some(b'"') => parse::<String>(json, "a number")?.parse(),
            _ => json.get().parse(),
        };
        number
            .map(Value::Number)
            .map_err(|_| JsonError::new("not a number"))
    }

    fn bool(&self, json: &RawValue) -> Result<Value, JsonError> {
        match json.get() {
            "true" | "\"true\"" => Ok(Value::Bool(true)),
            "false" | "\"false\"" => Ok(Value::Bool(false)),
            _ => Err(JsonError::new("not a bool")),
        }
    }

    fn dynamic(&self, json: &RawValue, depth: usize) -> Result<Value, JsonError> {
        #[derive(serde::Deserialize)]
        struct Typed<'a> {
            #[serde(rename = "type")]
            ty: serde_json::Value,
            #[serde(borrow)]
            value: &'a RawValue,
        }
        let typed: Typed<'_> = parse(json, "an object with type and value")?;
        let ty = Type::from_json(&typed.ty).map_err(|error| JsonError::new(error.to_string()))?;
        let value = self.value(typed.value, &ty, depth + 1)?;
        Ok(Value::Dynamic(Box::new(ty), Box::new(value)))
    }

    fn elements(
        &self,
        json: &RawValue,
        inner: &Type,
        depth: usize,
    ) -> Result<Vec<Value>, JsonError> {
        let items: Vec<&RawValue> = parse(json, "an array")?;
        let convert = |(index, item): (usize, &RawValue)| {
            self.value(item, inner, depth + 1)
                .map_err(|error| error.inside(&index.to_string()))
        };
        items.into_iter().enumerate().map(convert).collect()
    }

    fn tuple(&self, json: &RawValue, types: &[Type], depth: usize) -> Result<Value, JsonError> {
        let items: Vec<&RawValue> = parse(json, "an array")?;
        if items.len() != types.len() {
            return Err(JsonError::new(format!(
                "has {} elements, not {}",
                items.len(),
                types.len()
            )));
        }
        let convert = |(item, ty): (&RawValue, &Type)| self.value(item, ty, depth + 1);
        items
            .into_iter()
            .zip(types)
            .map(convert)
            .collect::<Result<_, _>>()
            .map(Value::Tuple)
    }

    fn object(
        &self,
        json: &RawValue,
        types: &BTreeMap<String, Type>,
        depth: usize,
    ) -> Result<Value, JsonError> {
        let members: BTreeMap<String, &RawValue> = parse(json, "an object")?;
        if !self.lenient
            && let Some(extra) = members.keys().find(|name| !types.contains_key(*name))
        {
            return Err(JsonError::new(format!(
                "has an unknown attribute {extra:?}"
            )));
        }
        let mut object = Object::new();
        for (name, ty) in types {
            let value = match members.get(name) {
                Some(member) => self
                    .value(member, ty, depth + 1)
                    .map_err(|error| error.inside(name))?,
                None if self.lenient => Value::Null,
                None => return Err(JsonError::new(format!("lacks the attribute {name:?}"))),
            };
            object.set(name, value);
        }
        Ok(Value::Object(object))
    }
}

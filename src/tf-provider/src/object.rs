//! Objects: the configuration, state and plan of everything, with short typed access.
//!
//! Getters answer `None` for null, unknown and wrong types alike; where the difference counts use
//! [`Object::get`]. Setters take anything that becomes a [`Value`]; the server fills in missing attributes with
//! null and turns lists into sets where the schema wants them.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::diagnostics::Diagnostics;
use crate::path::AttributePath;
use crate::value::Value;

static NULL: Value = Value::Null;

/// Attributes by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object(BTreeMap<String, Value>);

impl Object {
    /// Without attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The attribute; null when absent.
    pub fn get(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or(&NULL)
    }

    /// Sets an attribute.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// Builder form of [`Object::set`].
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// A known, non-null string.
    pub fn str(&self, name: &str) -> Option<&str> {
        self.get(name).as_str()
    }

    /// A known, non-null string as an owned text; empty when absent.
    pub fn string(&self, name: &str) -> String {
        self.str(name).unwrap_or_default().to_owned()
    }

    /// A known, non-null string, or an error that names the attribute.
    pub fn require_str(&self, name: &str) -> Result<&str, Diagnostics> {
        self.str(name).ok_or_else(|| {
            Diagnostics::error_at(
                name,
                "Missing value",
                format!("The argument {name:?} must be set and known here."),
            )
        })
    }

    /// A known, non-null bool.
    pub fn bool(&self, name: &str) -> Option<bool> {
        self.get(name).as_bool()
    }

    /// A known whole number.
    pub fn i64(&self, name: &str) -> Option<i64> {
        self.get(name)
            .as_number()
            .and_then(|number| number.as_i64())
    }

    /// A known whole number, not negative.
    pub fn u64(&self, name: &str) -> Option<u64> {
        self.get(name)
            .as_number()
            .and_then(|number| number.as_u64())
    }

    /// A known number as the nearest float.
    pub fn f64(&self, name: &str) -> Option<f64> {
        self.get(name).as_number().map(|number| number.to_f64())
    }

    /// The elements of a known list, set or tuple; empty when absent.
    pub fn elements(&self, name: &str) -> &[Value] {
        self.get(name).as_elements().unwrap_or_default()
    }

    /// The known strings of a list or set; empty when absent.
    pub fn strings(&self, name: &str) -> Vec<String> {
        self.elements(name)
            .iter()
            .filter_map(|element| element.as_str().map(str::to_owned))
            .collect()
    }

    /// The known objects of a list or set of nested objects or blocks; empty when absent.
    pub fn objects(&self, name: &str) -> Vec<&Object> {
        self.elements(name)
            .iter()
            .filter_map(Value::as_object)
            .collect()
    }

    /// The known strings of a map; empty when absent.
    pub fn string_map(&self, name: &str) -> BTreeMap<String, String> {
        let Some(entries) = self.get(name).as_map() else {
            return BTreeMap::new();
        };
        let known =
            |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        entries.iter().filter_map(known).collect()
    }

    /// A nested object or single block.
    pub fn object(&self, name: &str) -> Option<&Object> {
        self.get(name).as_object()
    }

    /// True when the attribute is null or absent (an unknown one is not null).
    pub fn is_null(&self, name: &str) -> bool {
        self.get(name).is_null()
    }

    /// True when the attribute is unknown.
    pub fn is_unknown(&self, name: &str) -> bool {
        self.get(name).is_unknown()
    }

    /// True when nothing in it is unknown.
    pub fn is_wholly_known(&self) -> bool {
        self.0.values().all(Value::is_wholly_known)
    }

    /// Names and values in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The values in name order.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.0.values()
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.0.values_mut()
    }

    /// Removes an attribute (the server then sends null for it).
    pub fn remove(&mut self, name: &str) -> Value {
        self.0.remove(name).unwrap_or(Value::Null)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> &mut Value {
        self.0.entry(name.to_owned()).or_insert(Value::Null)
    }

    /// Reads the object into a serde type; null members are left out, so `Option` and `#[serde(default)]` work.
    /// Fails with the attribute's path when a part is unknown or does not fit.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Diagnostics> {
        let json = object_to_json(self, &AttributePath::root())?;
        serde_json::from_value(json)
            .map_err(|error| Diagnostics::error("Value does not fit", format!("{error}.")))
    }
}

fn object_to_json(object: &Object, path: &AttributePath) -> Result<Json, Diagnostics> {
    let mut members = serde_json::Map::new();
    for (name, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        members.insert(
            name.to_owned(),
            to_json(value, &path.clone().attribute(name))?,
        );
    }
    Ok(Json::Object(members))
}

/// Serde form of a value: numbers as integers where possible, else the nearest float.
fn to_json(value: &Value, path: &AttributePath) -> Result<Json, Diagnostics> {
    Ok(match value.undress() {
        Value::Null | Value::Dynamic(..) => Json::Null,
        Value::Unknown(_) => {
            return Err(Diagnostics::error_at(
                path.clone(),
                "Value is not known yet",
                format!(
                    "The argument {path} is decided by another resource and is not known at this point."
                ),
            ));
        }
        Value::Bool(flag) => Json::Bool(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Json::from(integer),
            (None, Some(integer)) => Json::from(integer),
            (None, None) => Json::from(number.to_f64()),
        },
        Value::String(text) => Json::String(text.clone()),
        Value::List(items) | Value::Set(items) | Value::Tuple(items) => {
            let convert = |(index, item)| to_json(item, &path.clone().index(index));
            Json::Array(
                items
                    .iter()
                    .enumerate()
                    .map(convert)
                    .collect::<Result<_, _>>()?,
            )
        }
        Value::Map(entries) => {
            let convert = |(key, item): (&String, &Value)| {
                Ok((key.clone(), to_json(item, &path.clone().key(key.as_str()))?))
            };
            Json::Object(
                entries
                    .iter()
                    .map(convert)
                    .collect::<Result<_, Diagnostics>>()?,
            )
        }
        Value::Object(object) => object_to_json(object, path)?,
    })
}

impl<N: Into<String>, V: Into<Value>> FromIterator<(N, V)> for Object {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(members: I) -> Self {
        Self(
            members
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

impl IntoIterator for Object {
    type Item = (String, Value);
    type IntoIter = std::collections::btree_map::IntoIter<String, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

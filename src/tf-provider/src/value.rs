//! Terraform values: null, unknown (not known until apply) and everything in between.
//!
//! Values carry no type of their own except under a dynamic position ([`Value::Dynamic`]); the schema decides how
//! they are written. Sets keep the order they came in, but compare without it.

use std::collections::BTreeMap;

use crate::number::Number;
use crate::object::Object;
use crate::types::Type;

/// What is promised about a value that is not known yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refinements {
    /// The value will certainly not be null.
    pub not_null: bool,
    /// A string will start with this.
    pub prefix: Option<String>,
    /// Least number, and whether it is allowed itself.
    pub lower: Option<(Number, bool)>,
    /// Greatest number, and whether it is allowed itself.
    pub upper: Option<(Number, bool)>,
    /// Least length of a collection.
    pub min_length: Option<u64>,
    /// Greatest length of a collection.
    pub max_length: Option<u64>,
}

/// A value of Terraform's language.
#[derive(Debug, Clone)]
pub enum Value {
    /// Absent.
    Null,
    /// Not known until apply, perhaps with promises about it.
    Unknown(Option<Box<Refinements>>),
    /// `true` or `false`.
    Bool(bool),
    /// An exact number.
    Number(Number),
    /// Text.
    String(String),
    /// Elements in order.
    List(Vec<Value>),
    /// Elements without order or duplicates.
    Set(Vec<Value>),
    /// Elements by key.
    Map(BTreeMap<String, Value>),
    /// Attributes by name.
    Object(Object),
    /// Elements in order, each with its own type.
    Tuple(Vec<Value>),
    /// A value at a dynamic position together with its type.
    Dynamic(Box<Type>, Box<Value>),
}

impl Value {
    /// An unknown value without promises.
    pub fn unknown() -> Self {
        Self::Unknown(None)
    }

    /// An unknown value that will not be null.
    pub fn unknown_not_null() -> Self {
        Self::Unknown(Some(Box::new(Refinements {
            not_null: true,
            ..Refinements::default()
        })))
    }

    /// A list.
    pub fn list<V: Into<Value>>(elements: impl IntoIterator<Item = V>) -> Self {
        Self::List(elements.into_iter().map(Into::into).collect())
    }

    /// A set; equal elements collapse.
    pub fn set<V: Into<Value>>(elements: impl IntoIterator<Item = V>) -> Self {
        let mut kept: Vec<Value> = Vec::new();
        for element in elements {
            let element = element.into();
            // Two unknown elements may turn out different, so only known ones collapse.
            if !element.is_wholly_known() || !kept.contains(&element) {
                kept.push(element);
            }
        }
        Self::Set(kept)
    }

    /// A map.
    pub fn map<K: Into<String>, V: Into<Value>>(entries: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::Map(
            entries
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        )
    }

    /// True for null, also for a typed null under a dynamic position.
    pub fn is_null(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Dynamic(_, inner) => inner.is_null(),
            _ => false,
        }
    }

    /// True when this value itself is unknown (parts of it do not count).
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Unknown(_) => true,
            Self::Dynamic(_, inner) => inner.is_unknown(),
            _ => false,
        }
    }

    /// True when nothing in it is unknown.
    pub fn is_wholly_known(&self) -> bool {
        match self {
            Self::Unknown(_) => false,
            Self::List(items) | Self::Set(items) | Self::Tuple(items) => {
                items.iter().all(Self::is_wholly_known)
            }
            Self::Map(entries) => entries.values().all(Self::is_wholly_known),
            Self::Object(object) => object.values().all(Self::is_wholly_known),
            Self::Dynamic(_, inner) => inner.is_wholly_known(),
            _ => true,
        }
    }

    /// The text, if it is a known string.
    pub fn as_str(&self) -> Option<&str> {
        match self.undress() {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The flag, if it is a known bool.
    pub fn as_bool(&self) -> Option<bool> {
        match self.undress() {
            Self::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The number, if it is a known number.
    pub fn as_number(&self) -> Option<&Number> {
        match self.undress() {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }

    /// The elements of a known list, set or tuple.
    pub fn as_elements(&self) -> Option<&[Value]> {
        match self.undress() {
            Self::List(items) | Self::Set(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The entries of a known map.
    pub fn as_map(&self) -> Option<&BTreeMap<String, Value>> {
        match self.undress() {
            Self::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The attributes of a known object.
    pub fn as_object(&self) -> Option<&Object> {
        match self.undress() {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The value without the type of a dynamic position.
    pub fn undress(&self) -> &Value {
        match self {
            Self::Dynamic(_, inner) => inner.undress(),
            other => other,
        }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Unknown(left), Self::Unknown(right)) => left == right,
            (Self::Bool(left), Self::Bool(right)) => left == right,
            (Self::Number(left), Self::Number(right)) => left == right,
            (Self::String(left), Self::String(right)) => left == right,
            (Self::List(left), Self::List(right)) | (Self::Tuple(left), Self::Tuple(right)) => {
                left == right
            }
            (Self::Set(left), Self::Set(right)) => {
                left.len() == right.len()
                    && left.iter().all(|element| right.contains(element))
                    && right.iter().all(|element| left.contains(element))
            }
            (Self::Map(left), Self::Map(right)) => left == right,
            (Self::Object(left), Self::Object(right)) => left == right,
            (Self::Dynamic(left_type, left), Self::Dynamic(right_type, right)) => {
                left_type == right_type && left == right
            }
            _ => false,
        }
    }
}

impl Eq for Value {}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::String(text.clone())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<Number> for Value {
    fn from(number: Number) -> Self {
        Self::Number(number)
    }
}

macro_rules! from_integer {
    ($($integer:ty),*) => {$(
        impl From<$integer> for Value {
            fn from(integer: $integer) -> Self {
                Self::Number(integer.into())
            }
        }
    )*};
}
from_integer!(i8, i16, i32, i64, u8, u16, u32, u64, usize);

impl From<f64> for Value {
    /// Not-a-number, which Terraform does not have, becomes null.
    fn from(float: f64) -> Self {
        Number::from_f64(float).map_or(Self::Null, Self::Number)
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object)
    }
}

impl<V: Into<Value>> From<Option<V>> for Value {
    fn from(option: Option<V>) -> Self {
        option.map_or(Self::Null, Into::into)
    }
}

impl<V: Into<Value>> From<Vec<V>> for Value {
    /// A list; where the schema says set or tuple, the server converts it.
    fn from(elements: Vec<V>) -> Self {
        Self::list(elements)
    }
}

impl<V: Into<Value>> From<BTreeMap<String, V>> for Value {
    fn from(entries: BTreeMap<String, V>) -> Self {
        Self::map(entries)
    }
}

//! Walks over values along their schema: what is inside an attribute or block, and where.

use crate::attribute::{Attribute, AttributeKind, Nesting};
use crate::object::Object;
use crate::path::AttributePath;
use crate::schema::{Block, BlockNesting, NestedBlock};
use crate::types::Type;
use crate::value::Value;

/// Attributes and blocks of one object.
#[derive(Clone, Copy)]
pub(crate) struct Members<'a> {
    pub(crate) attributes: &'a [(String, Attribute)],
    pub(crate) blocks: &'a [(String, NestedBlock)],
}

impl Block {
    pub(crate) fn members(&self) -> Members<'_> {
        Members {
            attributes: &self.attributes,
            blocks: &self.blocks,
        }
    }
}

impl Attribute {
    /// Members and repetition of a nested attribute.
    pub(crate) fn inside(&self) -> Option<(Members<'_>, Nesting)> {
        match &self.kind {
            AttributeKind::Plain(_) => None,
            AttributeKind::Nested {
                attributes,
                nesting,
            } => Some((
                Members {
                    attributes,
                    blocks: &[],
                },
                *nesting,
            )),
        }
    }
}

impl NestedBlock {
    pub(crate) fn inside(&self) -> (Members<'_>, Nesting) {
        let nesting = match self.nesting {
            BlockNesting::Single | BlockNesting::Group => Nesting::Single,
            BlockNesting::List => Nesting::List,
            BlockNesting::Set => Nesting::Set,
            BlockNesting::Map => Nesting::Map,
        };
        (self.block.members(), nesting)
    }
}

impl<'a> Members<'a> {
    /// Everything with members of its own: nested attributes, then blocks.
    pub(crate) fn nested(self) -> impl Iterator<Item = (&'a str, Members<'a>, Nesting)> {
        let attributes = self.attributes.iter().filter_map(|(name, attribute)| {
            attribute
                .inside()
                .map(|(members, nesting)| (name.as_str(), members, nesting))
        });
        let blocks = self.blocks.iter().map(|(name, block)| {
            let (members, nesting) = block.inside();
            (name.as_str(), members, nesting)
        });
        attributes.chain(blocks)
    }
}

/// Calls `each` for every object of a nested value, with its path. Set elements have no address of their own, so
/// they get the path of the set.
pub(crate) fn each_object(
    value: &Value,
    nesting: Nesting,
    path: &AttributePath,
    each: &mut dyn FnMut(&Object, &AttributePath),
) {
    let mut element = |item: &Value, path: &AttributePath| {
        if let Some(object) = item.as_object() {
            each(object, path);
        }
    };
    match (value.undress(), nesting) {
        (single @ Value::Object(_), Nesting::Single) => element(single, path),
        (Value::Object(entries), Nesting::Map) => {
            entries
                .iter()
                .for_each(|(key, item)| element(item, &path.clone().key(key)));
        }
        (Value::Map(entries), _) => {
            entries
                .iter()
                .for_each(|(key, item)| element(item, &path.clone().key(key.as_str())));
        }
        (Value::Set(items), _) => items.iter().for_each(|item| element(item, path)),
        (Value::List(items) | Value::Tuple(items), _) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| element(item, &path.clone().index(index)));
        }
        _ => {}
    }
}

/// Calls `each` for every object of a nested value.
pub(crate) fn each_object_mut(
    value: &mut Value,
    nesting: Nesting,
    each: &mut dyn FnMut(&mut Object),
) {
    match value {
        Value::Dynamic(_, inner) => each_object_mut(inner, nesting, each),
        Value::Object(entries) if nesting == Nesting::Map => {
            entries
                .values_mut()
                .for_each(|item| each_object_mut(item, Nesting::Single, each));
        }
        Value::Object(object) => each(object),
        Value::Map(entries) => {
            entries
                .values_mut()
                .for_each(|item| each_object_mut(item, Nesting::Single, each));
        }
        Value::List(items) | Value::Set(items) | Value::Tuple(items) => {
            items
                .iter_mut()
                .for_each(|item| each_object_mut(item, Nesting::Single, each));
        }
        _ => {}
    }
}

/// Nulls all write-only values: they must never be in a plan or state.
pub(crate) fn null_write_only(members: Members<'_>, object: &mut Object) {
    for (name, _) in members
        .attributes
        .iter()
        .filter(|(_, attribute)| attribute.write_only)
    {
        object.set(name, Value::Null);
    }
    for (name, inner, nesting) in members.nested() {
        each_object_mut(object.get_mut(name), nesting, &mut |object| {
            null_write_only(inner, object)
        });
    }
}

/// Gives absent blocks the form that Terraform wants: empty collections, and objects of nulls for groups.
pub(crate) fn fill_blocks(members: Members<'_>, object: &mut Object) {
    for (name, block) in members.blocks {
        let slot = object.get_mut(name);
        if slot.is_null() {
            let dynamic = block.ty() == Type::Dynamic;
            match block.nesting {
                BlockNesting::Single => {}
                BlockNesting::Group => *slot = Value::Object(null_object(&block.block.ty())),
                BlockNesting::Set => *slot = Value::Set(Vec::new()),
                BlockNesting::List if dynamic => {
                    *slot = Value::Dynamic(
                        Box::new(Type::Tuple(Vec::new())),
                        Box::new(Value::Tuple(Vec::new())),
                    );
                }
                BlockNesting::Map if dynamic => {
                    let empty = Type::object(std::iter::empty::<(String, Type)>());
                    *slot = Value::Dynamic(Box::new(empty), Box::new(Value::Object(Object::new())));
                }
                BlockNesting::List => *slot = Value::List(Vec::new()),
                BlockNesting::Map => *slot = Value::Map(std::collections::BTreeMap::new()),
            }
        }
        let (inner, nesting) = block.inside();
        each_object_mut(slot, nesting, &mut |object| fill_blocks(inner, object));
    }
}

/// An object whose attributes are all null.
pub(crate) fn null_object(ty: &Type) -> Object {
    match ty {
        Type::Object(types) => types
            .keys()
            .map(|name| (name.as_str(), Value::Null))
            .collect(),
        _ => Object::new(),
    }
}

//! The rules that Terraform (and good manners) set for schemas.

use std::collections::BTreeSet;

use crate::attribute::{Attribute, AttributeKind, Nesting};
use crate::schema::{Block, BlockNesting, IdentitySchema, NestedBlock, Schema};
use crate::types::Type;

/// What a schema belongs to; decides which names are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaKind {
    /// Provider block.
    Provider,
    /// Managed resource.
    Resource,
    /// Data source.
    DataSource,
    /// Ephemeral resource.
    Ephemeral,
    /// Inner `config` block of a list resource or action.
    Config,
}

impl SchemaKind {
    fn reserved(self) -> &'static [&'static str] {
        match self {
            Self::Provider => &["alias", "version"],
            Self::Resource | Self::DataSource | Self::Ephemeral => &[
                "count",
                "for_each",
                "depends_on",
                "provider",
                "lifecycle",
                "connection",
                "provisioner",
            ],
            Self::Config => &[],
        }
    }
}

impl Schema {
    /// Every broken rule, as one line each with the path of the culprit; empty when the schema is good.
    pub fn check(&self, kind: SchemaKind) -> Vec<String> {
        let mut problems = Vec::new();
        let names = self.block.attributes.iter().map(|(name, _)| name);
        for name in names.chain(self.block.blocks.iter().map(|(name, _)| name)) {
            if kind.reserved().contains(&name.as_str()) {
                problems.push(format!("{name}: the name is reserved by Terraform"));
            }
        }
        if self.version < 0 {
            problems.push("the version is negative".to_owned());
        }
        let scope = Scope {
            kind,
            in_set: false,
        };
        scope.block(&self.block, "", &mut problems);
        problems
    }
}

#[derive(Clone, Copy)]
struct Scope {
    kind: SchemaKind,
    in_set: bool,
}

impl Scope {
    fn block(self, block: &Block, prefix: &str, problems: &mut Vec<String>) {
        let mut seen = BTreeSet::new();
        for (name, attribute) in &block.attributes {
            let path = format!("{prefix}{name}");
            if !seen.insert(name) {
                problems.push(format!("{path}: the name occurs twice"));
            }
            self.attribute(attribute, name, &path, problems);
        }
        for (name, nested) in &block.blocks {
            let path = format!("{prefix}{name}");
            if !seen.insert(name) {
                problems.push(format!("{path}: the name occurs twice"));
            }
            check_name(name, &path, problems);
            check_items(nested, &path, problems);
            if nested.nesting == BlockNesting::Set && nested.block.ty().has_dynamic() {
                problems.push(format!("{path}: a set cannot hold a dynamic type"));
            }
            let in_set = self.in_set || nested.nesting == BlockNesting::Set;
            Self { in_set, ..self }.block(&nested.block, &format!("{path}."), problems);
        }
    }

    fn attribute(self, attribute: &Attribute, name: &str, path: &str, problems: &mut Vec<String>) {
        let Attribute {
            required,
            optional,
            computed,
            write_only,
            ..
        } = *attribute;
        let mut rule = |broken: bool, problem: &str| {
            if broken {
                problems.push(format!("{path}: {problem}"));
            }
        };
        rule(
            !required && !optional && !computed,
            "must be required, optional or computed",
        );
        rule(required && optional, "cannot be both required and optional");
        rule(required && computed, "cannot be both required and computed");
        rule(
            write_only && computed,
            "a write-only attribute cannot be computed",
        );
        rule(
            write_only && !required && !optional,
            "a write-only attribute must be required or optional",
        );
        rule(
            write_only && self.in_set,
            "a set cannot hold a write-only attribute",
        );
        rule(
            write_only && self.kind == SchemaKind::Ephemeral,
            "an ephemeral resource has no write-only attributes",
        );
        rule(
            write_only && matches!(self.kind, SchemaKind::DataSource | SchemaKind::Provider),
            "only managed resources and actions have write-only attributes",
        );
        rule(
            attribute.default.is_some() && !(optional && computed),
            "a default needs optional",
        );
        rule(
            attribute.replace && self.in_set,
            "replacement inside a set has no address: put it on the set",
        );
        rule(
            attribute.keep_state && !computed,
            "only computed attributes can keep their state",
        );
        if let Some(default) = &attribute.default {
            let fits = crate::conform::conform(
                default.clone(),
                &attribute.ty(),
                &crate::AttributePath::root(),
            );
            rule(
                fits.is_err() || !default.is_wholly_known(),
                "the default does not fit the type",
            );
        }
        check_name(name, path, problems);
        match &attribute.kind {
            AttributeKind::Plain(ty) => {
                if has_dynamic_set(ty) {
                    problems.push(format!("{path}: a set cannot hold a dynamic type"));
                }
            }
            AttributeKind::Nested {
                attributes,
                nesting,
            } => {
                if *nesting == Nesting::Set && attribute.ty().has_dynamic() {
                    problems.push(format!("{path}: a set cannot hold a dynamic type"));
                }
                let inner = Block {
                    attributes: attributes.clone(),
                    ..Block::default()
                };
                let in_set = self.in_set || *nesting == Nesting::Set;
                Self { in_set, ..self }.block(&inner, &format!("{path}."), problems);
            }
        }
    }
}

fn has_dynamic_set(ty: &Type) -> bool {
    match ty {
        Type::Set(inner) => inner.has_dynamic(),
        Type::List(inner) | Type::Map(inner) => has_dynamic_set(inner),
        Type::Object(attributes) => attributes.values().any(has_dynamic_set),
        Type::Tuple(items) => items.iter().any(has_dynamic_set),
        _ => false,
    }
}

fn check_name(name: &str, path: &str, problems: &mut Vec<String>) {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(allowed) {
        problems.push(format!(
            "{path}: names are lower-case letters, digits and underscores"
        ));
    }
}

fn check_items(nested: &NestedBlock, path: &str, problems: &mut Vec<String>) {
    let (min, max) = (nested.min_items, nested.max_items);
    let good = match nested.nesting {
        BlockNesting::Single => (min == 0 && (0..=1).contains(&max)) || (min == 1 && max == 1),
        BlockNesting::Group | BlockNesting::Map => min == 0 && max == 0,
        BlockNesting::List | BlockNesting::Set => min >= 0 && max >= 0 && (max == 0 || min <= max),
    };
    // A single block with at most one item says nothing new, but Terraform wants both numbers equal.
    let single_mismatch = nested.nesting == BlockNesting::Single && min != max;
    if !good || single_mismatch {
        problems.push(format!(
            "{path}: {min} to {max} items do not go with this kind of block"
        ));
    }
}

impl IdentitySchema {
    /// Every broken rule; empty when the schema is good.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        if self.attributes.is_empty() {
            problems.push("an identity needs an attribute".to_owned());
        }
        for attribute in &self.attributes {
            if !seen.insert(&attribute.name) {
                problems.push(format!("{}: the name occurs twice", attribute.name));
            }
            check_name(&attribute.name, &attribute.name, &mut problems);
            let plain = |ty: &Type| matches!(ty, Type::String | Type::Number | Type::Bool);
            let good = match &attribute.ty {
                Type::List(inner) => plain(inner),
                other => plain(other),
            };
            if !good {
                problems.push(format!(
                    "{}: identities hold strings, numbers, bools or lists of them",
                    attribute.name
                ));
            }
        }
        problems
    }
}

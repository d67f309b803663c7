//! Each broken rule is found and named; good schemas pass.

use crate::attribute::{Attribute, Nesting};
use crate::schema::{Block, IdentitySchema, NestedBlock, Schema};
use crate::schema_check::SchemaKind;
use crate::types::Type;

fn problems(name: &str, attribute: Attribute) -> String {
    Schema::new()
        .attribute(name, attribute)
        .check(SchemaKind::Resource)
        .join("\n")
}

#[test]
fn a_good_schema_has_no_problems() {
    let inner = [("path", Attribute::string().required())];
    let schema = Schema::new()
        .attribute("id", Attribute::string().computed().use_state_for_unknown())
        .attribute("size", Attribute::number().optional().default(3))
        .attribute("secret", Attribute::string().optional().write_only())
        .attribute("disks", Attribute::nested(Nesting::Set, inner).optional())
        .block(
            "timeouts",
            NestedBlock::single(Block::new().attribute("create", Attribute::string().optional())),
        )
        .block("part", NestedBlock::list(Block::new()).items(1, 3));
    assert_eq!(schema.check(SchemaKind::Resource), Vec::<String>::new());
}

#[test]
fn each_broken_rule_of_an_attribute_is_named() {
    let inner = |attribute| Attribute::nested(Nesting::Set, [("x", attribute)]).optional();
    for (name, attribute, text) in [
        (
            "a",
            Attribute::string(),
            "must be required, optional or computed",
        ),
        (
            "a",
            Attribute::string().required().optional(),
            "both required and optional",
        ),
        (
            "a",
            Attribute::string().required().computed(),
            "both required and computed",
        ),
        (
            "a",
            Attribute::string().computed().write_only(),
            "write-only attribute cannot be computed",
        ),
        (
            "a",
            Attribute::string().required().default("x"),
            "a default needs optional",
        ),
        (
            "a",
            Attribute::number().optional().default("x"),
            "default does not fit",
        ),
        (
            "a",
            Attribute::set(Type::Dynamic).optional(),
            "set cannot hold a dynamic type",
        ),
        (
            "a",
            inner(Attribute::dynamic().optional()),
            "set cannot hold a dynamic type",
        ),
        (
            "a",
            inner(Attribute::string().optional().write_only()),
            "set cannot hold a write-only",
        ),
        (
            "a",
            inner(Attribute::string().optional().requires_replace()),
            "put it on the set",
        ),
        ("count", Attribute::string().optional(), "reserved"),
        ("Big", Attribute::string().optional(), "lower-case"),
        ("", Attribute::string().optional(), "lower-case"),
    ] {
        let found = problems(name, attribute);
        assert!(found.contains(text), "{text:?} is not in {found:?}");
    }
}

#[test]
fn names_occur_once_over_attributes_and_blocks() {
    let schema = Schema::new()
        .attribute("a", Attribute::string().optional())
        .block("a", NestedBlock::list(Block::new()));
    assert_eq!(
        schema.check(SchemaKind::Resource),
        ["a: the name occurs twice"]
    );
}

#[test]
fn item_counts_go_with_the_kind_of_block() {
    let check = |block: NestedBlock| {
        Schema::new()
            .block("b", block)
            .check(SchemaKind::Resource)
            .len()
    };
    let block = Block::new;
    assert_eq!(check(NestedBlock::single(block()).items(1, 1)), 0);
    assert_eq!(check(NestedBlock::single(block()).items(0, 1)), 1);
    assert_eq!(check(NestedBlock::list(block()).items(2, 0)), 0);
    assert_eq!(check(NestedBlock::list(block()).items(3, 2)), 1);
    assert_eq!(check(NestedBlock::map(block()).items(1, 0)), 1);
    assert_eq!(check(NestedBlock::group(block()).items(1, 1)), 1);
}

#[test]
fn identities_are_small() {
    assert_eq!(IdentitySchema::new().check().len(), 1);
    assert_eq!(
        IdentitySchema::new()
            .required("id", Type::String, "")
            .check()
            .len(),
        0
    );
    assert_eq!(
        IdentitySchema::new()
            .required("id", Type::map(Type::String), "")
            .check()
            .len(),
        1
    );
}

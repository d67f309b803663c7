//! The rules that Terraform checks plans by, as properties over random prior objects and configurations.

use proptest::prelude::*;

use crate::attribute::{Attribute, Nesting};
use crate::object::Object;
use crate::path::AttributePath;
use crate::planning::{DefaultPlan, default_plan};
use crate::schema::Schema;
use crate::types::Type;
use crate::value::Value;

fn schema() -> Schema {
    let settings = [
        ("mode", Attribute::string().required()),
        ("etag", Attribute::string().computed()),
    ];
    let disks = [
        ("path", Attribute::string().required().requires_replace()),
        ("size", Attribute::number().optional().default(10)),
    ];
    Schema::new()
        .attribute("id", Attribute::string().computed().use_state_for_unknown())
        .attribute(
            "name",
            Attribute::string()
                .required()
                .requires_replace()
                .ignore_case(),
        )
        .attribute("text", Attribute::string().optional().default("empty"))
        .attribute("note", Attribute::string().optional())
        .attribute("size", Attribute::number().optional().computed())
        .attribute("tags", Attribute::set(Type::String).optional())
        .attribute("secret", Attribute::string().optional().write_only())
        .attribute("revision", Attribute::number().computed())
        .attribute(
            "settings",
            Attribute::nested(Nesting::Single, settings).optional(),
        )
        .attribute("disks", Attribute::nested(Nesting::List, disks).optional())
}

/// What a user may write; write-only values included.
fn configs() -> impl Strategy<Value = Object> {
    let text = || {
        prop_oneof![
            Just(Value::Null),
            Just(Value::unknown()),
            "[ab]{1,2}".prop_map(Value::from)
        ]
    };
    let disks = prop::option::of(prop::collection::vec(
        ("[ab]", prop::option::of(1..3u64)),
        0..3,
    ));
    (
        prop_oneof!["[abAB]".prop_map(Value::from), Just(Value::unknown())],
        text(),
        text(),
        prop::option::of(1..3u64),
        prop::option::of(prop::collection::vec("[ab]", 0..3)),
        text(),
        prop::option::of("[ab]"),
        disks,
    )
        .prop_map(|(name, text, note, size, tags, secret, mode, disks)| {
            let settings =
                mode.map(|mode| Object::new().with("mode", mode).with("etag", Value::Null));
            let disk = |(path, size)| {
                Object::new()
                    .with("path", path)
                    .with("size", Value::from(size))
            };
            Object::new()
                .with("id", Value::Null)
                .with("name", name)
                .with("text", text)
                .with("note", note)
                .with("size", size)
                .with(
                    "tags",
                    tags.map_or(Value::Null, |tags: Vec<String>| Value::set(tags)),
                )
                .with("secret", secret)
                .with("revision", Value::Null)
                .with("settings", settings)
                .with(
                    "disks",
                    disks.map(|disks: Vec<(String, Option<u64>)>| {
                        disks.into_iter().map(disk).collect::<Vec<_>>()
                    }),
                )
        })
}

/// What Terraform proposes: the configuration, computed attributes from the prior object.
fn propose(prior: Option<&Object>, config: &Object) -> Object {
    let mut proposed = config.clone();
    let prior_of = |name: &str| prior.map_or(Value::Null, |prior| prior.get(name).clone());
    for name in ["id", "text", "size", "revision"] {
        if config.is_null(name) {
            proposed.set(name, prior_of(name));
        }
    }
    if let Value::Object(settings) = proposed.get_mut("settings") {
        let old = prior
            .and_then(|prior| prior.object("settings"))
            .map_or(Value::Null, |old| old.get("etag").clone());
        settings.set("etag", old);
    }
    if let Value::List(disks) = proposed.get_mut("disks") {
        for (index, disk) in disks.iter_mut().enumerate() {
            let old = prior
                .map(|prior| prior.elements("disks"))
                .unwrap_or_default()
                .get(index);
            if let (Value::Object(disk), Some(old)) = (disk, old.and_then(Value::as_object))
                && disk.is_null("size")
            {
                disk.set("size", old.get("size").clone());
            }
        }
    }
    proposed
}

/// What a provider could have stored after the plan was applied.
fn applied(plan: &DefaultPlan) -> Object {
    fn settle(value: Value) -> Value {
        match value {
            Value::Unknown(_) => Value::from("7"),
            Value::List(items) => Value::List(items.into_iter().map(settle).collect()),
            Value::Object(object) => Value::Object(
                object
                    .into_iter()
                    .map(|(name, value)| (name, settle(value)))
                    .collect(),
            ),
            other => other,
        }
    }
    let mut stored: Object = plan
        .planned
        .clone()
        .into_iter()
        .map(|(name, value)| (name, settle(value)))
        .collect();
    for name in ["size", "revision"] {
        if plan.planned.is_unknown(name) {
            stored.set(name, 7);
        }
    }
    stored
}

fn plan(prior: Option<&Object>, config: &Object) -> DefaultPlan {
    default_plan(
        schema().block.members(),
        prior,
        config,
        propose(prior, config),
    )
}

proptest! {
    #[test]
    fn a_plan_keeps_what_the_user_wrote(first in configs(), second in configs()) {
        let stored = applied(&plan(None, &first));
        for (prior, config) in [(None, &first), (Some(&stored), &second)] {
            let planned = plan(prior, config).planned;
            prop_assert!(planned.is_null("secret"), "a write-only value is in the plan");
            for name in ["name", "text", "note", "size", "tags"] {
                let (wanted, given) = (config.get(name), planned.get(name));
                if !wanted.is_null() {
                    let kept = prior.is_some_and(|prior| prior.get(name) == given);
                    prop_assert!(wanted == given || kept, "{name}: {wanted:?} became {given:?}");
                }
            }
            prop_assert!(!config.is_null("note") || planned.is_null("note"), "a value comes from nowhere");
            prop_assert_eq!(config.elements("disks").len(), planned.elements("disks").len());
            prop_assert_eq!(config.is_null("settings"), planned.is_null("settings"));
        }
    }

    #[test]
    fn nothing_is_left_to_do_after_an_apply(config in configs()) {
        let known = |value: Value| if value.is_unknown() { Value::from("known") } else { value };
        let config: Object = config.into_iter().map(|(name, value)| (name, known(value))).collect();
        let stored = applied(&plan(None, &config));
        let again = plan(Some(&stored), &config);
        prop_assert_eq!(&again.planned, &stored);
        prop_assert!(again.requires_replace.is_empty());
    }

    #[test]
    fn the_same_input_gives_the_same_plan(first in configs(), second in configs()) {
        let stored = applied(&plan(None, &first));
        prop_assert_eq!(plan(Some(&stored), &second), plan(Some(&stored), &second));
    }

    #[test]
    fn replacements_point_at_what_differs(first in configs(), second in configs()) {
        let stored = applied(&plan(None, &first));
        let changed = plan(Some(&stored), &second);
        let name = AttributePath::new("name");
        let differs = stored.get("name") != changed.planned.get("name");
        prop_assert_eq!(changed.requires_replace.contains(&name), differs);
    }
}

fn config(name: &str) -> Object {
    let names = [
        "id", "text", "note", "size", "tags", "secret", "revision", "settings", "disks",
    ];
    names
        .into_iter()
        .fold(Object::new(), |object, name| object.with(name, Value::Null))
        .with("name", name)
}

#[test]
fn a_change_makes_computed_values_unknown_but_for_the_lasting_ones() {
    let stored = applied(&plan(None, &config("a"))).with("id", "id-1");
    let changed = plan(Some(&stored), &config("a").with("note", "new"));
    assert_eq!(changed.planned.str("id"), Some("id-1"));
    assert!(changed.planned.is_unknown("revision"));
    assert!(changed.planned.is_unknown("size"));
    assert_eq!(changed.planned.str("text"), Some("empty"));
}

#[test]
fn a_spelling_that_means_the_same_is_no_change() {
    let stored = applied(&plan(None, &config("a")));
    let same = plan(Some(&stored), &config("A"));
    assert_eq!((same.planned, same.requires_replace), (stored, Vec::new()));
}

#[test]
fn a_replacement_deep_inside_names_its_place() {
    let disk =
        |path: &str| Value::list([Object::new().with("path", path).with("size", Value::Null)]);
    let stored = applied(&plan(None, &config("a").with("disks", disk("x"))));
    let changed = plan(Some(&stored), &config("a").with("disks", disk("y")));
    assert_eq!(
        changed.requires_replace,
        [AttributePath::new("disks").index(0).attribute("path")]
    );
    assert_eq!(changed.planned.objects("disks")[0].u64("size"), Some(10));
}

#[test]
fn what_is_not_known_yet_replaces_nothing_where_the_stored_value_is_kept() {
    let schema = Schema::new().attribute(
        "vm",
        Attribute::string()
            .required()
            .requires_replace()
            .keep_until_known(),
    );
    let stored = Object::new().with("vm", "a");
    let plan_with = |value: Value| {
        let config = Object::new().with("vm", value);
        default_plan(
            schema.block.members(),
            Some(&stored),
            &config,
            config.clone(),
        )
    };
    let waiting = plan_with(Value::unknown());
    assert_eq!(
        (waiting.planned, waiting.requires_replace.len()),
        (stored.clone(), 0)
    );
    assert_eq!(plan_with(Value::from("b")).requires_replace.len(), 1);
}

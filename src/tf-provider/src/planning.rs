//! The default plan: from what Terraform proposes to what the provider promises.
//!
//! ```text
//! proposed ─► null write-only ─► defaults ─► keep the prior spelling ─► equal to prior? ─► no change
//!                                                                           │ no
//!                                              computed values unknown ◄────┘
//!                                              replacements by the flags
//! ```
//!
//! Pure: the same input gives the same plan, since Terraform plans each change two or three times.

use crate::attribute::{Attribute, Nesting};
use crate::conform::conform;
use crate::members::{Members, each_object_mut, null_write_only};
use crate::object::Object;
use crate::path::AttributePath;
use crate::value::Value;

/// What the flags of the schema make of a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DefaultPlan {
    pub(crate) planned: Object,
    pub(crate) requires_replace: Vec<AttributePath>,
}

/// Plans a create (`prior` is `None`) or an update. `proposed` and `config` have the shape of the schema.
pub(crate) fn default_plan(
    members: Members<'_>,
    prior: Option<&Object>,
    config: &Object,
    mut proposed: Object,
) -> DefaultPlan {
    null_write_only(members, &mut proposed);
    apply_defaults(members, config, &mut proposed);
    if let Some(prior) = prior {
        keep_spelling(members, prior, config, &mut proposed);
        if *prior == proposed {
            return DefaultPlan {
                planned: proposed,
                requires_replace: Vec::new(),
            };
        }
    }
    mark_unknown(members, config, &mut proposed);
    let mut requires_replace = Vec::new();
    if let Some(prior) = prior {
        collect_replacements(
            members,
            prior,
            &proposed,
            &AttributePath::root(),
            &mut requires_replace,
        );
    }
    DefaultPlan {
        planned: proposed,
        requires_replace,
    }
}

/// Calls `each` with every nested object of the plan and the object of the configuration that it stems from.
fn pair_objects(
    planned: &mut Value,
    config: &Value,
    nesting: Nesting,
    each: &mut dyn FnMut(&mut Object, &Object),
) {
    if let Value::Dynamic(_, inner) = planned {
        return pair_objects(inner, config, nesting, each);
    }
    match (planned, config.undress(), nesting) {
        (Value::Object(planned), Value::Object(config), Nesting::Single) => each(planned, config),
        (Value::Object(planned), Value::Object(config), Nesting::Map) => {
            let names: Vec<String> = planned.iter().map(|(name, _)| name.to_owned()).collect();
            for name in names {
                pair_objects(
                    planned.get_mut(&name),
                    config.get(&name),
                    Nesting::Single,
                    each,
                );
            }
        }
        (Value::Map(planned), Value::Map(config), _) => {
            for (key, item) in planned {
                if let Some(config) = config.get(key) {
                    pair_objects(item, config, Nesting::Single, each);
                }
            }
        }
        (Value::Set(planned), Value::Set(config), _) => {
            // Elements of sets have no address: find the one whose configured part is the same.
            for item in planned {
                let Value::Object(object) = item else {
                    continue;
                };
                let source = config
                    .iter()
                    .filter_map(Value::as_object)
                    .find(|config| stems_from(object, config));
                if let Some(config) = source {
                    each(object, config);
                }
            }
        }
        (
            Value::List(planned) | Value::Tuple(planned),
            Value::List(config) | Value::Tuple(config),
            _,
        ) => {
            for (item, config) in planned.iter_mut().zip(config) {
                pair_objects(item, config, Nesting::Single, each);
            }
        }
        _ => {}
    }
}

fn stems_from(planned: &Object, config: &Object) -> bool {
    config
        .iter()
        .all(|(name, value)| value.is_null() || loosely_equal(planned.get(name), value))
}

/// Equal but for what the configuration leaves out.
fn loosely_equal(planned: &Value, config: &Value) -> bool {
    match (planned.undress(), config.undress()) {
        (Value::Object(planned), Value::Object(config)) => stems_from(planned, config),
        (Value::List(planned), Value::List(config)) => {
            planned.len() == config.len()
                && planned
                    .iter()
                    .zip(config)
                    .all(|(planned, config)| loosely_equal(planned, config))
        }
        (planned, config) => planned == config,
    }
}

fn apply_defaults(members: Members<'_>, config: &Object, planned: &mut Object) {
    for (name, attribute) in members.attributes {
        if let Some(default) = attribute.default.as_ref().filter(|_| config.is_null(name)) {
            // A default that does not fit is reported when the schema is checked.
            if let Ok(default) = conform(default.clone(), &attribute.ty(), &AttributePath::root()) {
                planned.set(name, default);
            }
        }
    }
    for (name, inner, nesting) in members.nested() {
        pair_objects(
            planned.get_mut(name),
            config.get(name),
            nesting,
            &mut |planned, config| {
                apply_defaults(inner, config, planned);
            },
        );
    }
}

/// Where prior and configured value mean the same, the plan keeps the prior one: no change.
fn keep_spelling(members: Members<'_>, prior: &Object, config: &Object, planned: &mut Object) {
    for (name, attribute) in members.attributes {
        let (old, new) = (prior.get(name), config.get(name));
        let comparable =
            !old.is_null() && !new.is_null() && old.is_wholly_known() && new.is_wholly_known();
        let waiting = attribute.keep_until_known && new.is_unknown() && !old.is_null();
        if waiting || comparable && !attribute.write_only && attribute.means_the_same(old, new) {
            planned.set(name, old.clone());
        }
    }
    for (name, inner, nesting) in members.nested() {
        if nesting != Nesting::Single {
            continue; // Elements have no stable partner in the prior state.
        }
        if let (Some(prior), Some(config)) = (prior.object(name), config.object(name)) {
            each_object_mut(planned.get_mut(name), nesting, &mut |planned| {
                keep_spelling(inner, prior, config, planned);
            });
        }
    }
}

/// After a read: keeps the stored spelling of what means the same.
pub(crate) fn keep_stored_spelling(members: Members<'_>, stored: &Object, read: &mut Object) {
    let with_rule = |attribute: &Attribute| attribute.same.is_some();
    for (name, attribute) in members
        .attributes
        .iter()
        .filter(|(_, attribute)| with_rule(attribute))
    {
        let (old, new) = (stored.get(name), read.get(name));
        if !old.is_null() && !new.is_null() && attribute.means_the_same(old, new) {
            read.set(name, old.clone());
        }
    }
    for (name, inner, nesting) in members
        .nested()
        .filter(|(.., nesting)| *nesting == Nesting::Single)
    {
        if let Some(stored) = stored.object(name) {
            each_object_mut(read.get_mut(name), nesting, &mut |read| {
                keep_stored_spelling(inner, stored, read)
            });
        }
    }
}

/// Computed values that the configuration leaves open may change, unless they are marked as lasting.
fn mark_unknown(members: Members<'_>, config: &Object, planned: &mut Object) {
    for (name, attribute) in members.attributes {
        let open = attribute.computed && attribute.default.is_none() && config.is_null(name);
        // Terraform proposes the prior value here, so what is null has none to keep.
        let lasting = attribute.keep_state && !planned.is_null(name);
        if open && !lasting {
            planned.set(name, Value::unknown());
        }
    }
    for (name, inner, nesting) in members.nested() {
        pair_objects(
            planned.get_mut(name),
            config.get(name),
            nesting,
            &mut |planned, config| {
                mark_unknown(inner, config, planned);
            },
        );
    }
}

fn collect_replacements(
    members: Members<'_>,
    prior: &Object,
    planned: &Object,
    base: &AttributePath,
    found: &mut Vec<AttributePath>,
) {
    for (name, attribute) in members.attributes {
        if attribute.replace && prior.get(name) != planned.get(name) {
            found.push(base.clone().attribute(name));
        }
    }
    for (name, inner, nesting) in members.nested() {
        let path = base.clone().attribute(name);
        match (prior.get(name).undress(), planned.get(name).undress()) {
            (Value::Object(prior), Value::Object(planned)) if nesting == Nesting::Single => {
                collect_replacements(inner, prior, planned, &path, found);
            }
            (Value::List(prior), Value::List(planned)) => {
                for (index, (prior, planned)) in prior.iter().zip(planned).enumerate() {
                    if let (Some(prior), Some(planned)) = (prior.as_object(), planned.as_object()) {
                        collect_replacements(
                            inner,
                            prior,
                            planned,
                            &path.clone().index(index),
                            found,
                        );
                    }
                }
            }
            (Value::Map(prior), Value::Map(planned)) => {
                for (key, planned) in planned {
                    let prior = prior.get(key).and_then(Value::as_object);
                    if let (Some(prior), Some(planned)) = (prior, planned.as_object()) {
                        collect_replacements(
                            inner,
                            prior,
                            planned,
                            &path.clone().key(key.as_str()),
                            found,
                        );
                    }
                }
            }
            _ => {}
        }
    }
}

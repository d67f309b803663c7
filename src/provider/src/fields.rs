//! Attributes that many schemas share, with their checks.

use arm_model::validate::{self, Violation};
use tf_provider::{Attribute, Nesting, Object, ResourceState, Schema, Value};

/// Where the provider keeps the ARM id.
pub(crate) fn id() -> Attribute {
    Attribute::string()
        .computed()
        .use_state_for_unknown()
        .describe("ARM id.")
}

/// A name that can't be changed, with its rule.
pub(crate) fn name(what: &str, rule: fn(&str) -> Result<(), Violation>) -> Attribute {
    checked(Attribute::string().required().requires_replace(), rule)
        .describe(format!("Name of the {what}. Changing it makes a new one."))
}

/// Adds a rule of the model to a text attribute.
pub(crate) fn checked(attribute: Attribute, rule: fn(&str) -> Result<(), Violation>) -> Attribute {
    attribute.check(move |value| match value.as_str() {
        Some(text) => rule(text).map_err(|broken| refused(&broken)),
        None => Ok(()),
    })
}

/// A broken rule as the end of a sentence that begins with the attribute's name.
pub(crate) fn refused(broken: &Violation) -> String {
    // The reader of this adds the full stop.
    let advice = broken.advice.trim_end_matches('.');
    format!("is not allowed: {} {advice}", broken.message)
}

/// Adds a rule of the model to a number attribute.
pub(crate) fn checked_number(
    attribute: Attribute,
    rule: fn(u32) -> Result<(), Violation>,
) -> Attribute {
    attribute.check(move |value| {
        let number = value
            .as_number()
            .and_then(|n| n.as_u64())
            .and_then(|n| u32::try_from(n).ok());
        match number {
            Some(number) => rule(number).map_err(|broken| refused(&broken)),
            None => Err("must be a whole number".to_owned()),
        }
    })
}

/// The resource group of a top-level resource.
pub(crate) fn resource_group_name() -> Attribute {
    Attribute::string()
        .required()
        .requires_replace()
        .ignore_case()
        .check(|value| match value.as_str() {
            Some(text) if group_name(text) => Ok(()),
            _ => Err(
                "must be 1 to 90 letters, digits, or any of - _ . ( ), not ending with a full stop"
                    .to_owned(),
            ),
        })
        .describe("Name of the resource group. Changing it makes a new resource.")
}

fn group_name(text: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || "-_.()".contains(c);
    (1..=90).contains(&text.chars().count()) && text.chars().all(allowed) && !text.ends_with('.')
}

/// The region of a top-level resource.
pub(crate) fn location() -> Attribute {
    Attribute::string()
        .required()
        .requires_replace()
        .same_when(|left, right| match (left.as_str(), right.as_str()) {
            (Some(left), Some(right)) => validate::same_region(left, right),
            _ => false,
        })
        .check(|value| match value.as_str() {
            Some(text) if !text.trim().is_empty() => Ok(()),
            _ => Err("must name a region such as northeurope".to_owned()),
        })
        .describe("Region, such as `northeurope`; case and blanks don't matter. Changing it makes a new resource.")
}

/// Tags of a top-level resource.
pub(crate) fn tags() -> Attribute {
    Attribute::map(tf_provider::Type::String)
        .optional()
        .describe("Tags.")
}

/// An ARM id of one kind.
pub(crate) fn arm_id<T: std::str::FromStr<Err = arm_model::IdError>>(
    what: &'static str,
) -> Attribute {
    Attribute::string().ignore_case().check(move |value| {
        match value.as_str().map(str::parse::<T>) {
            Some(Err(error)) => Err(format!("must be the id of {what}: {error}")),
            _ => Ok(()),
        }
    })
}

/// An ARM id of a resource group.
pub(crate) fn resource_group_id() -> Attribute {
    Attribute::string().ignore_case().check(|value| {
        match value.as_str().map(arm_model::ResourceGroupId::parse) {
            Some(Err(error)) => Err(format!("must be the id of a resource group: {error}")),
            _ => Ok(()),
        }
    })
}

/// The schema of the data source that reads a resource by its keys: keys are arguments, the rest is computed.
pub(crate) fn for_data_source(schema: &Schema, keys: &[&str]) -> Schema {
    let mut out = Schema::new();
    for (name, attribute) in &schema.block.attributes {
        // Only writers have a use for these.
        let writers =
            attribute.write_only || name.ends_with("_wo_version") || name.ends_with("_rotation");
        if name == "timeouts" || writers {
            continue;
        }
        let attribute = if keys.contains(&name.as_str()) {
            attribute.clone()
        } else {
            computed(attribute)
        };
        out = out.attribute(name, attribute);
    }
    for (name, block) in &schema.block.blocks {
        let members = block
            .block
            .attributes
            .iter()
            .map(|(name, a)| (name.clone(), computed(a)));
        let attribute = Attribute::nested(Nesting::List, members.collect::<Vec<_>>()).computed();
        out = out.attribute(name, attribute.describe(block.block.description.clone()));
    }
    out
}

fn computed(attribute: &Attribute) -> Attribute {
    use tf_provider::AttributeKind::{Nested, Plain};
    let fresh = match &attribute.kind {
        Plain(ty) => Attribute::new(ty.clone()),
        Nested {
            attributes,
            nesting,
        } => {
            let members = attributes
                .iter()
                .map(|(name, a)| (name.clone(), computed(a)));
            Attribute::nested(*nesting, members.collect::<Vec<_>>())
        }
    };
    let text = attribute
        .description
        .split(" Changing it makes")
        .next()
        .unwrap_or_default();
    fresh.computed().describe(text)
}

/// After a creation or change: what the service spells otherwise but means the same keeps the planned spelling, because
/// Terraform takes any other for a defect.
pub(crate) fn keep_planned(planned: &Object, value: &mut Object) {
    let same = |name: &str, left: &str, right: &str| match name {
        "location" => validate::same_region(left, right),
        "resource_group_name" => left.eq_ignore_ascii_case(right),
        _ if name.ends_with("_id") => left.eq_ignore_ascii_case(right),
        _ => false,
    };
    for (name, wanted) in planned.iter() {
        if let (Some(wanted), Some(found)) = (wanted.as_str(), value.str(name))
            && same(name, wanted, found)
        {
            value.set(name, wanted);
        }
    }
}

/// Keeps the state as it is but for what a later step of a change does: should that step fail, the next apply must see that it
/// is still to be done.
pub(crate) fn keep_without(state: &mut ResourceState, prior: Option<&Object>, later: &[&str]) {
    let whole = state.value.clone();
    for name in later {
        let before = prior.map_or(Value::Null, |prior| prior.get(name).clone());
        state.value.set(*name, before);
    }
    state.keep();
    state.value = whole;
}

/// Keeps the state of before with what has been done of a change so far.
pub(crate) fn keep_done(state: &mut ResourceState, prior: Option<&Object>, done: &[&str]) {
    let Some(prior) = prior else {
        return state.keep();
    };
    let mut reached = prior.clone();
    for name in done {
        reached.set(*name, state.value.get(name).clone());
    }
    let whole = std::mem::replace(&mut state.value, reached);
    state.keep();
    state.value = whole;
}

/// Sets a text, or null when it is empty.
pub(crate) fn text_or_null(text: Option<&str>) -> Value {
    match text {
        Some(text) if !text.is_empty() => Value::from(text),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_keeps_the_planned_spelling_and_nothing_else_does() {
        let planned = Object::new()
            .with("location", "North Europe")
            .with("policy_id", "/Subscriptions/S")
            .with("name", "Vault");
        let mut value = Object::new()
            .with("location", "northeurope")
            .with("policy_id", "/subscriptions/s")
            .with("name", "vault");
        keep_planned(&planned, &mut value);
        assert_eq!(value.str("location"), Some("North Europe"));
        assert_eq!(value.str("policy_id"), Some("/Subscriptions/S"));
        assert_eq!(value.str("name"), Some("vault"));
    }

    #[test]
    fn what_a_failed_step_has_not_done_is_not_in_the_state_that_is_kept() {
        let prior = Object::new().with("a", "old").with("b", "old");
        let planned = Object::new().with("a", "new").with("b", "new");
        let kept = |keep: &dyn Fn(&mut ResourceState)| {
            let mut state = ResourceState::new(planned.clone());
            keep(&mut state);
            assert_eq!(state.value, planned, "the change itself goes on");
            state.kept().cloned().expect("kept")
        };
        let expected = Object::new().with("a", "new").with("b", "old");
        assert_eq!(
            kept(&|state| keep_without(state, Some(&prior), &["b"])),
            expected
        );
        assert_eq!(
            kept(&|state| keep_done(state, Some(&prior), &["a"])),
            expected
        );
    }
}

//! Arguments that actions share: the protected VM, the recovery plan or a part of it, and how long the job is waited for.

use std::time::Duration;

use arm_model::{ArmId, PlanId, ProtectedItemId, validate};
use serde::Serialize;
use serde_json::{Value as Json, json};
use tf_provider::{Attribute, AttributePath, Diagnostics, Object, Schema, Type};

use crate::{fields, timeouts};

pub(super) const PLAN: &str = "recovery_plan_id";
pub(super) const VM: &str = "protected_vm_id";
pub(super) const GROUPS: &str = "group_ids";
pub(super) const MEMBERS: &str = "protected_vm_ids";
const TIMEOUT: &str = "timeout";
/// A VM may take long to shut down and its last changes long to send.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Adds the VM and the plan, of which one is to be given.
pub(super) fn add_subject(schema: Schema) -> Schema {
    schema
        .attribute(
            PLAN,
            fields::arm_id::<PlanId>("a recovery plan")
                .optional()
                .describe("Id of the plan. Give this or `protected_vm_id`."),
        )
        .attribute(
            VM,
            fields::arm_id::<ProtectedItemId>("a protected VM")
                .optional()
                .describe("Id of the protected VM. Give this or `recovery_plan_id`."),
        )
}

/// Adds what names a part of a plan.
pub(super) fn add_part(schema: Schema) -> Schema {
    schema
        .attribute(
            GROUPS,
            Attribute::list(Type::Number).optional().describe(
                "Part of the plan: numbers of its boot groups, from 1. Only their VMs, and those of `protected_vm_ids`, and only the actions of groups \
                 that have one of them. Default: the whole plan.",
            ),
        )
        .attribute(
            MEMBERS,
            Attribute::list(Type::String)
                .optional()
                .describe("Part of the plan: ids of protected VMs in it."),
        )
}

/// Adds the time limit.
pub(super) fn add_timeout(schema: Schema) -> Schema {
    schema.attribute(
        TIMEOUT,
        Attribute::string()
            .optional()
            .check(|value| match value.as_str().and_then(timeouts::parse) {
                Some(_) => Ok(()),
                None => Err("must be a duration such as 30s, 90m or 1h30m".to_owned()),
            })
            .describe("Time to wait for the job, such as `90m`; the job itself goes on after it. Default: `24h`."),
    )
}

/// The time limit.
pub(super) fn limit(config: &Object) -> Duration {
    let limit = config.str(TIMEOUT).and_then(timeouts::parse);
    limit.unwrap_or(PATIENCE)
}

/// Checks that one of the VM and the plan is given.
pub(super) fn check_subject(config: &Object, report: &mut Diagnostics) {
    let title = "A VM or a plan";
    match (config.is_null(VM), config.is_null(PLAN)) {
        (true, true) => {
            report.push_error(PLAN, title, "Give recovery_plan_id or protected_vm_id.");
        }
        (false, false) => report.push_error(
            VM,
            title,
            "Give recovery_plan_id or protected_vm_id, not both.",
        ),
        _ => {}
    }
}

/// Checks the part of a plan.
pub(super) fn check_part(config: &Object, report: &mut Diagnostics) {
    for name in [GROUPS, MEMBERS] {
        if !config.is_null(name) && !config.is_null(VM) {
            report.push_error(
                name,
                "Only for a plan",
                "A part is of a recovery plan; this is about one VM.",
            );
        }
        if config.get(name).as_elements().is_some_and(<[_]>::is_empty) {
            report.push_error(
                name,
                "A part with nothing in it",
                "Name at least one, or leave it out for the whole plan.",
            );
        }
    }
    for (index, number) in config.elements(GROUPS).iter().enumerate() {
        let Some(number) = number.as_number() else {
            continue;
        };
        let most = u64::try_from(validate::MAX_PLAN_GROUPS).unwrap_or(u64::MAX);
        if !number
            .as_u64()
            .is_some_and(|number| (1..=most).contains(&number))
        {
            report.push_error(
                AttributePath::new(GROUPS).index(index),
                "Not the number of a group",
                format!("Groups are numbered from 1 to {most}, in the order in which they boot."),
            );
        }
    }
    for (index, id) in config.elements(MEMBERS).iter().enumerate() {
        let Some(Err(error)) = id.as_str().map(ProtectedItemId::parse) else {
            continue;
        };
        report.push_error(
            AttributePath::new(MEMBERS).index(index),
            "Not the id of a protected VM",
            format!("{error}."),
        );
    }
}

/// Whether it is about a plan.
pub(super) fn is_plan(config: &Object) -> bool {
    config.is_null(VM)
}

/// Id of the VM or the plan.
pub(super) fn subject(config: &Object) -> Result<ArmId, Diagnostics> {
    let name = if is_plan(config) { PLAN } else { VM };
    ArmId::parse(config.require_str(name)?)
        .map_err(|error| Diagnostics::error_at(name, "Not an ARM id", format!("{error}.")))
}

/// Puts the part of a plan into the body of a request.
pub(super) fn set_part(config: &Object, body: &mut Json) {
    let groups: Vec<u64> = config
        .elements(GROUPS)
        .iter()
        .filter_map(|number| number.as_number()?.as_u64())
        .collect();
    if !groups.is_empty() {
        body["properties"]["groupIds"] = json!(groups);
    }
    let members = config.strings(MEMBERS);
    if !members.is_empty() {
        body["properties"]["protectedItemIds"] = json!(members);
    }
}

/// The body of a request.
pub(super) fn properties(body: &impl Serialize) -> Result<Json, Diagnostics> {
    match serde_json::to_value(body) {
        Ok(body) => Ok(json!({ "properties": body })),
        Err(error) => Err(Diagnostics::error(
            "The request can't be written",
            format!("{error}."),
        )),
    }
}

#[cfg(test)]
mod tests {
    use tf_provider::Value;

    use super::*;

    #[test]
    fn a_part_is_of_a_plan_and_has_something_in_it() {
        let problems = |config: &Object| {
            let mut report = Diagnostics::new();
            check_part(config, &mut report);
            let paths = report.iter().map(|d| d.attribute.to_string());
            paths.collect::<Vec<_>>()
        };
        let plan = Object::new().with(PLAN, "p");
        assert!(problems(&plan).is_empty());
        let whole = plan.clone().with(GROUPS, Value::list([1_u32, 7]));
        assert!(problems(&whole).is_empty());
        let far = plan.clone().with(GROUPS, Value::list([1_u32, 0, 8]));
        assert_eq!(problems(&far), ["group_ids[1]", "group_ids[2]"]);
        let none = plan
            .clone()
            .with(MEMBERS, Value::list(Vec::<String>::new()));
        assert_eq!(problems(&none), [MEMBERS]);
        let other = plan.with(MEMBERS, Value::list(["x"]));
        assert_eq!(problems(&other), ["protected_vm_ids[0]"]);
        let vm = Object::new()
            .with(VM, "v")
            .with(GROUPS, Value::list([1_u32]));
        assert_eq!(problems(&vm), [GROUPS]);
    }
}

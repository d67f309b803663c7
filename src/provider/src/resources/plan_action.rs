//! Actions of a recovery plan in Terraform's words, which are those of `azurerm_site_recovery_replication_recovery_plan`
//! where it has them.

use std::collections::HashMap;

use arm_model::plan_action::{
    ActionDetails, CONSOLE, DELAY, GUEST_AGENT, MANUAL, PORT, PRIMARY, PlanAction, READINESS,
    RECOVERY, RUNS_ON, SCRIPT, WEBHOOK,
};
use arm_model::recovery_plan::{PlanGroup, action_problems};
use tf_provider::schema::Block;
use tf_provider::{Attribute, AttributePath, Diagnostics, NestedBlock, Object, Type, Value};

/// Blocks of a group, in the order of the lists of the service.
const LISTS: [&str; 2] = ["pre_action", "post_action"];

/// Attribute by property of an action.
const NAMES: [(&str, &str); 12] = [
    ("actionName", "name"),
    ("failoverTypes", "fail_over_types"),
    ("failoverDirections", "fail_over_directions"),
    ("customDetails.instanceType", "type"),
    ("customDetails.description", "manual_action_instruction"),
    ("customDetails.path", "script_path"),
    ("customDetails.fabricLocation", "fabric_location"),
    ("customDetails.hostId", "host_id"),
    ("customDetails.url", "webhook_url"),
    ("customDetails.check", "readiness_check"),
    ("customDetails.port", "readiness_port"),
    ("customDetails.timeout", "timeout"),
];

/// Adds the blocks of the actions to a group's block.
pub(super) fn add_blocks(group: Block) -> Block {
    let [before, after] = LISTS;
    group
        .block(before, NestedBlock::list(block("before the group")))
        .block(after, NestedBlock::list(block("after the group")))
}

fn block(when: &str) -> Block {
    let text = || Attribute::string().optional();
    let sensitive = text().sensitive();
    Block::new()
        .describe(format!("What is done {when}, in the order it is written. A failed action ends the job; in an unplanned failover the rest goes on."))
        .attribute("name", Attribute::string().required().describe("Name, the only one of its kind in the plan."))
        .attribute("type", Attribute::string().required().one_of(&[MANUAL, SCRIPT, WEBHOOK, READINESS]).describe(format!(
            "`{MANUAL}`: the job waits until a person goes on with it. `{SCRIPT}`: runs a script. `{WEBHOOK}`: posts the plan's context. `{READINESS}`: the next group waits."
        )))
        .attribute("fail_over_types", Attribute::set(Type::String).required().describe(format!("When it is done: some of `{}`.", RUNS_ON.join("`, `"))))
        .attribute("fail_over_directions", Attribute::set(Type::String).required().describe("`PrimaryToRecovery`, `RecoveryToPrimary` (failback) or both."))
        .attribute("manual_action_instruction", text().describe("Manual action: what the person is to do."))
        .attribute("script_path", text().describe("Script: file inside the scripts folder of the machine that runs it, such as `web/check.sh`. Exit code 0 is success."))
        .attribute("fabric_location", text().one_of(&[PRIMARY, RECOVERY]).describe("Script: the side that it is for, told to it."))
        .attribute("host_id", text().describe("Script: id of the registered host that runs it. Without it the orchestrator does."))
        .attribute("idempotent", Attribute::bool().optional().describe("Script: it may run again when it is not known how it ended, because the machine died."))
        .attribute("webhook_url", sensitive.describe("Webhook: `https://` URL that takes the POST. The header `Idempotency-Key` tells a repetition."))
        .attribute("readiness_check", text().one_of(&[CONSOLE, GUEST_AGENT, PORT, DELAY]).describe(format!("Readiness check of every VM of the group: `{CONSOLE}` (it has written to its console), `{GUEST_AGENT}` (its guest agent answers), `{PORT}` (the TCP port `readiness_port` takes connections) or `{DELAY}` (`timeout` goes by).")))
        .attribute("readiness_port", Attribute::number().optional().describe(format!("Readiness check `{PORT}`: number of the TCP port.")))
        .attribute("timeout", text().describe("Time limit, or the length of a delay: `hh:mm:ss`, `PT10M` or seconds. 10 minutes when not set."))
}

fn attribute_of(field: &str) -> &'static str {
    let found = NAMES.iter().find(|(property, _)| *property == field);
    found.map_or("name", |(_, attribute)| attribute)
}

/// The actions of a group's block: (before, after).
pub(super) fn actions(group: &Object) -> (Vec<PlanAction>, Vec<PlanAction>) {
    let list = |name: &str| group.objects(name).into_iter().map(action).collect();
    let [before, after] = LISTS;
    (list(before), list(after))
}

fn action(block: &Object) -> PlanAction {
    let text = |name: &str| block.str(name).map(str::to_owned);
    PlanAction {
        action_name: block.string("name"),
        failover_types: block.strings("fail_over_types"),
        failover_directions: block.strings("fail_over_directions"),
        custom_details: ActionDetails {
            instance_type: block.string("type"),
            description: text("manual_action_instruction"),
            path: text("script_path"),
            timeout: text("timeout"),
            fabric_location: text("fabric_location"),
            host_id: text("host_id"),
            idempotent: block.bool("idempotent"),
            url: text("webhook_url"),
            check: text("readiness_check"),
            // A number that is no port is refused as 0 is.
            port: block
                .i64("readiness_port")
                .map(|port| u32::try_from(port).unwrap_or_default()),
            ..ActionDetails::default()
        },
        ..PlanAction::default()
    }
}

/// Sets the blocks of a group from what the service says.
pub(super) fn fill(group: &PlanGroup, block: &mut Object) {
    let lists = [&group.start_group_actions, &group.end_group_actions];
    for (name, actions) in LISTS.into_iter().zip(lists) {
        block.set(name, Value::list(actions.iter().map(object)));
    }
}

fn object(action: &PlanAction) -> Object {
    let details = &action.custom_details;
    Object::new()
        .with("name", action.action_name.as_str())
        .with("type", details.instance_type.as_str())
        .with("fail_over_types", Value::set(action.failover_types.clone()))
        .with(
            "fail_over_directions",
            Value::set(action.failover_directions.clone()),
        )
        .with("manual_action_instruction", details.description.clone())
        .with("script_path", details.path.clone())
        .with("fabric_location", details.fabric_location.clone())
        .with("host_id", details.host_id.clone())
        .with("idempotent", details.idempotent)
        .with("webhook_url", details.url.clone())
        .with("readiness_check", details.check.clone())
        .with("readiness_port", details.port.map(i64::from))
        .with("timeout", details.timeout.clone())
}

/// Checks the actions of all groups, each at its attribute. What is not known yet is checked when it is.
pub(super) fn check(groups: &[(AttributePath, &Object)], report: &mut Diagnostics) {
    let mut plan = Vec::new();
    let mut unknown: HashMap<(usize, bool, usize), &Object> = HashMap::new();
    for (number, (_, group)) in groups.iter().enumerate() {
        let (start_group_actions, end_group_actions) = actions(group);
        for (after, name) in LISTS.iter().enumerate() {
            for (index, block) in group.objects(name).into_iter().enumerate() {
                unknown.insert((number, after == 1, index), block);
            }
        }
        let is_boot = !group.get("protected_vm_ids").is_null();
        plan.push(PlanGroup {
            group_type: if is_boot { "Boot" } else { "Failover" }.to_owned(),
            start_group_actions,
            end_group_actions,
            ..PlanGroup::default()
        });
    }
    for problem in action_problems(&plan) {
        let attribute = attribute_of(problem.field);
        let block = unknown.get(&(problem.group, problem.after, problem.action));
        let is_open = |name: &str| block.is_some_and(|block| block.is_unknown(name));
        // Which rules hold depends on the type.
        if is_open(attribute) || is_open("type") {
            continue;
        }
        let Some((path, _)) = groups.get(problem.group) else {
            continue;
        };
        let [before, after] = LISTS;
        let list = if problem.after { after } else { before };
        let path = path.clone().attribute(list).index(problem.action);
        report.push_error(
            path.attribute(attribute),
            "An action that can't be carried out",
            format!("{}\nWhat to do: {}", problem.message, problem.advice),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manual(name: &str, text: Option<&str>) -> Object {
        Object::new()
            .with("name", name)
            .with("type", MANUAL)
            .with("fail_over_types", Value::set(["PlannedFailover"]))
            .with("fail_over_directions", Value::set(["PrimaryToRecovery"]))
            .with("manual_action_instruction", text)
    }

    fn problems(before: Vec<Object>, after: Vec<Object>) -> Vec<String> {
        let group = Object::new()
            .with("protected_vm_ids", Value::list(["x"]))
            .with("pre_action", Value::list(before))
            .with("post_action", Value::list(after));
        let mut report = Diagnostics::new();
        let path = AttributePath::new("boot_group").index(0);
        check(&[(path, &group)], &mut report);
        report.iter().map(|d| d.attribute.to_string()).collect()
    }

    #[test]
    fn a_bad_action_is_pointed_at_by_its_attribute() {
        let fine = manual("a", Some("look"));
        assert!(problems(vec![fine.clone()], vec![]).is_empty());
        assert_eq!(
            problems(vec![fine.clone()], vec![manual("b", None)]),
            ["boot_group[0].post_action[0].manual_action_instruction"]
        );
        assert_eq!(
            problems(vec![fine.clone()], vec![fine]),
            ["boot_group[0].post_action[0].name"]
        );
        let open = manual("b", None).with("manual_action_instruction", Value::unknown());
        assert!(problems(vec![open], vec![]).is_empty());
    }

    #[test]
    fn what_the_service_says_becomes_the_same_blocks() {
        let mut block = Object::new();
        let said = PlanGroup {
            start_group_actions: vec![action(&manual("a", Some("look")))],
            ..PlanGroup::default()
        };
        fill(&said, &mut block);
        assert_eq!(actions(&block).0, said.start_group_actions);
        assert_eq!(block.elements("post_action").len(), 0);
    }
}

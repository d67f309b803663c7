//! `siterecovery_recovery_plan`: which VMs are recovered together, and in what order they boot.

use std::collections::HashMap;

use arm_client::Method;
use arm_model::protected_item::ProtectedItemProperties;
use arm_model::recovery_plan::{BOOT, PlanGroup, PlanProperties};
use arm_model::{
    FabricId, MICROSOFT_AZURE, PlanId, ProtectedItemId, Resource as Answer, VaultId, validate,
};
use async_trait::async_trait;
use serde_json::{Value as Json, json};
use tf_provider::schema::Block;
use tf_provider::{
    Attribute, AttributePath, Change, Context, Diagnostics, IdentitySchema, ImportKey, NestedBlock,
    Object, Presence, Resource, ResourceState, Schema, Type, Value,
};

use super::association::same_vault;
use super::plan_action;
use super::site::{parse_vault_id, vault_id};
use crate::Session;
use crate::errors::Fields;
use crate::plain::{identity, import_stub, stored_id};
use crate::remote::Remote;
use crate::{fields, timeouts};

const WHAT: &str = "recovery plan";
const FIELDS: Fields = &[
    ("name", "name"),
    ("primaryFabricId", "hyperv_site_id"),
    ("groups", "boot_group"),
    ("startGroupActions", "boot_group"),
    ("endGroupActions", "boot_group"),
    ("replicationProtectedItems", "boot_group"),
];
const MEMBERS: &str = "protected_vm_ids";
/// Blocks and types of the groups without VMs.
const WHOLE: [(&str, &str); 2] = [
    ("shutdown_group", "Shutdown"),
    ("failover_group", "Failover"),
];

/// The resource.
pub(crate) struct RecoveryPlan;

#[async_trait]
impl Resource<Session> for RecoveryPlan {
    fn type_name(&self) -> &str {
        "siterecovery_recovery_plan"
    }

    fn schema(&self) -> Schema {
        let group = Block::new()
            .describe(format!(
                "VMs that boot together. Groups boot in the order they are written, the next when the one before has booted. 1 to {} groups.",
                validate::MAX_PLAN_GROUPS
            ))
            .attribute(
                MEMBERS,
                Attribute::list(Type::String).required().describe("Ids of the protected VMs of this group."),
            );
        let whole = |what: &str| {
            let block = Block::new().describe(format!("Actions around {what} of all VMs."));
            NestedBlock::list(plan_action::add_blocks(block)).items(0, 1)
        };
        let most = i64::try_from(validate::MAX_PLAN_GROUPS).unwrap_or(i64::MAX);
        Schema::new()
            .describe("A recovery plan: protected VMs that are recovered together, group by group.")
            .attribute("name", fields::name("plan", validate::resource_name))
            .attribute("recovery_vault_id", vault_id())
            .attribute(
                "hyperv_site_id",
                fields::arm_id::<FabricId>("a Hyper-V site")
                    .required()
                    .requires_replace()
                    .describe("Id of the site that the VMs are protected from. Changing it makes a new plan."),
            )
            .attribute("id", fields::id())
            .attribute("timeouts", timeouts::attribute(timeouts::QUICK))
            .block("boot_group", NestedBlock::list(plan_action::add_blocks(group)).items(1, most))
            .block(WHOLE[0].0, whole("the shutdown"))
            .block(WHOLE[1].0, whole("the failover"))
    }

    fn identity(&self) -> Option<IdentitySchema> {
        Some(identity())
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        same_vault(config, "recovery_vault_id", "hyperv_site_id", report);
        check_groups(config, report);
        plan_action::check(&all_groups(config), report);
    }

    async fn create(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let limit = timeouts::of(&change.planned, "create", timeouts::QUICK.create);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id = parse_vault_id(&change.planned)?.plan(change.planned.require_str("name")?);
        remote.must_not_exist(id.as_str(), "name").await?;
        let body = json!({ "properties": {
            "primaryFabricId": change.planned.string("hyperv_site_id"),
            "recoveryFabricId": MICROSOFT_AZURE,
            "failoverDeploymentModel": "ResourceManager",
            "groups": groups(&remote, &change.planned).await?,
        } });
        let answer: Answer<PlanProperties> = remote.create(state, id.as_str(), &body).await?;
        fill(&id, &answer, &mut state.value);
        fields::keep_planned(&change.planned, &mut state.value);
        Ok(())
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        state: &mut ResourceState,
    ) -> Result<Presence, Diagnostics> {
        let limit = timeouts::of(&state.value, "read", timeouts::QUICK.read);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: PlanId = stored_id(&state.value)?;
        match remote.find::<Answer<PlanProperties>>(id.as_str()).await? {
            Some(answer) => {
                fill(&id, &answer, &mut state.value);
                Ok(Presence::Present)
            }
            None => Ok(Presence::Gone),
        }
    }

    async fn update(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let blocks = ["boot_group", WHOLE[0].0, WHOLE[1].0];
        if !blocks.iter().any(|name| change.changed(name)) {
            return Ok(());
        }
        let limit = timeouts::of(&change.planned, "update", timeouts::QUICK.update);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: PlanId = stored_id(&state.value)?;
        let body = json!({ "properties": { "groups": groups(&remote, &change.planned).await? } });
        let answer: Answer<PlanProperties> =
            remote.update(Method::Patch, id.as_str(), &body).await?;
        fill(&id, &answer, &mut state.value);
        fields::keep_planned(&change.planned, &mut state.value);
        Ok(())
    }

    async fn delete(&self, cx: &Context<Session>, change: &Change) -> Result<(), Diagnostics> {
        let prior = change.prior.clone().unwrap_or_default();
        let limit = timeouts::of(&prior, "delete", timeouts::QUICK.delete);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: PlanId = stored_id(&prior)?;
        remote.remove(Method::Delete, id.as_str(), None).await
    }

    async fn import(
        &self,
        _cx: &Context<Session>,
        key: &ImportKey,
    ) -> Result<ResourceState, Diagnostics> {
        import_stub::<PlanId>(WHAT, key)
    }
}

fn member(group: usize, index: usize) -> AttributePath {
    AttributePath::new("boot_group")
        .index(group)
        .attribute(MEMBERS)
        .index(index)
}

/// Every group with its place.
fn all_groups(config: &Object) -> Vec<(AttributePath, &Object)> {
    let names = WHOLE.map(|(name, _)| name);
    let names = names.into_iter().chain(["boot_group"]);
    let groups = names.flat_map(|name| {
        let blocks = config.elements(name).iter().enumerate();
        blocks.map(move |(index, block)| (AttributePath::new(name).index(index), block))
    });
    groups
        .filter_map(|(path, block)| block.as_object().map(|block| (path, block)))
        .collect()
}

fn check_groups(config: &Object, report: &mut Diagnostics) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (group, block) in config.elements("boot_group").iter().enumerate() {
        let Some(block) = block.as_object() else {
            continue;
        };
        if block
            .get(MEMBERS)
            .as_elements()
            .is_some_and(<[_]>::is_empty)
        {
            let path = AttributePath::new("boot_group")
                .index(group)
                .attribute(MEMBERS);
            report.push_error(
                path,
                "A group without VMs",
                "Name at least one protected VM, or leave the group out.",
            );
        }
        for (index, text) in block.elements(MEMBERS).iter().enumerate() {
            let Some(text) = text.as_str() else { continue };
            match ProtectedItemId::parse(text) {
                Err(error) => {
                    report.push_error(
                        member(group, index),
                        "Not the id of a protected VM",
                        format!("{error}."),
                    );
                }
                Ok(id) => {
                    if let Some(first) = seen.insert(id.key(), group) {
                        report.push_error(
                            member(group, index),
                            "A VM is in the plan twice",
                            format!(
                                "{:?} is in group {} already; a VM boots once.",
                                id.name(),
                                first + 1
                            ),
                        );
                    }
                }
            }
        }
    }
    if seen.len() > validate::MAX_PLAN_ITEMS {
        report.push_error(
            "boot_group",
            "Too many VMs in one plan",
            format!(
                "A plan holds at most {} VMs, this one has {}.",
                validate::MAX_PLAN_ITEMS,
                seen.len()
            ),
        );
    }
}

/// The groups as the service wants them: each VM with its id on the host.
async fn groups(remote: &Remote<'_>, planned: &Object) -> Result<Vec<Json>, Diagnostics> {
    let mut groups = Vec::new();
    for (name, kind) in WHOLE {
        // One that is not written any more loses its actions.
        let block = planned.objects(name).first().map(|block| (*block).clone());
        let (before, after) = plan_action::actions(&block.unwrap_or_default());
        groups.push(json!({
            "groupType": kind,
            "replicationProtectedItems": [],
            "startGroupActions": before,
            "endGroupActions": after,
        }));
    }
    for (group, block) in planned.objects("boot_group").into_iter().enumerate() {
        let mut items = Vec::new();
        for (index, id) in block.strings(MEMBERS).into_iter().enumerate() {
            let Some(item) = remote.find::<Answer<ProtectedItemProperties>>(&id).await? else {
                return Err(Diagnostics::error_at(
                    member(group, index),
                    "There is no such protected VM",
                    format!(
                        "Nothing has the id {id}.\nWhat to do: use the id of a siterecovery_protected_vm."
                    ),
                ));
            };
            let vm = item.properties.provider_specific_details.vm_id;
            items.push(json!({ "id": id, "virtualMachineId": vm }));
        }
        let (before, after) = plan_action::actions(block);
        groups.push(json!({
            "groupType": BOOT,
            "replicationProtectedItems": items,
            "startGroupActions": before,
            "endGroupActions": after,
        }));
    }
    Ok(groups)
}

fn fill(id: &PlanId, answer: &Answer<PlanProperties>, object: &mut Object) {
    object.set("name", id.name());
    object.set(
        "recovery_vault_id",
        VaultId::of(id).map(|vault| vault.to_string()),
    );
    object.set(
        "hyperv_site_id",
        answer.properties.primary_fabric_id.as_str(),
    );
    let before: Vec<Vec<String>> = object
        .objects("boot_group")
        .iter()
        .map(|group| group.strings(MEMBERS))
        .collect();
    let boots = answer
        .properties
        .groups
        .iter()
        .filter(|group| group.group_type == BOOT);
    let groups = boots.enumerate().map(|(index, group)| {
        let ids = group.replication_protected_items.iter().map(|item| {
            // Elements of a list have no plan modifiers: the spelling that the user knows is kept here.
            let known = before
                .get(index)
                .and_then(|ids| ids.iter().find(|id| id.eq_ignore_ascii_case(&item.id)));
            known.cloned().unwrap_or_else(|| item.id.clone())
        });
        let mut block = Object::new().with(MEMBERS, Value::list(ids));
        plan_action::fill(group, &mut block);
        block
    });
    object.set("boot_group", Value::list(groups));
    for (name, kind) in WHOLE {
        let is_it = |group: &&PlanGroup| {
            let is_empty =
                group.start_group_actions.is_empty() && group.end_group_actions.is_empty();
            group.group_type == kind && !is_empty
        };
        let groups = answer.properties.groups.iter().filter(is_it);
        let blocks = groups.map(|group| {
            let mut block = Object::new();
            plan_action::fill(group, &mut block);
            block
        });
        object.set(name, Value::list(blocks));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEM: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v/replicationFabrics/f/replicationProtectionContainers/c/replicationProtectedItems/";

    fn plan(groups: &[&[&str]]) -> Object {
        let blocks = groups.iter().map(|ids| {
            let none = || Value::list(Vec::<Object>::new());
            Object::new()
                .with(
                    MEMBERS,
                    Value::list(ids.iter().map(|id| format!("{ITEM}{id}"))),
                )
                .with("pre_action", none())
                .with("post_action", none())
        });
        Object::new().with("boot_group", Value::list(blocks))
    }

    fn problems(config: &Object) -> Vec<String> {
        let mut report = Diagnostics::new();
        check_groups(config, &mut report);
        report.iter().map(|d| d.attribute.to_string()).collect()
    }

    #[test]
    fn a_vm_in_two_groups_is_pointed_at() {
        assert!(problems(&plan(&[&["a"], &["b"]])).is_empty());
        assert_eq!(
            problems(&plan(&[&["a"], &["b", "A"]])),
            ["boot_group[1].protected_vm_ids[1]"]
        );
    }

    #[test]
    fn an_empty_group_and_an_id_of_another_kind_are_pointed_at() {
        assert_eq!(problems(&plan(&[&[]])), ["boot_group[0].protected_vm_ids"]);
        let wrong = Object::new().with(MEMBERS, vec!["/subscriptions/s/resourceGroups/g"]);
        let config = Object::new().with("boot_group", Value::list([wrong]));
        assert_eq!(problems(&config), ["boot_group[0].protected_vm_ids[0]"]);
    }

    #[test]
    fn groups_keep_their_order_and_the_users_spelling() {
        let mut object = plan(&[&["B"], &["a"]]);
        let id = VaultId::new("s", "g", "v").plan("p");
        let item = |name: &str| json!({ "id": format!("{ITEM}{name}"), "virtualMachineId": name });
        let answer: Answer<PlanProperties> = serde_json::from_value(json!({ "properties": {
            "friendlyName": "p", "primaryFabricId": "/f",
            "groups": [
                { "groupType": "Shutdown" }, { "groupType": "Failover" },
                { "groupType": "Boot", "replicationProtectedItems": [item("b")] },
                { "groupType": "Boot", "replicationProtectedItems": [item("a")] },
            ] } }))
        .unwrap();
        let before = object.get("boot_group").clone();
        fill(&id, &answer, &mut object);
        assert_eq!(object.get("boot_group"), &before);
    }
}

//! `siterecovery_replication_policy_association`: lets the VMs of a site use a policy.

use arm_client::Method;
use arm_model::container::MappingProperties;
use arm_model::{FabricId, MICROSOFT_AZURE, MappingId, PolicyId, Resource as Answer, validate};
use async_trait::async_trait;
use serde_json::json;
use tf_provider::{
    Change, Context, Diagnostics, IdentitySchema, ImportKey, Object, Presence, Resource,
    ResourceState, Schema,
};

use super::container_of;
use crate::Session;
use crate::errors::Fields;
use crate::plain::{identity, import_stub, stored_id};
use crate::remote::Remote;
use crate::{fields, timeouts};

const WHAT: &str = "policy association";
const FIELDS: Fields = &[("name", "name"), ("policyId", "policy_id")];

/// The resource.
pub(crate) struct Association;

#[async_trait]
impl Resource<Session> for Association {
    fn type_name(&self) -> &str {
        "siterecovery_replication_policy_association"
    }

    fn schema(&self) -> Schema {
        Schema::new()
            .describe(
                "Associates a replication policy with a Hyper-V site, so that the site's VMs can be protected by it. The site \
                 must have a host (`depends_on` it): without one there is nothing yet to associate with.",
            )
            .attribute("name", fields::name("association", validate::resource_name))
            .attribute(
                "hyperv_site_id",
                fields::arm_id::<FabricId>("a Hyper-V site")
                    .required()
                    .requires_replace()
                    .describe("Id of the site. Changing it makes a new association."),
            )
            .attribute(
                "policy_id",
                fields::arm_id::<PolicyId>("a replication policy")
                    .required()
                    .requires_replace()
                    .describe("Id of the policy. Changing it makes a new association."),
            )
            .attribute("id", fields::id())
            .attribute("timeouts", timeouts::attribute(timeouts::QUICK))
    }

    fn identity(&self) -> Option<IdentitySchema> {
        Some(identity())
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        same_vault(config, "hyperv_site_id", "policy_id", report);
    }

    async fn create(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let limit = timeouts::of(&change.planned, "create", timeouts::QUICK.create);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let site = site_id(&change.planned)?;
        let container = container_of(&remote, &site).await?;
        let id = container
            .mapping(change.planned.require_str("name")?)
            .to_string();
        remote.must_not_exist(&id, "name").await?;
        let body = json!({ "properties": {
            "policyId": change.planned.string("policy_id"),
            "targetProtectionContainerId": MICROSOFT_AZURE,
            "providerSpecificInput": {
                "instanceType": "ReplicationProviderSpecificContainerMappingInput",
            },
        } });
        let answer: Answer<MappingProperties> = remote.create(state, &id, &body).await?;
        fill(&stored_id(&state.value)?, &answer, &mut state.value);
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
        let id: MappingId = stored_id(&state.value)?;
        match remote
            .find::<Answer<MappingProperties>>(id.as_str())
            .await?
        {
            Some(answer) => {
                fill(&id, &answer, &mut state.value);
                Ok(Presence::Present)
            }
            None => Ok(Presence::Gone),
        }
    }

    async fn update(
        &self,
        _cx: &Context<Session>,
        _change: &Change,
        _state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        // Only `timeouts` changes in place, and the service doesn't know of it.
        Ok(())
    }

    async fn delete(&self, cx: &Context<Session>, change: &Change) -> Result<(), Diagnostics> {
        let prior = change.prior.clone().unwrap_or_default();
        let limit = timeouts::of(&prior, "delete", timeouts::QUICK.delete);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: MappingId = stored_id(&prior)?;
        let body = json!({ "properties": {} });
        remote
            .remove(Method::Post, &format!("{id}/remove"), Some(&body))
            .await
    }

    async fn import(
        &self,
        _cx: &Context<Session>,
        key: &ImportKey,
    ) -> Result<ResourceState, Diagnostics> {
        import_stub::<MappingId>(WHAT, key)
    }
}

fn fill(id: &MappingId, answer: &Answer<MappingProperties>, object: &mut Object) {
    object.set("name", id.name());
    object.set(
        "hyperv_site_id",
        FabricId::of(id).map(|site| site.to_string()),
    );
    object.set("policy_id", answer.properties.policy_id.as_str());
}

/// The site of an object.
pub(crate) fn site_id(object: &Object) -> Result<FabricId, Diagnostics> {
    FabricId::parse(object.require_str("hyperv_site_id")?).map_err(|error| {
        Diagnostics::error_at(
            "hyperv_site_id",
            "Not the id of a Hyper-V site",
            format!("{error}."),
        )
    })
}

/// Two ids that must lie in one vault; the second is pointed at when they don't.
pub(crate) fn same_vault(config: &Object, first: &str, second: &str, report: &mut Diagnostics) {
    let vault = |name: &str| {
        let id = arm_model::ArmId::parse(config.str(name)?).ok()?;
        arm_model::VaultId::of(&id)
    };
    if let (Some(left), Some(right)) = (vault(first), vault(second))
        && left != right
    {
        report.push_error(
            second,
            "Two vaults",
            format!(
                "{first} lies in vault {:?}, {second} in vault {:?}; both must lie in one vault.",
                left.name(),
                right.name()
            ),
        );
    }
}

//! `siterecovery_network_mapping`: the virtual network that VMs of one virtual switch are connected to after a failover.

use std::time::{Duration, Instant};

use arm_client::Method;
use arm_model::network::{NetworkMappingProperties, NetworkProperties, VMM_TO_AZURE};
use arm_model::{
    FabricId, MICROSOFT_AZURE, NetworkId, NetworkMappingId, Resource as Answer, VirtualNetworkId,
    validate,
};
use async_trait::async_trait;
use serde_json::{Value as Json, json};
use tf_provider::{
    Attribute, Change, Context, Diagnostics, IdentitySchema, ImportKey, Object, Presence, Resource,
    ResourceState, Schema,
};

use super::association::site_id;
use crate::Session;
use crate::errors::Fields;
use crate::plain::{identity, import_stub, stored_id};
use crate::remote::Remote;
use crate::{fields, timeouts};

const WHAT: &str = "network mapping";
const FIELDS: Fields = &[("name", "name"), ("recoveryNetworkId", "target_network_id")];
const SOURCE: &str = "source_network_name";

/// How often a host is asked again for its networks, and how long at most: they come with its first report.
const POLL: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);

/// The resource.
pub(crate) struct NetworkMapping;

#[async_trait]
impl Resource<Session> for NetworkMapping {
    fn type_name(&self) -> &str {
        "siterecovery_network_mapping"
    }

    fn schema(&self) -> Schema {
        Schema::new()
            .describe(
                "Maps a virtual switch of a Hyper-V site to a virtual network. A VM whose primary adapter is connected to the \
                 switch, and that has no `target_network_id` of its own, belongs to that network after a failover; VMs that are \
                 protected already follow a change at once. The site must have a host (`depends_on` it): its VMs tell which \
                 switches there are.",
            )
            .attribute("name", fields::name("network mapping", validate::resource_name))
            .attribute(
                "hyperv_site_id",
                fields::arm_id::<FabricId>("a Hyper-V site")
                    .required()
                    .requires_replace()
                    .describe("Id of the site. Changing it makes a new mapping."),
            )
            .attribute(
                SOURCE,
                Attribute::string()
                    .required()
                    .requires_replace()
                    .describe(
                        "Name of the virtual switch, in any case. Changing it makes a new mapping; a switch has one at most.",
                    ),
            )
            .attribute(
                "target_network_id",
                fields::arm_id::<VirtualNetworkId>("a virtual network")
                    .required()
                    .describe("Id of the virtual network, in the vault's region."),
            )
            .attribute("id", fields::id())
            .attribute("timeouts", timeouts::attribute(timeouts::QUICK))
    }

    fn identity(&self) -> Option<IdentitySchema> {
        Some(identity())
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
        let switch = change.planned.require_str(SOURCE)?;
        let network = network_of(&remote, &site, switch).await?;
        let id = network
            .mapping(change.planned.require_str("name")?)
            .to_string();
        remote.must_not_exist(&id, "name").await?;
        let answer = remote.create(state, &id, &body(&change.planned)).await?;
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
        let id: NetworkMappingId = stored_id(&state.value)?;
        match remote.find(id.as_str()).await? {
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
        if !change.changed("target_network_id") {
            return Ok(());
        }
        let limit = timeouts::of(&change.planned, "update", timeouts::QUICK.update);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: NetworkMappingId = stored_id(&state.value)?;
        let body = body(&change.planned);
        let answer = remote.update(Method::Patch, id.as_str(), &body).await?;
        fill(&id, &answer, &mut state.value);
        fields::keep_planned(&change.planned, &mut state.value);
        Ok(())
    }

    async fn delete(&self, cx: &Context<Session>, change: &Change) -> Result<(), Diagnostics> {
        let prior = change.prior.clone().unwrap_or_default();
        let limit = timeouts::of(&prior, "delete", timeouts::QUICK.delete);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: NetworkMappingId = stored_id(&prior)?;
        remote.remove(Method::Delete, id.as_str(), None).await
    }

    async fn import(
        &self,
        _cx: &Context<Session>,
        key: &ImportKey,
    ) -> Result<ResourceState, Diagnostics> {
        import_stub::<NetworkMappingId>(WHAT, key)
    }
}

fn body(object: &Object) -> Json {
    json!({ "properties": {
        "recoveryFabricName": MICROSOFT_AZURE,
        "recoveryNetworkId": object.str("target_network_id"),
        "fabricSpecificDetails": { "instanceType": VMM_TO_AZURE },
    } })
}

fn fill(id: &NetworkMappingId, answer: &Answer<NetworkMappingProperties>, object: &mut Object) {
    let properties = &answer.properties;
    object.set("name", id.name());
    object.set(
        "hyperv_site_id",
        FabricId::of(id).map(|site| site.to_string()),
    );
    // The switch keeps the case that the configuration gives it.
    let is_same = object.str(SOURCE).is_some_and(|known| {
        known.to_lowercase() == properties.primary_network_friendly_name.to_lowercase()
    });
    if !is_same {
        object.set(SOURCE, properties.primary_network_friendly_name.as_str());
    }
    object.set("target_network_id", properties.recovery_network_id.as_str());
}

/// The site's network of that name.
async fn network_of(
    remote: &Remote<'_>,
    site: &FabricId,
    switch: &str,
) -> Result<NetworkId, Diagnostics> {
    let until = Instant::now() + remote.limit().min(MOST);
    let path = format!("{site}/replicationNetworks");
    loop {
        let found: Vec<Answer<NetworkProperties>> = remote.list(&path).await?;
        let is_it = |network: &&Answer<NetworkProperties>| {
            network.properties.friendly_name.to_lowercase() == switch.to_lowercase()
        };
        if let Some(network) = found.iter().find(is_it) {
            return NetworkId::parse(&network.id).map_err(|error| {
                Diagnostics::error(
                    "The site's network has an id that can't be read",
                    format!("{error}."),
                )
            });
        }
        if Instant::now() >= until {
            let names: Vec<&str> = found
                .iter()
                .map(|network| network.properties.friendly_name.as_str())
                .collect();
            let known = if names.is_empty() {
                "none: no host of the site has told of a VM with a network adapter".to_owned()
            } else {
                names.join(", ")
            };
            return Err(Diagnostics::error_at(
                SOURCE,
                "There is no such virtual switch",
                format!(
                    "No VM of site {:?} is connected to a virtual switch named {switch:?}. Known are {known}.\nWhat to do: give \
                     the name of a switch as the hosts show it, and let this resource depend on the site's hosts (depends_on).",
                    site.name()
                ),
            ));
        }
        remote.pause(POLL).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_keeps_the_case_of_the_configuration_and_another_one_shows() {
        let site = FabricId::parse("/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v/replicationFabrics/f")
            .expect("id");
        let id = site.network("n").mapping("m");
        let properties = NetworkMappingProperties {
            primary_network_friendly_name: "LAN".to_owned(),
            ..NetworkMappingProperties::default()
        };
        let answer = Answer::answer(&id, properties);
        let mut object = Object::new().with(SOURCE, "lan");
        fill(&id, &answer, &mut object);
        assert_eq!(object.str(SOURCE), Some("lan"));
        object.set(SOURCE, "backup");
        fill(&id, &answer, &mut object);
        assert_eq!(object.str(SOURCE), Some("LAN"));
    }
}

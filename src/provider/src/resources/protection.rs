//! What several resources ask of a site: its container, its VMs.

use std::time::{Duration, Instant};

use arm_model::container::ContainerProperties;
use arm_model::protectable_item::ProtectableItemProperties;
use arm_model::services_provider::{CONNECTED, ServicesProviderProperties};
use arm_model::{ContainerId, FabricId, Resource as Answer};
use tf_provider::Diagnostics;

use crate::remote::Remote;

const POLL: Duration = Duration::from_secs(1);
/// How long a connected host may take to tell of a VM.
const GRACE: Duration = Duration::from_secs(10);

/// The container of a site. It appears with the first host: waits for it as long as the operation may take, but not
/// longer than five minutes, because a site without a host never gets one.
pub(crate) async fn container_of(
    remote: &Remote<'_>,
    site: &FabricId,
) -> Result<ContainerId, Diagnostics> {
    let until = Instant::now() + remote.limit().min(Duration::from_secs(300));
    let path = format!("{site}/replicationProtectionContainers");
    loop {
        let found: Vec<Answer<ContainerProperties>> = remote.list(&path).await?;
        if let Some(container) = found.first() {
            return ContainerId::parse(&container.id).map_err(|error| {
                Diagnostics::error(
                    "The site's container has an id that can't be read",
                    format!("{error}."),
                )
            });
        }
        if Instant::now() >= until {
            return Err(Diagnostics::error_at(
                "hyperv_site_id",
                "The site has no host yet",
                format!(
                    "Site {:?} has no protection container: it comes with the first host that registers.\nWhat to do: add a \
                     siterecovery_hyperv_host for this site and let this resource depend on it (depends_on).",
                    site.name()
                ),
            ));
        }
        remote.pause(POLL).await?;
    }
}

/// The VMs of a site, once its hosts have told of them: waits until all `wanted` (names or ids) are there, or, when none
/// are named, until there is any; and at most `limit`. What is there at the end is given back, complete or not.
pub(crate) async fn protectable_items(
    remote: &Remote<'_>,
    site: &FabricId,
    container: &ContainerId,
    wanted: &[String],
    limit: Duration,
) -> Result<Vec<Answer<ProtectableItemProperties>>, Diagnostics> {
    let until = Instant::now() + limit.min(remote.limit());
    let path = format!("{container}/replicationProtectableItems");
    let mut all_spoke: Option<Instant> = None;
    loop {
        let found: Vec<Answer<ProtectableItemProperties>> = remote.list(&path).await?;
        let all_there = wanted
            .iter()
            .all(|name| found.iter().any(|item| is_called(item, name)));
        if (all_there && !found.is_empty()) || Instant::now() >= until {
            return Ok(found);
        }
        if wanted.is_empty() || any_silent_host(remote, site).await? {
            all_spoke = None;
        } else if all_spoke.get_or_insert_with(Instant::now).elapsed() >= GRACE {
            // Every host has reported, and long enough ago for its VMs to be among it: what is missing isn't there.
            return Ok(found);
        }
        remote.pause(POLL).await?;
    }
}

/// Whether a host of the site has not reported yet.
async fn any_silent_host(remote: &Remote<'_>, site: &FabricId) -> Result<bool, Diagnostics> {
    let path = format!("{site}/replicationRecoveryServicesProviders");
    let hosts: Vec<Answer<ServicesProviderProperties>> = remote.list(&path).await?;
    Ok(hosts.is_empty()
        || hosts
            .iter()
            .any(|host| host.properties.connection_status != CONNECTED))
}

/// Whether the VM has this name or id.
pub(crate) fn is_called(item: &Answer<ProtectableItemProperties>, wanted: &str) -> bool {
    item.properties.friendly_name == wanted || item.name.eq_ignore_ascii_case(wanted)
}

/// Names of VMs for an error text.
pub(crate) fn names_of(items: &[Answer<ProtectableItemProperties>]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    let mut names: Vec<&str> = items
        .iter()
        .map(|i| i.properties.friendly_name.as_str())
        .collect();
    names.sort_unstable();
    names.join(", ")
}

//! Protection containers: one per site, there as soon as a host is registered.

use arm_model::container::ContainerProperties;
use arm_model::{ContainerId, FabricId, HYPER_V_SITE, Resource};

use super::entry::{Call, page};
use super::load;
use super::reply::Reply;
use crate::fault::Fault;
use crate::store::records::{self, Fabric, Item, Mapping};

/// GET.
///
/// # Errors
/// 404.
pub async fn get(call: &Call<'_>) -> Result<Reply, Fault> {
    let located = load::container(call).await?;
    Reply::ok(&answer(call, &located.fabric, &located.container).await?)
}

/// `F/replicationProtectionContainers`.
///
/// # Errors
/// 404 without a site.
pub async fn list_of_fabric(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, fabric, stored) = load::fabric(call).await?;
    page(
        of_fabric(call, &fabric, &stored.record)
            .await?
            .into_iter()
            .collect(),
    )
}

/// `V/replicationProtectionContainers`.
///
/// # Errors
/// 404 without a vault.
pub async fn list_of_vault(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let mut answers = Vec::new();
    for stored in
        records::list::<Fabric>(call.app.store.as_ref(), &format!("{}/", vault.key())).await?
    {
        if let Ok(fabric) = FabricId::parse(&stored.record.id) {
            answers.extend(of_fabric(call, &fabric, &stored.record).await?);
        }
    }
    page(answers)
}

async fn of_fabric(
    call: &Call<'_>,
    fabric: &FabricId,
    record: &Fabric,
) -> Result<Option<Resource<ContainerProperties>>, Fault> {
    let container = fabric.container(&load::container_name(record));
    let items =
        records::any::<Item>(call.app.store.as_ref(), &format!("{}/", container.key())).await?;
    if load::engines(call.app, fabric).await?.is_empty() && !items {
        return Ok(None);
    }
    answer(call, fabric, &container).await.map(Some)
}

async fn answer(
    call: &Call<'_>,
    fabric: &FabricId,
    container: &ContainerId,
) -> Result<Resource<ContainerProperties>, Fault> {
    let below = format!("{}/", container.key());
    let store = call.app.store.as_ref();
    let items = records::list::<Item>(store, &below).await?.len();
    let paired = records::any::<Mapping>(store, &below).await?;
    Ok(Resource::answer(
        container,
        ContainerProperties {
            fabric_friendly_name: fabric.name().to_owned(),
            friendly_name: fabric.name().to_owned(),
            fabric_type: HYPER_V_SITE.to_owned(),
            protected_item_count: u64::try_from(items).unwrap_or(u64::MAX),
            pairing_status: if paired { "Paired" } else { "NotPaired" }.to_owned(),
            role: if paired { "Primary" } else { "" }.to_owned(),
            fabric_specific_details: Some(arm_model::envelope::InstanceType {
                instance_type: Some(HYPER_V_SITE.to_owned()),
                ..Default::default()
            }),
        },
    ))
}

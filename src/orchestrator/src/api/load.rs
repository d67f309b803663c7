//! Finds the resources that a path names, with the spelling of their first request.

use arm_model::{ContainerId, FabricId, MappingId, PlanId, PolicyId, ProtectedItemId, VaultId};

use super::entry::Call;
use crate::app::App;
use crate::fault::Fault;
use crate::store::records::{self, EngineRecord, Fabric, Item, Record, Stored, Vault};

/// The vault of the path.
///
/// # Errors
/// 404.
pub async fn vault(call: &Call<'_>) -> Result<(VaultId, Stored<Vault>), Fault> {
    let id = call
        .route
        .id
        .as_ref()
        .and_then(VaultId::of)
        .ok_or_else(|| super::entry::unknown_path(&call.path))?;
    let stored = require::<Vault>(call.app, id.as_str()).await?;
    let id = VaultId::parse(&stored.record.0.id).unwrap_or(id);
    Ok((id, stored))
}

/// The site of the path.
///
/// # Errors
/// 404.
pub async fn fabric(call: &Call<'_>) -> Result<(VaultId, FabricId, Stored<Fabric>), Fault> {
    let (vault, _) = vault(call).await?;
    let name = name(call, "replicationFabrics")?;
    let stored = require::<Fabric>(call.app, vault.fabric(&name).as_str()).await?;
    let id = FabricId::parse(&stored.record.id).unwrap_or_else(|_| vault.fabric(&name));
    Ok((vault, id, stored))
}

/// The container of the path: it is there as soon as a host is registered.
///
/// # Errors
/// 404.
pub async fn container(call: &Call<'_>) -> Result<Located, Fault> {
    let (vault, fabric, stored) = fabric(call).await?;
    let name = name(call, "replicationProtectionContainers")?;
    let container = fabric.container(&container_name(&stored.record));
    let engines = engines(call.app, &fabric).await?;
    let items =
        records::any::<Item>(call.app.store.as_ref(), &format!("{}/", container.key())).await?;
    if !container.name().eq_ignore_ascii_case(&name) || (engines.is_empty() && !items) {
        return Err(Fault::not_found(fabric.container(&name).as_str()));
    }
    Ok(Located {
        vault,
        fabric,
        container,
        engines,
    })
}

/// A container with what it hangs on.
pub struct Located {
    /// Vault.
    pub vault: VaultId,
    /// Site.
    pub fabric: FabricId,
    /// Container.
    pub container: ContainerId,
    /// Hosts of the site.
    pub engines: Vec<EngineRecord>,
}

impl Located {
    /// An item of the container.
    #[must_use]
    pub fn item(&self, name: &str) -> ProtectedItemId {
        self.container.protected_item(name)
    }

    /// A mapping of the container.
    #[must_use]
    pub fn mapping(&self, name: &str) -> MappingId {
        self.container.mapping(name)
    }
}

/// The protected item of the path.
///
/// # Errors
/// 404.
pub async fn item(call: &Call<'_>) -> Result<(VaultId, ProtectedItemId, Stored<Item>), Fault> {
    let (vault, fabric, _) = fabric(call).await?;
    let container = name(call, "replicationProtectionContainers")?;
    let name = name(call, "replicationProtectedItems")?;
    let id = fabric.container(&container).protected_item(&name);
    let stored = require::<Item>(call.app, id.as_str()).await?;
    let id = ProtectedItemId::parse(&stored.record.id).unwrap_or(id);
    Ok((vault, id, stored))
}

/// Policy id below a vault.
///
/// # Errors
/// When the path has no policy.
pub fn policy_id(call: &Call<'_>, vault: &VaultId) -> Result<PolicyId, Fault> {
    Ok(vault.policy(&name(call, "replicationPolicies")?))
}

/// Plan id below a vault.
///
/// # Errors
/// When the path has no plan.
pub fn plan_id(call: &Call<'_>, vault: &VaultId) -> Result<PlanId, Fault> {
    Ok(vault.plan(&name(call, "replicationRecoveryPlans")?))
}

/// A name out of the path.
///
/// # Errors
/// When the path has no such segment.
pub fn name(call: &Call<'_>, kind: &str) -> Result<String, Fault> {
    call.route
        .id
        .as_ref()
        .and_then(|id| id.name_of(kind))
        .map(str::to_owned)
        .ok_or_else(|| super::entry::unknown_path(&call.path))
}

/// A record that must be there.
///
/// # Errors
/// 404.
pub async fn require<R: Record>(app: &App, id: &str) -> Result<Stored<R>, Fault> {
    records::get::<R>(app.store.as_ref(), &id.to_ascii_lowercase())
        .await?
        .ok_or_else(|| Fault::not_found(id))
}

/// Hosts of a site.
///
/// # Errors
/// Failures of the store.
pub async fn engines(app: &App, fabric: &FabricId) -> Result<Vec<EngineRecord>, Fault> {
    let all = records::list::<EngineRecord>(app.store.as_ref(), "~engine/").await?;
    Ok(all
        .into_iter()
        .map(|stored| stored.record)
        .filter(|engine| engine.fabric_id.eq_ignore_ascii_case(fabric.as_str()))
        .collect())
}

/// Name of a site's only container.
#[must_use]
pub fn container_name(fabric: &Fabric) -> String {
    format!("cloud_{}", fabric.internal_identifier)
}

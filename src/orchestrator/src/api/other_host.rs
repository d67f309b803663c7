//! The host that a failback names: another one than the VM's own makes it the VM's host from then on.

use arm_model::failover::PlannedFailoverDetails;
use arm_model::{ArmError, ServicesProviderId};

use super::entry::Call;
use crate::fault::Fault;
use crate::saga::enable_protection::host_disconnected;
use crate::store::records::{self, EngineRecord, Item};

const HOST: &str = "properties.providerSpecificDetails.providerIdForAlternateRecovery";

/// The engine of the named host, if that is another one than the item's.
///
/// # Errors
/// 400 for a host that isn't registered, is of another site or holds no VMs of its own; 409 for one that doesn't report.
pub async fn wanted(
    call: &Call<'_>,
    details: &PlannedFailoverDetails,
    item: &Item,
) -> Result<Option<String>, Fault> {
    let wanted = details.provider_id_for_alternate_recovery.as_deref();
    let Some(wanted) = wanted.filter(|id| !id.is_empty()) else {
        return Ok(None);
    };
    let id = ServicesProviderId::parse(wanted)
        .map_err(|error| Fault::invalid(HOST, format!("{error}.")))?;
    call.may_use(id.as_arm(), HOST)?;
    if id.name().eq_ignore_ascii_case(&item.engine_id) {
        return Ok(None);
    }
    let refuse = |code: &str, text: String, causes: &str, action: &str| {
        let error = ArmError::new(code, text).at(HOST);
        Fault::refuse(400, error.advise(causes, action))
    };
    let key = records::engine_key(&id.name().to_ascii_lowercase());
    let engine = records::get::<EngineRecord>(call.app.store.as_ref(), &key).await?;
    let engine = engine.filter(|engine| engine.record.provider_id.eq_ignore_ascii_case(wanted));
    let Some(engine) = engine.map(|engine| engine.record) else {
        return Err(refuse(
            "AlternateHostNotFound",
            format!("No host `{}` is registered.", id.name()),
            "It was never registered, or was removed.",
            "Name a host of the VM's site: `siterecovery host list` shows them.",
        ));
    };
    let site = format!("{}/", engine.fabric_id.to_ascii_lowercase());
    if !item.id.to_ascii_lowercase().starts_with(&site) {
        return Err(refuse(
            "AlternateHostOfAnotherSite",
            format!(
                "`{}` goes back to a host of its own site, and the named one is of site `{}`.",
                item.vm_name,
                engine.fabric_id.rsplit('/').next().unwrap_or_default()
            ),
            "The host was registered in another Hyper-V site.",
            "Name a host of the VM's site, or register the host there.",
        ));
    }
    let live = call.app.fleet.get(&engine.engine_id).unwrap_or_default();
    if !live.connected(call.app.now_ms()) {
        return Err(host_disconnected(call.app, &engine.engine_id));
    }
    if !live.source_role() {
        return Err(refuse(
            "AlternateHostHasNoVirtualMachines",
            format!(
                "The host `{}` runs recovered VMs only, and a VM that goes back becomes one of its host's own.",
                live.host_name()
            ),
            "Its engine has the recovery role without the source role.",
            "Name another host of the site, or add `source` to the `roles` of this one.",
        ));
    }
    Ok(Some(engine.engine_id))
}

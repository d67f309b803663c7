//! What a drill or a failover decides before it begins: the recovery point of each VM, and the host that gets it.

use arm_model::{ArmError, ProtectedItemId};
use engine_protocol::v1::{self, recovery_point::Kind};
use serde::{Deserialize, Serialize};

use super::enable_protection::item_name;
use crate::app::App;
use crate::azure_target;
use crate::fault::Fault;
use crate::store::records::{self, Item};

/// Which recovery point is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointChoice {
    /// The newest one, whatever its kind.
    Newest,
    /// The newest one that the guest took part in.
    NewestApplicationConsistent,
    /// The newest one that the guest did not take part in.
    NewestCrashConsistent,
    /// The one of this name.
    Id(String),
    /// The one that belongs to this point of the VM's group.
    OfGroup(String),
}

/// The point of an item that fits.
///
/// # Errors
/// 409 when there is none.
pub fn point(app: &App, item: &Item, choice: &PointChoice) -> Result<v1::RecoveryPoint, Fault> {
    let fits = |point: &&v1::RecoveryPoint| match choice {
        PointChoice::Newest => true,
        PointChoice::NewestApplicationConsistent => point.kind() == Kind::ApplicationConsistent,
        PointChoice::NewestCrashConsistent => point.kind() == Kind::CrashConsistent,
        PointChoice::Id(id) => point.id.eq_ignore_ascii_case(id),
        PointChoice::OfGroup(id) => point.group_point_id == *id,
    };
    points(app, item).iter().rev().find(fits).cloned().ok_or_else(|| {
        Fault::refuse(
            409,
            ArmError::new("RecoveryPointNotFound", format!("The VM `{}` has no such recovery point.", item.vm_name))
                .at("properties.providerSpecificDetails.recoveryPointId")
                .advise("The point is older than the retention of the policy, or no point has been made yet.", "Choose one of the listed recovery points."),
        )
    })
}

/// The points that the source last told of, oldest first. They are kept when the source is lost.
fn points(app: &App, item: &Item) -> Vec<v1::RecoveryPoint> {
    let live = app.fleet.get(&item.engine_id).unwrap_or_default();
    live.replication(item_name(&item.id))
        .map(|status| status.recovery_points.clone())
        .unwrap_or_default()
}

/// The newest instant that all of these items share a point of.
///
/// # Errors
/// 409 when they have none in common.
pub fn common_point(app: &App, items: &[Item]) -> Result<String, Fault> {
    let of = |item: &Item| -> Vec<String> {
        let points = points(app, item).into_iter();
        points
            .map(|point| point.group_point_id)
            .filter(|id| !id.is_empty())
            .collect()
    };
    let others: Vec<Vec<String>> = items.iter().skip(1).map(of).collect();
    let first = items.first().map(of).unwrap_or_default();
    let shared = first
        .into_iter()
        .rev()
        .find(|id| others.iter().all(|other| other.contains(id)));
    shared.ok_or_else(|| {
        let names: Vec<&str> = items.iter().map(|item| item.vm_name.as_str()).collect();
        Fault::refuse(
            409,
            ArmError::new(
                "NoCommonRecoveryPoint",
                format!("The VMs {} have no recovery point in common.", names.join(", ")),
            )
            .at("properties.providerSpecificDetails[0].multiVmSyncPointOption")
            .advise(
                "They are in no multi-VM group, or on different hosts, or their common points are older than the retention.",
                "Use each VM's own points, or protect the VMs with one `multiVmGroupName`.",
            ),
        )
    })
}

/// A connected host of the vault with the recovery role: one that keeps the VM's generation before others, the item's own
/// one before those that do as well.
///
/// # Errors
/// 409 when there is none, or none that the VM can start on; failures of the store.
pub async fn recovery_engine(app: &App, item: &Item) -> Result<String, Fault> {
    if azure_target::is_wanted(item) {
        return azure_target::engine(app);
    }
    let id = ProtectedItemId::parse(&item.id)
        .map_err(|error| Fault::invalid("id", error.to_string()))?;
    let vault = id
        .ancestor(1)
        .map(|vault| format!("{}/", vault.key()))
        .unwrap_or_default();
    let now = app.now_ms();
    let mut engines: Vec<String> =
        records::list::<records::EngineRecord>(app.store.as_ref(), "~engine/")
            .await?
            .into_iter()
            .filter(|engine| {
                engine
                    .record
                    .fabric_id
                    .to_ascii_lowercase()
                    .starts_with(&vault)
            })
            .map(|engine| engine.record.engine_id)
            .filter(|engine| {
                app.fleet
                    .get(engine)
                    .is_some_and(|live| live.recovery_role() && live.connected(now))
            })
            .collect();
    // As its host last told; of one that nobody tells of, no host is better than another.
    let source = app.fleet.get(&item.engine_id).unwrap_or_default();
    let machine = source.last_machine(&item.vm_id);
    let keeps = |engine: &str| {
        let live = app.fleet.get(engine).unwrap_or_default();
        machine.is_none_or(|machine| live.keeps_generation(machine.generation))
    };
    engines.sort_by_key(|engine| (!keeps(engine), *engine != item.engine_id));
    if let (Some(engine), Some(machine)) = (engines.first(), machine)
        && !keeps(engine)
    {
        check_conversion(item, machine)?;
    }
    engines.into_iter().next().ok_or_else(|| {
        Fault::refuse(
            409,
            ArmError::new(
                "NoRecoveryHost",
                "No connected host of the vault may run recovered VMs.",
            )
            .advise(
                "No host was registered with the recovery role, or it is away.",
                "Give a host the role `recovery`, or start its engine.",
            ),
        )
    })
}

/// What is known without looking at the disk; the engine of the recovery host looks at it.
fn check_conversion(item: &Item, machine: &v1::VirtualMachine) -> Result<(), Fault> {
    let told = item.request.os_type.as_ref();
    let os_type = told.unwrap_or(&machine.os_type);
    if machine.generation == 2 && !os_type.eq_ignore_ascii_case("Windows") {
        return Ok(());
    }
    Err(Fault::refuse(
        409,
        ArmError::new(
            "GenerationNotSupported",
            format!(
                "The VM `{}` is of generation {} and no connected recovery host supports that; {}.",
                item.vm_name,
                machine.generation,
                if machine.generation == 2 {
                    "Windows can't be converted to generation 1"
                } else {
                    "generation 1 can't be converted to generation 2"
                }
            ),
        )
        .at(item.id.clone())
        .advise(
            "The recovery hosts lack firmware for it, or `recovery_generations` leaves it out.",
            "Install OVMF on a recovery host for generation 2, or widen its `recovery_generations`.",
        ),
    ))
}

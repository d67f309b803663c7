//! What shall be in Azure, read from the same records as the orders of every other recovery host.

use engine_protocol::orders;
use engine_protocol::v1::{self, recovered_vm::Power};
use protection::Generation;
use protection::life::RecoveryOrder;

use super::ENGINE;
use crate::app::App;
use crate::failover;
use crate::store::StoreError;
use crate::store::records::{self, Item, Recovered};

/// A VM that shall be there, or shall not.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    /// VM id.
    pub(super) id: String,
    /// Name as the record has it; of a drill with its suffix.
    pub(super) name: String,
    /// The protected VM.
    pub(super) item: Item,
    /// Recovery point; empty = the newest.
    pub(super) point_id: String,
    /// What shall become of it.
    pub(super) goal: Goal,
    /// Of a drill.
    pub(super) drill: Option<Drill>,
    /// Generation under which it ships what it writes, during a failback; else 0.
    pub(super) ships: u64,
    /// Order in force, outside of drills.
    pub(super) order: Option<(Generation, RecoveryOrder)>,
}

/// What a drill decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drill {
    /// Its job.
    pub(super) job: String,
    /// Network that it was asked for; none = a network of its own.
    pub(super) network_id: Option<String>,
}

/// What shall become of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// All of it but the VM itself.
    Prepared,
    /// It runs. Nobody older than this generation writes to the replica then.
    Runs(Option<u64>),
    /// It runs, and nothing of it is ours.
    Left(u64),
    /// It is not there.
    Absent,
    /// It is off and kept.
    Kept,
}

/// All wishes.
pub(super) async fn all(app: &App) -> Result<Vec<Wish>, StoreError> {
    let store = app.store.as_ref();
    let mut wishes = Vec::new();
    for item in records::list::<Item>(store, "").await? {
        wishes.extend(of_life(item.record));
    }
    for vm in records::list::<Recovered>(store, &records::recovered_key(ENGINE, "")).await? {
        let vm = vm.record;
        let item = records::get::<Item>(store, &vm.item.to_ascii_lowercase()).await?;
        // Without its item nobody can say what the VM is like; what there is of it goes.
        let Some(item) = item else { continue };
        wishes.push(Wish {
            goal: if vm.running {
                Goal::Runs(None)
            } else {
                Goal::Prepared
            },
            id: vm.id,
            name: vm.name,
            item: item.record,
            point_id: vm.point_id,
            drill: Some(Drill {
                job: vm.job,
                network_id: vm.network_id.filter(|_| !vm.isolated),
            }),
            ships: 0,
            order: None,
        });
    }
    Ok(wishes)
}

/// The VM of a failover, if it is in Azure and due.
fn of_life(item: Item) -> Option<Wish> {
    let side = item.recovery.as_ref()?;
    let id = failover::vm_id(&item)?;
    if side.engine_id != ENGINE || !side.due {
        return None;
    }
    let (epoch, order) = item.life.orders().recovery;
    let goal = match order {
        RecoveryOrder::Run { takes, .. } => Goal::Runs(Some(takes.0)),
        RecoveryOrder::Leave { takes, .. } => Goal::Left(takes.0),
        RecoveryOrder::Absent => Goal::Absent,
        RecoveryOrder::Stop => Goal::Kept,
    };
    Some(Wish {
        id: id.to_string(),
        name: side.name.clone(),
        point_id: side.point_id.clone(),
        goal,
        drill: None,
        ships: failover::ship_generation(&item.life),
        order: Some((epoch, order)),
        item,
    })
}

/// The same as the desired state of a host: its digest tells when it changes. Credentials are no part of it; who works on a VM gets
/// fresh ones for each slice.
///
/// # Errors
/// Failures of the store.
pub async fn desired(app: &App) -> Result<v1::DesiredState, StoreError> {
    let vms = all(app).await?.into_iter().map(|wish| v1::RecoveredVm {
        id: wish.id,
        name: wish.name,
        item_id: wish.item.id,
        ships: wish.ships > 0,
        ship_generation: wish.ships,
        point_id: wish.point_id,
        power: match wish.goal {
            Goal::Runs(_) | Goal::Left(_) => Power::Running,
            Goal::Prepared | Goal::Absent | Goal::Kept => Power::Off,
        }
        .into(),
        order: wish
            .order
            .map(|(epoch, order)| orders::recovery_message(epoch, order)),
        ..v1::RecoveredVm::default()
    });
    Ok(v1::DesiredState {
        recovered_vms: vms.collect(),
        ..v1::DesiredState::default()
    })
}

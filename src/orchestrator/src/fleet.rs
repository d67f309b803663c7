//! What the engines last reported. A cache: engines repeat everything, and the last report of each
//! engine is in the store too, so that a restart knows inventory and points before the first report.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use engine_protocol::v1;

/// Without a report for so long, a host is disconnected.
pub const DISCONNECTED_AFTER_MS: i64 = 30_000;

/// One engine as last seen.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Last report.
    pub report: Arc<v1::EngineReport>,
    /// When it came.
    pub last_seen_unix_ms: i64,
    /// Number of the stream that counts; older streams end.
    pub session: u64,
}

/// All engines.
#[derive(Default)]
pub struct Fleet {
    engines: RwLock<HashMap<String, Live>>,
}

// === impl Fleet ===

impl Fleet {
    /// What is known of an engine.
    #[must_use]
    pub fn get(&self, engine_id: &str) -> Option<Live> {
        self.engines
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(engine_id)
            .cloned()
    }

    /// Whether an engine reports.
    #[must_use]
    pub fn connected(&self, engine_id: &str, now_ms: i64) -> bool {
        self.get(engine_id)
            .is_some_and(|live| live.connected(now_ms))
    }

    /// Begins a stream; gives its number.
    pub fn begin_session(&self, engine_id: &str) -> u64 {
        let mut engines = self.engines.write().unwrap_or_else(PoisonError::into_inner);
        let live = engines.entry(engine_id.to_owned()).or_default();
        live.session += 1;
        live.session
    }

    /// Whether a stream is still the newest.
    #[must_use]
    pub fn is_current(&self, engine_id: &str, session: u64) -> bool {
        self.get(engine_id)
            .is_some_and(|live| live.session == session)
    }

    /// Takes up a report.
    pub fn observe(&self, engine_id: &str, report: Arc<v1::EngineReport>, now_ms: i64) {
        let mut engines = self.engines.write().unwrap_or_else(PoisonError::into_inner);
        let live = engines.entry(engine_id.to_owned()).or_default();
        live.report = report;
        live.last_seen_unix_ms = now_ms;
    }

    /// Forgets an engine; its stream ends.
    pub fn forget(&self, engine_id: &str) {
        self.engines
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(engine_id);
    }
}

// === impl Live ===

impl Live {
    /// Whether the engine reports.
    #[must_use]
    pub fn connected(&self, now_ms: i64) -> bool {
        self.last_seen_unix_ms > 0
            && now_ms.saturating_sub(self.last_seen_unix_ms) < DISCONNECTED_AFTER_MS
    }

    /// A VM of the host.
    #[must_use]
    pub fn machine(&self, vm_id: &str) -> Option<&v1::VirtualMachine> {
        self.report
            .virtual_machines
            .iter()
            .find(|vm| vm.id.eq_ignore_ascii_case(vm_id))
    }

    /// What a VM is like, or was when the host listed it last: one that is gone is failed over, too.
    #[must_use]
    pub fn last_machine(&self, vm_id: &str) -> Option<&v1::VirtualMachine> {
        let gone = &self.report.gone_machines;
        self.machine(vm_id)
            .or_else(|| gone.iter().find(|vm| vm.id.eq_ignore_ascii_case(vm_id)))
    }

    /// What is said of an item.
    #[must_use]
    pub fn replication(&self, item_id: &str) -> Option<&v1::ReplicationStatus> {
        self.report
            .replications
            .iter()
            .find(|status| status.item_id.eq_ignore_ascii_case(item_id))
    }

    /// What is said of a recovered VM.
    #[must_use]
    pub fn recovered(&self, vm_id: &str) -> Option<&v1::RecoveredVmStatus> {
        self.report
            .recovered_vms
            .iter()
            .find(|status| status.id.eq_ignore_ascii_case(vm_id))
    }

    /// What is said of a recovery plan's script.
    #[must_use]
    pub fn script(&self, id: &str) -> Option<&v1::ScriptStatus> {
        self.report.scripts.iter().find(|status| status.id == id)
    }

    /// Whether the host may run recovered VMs.
    #[must_use]
    pub fn recovery_role(&self) -> bool {
        self.report
            .host
            .as_ref()
            .is_some_and(|host| host.recovery_role)
    }

    /// Whether the host may hold VMs that are protected; yes of a host that doesn't tell.
    #[must_use]
    pub fn source_role(&self) -> bool {
        let host = self.report.host.as_ref();
        host.is_none_or(|host| host.source_role != Some(false))
    }

    /// Whether the host runs a recovered VM of this generation as it is; yes of a host that doesn't tell.
    #[must_use]
    pub fn keeps_generation(&self, generation: u32) -> bool {
        let kept = self.report.host.as_ref();
        kept.is_none_or(|host| {
            let all = &host.recovery_generations;
            all.is_empty() || all.contains(&generation)
        })
    }

    /// Name of the host.
    #[must_use]
    pub fn host_name(&self) -> &str {
        self.report
            .host
            .as_ref()
            .map_or("", |host| host.name.as_str())
    }
}

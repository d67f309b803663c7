//! Builds the report: host, virtual machines, and what the board holds.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine_protocol::v1::{self, Finding};
use hypervisor::{Generation, Hypervisor, HypervisorError, PowerState, VirtualMachine, Volume};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::board::Board;
use crate::config::Config;
use crate::facts;

/// Listing VMs opens every image; reports may come several times a second.
const FRESH: Duration = Duration::from_secs(1);
/// Facts about host and VMs hardly change, free space does slowly.
const HOST_FRESH: Duration = Duration::from_secs(10);

/// Makes reports.
pub struct Reporter {
    hypervisor: Arc<dyn Hypervisor>,
    board: Arc<Board>,
    data_folder: PathBuf,
    recovery_folder: PathBuf,
    source_role: bool,
    recovery_role: bool,
    recovery_hindrance: Option<Finding>,
    recovery_generations: Vec<u32>,
    host_name: Option<String>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    host: Option<(Instant, v1::Host)>,
    machines: Option<(Instant, Vec<v1::VirtualMachine>)>,
    facts: Option<(Instant, facts::ByVm)>,
}

impl Reporter {
    /// For one engine.
    pub fn new(
        config: &Config,
        hypervisor: Arc<dyn Hypervisor>,
        board: Arc<Board>,
        recovery_generations: &[Generation],
    ) -> Self {
        Self {
            hypervisor,
            board,
            data_folder: config.data_folder.clone(),
            recovery_folder: config.recovery_folder.clone(),
            source_role: config.source_role,
            recovery_role: config.recovery_role,
            recovery_hindrance: config.recovery_hindrance(),
            recovery_generations: recovery_generations
                .iter()
                .map(|one| one.number())
                .collect(),
            host_name: config.host_name.clone(),
            cache: Mutex::default(),
        }
    }

    /// The board behind the reports.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// What the host is.
    pub async fn host(&self) -> Result<v1::Host, HypervisorError> {
        let mut cache = self.cache.lock().await;
        if let Some((taken, host)) = &cache.host
            && taken.elapsed() < HOST_FRESH
        {
            return Ok(host.clone());
        }
        let facts = self.hypervisor.host().await?;
        let host = v1::Host {
            name: self.host_name.clone().unwrap_or(facts.name),
            operating_system: facts.operating_system,
            hypervisor: facts.hypervisor,
            hypervisor_version: facts.hypervisor_version,
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            free_bytes: free_bytes(&self.data_folder).unwrap_or(facts.free_bytes),
            // Whoever chooses a host for a failover must not choose one that can't.
            recovery_role: self.recovery_role && self.recovery_hindrance.is_none(),
            recovery_generations: self.recovery_generations.clone(),
            findings: self.recovery_hindrance.clone().into_iter().collect(),
            source_role: Some(self.source_role),
        };
        cache.host = Some((Instant::now(), host.clone()));
        Ok(host)
    }

    /// The whole observed state.
    pub async fn report(&self) -> Result<v1::EngineReport, HypervisorError> {
        let host = self.host().await?;
        let virtual_machines = self.machines().await?;
        let mut snapshot = self.board.snapshot();
        let now = crate::engine::now_unix_ms();
        for status in &mut snapshot.replications {
            status.rpo_seconds = rpo_seconds(status, now);
        }
        Ok(v1::EngineReport {
            observed_generation: snapshot.observed_generation,
            host: Some(host),
            virtual_machines,
            replications: snapshot.replications,
            recovered_vms: snapshot.recovered,
            evidence: self.board.evidence_in_turn(),
            scripts: snapshot.scripts,
            ..v1::EngineReport::default()
        })
    }

    async fn machines(&self) -> Result<Vec<v1::VirtualMachine>, HypervisorError> {
        if !self.source_role {
            return Ok(Vec::new());
        }
        let mut cache = self.cache.lock().await;
        if let Some((taken, machines)) = &cache.machines
            && taken.elapsed() < FRESH
        {
            return Ok(machines.clone());
        }
        // Recovered VMs are copies of protected ones, not VMs to offer for protection.
        let recovered: BTreeSet<String> = self
            .board
            .snapshot()
            .recovered
            .into_iter()
            .map(|vm| vm.id)
            .collect();
        if cache
            .facts
            .as_ref()
            .is_none_or(|(taken, _)| taken.elapsed() >= HOST_FRESH)
        {
            // Without them the checks know less; the inventory goes on.
            let found = self.hypervisor.particulars().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "nothing more is known of the virtual machines");
                Vec::new()
            });
            cache.facts = Some((Instant::now(), facts::by_vm(&found)));
        }
        let facts = cache.facts.as_ref().map(|(_, facts)| facts);
        let machines: Vec<_> = self
            .hypervisor
            .virtual_machines()
            .await?
            .iter()
            .map(|vm| v1::VirtualMachine {
                facts: facts.and_then(|facts| facts.get(&vm.id).cloned()),
                ..machine(vm)
            })
            .filter(|vm| !recovered.contains(&vm.id) && !self.recovery_folder.join(&vm.id).exists())
            .collect();
        cache.machines = Some((Instant::now(), machines.clone()));
        Ok(machines)
    }
}

/// Age of the newest instant that can be recovered; 0 = there is none, or its clock is ahead of ours.
fn rpo_seconds(status: &v1::ReplicationStatus, now_unix_ms: i64) -> u64 {
    let newest = status.recovery_points.last();
    let age = newest.map_or(0, |point| now_unix_ms.saturating_sub(point.time_unix_ms));
    u64::try_from(age).unwrap_or(0) / 1000
}

/// A VM as the protocol describes it, but for what the checks go by.
pub fn machine(vm: &VirtualMachine) -> v1::VirtualMachine {
    v1::VirtualMachine {
        id: vm.id.to_string(),
        name: vm.name.clone(),
        generation: vm.generation.number(),
        processor_count: vm.processors,
        memory_bytes: vm.memory_bytes,
        power_state: match vm.power_state {
            PowerState::Running => v1::PowerState::Running,
            PowerState::Off => v1::PowerState::Off,
        }
        .into(),
        os_type: vm.os_type.clone(),
        disks: vm
            .disks
            .iter()
            .map(|disk| v1::Disk {
                id: disk.id.to_string(),
                name: disk.name.clone(),
                size_bytes: disk.size_bytes,
                operating_system: disk.operating_system,
            })
            .collect(),
        network_adapters: vm
            .network_adapters
            .iter()
            .map(|adapter| v1::NetworkAdapter {
                id: adapter.id.clone(),
                network_name: adapter.network_name.clone(),
                mac_address: adapter.mac_address.clone(),
            })
            .collect(),
        findings: vm
            .findings
            .iter()
            .map(|finding| v1::Finding {
                code: finding.code.to_owned(),
                summary: finding.summary.clone(),
                possible_causes: finding.possible_causes.clone(),
                recommended_action: finding.recommended_action.clone(),
                critical: finding.critical,
            })
            .collect(),
        facts: None,
    }
}

/// Free bytes for an ordinary user on the volume that holds `path`.
pub fn free_bytes(path: &Path) -> Option<u64> {
    Some(Volume::of(path).ok()?.free_bytes)
}

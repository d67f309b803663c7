//! A model of the orchestrator: what it wants grows by decisions, and reaches engines over links that lose, repeat
//! and reorder.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use engine_protocol::v1::{self, DesiredState};
use tokio::sync::watch;
use uuid::Uuid;

use super::faults::Random;
use super::host::SimHost;
use super::trace::Trace;

pub const VAULT: &str = "vault-0a1b2c3d";
/// Both engines of the simulation.
pub const ENGINES: [&str; 2] = ["engine-a", "engine-b"];

/// What is wanted of one VM.
#[derive(Clone)]
pub struct Wanted {
    pub item_id: String,
    pub machine: usize,
    pub generation: u64,
    /// Which engine shall replicate it.
    pub engine: usize,
    pub disks: Vec<hypervisor::DiskId>,
    pub resynchronize: u64,
}

/// One direction of one engine's session.
#[derive(Default)]
struct Link {
    under_way: VecDeque<DesiredState>,
    newest_delivered: u64,
}

pub struct Orchestrator {
    pub items: Vec<Wanted>,
    generation: u64,
    policy: v1::Policy,
    keys: Vec<v1::EncryptionKey>,
    encrypt: bool,
    grouped: bool,
    links: [Link; 2],
    store: String,
    /// Highest generation that each engine was ever sent, by item.
    pub given: [Arc<Mutex<BTreeMap<String, u64>>>; 2],
    trace: Trace,
    /// Retention was once so short that points may go.
    pub points_may_go: bool,
}

pub fn item_id(machine: usize) -> String {
    Uuid::from_u128(0x1111_0000 + machine as u128).to_string()
}

impl Orchestrator {
    pub fn new(host: &SimHost, store: &Path, trace: Trace) -> Self {
        let items = (0..host.machines().len())
            .map(|machine| Wanted {
                item_id: item_id(machine),
                machine,
                generation: 1,
                engine: 0,
                disks: host.disks(machine),
                resynchronize: 0,
            })
            .collect();
        Self {
            items,
            generation: 1,
            policy: v1::Policy {
                replication_interval_seconds: 10,
                retention_hours: 100,
                ..v1::Policy::default()
            },
            keys: Vec::new(),
            encrypt: false,
            grouped: false,
            links: [Link::default(), Link::default()],
            store: store.to_string_lossy().into_owned(),
            given: [Arc::default(), Arc::default()],
            trace,
            points_may_go: false,
        }
    }

    /// The keys that may have been used.
    pub fn keys(&self) -> replication_log::KeyRing {
        let mut ring = replication_log::KeyRing::new();
        for key in &self.keys {
            ring.insert(key.id.parse().unwrap(), &key.key).unwrap();
        }
        ring
    }

    /// A person or a policy decides something.
    pub fn decide(&mut self, host: &SimHost, random: &mut Random) {
        let item = random.below(self.items.len() as u64) as usize;
        match random.below(13) {
            0 | 1 => {
                self.trace.inject("take-overs by another engine");
                let item = &mut self.items[item];
                item.generation += 1;
                item.engine = 1 - item.engine;
            }
            2 => {
                self.trace.inject("new activations on the same engine");
                self.items[item].generation += 1;
            }
            3 | 4 => {
                self.trace.inject("key rotations");
                let number = self.keys.len() as u8 + 1;
                self.keys.push(v1::EncryptionKey {
                    id: Uuid::from_u128(0xCE_0000 + u128::from(number)).to_string(),
                    key: vec![number; 32],
                });
                self.encrypt = true;
            }
            5 => {
                self.trace.inject("encryption switched");
                self.encrypt = !self.encrypt && !self.keys.is_empty();
            }
            6 => {
                self.trace.inject("interval changes");
                self.policy.replication_interval_seconds = [5, 10, 30][random.below(3) as usize];
                self.policy.app_consistent_frequency_minutes = [0, 1][random.below(2) as usize];
            }
            7 => {
                self.trace.inject("retention changes");
                if random.chance(50) {
                    self.points_may_go = true;
                    self.policy.retention_hours = 0;
                    self.policy.retention_tiers = vec![v1::RetentionTier {
                        every_seconds: 60,
                        for_seconds: 3600,
                    }];
                } else {
                    self.policy.retention_hours = 1 + random.below(100) as u32;
                    self.policy.retention_tiers.clear();
                }
            }
            8 => {
                self.trace.inject("comparisons asked for");
                self.items[item].resynchronize += 1;
            }
            9 => {
                self.trace.inject("grouping switched");
                self.grouped = !self.grouped;
            }
            10 => {
                let machine = self.items[item].machine;
                if host.disks(machine).len() < 4 {
                    self.trace.inject("disks added");
                    host.add_disk(machine, 4 + random.below(4) as usize);
                    self.items[item].disks = host.disks(machine);
                }
            }
            11 => {
                let wanted = &mut self.items[item];
                if wanted.disks.len() > 1 {
                    self.trace.inject("disks excluded");
                    let last = wanted.disks.len() as u64 - 1;
                    wanted.disks.remove(1 + random.below(last) as usize);
                } else {
                    self.trace.inject("disks taken in again");
                    wanted.disks = host.disks(wanted.machine);
                }
            }
            _ => {
                self.trace.inject("log quota changes");
                self.policy.log_quota_percent = [0, 5, 20][random.below(3) as usize];
            }
        }
        self.generation += 1;
        self.send();
    }

    /// What engine `number` shall do. An engine that lost an item is not told to stop: it may be cut off.
    fn state_for(&self, number: usize) -> DesiredState {
        let replications = self
            .items
            .iter()
            .filter(|item| item.engine == number)
            .map(|item| v1::Replication {
                item_id: item.item_id.clone(),
                vault_key: VAULT.to_owned(),
                generation: item.generation,
                vm_id: Uuid::from_u128(0xA1 + item.machine as u128).to_string(),
                disk_ids: item.disks.iter().map(ToString::to_string).collect(),
                store: Some(v1::StoreTarget {
                    kind: Some(v1::store_target::Kind::Folder(self.store.clone())),
                    log: None,
                }),
                policy: Some(self.policy.clone()),
                phase: v1::replication::Phase::Active.into(),
                vm_name: format!("web{:02}", item.machine + 1),
                encryption: Some(v1::Encryption {
                    keys: self.keys.clone(),
                    active_key_id: match self.keys.last() {
                        Some(key) if self.encrypt => key.id.clone(),
                        _ => String::new(),
                    },
                }),
                group_name: if self.grouped {
                    "shop".to_owned()
                } else {
                    String::new()
                },
                resynchronize: item.resynchronize,
                ..v1::Replication::default()
            })
            .collect();
        DesiredState {
            generation: self.generation,
            replications,
            report_interval_ms: 1000,
            ..DesiredState::default()
        }
    }

    /// Puts the present state under way to both engines.
    pub fn send(&mut self) {
        for number in 0..ENGINES.len() {
            let state = self.state_for(number);
            self.links[number].under_way.push_back(state);
        }
    }

    /// Something may arrive at each engine.
    pub fn deliver(
        &mut self,
        senders: &[watch::Sender<Option<DesiredState>>; 2],
        random: &mut Random,
    ) {
        for number in 0..ENGINES.len() {
            let link = &mut self.links[number];
            if link.under_way.is_empty() || random.chance(40) {
                continue;
            }
            let at = random.below(link.under_way.len() as u64) as usize;
            let state = match random.below(10) {
                0 => {
                    self.trace.inject("desired states lost");
                    link.under_way.remove(at);
                    continue;
                }
                1 => {
                    self.trace.inject("desired states repeated");
                    link.under_way[at].clone()
                }
                _ => link.under_way.remove(at).unwrap(),
            };
            if state.generation < link.newest_delivered {
                self.trace.inject("desired states arrived late");
            }
            link.newest_delivered = link.newest_delivered.max(state.generation);
            self.hand_over(number, state, senders);
        }
    }

    /// Everything arrives, the newest last: the links are well again.
    pub fn settle(&mut self, senders: &[watch::Sender<Option<DesiredState>>; 2]) {
        self.send();
        for number in 0..ENGINES.len() {
            if let Some(state) = self.links[number].under_way.pop_back() {
                self.links[number].under_way.clear();
                self.hand_over(number, state, senders);
            }
        }
    }

    fn hand_over(
        &self,
        number: usize,
        state: DesiredState,
        senders: &[watch::Sender<Option<DesiredState>>; 2],
    ) {
        let mut given = self.given[number].lock().unwrap();
        for replication in &state.replications {
            let highest = given.entry(replication.item_id.clone()).or_default();
            *highest = (*highest).max(replication.generation);
        }
        self.trace.event(&format!(
            "{} gets state {} with {} items",
            ENGINES[number],
            state.generation,
            state.replications.len()
        ));
        senders[number].send_replace(Some(state));
    }
}

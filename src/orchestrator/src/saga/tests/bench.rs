//! A store with a vault, a site, a host and a policy, and an engine that does everything at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use arm_model::{ArmId, VaultId};
use engine_protocol::v1::{self, recovered_vm_status, replication_status};
use engine_protocol::{Authority, orders};
use protection::life::{Guard, RecoveryFacts, RecoveryOrder};
use protection::{Event, Generation, Observed};
use serde_json::Value;
use tempfile::TempDir;

use crate::app::{App, Parts, Patience};
use crate::auth::jwt::SigningKey;
use crate::auth::token::TokenIssuer;
use crate::gateway::desired;
use crate::gateway::reports::Intake;
use crate::store::records::{
    self, EngineRecord, Fabric, Item, Mapping, Plain, Policy, Storage, Vault,
};
use crate::store::sqlite::SqliteStore;
use crate::store::{Expect, Query, ResourceStore as _};

pub(super) const ENGINE: &str = "9d3c2f10-77aa-4c55-8a10-6b2f1d0e9a77";
/// A host of the same site without VMs and without the recovery role.
pub(super) const OTHER: &str = "4b8e6a52-0c1d-4e7f-9b3a-5d6c7e8f9a0b";
const STORAGE: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/st";

/// A store with a vault, a site, a host, a policy and an account; apps come and go.
pub(super) struct Bench {
    _folder: TempDir,
    pub(super) store: SqliteStore,
    pub(super) vault: VaultId,
    token_key: Vec<u8>,
    ca: (String, String),
    points: BTreeMap<String, String>,
    /// The source says nothing of its orders.
    pub(super) mute_source: bool,
    /// Recovered VMs run and write nothing to their consoles.
    pub(super) silent_console: bool,
    /// No guest answers for its agent and its ports.
    pub(super) deaf_guests: bool,
    /// This item has no recovery point.
    pub(super) pointless: Option<String>,
    /// How scripts end on the host.
    pub(super) script: Option<(v1::script_status::Outcome, i32)>,
    /// Scripts that the host has begun, in order.
    pub(super) begun: Vec<v1::ScriptOrder>,
    /// What runs scripts on the orchestrator's machine.
    pub(super) here: Option<Arc<plan_script::Scripts>>,
}

impl Bench {
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let store = SqliteStore::open(&folder.path().join("metadata.db")).expect("store");
        let authority = Authority::generate("test", time::OffsetDateTime::now_utc()).expect("CA");
        let bench = Self {
            _folder: folder,
            store,
            vault: VaultId::new("s", "g", "v"),
            token_key: SigningKey::generate().expect("key"),
            ca: (
                authority.certificate_pem().to_owned(),
                authority.key_pem().to_owned(),
            ),
            points: BTreeMap::new(),
            mute_source: false,
            silent_console: false,
            deaf_guests: false,
            pointless: None,
            script: Some((v1::script_status::Outcome::Exited, 0)),
            begun: Vec::new(),
            here: None,
        };
        let fabric = bench.vault.fabric("f");
        let policy = bench.vault.policy("p");
        let engine = |id: &str| EngineRecord {
            engine_id: id.to_owned(),
            provider_id: fabric.provider(id).to_string(),
            fabric_id: fabric.to_string(),
            site_id: "site".to_owned(),
            key_digest: String::new(),
            throttles: Vec::new(),
            report: String::new(),
            last_seen_unix_ms: 0,
        };
        let policy_record = Policy {
            id: policy.to_string(),
            details: arm_model::policy::PolicyDetails::default(),
            promise: None,
        };
        let mapping = fabric.container("c").mapping("m");
        let mapping_record = Mapping {
            id: mapping.to_string(),
            policy_id: policy.to_string(),
        };
        let plain = |id: &str| Plain {
            id: id.to_owned(),
            location: "northeurope".to_owned(),
            body: Value::Null,
        };
        let fabric_record = Fabric {
            id: fabric.to_string(),
            internal_identifier: "site".to_owned(),
        };
        let vault = Vault(plain(bench.vault.as_str()));
        let storage = Storage(plain(STORAGE));
        let changes = vec![
            records::put(bench.vault.key(), &vault, Expect::Absent).expect("record"),
            records::put(STORAGE.to_ascii_lowercase(), &storage, Expect::Absent).expect("record"),
            records::put(fabric.key(), &fabric_record, Expect::Absent).expect("record"),
            records::put(records::engine_key(ENGINE), &engine(ENGINE), Expect::Absent)
                .expect("record"),
            records::put(records::engine_key(OTHER), &engine(OTHER), Expect::Absent)
                .expect("record"),
            records::put(policy.key(), &policy_record, Expect::Absent).expect("record"),
            records::put(mapping.key(), &mapping_record, Expect::Absent).expect("record"),
        ];
        bench.store.apply(changes).await.expect("stored");
        bench
    }

    /// A fresh process on the same store, and the engine's report to it.
    pub(super) async fn app(&mut self) -> Arc<App> {
        let app = self.silent_app();
        self.report(&app).await;
        app
    }

    /// A fresh process that no engine has reported to.
    pub(super) fn silent_app(&self) -> Arc<App> {
        let authority = Authority::from_pem(self.ca.0.clone(), self.ca.1.clone()).expect("CA");
        let key = SigningKey::from_pkcs8(&self.token_key).expect("key");
        let (app, _receiver) = App::new(Parts {
            store: Arc::new(self.store.clone()),
            authority,
            tokens: TokenIssuer::new(key, "https://localhost", "t"),
            public_url: "https://localhost".to_owned(),
            gateway: "localhost:1".to_owned(),
            regions: Vec::new(),
            tenant_id: "t".to_owned(),
            patience: Patience::default(),
            sealer: crate::seal::Sealer::new(&[7; 32]).expect("sealer"),
        });
        if let Some(scripts) = &self.here {
            app.run_scripts(Arc::clone(scripts));
        }
        app
    }

    /// The engines do everything at once and report it.
    pub(super) async fn report(&mut self, app: &App) {
        for engine in [ENGINE, OTHER] {
            self.report_of(app, engine).await;
        }
    }

    async fn report_of(&mut self, app: &App, engine: &str) {
        let wanted = desired::refresh(app, engine).await.expect("desired state");
        let silent_console = self.silent_console;
        let answered = if self.deaf_guests { 0 } else { 3_000 };
        let (mute, pointless) = (self.mute_source, self.pointless.clone());
        let replications = wanted.replications.iter().map(|one| {
            let state = if one.phase() == v1::replication::Phase::Retired {
                replication_status::State::Retired
            } else {
                replication_status::State::Protected
            };
            let point = self
                .points
                .entry(one.item_id.clone())
                .or_insert_with(|| uuid::Uuid::new_v4().to_string());
            v1::ReplicationStatus {
                item_id: one.item_id.clone(),
                generation: one.generation,
                state: state.into(),
                recovery_points: if pointless.as_ref() == Some(&one.item_id) {
                    Vec::new()
                } else {
                    vec![v1::RecoveryPoint {
                        id: point.clone(),
                        time_unix_ms: 1_000,
                        ..Default::default()
                    }]
                },
                disks: one
                    .disk_ids
                    .iter()
                    .map(|id| v1::DiskStatus {
                        disk_id: id.clone(),
                        tracking: v1::disk_status::Tracking::Tracked.into(),
                        ..Default::default()
                    })
                    .collect(),
                resynchronized: one.resynchronize,
                source: one
                    .order
                    .as_ref()
                    .filter(|_| !mute)
                    .and_then(|order| obeyed(order, point)),
                ..Default::default()
            }
        });
        let recovered_vms = wanted.recovered_vms.iter().map(|vm| {
            let state = if vm.power() == v1::recovered_vm::Power::Running {
                if silent_console {
                    recovered_vm_status::State::Running
                } else {
                    recovered_vm_status::State::Booted
                }
            } else {
                recovered_vm_status::State::Off
            };
            v1::RecoveredVmStatus {
                id: vm.id.clone(),
                state: state.into(),
                recovery: vm.order.as_ref().and_then(recovered),
                agent_answered_unix_ms: if vm.ask_agent { answered } else { 0 },
                ports: vm.ports.iter().map(|port| asked(*port, answered)).collect(),
                ..Default::default()
            }
        });
        let listed: &[&str] = match engine {
            ENGINE => &["vm-a", "vm-b"],
            _ => &[],
        };
        let vms = listed.iter().map(|&id| v1::VirtualMachine {
            id: id.to_owned(),
            name: id.to_owned(),
            disks: vec![v1::Disk {
                id: "disk".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        });
        let mut scripts = Vec::new();
        for order in &wanted.scripts {
            let Some((outcome, exit_code)) = self.script else {
                continue;
            };
            if self.begun.iter().all(|known| known.id != order.id) {
                self.begun.push(order.clone());
            }
            scripts.push(v1::ScriptStatus {
                id: order.id.clone(),
                outcome: outcome.into(),
                exit_code,
                output: "said".to_owned(),
                ..Default::default()
            });
        }
        let report = v1::EngineReport {
            observed_generation: wanted.generation,
            host: Some(v1::Host {
                name: if engine == ENGINE { "hv1" } else { "hv2" }.to_owned(),
                recovery_role: engine == ENGINE,
                ..Default::default()
            }),
            virtual_machines: vms.collect(),
            replications: replications.collect(),
            recovered_vms: recovered_vms.collect(),
            scripts,
            ..Default::default()
        };
        Intake::new(engine).take(app, report).await.expect("report");
    }

    pub(super) fn item_id(&self, name: &str) -> ArmId {
        self.vault
            .fabric("f")
            .container("c")
            .protected_item(name)
            .into()
    }

    pub(super) fn item(&self, name: &str) -> Item {
        Item {
            id: self.item_id(name).to_string(),
            life: protection::Life::new(Generation(0)),
            engine_id: ENGINE.to_owned(),
            vm_id: name.to_owned(),
            vm_name: name.to_owned(),
            disk_ids: vec!["disk".to_owned()],
            policy_id: self.vault.policy("p").to_string(),
            storage_id: STORAGE.to_owned(),
            folder: "/srv/store".to_owned(),
            azure: None,
            log: None,
            resynchronize: 0,
            key_ids: Vec::new(),
            active_key_id: String::new(),
            vault_key: "v-00000000".to_owned(),
            request: arm_model::protected_item::EnableDetails::default(),
            last_test_failover: None,
            drill_job: None,
            recovery: None,
            formers: Vec::new(),
            last_failover: None,
            correlation_id: String::new(),
        }
    }

    /// An item that is protected already.
    pub(super) async fn protected(&self, name: &str) {
        let mut item = self.item(name);
        let report = Event::Report {
            generation: Generation(0),
            observed: Observed::Protected,
        };
        item.life = protection::step(item.life, report).expect("report").0;
        self.store
            .apply(vec![
                records::put(self.item_id(name).key(), &item, Expect::Any).expect("record"),
            ])
            .await
            .expect("stored");
    }

    /// Everything but jobs, and without what only grows.
    pub(super) async fn remains(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for kind in [
            "item",
            "plan",
            "policy",
            "mapping",
            "recovered",
            "lock",
            "fabric",
        ] {
            for document in self.store.list(Query::below(kind, "")).await.expect("list") {
                let mut body = document.body;
                // Comparisons that were asked for are only counted up.
                if let Some(fields) = body.as_object_mut() {
                    fields.remove("resynchronize");
                }
                all.insert(document.key, body);
            }
        }
        all
    }
}

/// What a source says that has carried its order out.
fn obeyed(order: &v1::SourceOrder, point: &str) -> Option<v1::SourceReport> {
    let (epoch, order) = orders::source_order(order)?;
    let guard = Guard {
        done: true,
        ..Guard::new(epoch, order)
    };
    let said = guard.says(order.permits_running())?;
    Some(orders::source_report(epoch, said, point))
}

/// What a recovery side says that has carried its order out.
fn recovered(order: &v1::RecoveryOrder) -> Option<v1::RecoveryReport> {
    let (epoch, order) = orders::recovery_order(order)?;
    let instance = match order {
        RecoveryOrder::Run { instance, .. } | RecoveryOrder::Leave { instance, .. } => {
            Some(instance)
        }
        RecoveryOrder::Absent | RecoveryOrder::Stop => None,
    };
    let guard = Guard {
        done: true,
        ..Guard::new(epoch, order)
    };
    let running = instance.is_some();
    let said = guard.says(RecoveryFacts { instance, running })?;
    Some(orders::recovery_report(epoch, said))
}

fn asked(port: u32, answered_unix_ms: i64) -> v1::PortStatus {
    let problem = if answered_unix_ms == 0 {
        "no answer came"
    } else {
        ""
    };
    v1::PortStatus {
        port,
        answered_unix_ms,
        problem: problem.to_owned(),
    }
}

//! An engine that does as it is told, over the real gateway with real TLS.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine_protocol::v1::engine_gateway_client::EngineGatewayClient;
use engine_protocol::v1::{self, recovered_vm_status, replication, replication_status};
use engine_protocol::{EngineIdentity, IdentityRequest, RegistrationKey, orders, tls};
use protection::life::{Guard, RecoveryFacts, RecoveryOrder};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub const WEB: &str = "c0ffee00-1234-4abc-8def-001122334455";
pub const DB: &str = "c0ffee00-1234-4abc-8def-001122334466";
pub const BROKEN: &str = "c0ffee00-1234-4abc-8def-001122334477";

/// How the engine behaves.
#[derive(Clone, Default)]
pub struct Behaviour {
    /// Replications can't begin, for this reason.
    pub blocked: Option<v1::Finding>,
    /// Replications stay in the first copy.
    pub copying: bool,
    /// Recovered VMs never get beyond this state.
    pub vm_state: Option<recovered_vm_status::State>,
    /// Nothing is retired.
    pub keeps_replicas: bool,
    /// Disks are not tracked, for this reason.
    pub suspect: Option<String>,
    /// Comparisons that were asked for are not carried out.
    pub compares_never: bool,
    /// Why cycles are farther apart than asked for.
    pub degraded: Option<String>,
    /// Keys that older objects need, beside the active one.
    pub older_keys: Vec<String>,
    /// VMs that are on another host.
    pub lacks: Vec<&'static str>,
    /// Age of the newest point.
    pub point_age_ms: i64,
    /// The host runs recovered VMs of these generations only; its own VMs are of generation 2.
    pub recovery_generations: Option<Vec<u32>>,
    /// The host runs recovered VMs and has none of its own to protect.
    pub recovers_only: bool,
    /// What runs in its VMs; Linux without a word.
    pub os_type: Option<&'static str>,
    /// Nothing is said of a source's order.
    pub mute_source: bool,
    /// The disks of its VMs, in place of the usual two.
    pub disks: Option<Vec<v1::Disk>>,
    /// The recovery point of every replica, in place of one that is in no store.
    pub point: Option<v1::RecoveryPoint>,
    /// What is seen of drills' VMs: console and picture. Told until it is acknowledged, as the real one does.
    pub evidence: Option<(String, Vec<u8>)>,
    /// What the checks before protection go by, of VMs by id.
    pub facts: BTreeMap<&'static str, v1::VmFacts>,
}

/// What happened, for tests to look at.
#[derive(Default)]
pub struct Seen {
    pub states: Vec<v1::DesiredState>,
}

pub struct Engine {
    pub id: String,
    pub identity: EngineIdentity,
    pub provider_id: String,
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

pub fn host(name: &str) -> v1::Host {
    v1::Host {
        name: name.to_owned(),
        operating_system: "Debian GNU/Linux 12".to_owned(),
        hypervisor: "qemu".to_owned(),
        hypervisor_version: "7.2".to_owned(),
        engine_version: "0.1.0".to_owned(),
        free_bytes: 1 << 40,
        recovery_role: true,
        recovery_generations: vec![1, 2],
        findings: Vec::new(),
        source_role: Some(true),
    }
}

fn machine(id: &str, name: &str, findings: Vec<v1::Finding>) -> v1::VirtualMachine {
    let disk = |number: u32, operating_system: bool| v1::Disk {
        id: format!("{id}-disk-{number}"),
        name: format!("{name}-{number}.vhdx"),
        size_bytes: 1 << 30,
        operating_system,
    };
    v1::VirtualMachine {
        id: id.to_owned(),
        name: name.to_owned(),
        generation: 2,
        processor_count: 1,
        memory_bytes: 256 << 20,
        power_state: v1::PowerState::Running.into(),
        os_type: "Linux".to_owned(),
        disks: vec![disk(0, true), disk(1, false)],
        network_adapters: vec![v1::NetworkAdapter {
            id: "nic-0".to_owned(),
            network_name: "lan".to_owned(),
            mac_address: "52:54:00:00:00:01".to_owned(),
        }],
        findings,
        facts: None,
    }
}

pub fn finding(code: &str) -> v1::Finding {
    v1::Finding {
        code: code.to_owned(),
        summary: "The folder is read-only.".to_owned(),
        possible_causes: "It was mounted read-only.".to_owned(),
        recommended_action: "Make it writable.".to_owned(),
        critical: true,
    }
}

pub async fn enrol(
    key: &str,
    engine_id: &str,
) -> Result<(EngineIdentity, v1::EnrolResponse), tonic::Status> {
    enrol_with(key, engine_id, &key_of(engine_id)).await
}

/// The key pair that an engine keeps; an engine is the same one only with it.
fn key_of(engine_id: &str) -> IdentityRequest {
    static KEYS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut keys = KEYS.lock().expect("keys");
    let made = || IdentityRequest::generate().expect("key pair").key_pem;
    let pem = keys.entry(engine_id.to_owned()).or_insert_with(made);
    IdentityRequest::from_key_pem(pem).expect("key pair")
}

/// Enrols with this key pair.
pub async fn enrol_with(
    key: &str,
    engine_id: &str,
    request: &IdentityRequest,
) -> Result<(EngineIdentity, v1::EnrolResponse), tonic::Status> {
    let key = RegistrationKey::decode(key).expect("key");
    let mut client = EngineGatewayClient::new(tls::enrolment_channel(&key).expect("channel"));
    let response = client
        .enrol(v1::EnrolRequest {
            secret: key.secret,
            engine_id: engine_id.to_owned(),
            certificate_request_pem: request.request_pem.clone(),
            host: Some(host("hv1.lab.example")),
        })
        .await?
        .into_inner();
    let identity = EngineIdentity {
        certificate_pem: response.certificate_pem.clone(),
        key_pem: request.key_pem.clone(),
        ca_pem: response.ca_pem.clone(),
    };
    Ok((identity, response))
}

impl Engine {
    /// Enrols and begins to report.
    pub async fn start(key: &str, gateway: &str) -> Self {
        let id = uuid::Uuid::new_v4().to_string();
        let (identity, response) = enrol(key, &id).await.expect("enrolment");
        Self::resume(
            id,
            identity,
            response.provider_arm_id,
            gateway,
            Behaviour::default(),
        )
    }

    /// Begins to report with an identity made earlier.
    pub fn resume(
        id: String,
        identity: EngineIdentity,
        provider_id: String,
        gateway: &str,
        behaviour: Behaviour,
    ) -> Self {
        let behaviour = Arc::new(Mutex::new(behaviour));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = CancellationToken::new();
        let work = run(
            identity.clone(),
            gateway.to_owned(),
            Arc::clone(&behaviour),
            Arc::clone(&seen),
            stop.clone(),
        );
        Self {
            id,
            identity,
            provider_id,
            behaviour,
            seen,
            stop,
            task: tokio::spawn(work),
        }
    }

    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().expect("lock"));
    }

    pub fn last(&self) -> v1::DesiredState {
        self.seen
            .lock()
            .expect("lock")
            .states
            .last()
            .cloned()
            .unwrap_or_default()
    }

    pub async fn stop(self) -> (String, EngineIdentity, String) {
        self.stop.cancel();
        self.task.await.expect("engine");
        (self.id, self.identity, self.provider_id)
    }
}

/// Connects again and again, as the real one does.
async fn run(
    identity: EngineIdentity,
    gateway: String,
    behaviour: Arc<Mutex<Behaviour>>,
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
) {
    let mut state = v1::DesiredState::default();
    let mut points = BTreeMap::new();
    while !stop.is_cancelled() {
        let mut client =
            EngineGatewayClient::new(tls::session_channel(&gateway, &identity).expect("channel"));
        let (sender, receiver) = mpsc::channel(8);
        let Ok(stream) = client.session(ReceiverStream::new(receiver)).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut stream = stream.into_inner();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                message = stream.message() => match message {
                    Ok(Some(message)) => {
                        seen.lock().expect("lock").states.push(message.clone());
                        state = message;
                    }
                    _ => break,
                },
                _ = tick.tick() => {
                    let behaviour = behaviour.lock().expect("lock").clone();
                    if sender.send(report(&state, &behaviour, &mut points)).await.is_err() { break; }
                }
            }
        }
    }
}

fn now_ms() -> i64 {
    i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).expect("now")
}

fn report(
    state: &v1::DesiredState,
    behaviour: &Behaviour,
    points: &mut BTreeMap<String, (v1::RecoveryPoint, i64)>,
) -> v1::EngineReport {
    let replications = state
        .replications
        .iter()
        .map(|wanted| status(wanted, behaviour, points))
        .collect();
    let recovered_vms = state
        .recovered_vms
        .iter()
        .map(|vm| {
            let natural = match vm.power() {
                v1::recovered_vm::Power::Running => recovered_vm_status::State::Booted,
                _ => recovered_vm_status::State::Off,
            };
            let state = behaviour.vm_state.unwrap_or(natural);
            v1::RecoveredVmStatus {
                id: vm.id.clone(),
                state: state.into(),
                started_unix_ms: now_ms(),
                first_output_unix_ms: if state == recovered_vm_status::State::Booted {
                    now_ms()
                } else {
                    0
                },
                point_id: vm.point_id.clone(),
                point_time_unix_ms: now_ms() - 5_000,
                findings: if state == recovered_vm_status::State::Failed {
                    vec![finding("ViewUnreadable")]
                } else {
                    Vec::new()
                },
                console_path: format!("/recovered/{}/console.log", vm.id),
                recovery: vm.order.as_ref().and_then(recovered),
                ..v1::RecoveredVmStatus::default()
            }
        })
        .collect();
    v1::EngineReport {
        observed_generation: state.generation,
        host: Some(v1::Host {
            recovery_generations: behaviour
                .recovery_generations
                .clone()
                .unwrap_or_else(|| vec![1, 2]),
            source_role: Some(!behaviour.recovers_only),
            ..host("hv1.lab.example")
        }),
        virtual_machines: [
            machine(WEB, "web01", vec![]),
            machine(DB, "db01", vec![]),
            machine(BROKEN, "broken01", vec![finding("PhysicalDisk")]),
        ]
        .into_iter()
        .filter(|vm| !behaviour.lacks.contains(&vm.id.as_str()))
        .map(|vm| v1::VirtualMachine {
            os_type: behaviour.os_type.unwrap_or("Linux").to_owned(),
            facts: behaviour.facts.get(vm.id.as_str()).cloned(),
            disks: behaviour.disks.clone().unwrap_or(vm.disks),
            power_state: power(state, &vm.id).into(),
            ..vm
        })
        .collect(),
        replications,
        recovered_vms,
        evidence: evidence(state, behaviour),
        ..v1::EngineReport::default()
    }
}

/// A VM that is to stay off is off.
fn power(state: &v1::DesiredState, vm_id: &str) -> v1::PowerState {
    use v1::source_order::Kind as K;
    let of_vm = state.replications.iter().find(|one| one.vm_id == vm_id);
    match of_vm
        .and_then(|one| one.order.as_ref())
        .map(v1::SourceOrder::kind)
    {
        Some(K::ShipRest | K::Hold | K::Receive | K::ReceiveRest | K::LeaveOff) => {
            v1::PowerState::Off
        }
        _ => v1::PowerState::Running,
    }
}

/// Of the first VM whose evidence is not acknowledged.
fn evidence(state: &v1::DesiredState, behaviour: &Behaviour) -> Option<v1::Evidence> {
    let (console, picture) = behaviour.evidence.as_ref()?;
    let id = format!("{:064x}", console.len());
    let vm = state
        .recovered_vms
        .iter()
        .find(|vm| vm.evidence_received != id)?;
    Some(v1::Evidence {
        vm_id: vm.id.clone(),
        id,
        taken_unix_ms: now_ms(),
        screenshot_png: picture.clone(),
        console_tail: console.clone(),
        problem: String::new(),
    })
}

fn status(
    wanted: &v1::Replication,
    behaviour: &Behaviour,
    points: &mut BTreeMap<String, (v1::RecoveryPoint, i64)>,
) -> v1::ReplicationStatus {
    use replication_status::State;
    let retired = wanted.phase() == replication::Phase::Retired;
    let state = if retired && !behaviour.keeps_replicas {
        State::Retired
    } else if behaviour.blocked.is_some() {
        State::Blocked
    } else if behaviour.copying {
        State::InitialReplication
    } else {
        State::Protected
    };
    let made = points.entry(wanted.item_id.clone()).or_insert_with(|| {
        let point = v1::RecoveryPoint {
            id: uuid::Uuid::new_v4().to_string(),
            time_unix_ms: now_ms(),
            kind: v1::recovery_point::Kind::CrashConsistent.into(),
            position: 1,
            changed_bytes: 4096,
            sent_bytes: 1024,
            ..v1::RecoveryPoint::default()
        };
        (point, now_ms())
    });
    if let Some(point) = &behaviour.point {
        made.0.clone_from(point);
    }
    let key = wanted
        .encryption
        .as_ref()
        .map(|encryption| encryption.active_key_id.clone())
        .unwrap_or_default();
    v1::ReplicationStatus {
        item_id: wanted.item_id.clone(),
        generation: wanted.generation,
        state: state.into(),
        progress_done_bytes: if behaviour.blocked.is_some() {
            0
        } else {
            512 << 20
        },
        progress_total_bytes: 2 << 30,
        recovery_points: if state == State::Protected {
            vec![v1::RecoveryPoint {
                time_unix_ms: made.0.time_unix_ms - behaviour.point_age_ms,
                group_point_id: if wanted.group_name.is_empty() {
                    String::new()
                } else {
                    format!("{}-point", wanted.group_name)
                },
                ..made.0.clone()
            }]
        } else {
            Vec::new()
        },
        last_cycle_changed_bytes: 4096,
        last_cycle_sent_bytes: 1024,
        last_cycle_unix_ms: made.1,
        total_sent_bytes: 1 << 20,
        backlog_cycles: 0,
        findings: behaviour.blocked.clone().into_iter().collect(),
        disks: wanted
            .disk_ids
            .iter()
            .map(|id| v1::DiskStatus {
                disk_id: id.clone(),
                tracking: if behaviour.suspect.is_some() {
                    v1::disk_status::Tracking::Suspect
                } else {
                    v1::disk_status::Tracking::Tracked
                }
                .into(),
                reason: behaviour.suspect.clone().unwrap_or_default(),
                compared_bytes: 0,
                size_bytes: 1 << 30,
            })
            .collect(),
        backlog_bytes: 12_345,
        eta_seconds: 7,
        bytes_per_second: 1_000,
        effective_interval_seconds: if behaviour.degraded.is_some() { 90 } else { 30 },
        degraded_reason: behaviour.degraded.clone().unwrap_or_default(),
        last_app_consistent_unix_ms: made.1,
        last_verified_unix_ms: made.1,
        resynchronized: if behaviour.compares_never {
            0
        } else {
            wanted.resynchronize
        },
        active_key_id: key.clone(),
        source: wanted
            .order
            .as_ref()
            .filter(|_| !behaviour.mute_source)
            .and_then(|order| obeyed(order, &made.0.id)),
        key_ids: behaviour
            .older_keys
            .iter()
            .cloned()
            .chain(Some(key).filter(|key| !key.is_empty()))
            .collect(),
        ..v1::ReplicationStatus::default()
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

/// Recovered VMs can't be started.
pub fn recovered_vm_failed(behaviour: &mut Behaviour) {
    behaviour.vm_state = Some(recovered_vm_status::State::Failed);
}

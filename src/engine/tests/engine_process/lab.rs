//! A host with one VM, the real program on it, and a small orchestrator that says what it is told to.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Output;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use disk_image::{Access, CreateOptions, DiskImage, Format};
use engine_protocol::v1::engine_gateway_server::{EngineGateway, EngineGatewayServer};
use engine_protocol::v1::replication_status::State;
use engine_protocol::v1::{
    DesiredState, EngineReport, EnrolRequest, EnrolResponse, Policy, RenewRequest, Replication,
    ReplicationStatus, StoreTarget, replication, store_target,
};
use engine_protocol::{Authority, RegistrationKey, tls};
use hypervisor::{DiskId, QemuDriver, VmId};
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

pub const LIMIT: Duration = Duration::from_secs(120);
pub const OS_BYTES: u64 = 64 << 20;
pub const DATA_BYTES: u64 = 32 << 20;
pub const ITEM: &str = "11111111-2222-3333-4444-555555555555";
pub const VAULT: &str = "vault-0a1b2c3d";

/// The orchestrator's end of the protocol: gives out certificates, sends what it is told to, keeps the newest report.
struct Gateway {
    authority: Authority,
    secret: String,
    enrolments: Arc<AtomicU64>,
    engine_ids: Arc<Mutex<Vec<String>>>,
    certificates: Arc<Mutex<Certificates>>,
    desired: watch::Receiver<DesiredState>,
    reports: watch::Sender<EngineReport>,
}

/// Client certificates: how many were renewed, and the ones that sessions began with.
#[derive(Default)]
pub struct Certificates {
    pub renewed: usize,
    pub shown: Vec<Vec<u8>>,
}

fn shown<T>(request: &Request<T>) -> Vec<u8> {
    let chain = request.peer_certs().expect("a client certificate");
    chain[0].as_ref().to_vec()
}

#[tonic::async_trait]
impl EngineGateway for Gateway {
    async fn enrol(
        &self,
        request: Request<EnrolRequest>,
    ) -> Result<Response<EnrolResponse>, Status> {
        let request = request.into_inner();
        if request.secret != self.secret {
            return Err(Status::permission_denied("wrong secret"));
        }
        self.enrolments.fetch_add(1, Ordering::SeqCst);
        // As if the engine had enrolled long ago: it renews its certificate at once.
        let now = time::OffsetDateTime::now_utc() - time::Duration::days(500);
        let certificate_pem = self
            .authority
            .issue_engine(&request.engine_id, &request.certificate_request_pem, now)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(EnrolResponse {
            certificate_pem,
            ca_pem: self.authority.certificate_pem().to_owned(),
            provider_arm_id: format!("/providers/{}", request.engine_id),
        }))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<EnrolResponse>, Status> {
        let engine_id = tls::engine_id(&request)?;
        self.certificates.lock().unwrap().renewed += 1;
        let now = time::OffsetDateTime::now_utc();
        let certificate_pem = self
            .authority
            .issue_engine(
                &engine_id,
                &request.into_inner().certificate_request_pem,
                now,
            )
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(EnrolResponse {
            certificate_pem,
            ca_pem: self.authority.certificate_pem().to_owned(),
            provider_arm_id: String::new(),
        }))
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<DesiredState, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<EngineReport>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.engine_ids
            .lock()
            .unwrap()
            .push(tls::engine_id(&request)?);
        let certificate = shown(&request);
        self.certificates.lock().unwrap().shown.push(certificate);
        let mut inbound = request.into_inner();
        let reports = self.reports.clone();
        tokio::spawn(async move {
            while let Ok(Some(report)) = inbound.message().await {
                reports.send_replace(report);
            }
        });
        Ok(Response::new(Box::pin(
            WatchStream::new(self.desired.clone()).map(Ok),
        )))
    }
}

pub struct Lab {
    pub folder: tempfile::TempDir,
    pub config: PathBuf,
    pub vms: PathBuf,
    pub recovery: PathBuf,
    pub store: PathBuf,
    pub vm: Uuid,
    pub disks: Vec<Uuid>,
    pub desired: watch::Sender<DesiredState>,
    pub reports: watch::Receiver<EngineReport>,
    pub enrolments: Arc<AtomicU64>,
    pub engine_ids: Arc<Mutex<Vec<String>>>,
    pub certificates: Arc<Mutex<Certificates>>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Whatever the test has come to, no process stays behind.
        let run = |arguments: &[&std::ffi::OsStr]| {
            std::process::Command::new(env!("CARGO_BIN_EXE_siterecovery-engine"))
                .args(arguments)
                .output()
                .ok()
        };
        run(&[
            "stop".as_ref(),
            "--config".as_ref(),
            self.config.as_os_str(),
        ]);
        for folder in [&self.vms, &self.recovery] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = if *folder == self.vms {
                    "lab".into()
                } else {
                    entry.file_name()
                };
                run(&[
                    "vm".as_ref(),
                    "stop".as_ref(),
                    "--turn-off".as_ref(),
                    "--vm-folder".as_ref(),
                    folder.as_os_str(),
                    &name,
                ]);
            }
        }
    }
}

impl Lab {
    pub async fn new() -> Self {
        tls::install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (vms, recovery, store) = (path("vms"), path("recovery"), path("store"));
        let vm = Uuid::new_v4();
        let home = vms.join("lab");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::create_dir(&store).unwrap();
        let mut disks = Vec::new();
        for (name, size) in [("os.vhdx", OS_BYTES), ("data.vhdx", DATA_BYTES)] {
            let mut options = CreateOptions::new(Format::VhdxDynamic, size);
            options.block_size = Some(1 << 20);
            let mut image = DiskImage::create(home.join(name), &options).unwrap();
            for block in [3u64, 4, 17] {
                let data: Vec<u8> = (0..1 << 20)
                    .map(|byte| (byte * 7 + block as usize) as u8)
                    .collect();
                image.write_at(&data, block << 20).unwrap();
            }
            image.flush().unwrap();
            disks.push(image.id().unwrap());
        }
        let toml = format!(
            "id = \"{vm}\"\nname = \"lab\"\ngeneration = 2\nmemory_mib = 128\nprocessors = 1\nos_type = \"Linux\"\n\
             [[disk]]\nfile = \"os.vhdx\"\n[[disk]]\nfile = \"data.vhdx\"\n[[network]]\nname = \"production\"\n"
        );
        std::fs::write(home.join("vm.toml"), toml).unwrap();

        let now = time::OffsetDateTime::now_utc();
        let authority = Authority::generate("test", now).unwrap();
        let server = authority
            .issue_server(&["127.0.0.1".to_owned()], now)
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = listener.local_addr().unwrap().to_string();
        let key = RegistrationKey {
            gateway,
            ca_pem: authority.certificate_pem().to_owned(),
            secret: "s3cret-of-the-test".to_owned(),
            expires_unix: now.unix_timestamp() + 600,
        };
        let key_file = path("registration.key");
        std::fs::write(&key_file, key.encode()).unwrap();
        let (desired, desired_seen) = watch::channel(DesiredState {
            generation: 1,
            report_interval_ms: 500,
            ..DesiredState::default()
        });
        let (reports_sender, reports) = watch::channel(EngineReport::default());
        let (enrolments, engine_ids) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(Mutex::new(Vec::new())),
        );
        let certificates = Arc::new(Mutex::new(Certificates::default()));
        let tls_config = tls::server_config(
            authority.certificate_pem(),
            &server.certificate_pem,
            &server.key_pem,
        );
        let service = Gateway {
            authority,
            secret: key.secret.clone(),
            enrolments: enrolments.clone(),
            engine_ids: engine_ids.clone(),
            certificates: certificates.clone(),
            desired: desired_seen,
            reports: reports_sender,
        };
        tokio::spawn(
            tonic::transport::Server::builder()
                .tls_config(tls_config)
                .unwrap()
                .add_service(EngineGatewayServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let config = path("engine.toml");
        let text = format!(
            "vm_folder = {vms:?}\ndata_folder = {:?}\nrecovery_folder = {recovery:?}\nrecovery_role = true\nregistration_key_file = {key_file:?}\n",
            path("data")
        );
        std::fs::write(&config, text).unwrap();
        Self {
            config,
            vms,
            recovery,
            store,
            vm,
            disks,
            desired,
            reports,
            enrolments,
            engine_ids,
            certificates,
            folder,
        }
    }

    pub async fn engine(&self, arguments: &[&str]) -> Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_siterecovery-engine"))
            .args(arguments)
            .output()
            .await
            .unwrap()
    }

    pub async fn good(&self, arguments: &[&str]) -> String {
        let output = self.engine(arguments).await;
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub async fn with_config(&self, word: &str) -> String {
        self.good(&[word, "--config", self.config.to_str().unwrap()])
            .await
    }

    pub async fn kill_engine(&self) {
        let status = self
            .good(&[
                "status",
                "--json",
                "--config",
                self.config.to_str().unwrap(),
            ])
            .await;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let process = status["processId"].as_i64().unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(process as i32),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
    }

    pub async fn kill_supervisor(&self) {
        let file = self.folder.path().join("data/supervisor.pid");
        let text = std::fs::read_to_string(file).unwrap();
        let process = nix::unistd::Pid::from_raw(text.trim().parse().unwrap());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
        // On a busy machine a killed process lives on for a moment; a dead one has no command line.
        let line = format!("/proc/{process}/cmdline");
        let is_gone = async {
            while std::fs::read(&line).is_ok_and(|line| !line.is_empty()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, is_gone).await;
        waited.expect("the killed supervisor is gone");
    }

    pub async fn report(&self, what: &str, wanted: impl Fn(&EngineReport) -> bool) -> EngineReport {
        let mut reports = self.reports.clone();
        let report = tokio::time::timeout(LIMIT, reports.wait_for(wanted)).await;
        match report {
            Ok(report) => report.unwrap().clone(),
            Err(_) => {
                let log = std::fs::read_to_string(self.folder.path().join("data/engine.log"))
                    .unwrap_or_default();
                panic!(
                    "never came true: {what}\nreport: {:#?}\nlog:\n{log}",
                    *self.reports.borrow()
                );
            }
        }
    }

    pub async fn item(
        &self,
        what: &str,
        wanted: impl Fn(&ReplicationStatus) -> bool,
    ) -> ReplicationStatus {
        let report = self
            .report(what, |report| report.replications.iter().any(&wanted))
            .await;
        report.replications[0].clone()
    }

    pub fn want(&self, change: impl FnOnce(&mut DesiredState)) {
        self.desired.send_modify(|state| {
            state.generation += 1;
            change(state);
        });
    }

    pub fn replication(&self) -> Replication {
        Replication {
            item_id: ITEM.to_owned(),
            vault_key: VAULT.to_owned(),
            generation: 1,
            vm_id: self.vm.to_string(),
            disk_ids: self.disks.iter().map(Uuid::to_string).collect(),
            store: Some(self.target()),
            policy: Some(Policy {
                replication_interval_seconds: 1,
                retention_hours: 1,
                ..Policy::default()
            }),
            phase: replication::Phase::Active.into(),
            delete_replica: false,
            vm_name: "lab".to_owned(),
            ..Replication::default()
        }
    }

    pub fn target(&self) -> StoreTarget {
        StoreTarget {
            kind: Some(store_target::Kind::Folder(
                self.store.to_str().unwrap().to_owned(),
            )),
            log: None,
        }
    }

    pub async fn writes(&self, disk: usize, offset: u64, byte: u8) {
        let driver =
            QemuDriver::new(vec![self.vms.clone()], self.folder.path().join("scratch")).unwrap();
        driver
            .write_as_guest(
                VmId(self.vm),
                DiskId(self.disks[disk]),
                offset,
                64 << 10,
                byte,
            )
            .await
            .unwrap();
    }

    pub fn now(&self) -> i64 {
        engine::engine::now_unix_ms()
    }
}

pub fn protected(points: usize) -> impl Fn(&ReplicationStatus) -> bool {
    move |status| status.state() == State::Protected && status.recovery_points.len() >= points
}

pub fn after(time_unix_ms: i64) -> impl Fn(&ReplicationStatus) -> bool {
    move |status| {
        status
            .recovery_points
            .last()
            .is_some_and(|point| point.time_unix_ms > time_unix_ms)
    }
}

pub fn whole(path: &Path, size: u64) -> Vec<u8> {
    let image = DiskImage::open(path, Access::ReadOnly).unwrap();
    let mut data = vec![0; size as usize];
    image.read_at(&mut data, 0).unwrap();
    data
}

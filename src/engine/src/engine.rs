//! The engine put together: lock, hypervisor, reconciler, session, control socket, and their orderly end.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use hypervisor::Hypervisor;
use hypervisor::QemuDriver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::Config;
use crate::control::{self, About};
use crate::desired::DesiredFile;
use crate::durable::{self, Access};
use crate::identity::IdentityFolder;
use crate::instance::InstanceLock;
use crate::reconcile::Reconciler;
use crate::recovered::{RecoveredVms, RecoveryHost};
use crate::replicator::Context;
use crate::replicator::pauses::NoPauses;
use crate::report::{Reporter, free_bytes};
use crate::session::Session;
use crate::task::spawn_named;
use crate::throttle::Limiter;

/// The qemu driver for this configuration.
pub fn driver(config: &Config) -> anyhow::Result<Arc<dyn Hypervisor>> {
    let mut folders = Vec::new();
    folders.extend(config.vm_folder.clone());
    if config.recovery_role {
        durable::create_folder(&config.recovery_folder).with_context(|| {
            format!(
                "create recovery folder {}",
                config.recovery_folder.display()
            )
        })?;
        folders.push(config.recovery_folder.clone());
    }
    let scratch = config.data_folder.join("scratch");
    Ok(Arc::new(
        QemuDriver::new(folders, scratch).context("set up the qemu driver")?,
    ))
}

/// Runs an engine until `stop`. Errors are those of coming up; later ones are findings and log lines.
pub async fn run(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    durable::create_folder(&config.data_folder)
        .with_context(|| format!("create data folder {}", config.data_folder.display()))?;
    let _lock = InstanceLock::take(&config.data_folder)?;
    durable::create_folder(&config.state_folder()).context("create the state folder")?;
    durable::replace(
        &config.pid_file(),
        format!("{}\n", std::process::id()).as_bytes(),
        Access::Plain,
    )
    .with_context(|| format!("write {}", config.pid_file().display()))?;
    let identity = IdentityFolder::open(config.identity_folder())?;
    let engine_id = identity.engine_id()?;
    let hypervisor = driver(config)?;
    // Before anything else: a guest may be waiting.
    match hypervisor.recover().await {
        Ok(woken) => {
            for vm in woken {
                tracing::warn!(%vm, "a freeze of an earlier run had left this virtual machine held; it goes on");
            }
        }
        Err(error) => tracing::error!(?error, "held virtual machines could not be looked for"),
    }
    let board = Arc::new(Board::default());

    let (about, about_seen) = watch::channel(About {
        engine_id: engine_id.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process_id: std::process::id(),
        ..About::default()
    });
    let (desired, desired_seen) = watch::channel(None);
    let context = Arc::new(Context {
        hypervisor: hypervisor.clone(),
        board: board.clone(),
        state_folder: config.state_folder(),
        pauses: Arc::new(NoPauses),
        clock: Arc::new(now_unix_ms),
        store_faults: None,
        free_bytes: Arc::new(|path: &Path| free_bytes(path)),
        throttle: Arc::new(Limiter::new(Arc::new(now_unix_ms))),
        groups: Arc::default(),
    });
    let recovered = config.recovery_role.then(|| {
        RecoveredVms::new(Arc::new(RecoveryHost::new(
            hypervisor.clone(),
            board.clone(),
            config.recovery_folder.clone(),
        )))
    });
    let reconciler = Reconciler::new(
        context,
        DesiredFile::new(&config.state_folder()),
        config.source_role,
        recovered,
    );
    let session = Session {
        identity,
        key_file: config.registration_key_file.clone(),
        reporter: Arc::new(Reporter::new(config, hypervisor, board.clone())),
        desired,
        about,
    };
    let listener = control::listen(&config.control_socket())?;
    let control = spawn_named("control", control::serve(listener, board, about_seen));
    let reconciling = spawn_named("reconcile", reconciler.run(desired_seen, stop.clone()));
    let talking = spawn_named("session", session.run(stop.clone()));
    tracing::info!(%engine_id, version = env!("CARGO_PKG_VERSION"), data_folder = %config.data_folder.display(), "engine is up");

    stop.cancelled().await;
    tracing::info!("engine is stopping");
    // A panic in either was logged by the task itself.
    reconciling.await.ok();
    talking.await.ok();
    control.abort();
    for path in [config.control_socket(), config.pid_file()] {
        durable::remove_if_there(&path).ok();
    }
    tracing::info!("engine has stopped");
    Ok(())
}

/// The wall clock, milliseconds since the Unix epoch.
pub fn now_unix_ms() -> i64 {
    (time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64
}

//! The engine put together: lock, hypervisor, reconciler, session, control socket, and their orderly end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use hypervisor::{Generation, Hypervisor, bios_boot_loader};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::Config;
use crate::control::{self, About};
use crate::desired::DesiredFile;
use crate::durable::{self, Access};
use crate::identity::IdentityFolder;
use crate::instance::InstanceLock;
use crate::logging;
use crate::platform;
use crate::reconcile::Reconciler;
use crate::recovered::{RecoveredVms, RecoveryHost};
use crate::replicator::Context;
use crate::replicator::pauses::NoPauses;
use crate::report::{Reporter, free_bytes};
use crate::scripts::PlanScripts;
use crate::session::Session;
use crate::task::spawn_named;
use crate::throttle::Limiter;

/// This system's driver for this configuration.
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
    platform::driver(config.driver, folders, scratch)
}

/// What VMs the host may run when it recovers them; none without the role.
fn recovery_generations(config: &Config, hypervisor: &dyn Hypervisor) -> Vec<Generation> {
    match &config.recovery_generations {
        _ if !config.recovery_role => Vec::new(),
        Some(allowed) => allowed.clone(),
        None => hypervisor.generations(),
    }
}

/// Says it in the log, and what is missing for it, before the day of the disaster.
async fn tell_generations(generations: Vec<Generation>, scratch: PathBuf) {
    let numbers: Vec<u32> = generations.iter().map(|one| one.number()).collect();
    tracing::info!(generations = ?numbers, "virtual machines of these generations are recovered here as they are");
    if !generations.contains(&Generation::Two)
        && let Err(error) = bios_boot_loader(&scratch).await
    {
        tracing::warn!(%error, "virtual machines of generation 2 can't be recovered on this host: they would need a boot loader");
    }
}

/// Takes the process from here: crypto, data folder, log. `log_file` says whether the log goes into the data folder.
///
/// # Errors
/// When the data folder or the log can't be made.
pub fn prepare(config: &Config, log_file: bool) -> anyhow::Result<()> {
    engine_protocol::tls::install_crypto();
    std::fs::create_dir_all(&config.data_folder)
        .with_context(|| format!("create data folder {}", config.data_folder.display()))?;
    let path = config.log_file();
    logging::set_up(config, log_file.then_some(path.as_path()))
}

/// Runs an engine until `stop`. Errors are those of coming up; later ones are findings and log lines.
pub async fn run(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    durable::create_folder(&config.data_folder)
        .with_context(|| format!("create data folder {}", config.data_folder.display()))?;
    let _lock = InstanceLock::take(&config.data_folder)?;
    // What the orchestrator ordered lies there, with credentials of the store.
    let state = config.state_folder();
    durable::create_folder(&state)
        .and_then(|()| platform::make_folder_private(&state))
        .with_context(|| format!("create state folder {}", state.display()))?;
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
    let generations = recovery_generations(config, hypervisor.as_ref());
    let recovered = config.recovery_role.then(|| {
        let mut host = RecoveryHost::new(
            hypervisor.clone(),
            board.clone(),
            config.recovery_folder.clone(),
        );
        host.generations.clone_from(&generations);
        host.throttle = context.throttle.clone();
        RecoveredVms::new(Arc::new(host))
    });
    if let Some(hindrance) = config.recovery_hindrance() {
        tracing::error!(
            problem = hindrance.summary,
            next_step = hindrance.recommended_action,
            "no recovery role"
        );
    }
    if config.recovery_role {
        spawn_named(
            "generations",
            tell_generations(generations.clone(), config.data_folder.join("scratch")),
        );
    }
    let reconciler = Reconciler::new(
        context,
        DesiredFile::new(&config.state_folder()),
        config.source_role,
        recovered,
    );
    let scripts = PlanScripts::open(config, board.clone())?;
    spawn_named("scripts", scripts.clone().follow(stop.clone()));
    let reconciler = reconciler.with_scripts(scripts);
    let session = Session {
        identity,
        key_file: config.registration_key_file.clone(),
        reporter: Arc::new(Reporter::new(
            config,
            hypervisor,
            board.clone(),
            &generations,
        )),
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

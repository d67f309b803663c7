//! The service shell of Windows: what the service control manager starts and stops, and the commands that tell it to.
//!
//! ```text
//! service install ──► manager ──at boot, or by `service start`──► service run ──► engine ──► <data>/engine.log
//!                        └── ends without being asked: again after 5, 30, 60 s
//! ```
//!
//! Promise: an engine that is killed runs again without anybody's doing; a stop that the manager asks for ends the engine
//! at its next safe place. All commands may be repeated.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;
use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceControl, ServiceControlAccept,
    ServiceErrorControl, ServiceExitCode, ServiceFailureActions, ServiceFailureResetPeriod,
    ServiceInfo, ServiceStartType, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{
    self, ServiceControlHandlerResult, ServiceStatusHandle,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};
use windows_service::{define_windows_service, service_dispatcher};

use crate::config::Config;
use crate::{control, engine};

/// The service's name when none is given.
pub const NAME: &str = "SiteRecoveryEngine";
const DISPLAY_NAME: &str = "Site Recovery Engine";
const DESCRIPTION: &str =
    "Replicates the virtual machines of this host, so that they can be recovered elsewhere.";
/// Pauses before the first, the second and each further restart.
const RESTARTS: [Duration; 3] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(60),
];
/// A service that ran so long was well; the pauses begin anew.
const WELL_AFTER: Duration = Duration::from_secs(24 * 3600);
/// How long an engine may take to end its cycle; what the manager is told to wait for.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long an engine may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// `ERROR_SERVICE_DOES_NOT_EXIST`, `ERROR_SERVICE_ALREADY_RUNNING`, `ERROR_SERVICE_NOT_ACTIVE`.
const DOES_NOT_EXIST: i32 = 1060;
const ALREADY_RUNNING: i32 = 1056;
const NOT_ACTIVE: i32 = 1062;
/// `ERROR_INVALID_LEVEL`.
const UNKNOWN_SETTING: i32 = 124;
/// What the manager is told of an engine that could not come up; the cause is in the log.
const FAILED: ServiceExitCode = ServiceExitCode::ServiceSpecific(1);

/// The configuration file, for the service's own thread, which gets no arguments of ours.
static CONFIG: OnceLock<PathBuf> = OnceLock::new();

define_windows_service!(service_entry, service_main);

/// Makes the service, or changes one that is there.
///
/// # Errors
/// When the configuration is not valid, or this user is no administrator.
pub fn install(name: &str, config_path: &Path) -> anyhow::Result<String> {
    let config_path = std::path::absolute(config_path)
        .with_context(|| format!("find {}", config_path.display()))?;
    // A service that can't come up is better refused here, where somebody reads it.
    Config::load(&config_path)?;
    let program = std::env::current_exe().context("find the engine's own program file")?;
    let info = ServiceInfo {
        name: OsString::from(name),
        display_name: OsString::from(DISPLAY_NAME),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: program,
        launch_arguments: ["service", "run", "--config"]
            .map(OsString::from)
            .into_iter()
            .chain([config_path.into_os_string()])
            .collect(),
        dependencies: Vec::new(),
        // LocalSystem, which may read the disks of every virtual machine.
        account_name: None,
        account_password: None,
    };
    let manager = manager(ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE)?;
    let (service, what) = match find(&manager, name, ServiceAccess::ALL_ACCESS)? {
        Some(service) => {
            service
                .change_config(&info)
                .with_context(|| format!("change service {name}"))?;
            (service, "changed")
        }
        None => (
            manager
                .create_service(&info, ServiceAccess::ALL_ACCESS)
                .with_context(|| format!("create service {name}"))?,
            "installed",
        ),
    };
    service
        .set_description(DESCRIPTION)
        .with_context(|| format!("describe service {name}"))?;
    service
        .update_failure_actions(ServiceFailureActions {
            reset_period: ServiceFailureResetPeriod::After(WELL_AFTER),
            reboot_msg: None,
            command: None,
            actions: Some(
                RESTARTS
                    .map(|delay| ServiceAction {
                        action_type: ServiceActionType::Restart,
                        delay,
                    })
                    .to_vec(),
            ),
        })
        .and_then(|()| if_known(service.set_failure_actions_on_non_crash_failures(true)).map(drop))
        .with_context(|| format!("set what happens when service {name} fails"))?;
    let late = if_known(service.set_delayed_auto_start(true))
        .with_context(|| format!("set when service {name} starts"))?;
    let late = if late {
        "starts after the system's own services"
    } else {
        "starts with the system"
    };
    Ok(format!("service {name} is {what}; it {late}"))
}

/// Starts the service and waits until its engine answers.
///
/// # Errors
/// When there is no such service, or its engine ends or does not answer in time.
pub async fn start(name: &str, config: &Config) -> anyhow::Result<String> {
    let service = existing(name, ServiceAccess::START | ServiceAccess::QUERY_STATUS)?;
    match service.start::<OsString>(&[]) {
        Err(error) if code(&error) == Some(ALREADY_RUNNING) => {}
        other => other.with_context(|| format!("start service {name}"))?,
    }
    let begin = Instant::now();
    loop {
        if let Ok(status) = control::ask(&config.control_socket()).await {
            return Ok(format!(
                "service {name} is running (process {})",
                status.about.process_id
            ));
        }
        let state = query(&service, name)?.current_state;
        let log = config.log_file();
        if state == ServiceState::Stopped {
            bail!(
                "the engine of service {name} ended at once; see {}, or run `siterecovery-engine run` by hand",
                log.display()
            );
        }
        if begin.elapsed() > START_LIMIT {
            bail!(
                "the engine of service {name} has not come up in {} s; see {}",
                START_LIMIT.as_secs(),
                log.display()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Stops the service and waits for its end. One that does not run is fine.
///
/// # Errors
/// When there is no such service, or it does not end in time.
pub async fn stop(name: &str) -> anyhow::Result<String> {
    let service = existing(name, ServiceAccess::STOP | ServiceAccess::QUERY_STATUS)?;
    end(&service, name).await?;
    Ok(format!("service {name} is stopped"))
}

/// Stops the service and takes it away. One that is not there is fine.
///
/// # Errors
/// When it does not end in time, or this user is no administrator.
pub async fn delete(name: &str) -> anyhow::Result<String> {
    let access = ServiceAccess::STOP | ServiceAccess::QUERY_STATUS | ServiceAccess::DELETE;
    let manager = manager(ServiceManagerAccess::CONNECT)?;
    let Some(service) = find(&manager, name, access)? else {
        return Ok(format!("there is no service {name}"));
    };
    end(&service, name).await?;
    service
        .delete()
        .with_context(|| format!("delete service {name}"))?;
    Ok(format!("service {name} is deleted; its folders stay"))
}

/// Hands this process to the service control manager, which started it. Returns when the service has ended.
///
/// # Errors
/// When somebody else started it.
pub fn dispatch(config_path: PathBuf) -> anyhow::Result<()> {
    // Set once: a process runs one service.
    CONFIG.set(config_path).ok();
    service_dispatcher::start(NAME, service_entry).context(
        "talk to the service control manager; `service run` is for it alone, use `run` or `service start`",
    )
}

/// The service's thread.
fn service_main(_arguments: Vec<OsString>) {
    let stop = CancellationToken::new();
    let asked = stop.clone();
    let handler = move |wish| match wish {
        ServiceControl::Stop | ServiceControl::Shutdown => {
            asked.cancel();
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    // In a process of its own the name does not count. Without a handle there is nobody to tell anything.
    let Ok(handle) = service_control_handler::register(NAME, handler) else {
        return;
    };
    tell(&handle, ServiceState::Running, ServiceExitCode::NO_ERROR);
    let stopping = stop.clone();
    let outcome = run(stop, move || {
        if stopping.is_cancelled() {
            tell(
                &handle,
                ServiceState::StopPending,
                ServiceExitCode::NO_ERROR,
            );
        }
    });
    let code = match outcome {
        Ok(()) => ServiceExitCode::NO_ERROR,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the engine can't run");
            FAILED
        }
    };
    tell(&handle, ServiceState::Stopped, code);
}

/// Runs the engine until `stop`, and calls `stopping` when that has been asked for.
fn run(stop: CancellationToken, stopping: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let path = CONFIG.get().context("no configuration file was named")?;
    let config = Config::load(path)?;
    engine::prepare(&config, true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let asked = stop.clone();
        crate::task::spawn_named("service", async move {
            asked.cancelled().await;
            stopping();
        });
        engine::run(&config, stop).await
    })
}

fn tell(handle: &ServiceStatusHandle, state: ServiceState, exit_code: ServiceExitCode) {
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted: match state {
            ServiceState::Running => ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN,
            _ => ServiceControlAccept::empty(),
        },
        exit_code,
        checkpoint: 0,
        wait_hint: match state {
            ServiceState::StopPending => STOP_LIMIT,
            _ => Duration::ZERO,
        },
        process_id: None,
    };
    if let Err(error) = handle.set_service_status(status) {
        tracing::warn!(%error, ?state, "the service control manager did not take our state");
    }
}

async fn end(service: &Service, name: &str) -> anyhow::Result<()> {
    match service.stop() {
        Ok(_) => {}
        Err(error) if code(&error) == Some(NOT_ACTIVE) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("stop service {name}")),
    }
    let begin = Instant::now();
    while query(service, name)?.current_state != ServiceState::Stopped {
        if begin.elapsed() > STOP_LIMIT {
            bail!(
                "service {name} has not ended in {} s; end its process, which is safe at any instant",
                STOP_LIMIT.as_secs()
            );
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn query(service: &Service, name: &str) -> anyhow::Result<ServiceStatus> {
    service
        .query_status()
        .with_context(|| format!("look at service {name}"))
}

fn manager(access: ServiceManagerAccess) -> anyhow::Result<ServiceManager> {
    ServiceManager::local_computer(None::<&str>, access)
        .context("open the service control manager; run this as an administrator")
}

fn existing(name: &str, access: ServiceAccess) -> anyhow::Result<Service> {
    find(&manager(ServiceManagerAccess::CONNECT)?, name, access)?
        .with_context(|| format!("there is no service {name}; make it with `service install`"))
}

fn find(
    manager: &ServiceManager,
    name: &str,
    access: ServiceAccess,
) -> anyhow::Result<Option<Service>> {
    match manager.open_service(name, access) {
        Ok(service) => Ok(Some(service)),
        Err(error) if code(&error) == Some(DOES_NOT_EXIST) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("open service {name}")),
    }
}

/// Whether a setting was made; one that the system does not know is no error.
fn if_known(set: windows_service::Result<()>) -> windows_service::Result<bool> {
    match set {
        Ok(()) => Ok(true),
        Err(error) if code(&error) == Some(UNKNOWN_SETTING) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The system's number of an error.
fn code(error: &windows_service::Error) -> Option<i32> {
    match error {
        windows_service::Error::Winapi(error) => error.raw_os_error(),
        _ => None,
    }
}

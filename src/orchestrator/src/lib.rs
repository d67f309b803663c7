//! The control plane: orchestration API, jobs, engine gateway.
//!
//! ```text
//!  clients ──HTTPS──► api ──► store (SQLite) ◄── saga runner ◄── bell ◄── gateway ◄──mTLS── engines
//! ```
//!
//! [`Orchestrator::start`] runs all of it inside a process; the program is a thin shell around it. Disk data never
//! passes through here, but for one case: a recovery point on its way into the page blobs of a VM in Azure
//! ([`azure_target`]), when no host may be left to carry it.

pub mod access;
pub mod alternate_host;
pub mod api;
pub mod app;
pub mod auth;
pub mod azure_target;
pub mod checks;
pub mod evidence;
pub mod failover;
pub mod fault;
pub mod first_start;
pub mod fleet;
pub mod gateway;
pub mod housekeeping;
pub mod immutability;
pub mod networks;
pub mod report;
pub mod saga;
pub mod schedule;
pub mod seal;
pub mod store;
pub mod vault_keys;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use app::{App, Parts, Patience};
use auth::jwt::SigningKey;
use auth::token::TokenIssuer;
use store::ResourceStore;
use store::records::{self, EngineRecord};
use store::sqlite::SqliteStore;

pub use first_start::AdminClient;

/// What an orchestrator is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of database, keys and certificates.
    pub data: PathBuf,
    /// Address of the API.
    pub listen: SocketAddr,
    /// Address of the engine gateway.
    pub gateway: SocketAddr,
    /// Absolute URL under which clients reach the API; from `listen` when absent.
    pub public_url: Option<String>,
    /// `host:port` under which hosts reach the gateway; from `gateway` when absent.
    pub public_gateway: Option<String>,
    /// Regions of this installation; empty = any.
    pub regions: Vec<String>,
    /// Times after which waiting gives up.
    pub patience: Patience,
    /// Where scripts of recovery plans may come from; without it none runs on this machine.
    pub scripts_folder: Option<PathBuf>,
    /// The way into Azure; without it no VM is recovered there.
    pub azure_target: Option<azure_target::Settings>,
}

/// A running orchestrator.
pub struct Orchestrator {
    /// Shared parts.
    pub app: Arc<App>,
    /// Address of the API, with the real port.
    pub api: SocketAddr,
    /// Address of the gateway, with the real port.
    pub gateway: SocketAddr,
    /// The admin client, when this was the first start.
    pub admin: Option<AdminClient>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

// === impl Orchestrator ===

impl Orchestrator {
    /// Opens the data folder (making it at the first start), binds both addresses, takes up unfinished jobs.
    ///
    /// # Errors
    /// When the folder, the database, a key or an address can't be used.
    pub async fn start(config: Config) -> Result<Self> {
        engine_protocol::tls::install_crypto();
        let identity = first_start::open(&config.data)?;
        let store = SqliteStore::open(&config.data.join("metadata.db")).with_context(|| {
            format!("opening the metadata database in {}", config.data.display())
        })?;
        let api_listener = bind(config.listen, "API").await?;
        let gateway_listener = bind(config.gateway, "engine gateway").await?;
        let (api, gateway) = (api_listener.local_addr()?, gateway_listener.local_addr()?);
        let public_url = config
            .public_url
            .clone()
            .unwrap_or_else(|| format!("https://{}", reachable(api)));
        let public_url = public_url.trim_end_matches('/').to_owned();
        let public_gateway = config
            .public_gateway
            .clone()
            .unwrap_or_else(|| reachable(gateway));
        let names = first_start::server_names(&public_url, &public_gateway);
        // Made anew at each start: clients trust the CA, not the certificate.
        let certificate = identity
            .authority
            .issue_server(&names, time::OffsetDateTime::now_utc())?;
        let gateway_certificate = identity
            .authority
            .issue_server(&names, time::OffsetDateTime::now_utc())?;
        let tls = api::server::tls(&certificate)?;
        let key = SigningKey::from_pkcs8(&identity.token_key)?;
        let (app, new_jobs) = App::new(Parts {
            store: Arc::new(store),
            tokens: TokenIssuer::new(key, &public_url, &identity.tenant_id),
            authority: identity.authority,
            public_url: public_url.clone(),
            gateway: public_gateway,
            regions: config.regions.clone(),
            tenant_id: identity.tenant_id.clone(),
            patience: config.patience,
            sealer: identity.sealer,
        });
        run_scripts(&app, &config)?;
        load_fleet(&app).await?;
        azure_target::open(&app, config.azure_target.clone()).await?;
        let admin = first_start::admin(&app, &identity.subscription_id, &config.data).await?;
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        tasks.push(tokio::spawn(api::server::serve(
            Arc::clone(&app),
            api_listener,
            tls,
            stop.clone(),
        )));
        let (served, token) = (Arc::clone(&app), stop.clone());
        tasks.push(tokio::spawn(async move {
            if let Err(error) =
                gateway::serve(served, gateway_listener, gateway_certificate, token.clone()).await
            {
                error!(
                    error = &error as &dyn std::error::Error,
                    "engine gateway stopped"
                );
                token.cancel();
            }
        }));
        let (run, token) = (Arc::clone(&app), stop.clone());
        tasks.push(tokio::spawn(async move {
            if let Err(error) = saga::runner::run(run, new_jobs, token.clone()).await {
                error!(
                    error = &error as &dyn std::error::Error,
                    "job runner stopped"
                );
                token.cancel();
            }
        }));
        if let Some(target) = app.azure() {
            tasks.push(tokio::spawn(azure_target::host::run(
                Arc::clone(&app),
                Arc::clone(target),
                stop.clone(),
            )));
        }
        tasks.push(tokio::spawn(schedule::run::run(
            Arc::clone(&app),
            stop.clone(),
        )));
        tasks.push(tokio::spawn(housekeeping::run(
            Arc::clone(&app),
            stop.clone(),
        )));
        info!(api = %public_url, gateway = %gateway, "orchestrator is ready");
        Ok(Self {
            app,
            api,
            gateway,
            admin,
            stop,
            tasks,
        })
    }

    /// Ends when something essential stopped, or after [`Self::stop`].
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Stops in good order; unfinished jobs go on at the next start.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            if let Err(error) = task.await {
                error!(%error, "a part of the orchestrator panicked");
            }
        }
        info!("orchestrator stopped");
    }
}

/// Takes up what is noted of recovery plans' scripts; each end of one rings the bell.
fn run_scripts(app: &Arc<App>, config: &Config) -> Result<()> {
    let notes = config.data.join("scripts");
    let scripts = plan_script::Scripts::open(config.scripts_folder.clone(), notes)
        .context("reading the notes of recovery plans' scripts")?;
    let mut changes = scripts.watch();
    app.run_scripts(scripts);
    let app = Arc::downgrade(app);
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            match app.upgrade() {
                Some(app) => app.ring(),
                None => break,
            }
        }
    });
    Ok(())
}

async fn bind(address: SocketAddr, what: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address} for the {what}"))
}

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("{}:{}", first_start::host_name(), address.port())
    } else {
        address.to_string()
    }
}

/// Inventory, points and figures as they were last stored.
async fn load_fleet(app: &App) -> Result<()> {
    let store: &dyn ResourceStore = app.store.as_ref();
    for engine in records::list::<EngineRecord>(store, "~engine/")
        .await
        .context("reading the registered hosts")?
    {
        let report = gateway::enrol::decode_report(&engine.record.report);
        app.fleet.observe(
            &engine.record.engine_id,
            Arc::new(report),
            engine.record.last_seen_unix_ms,
        );
    }
    Ok(())
}

//! `siterecovery-orchestrator`: starts the control plane, manages its clients.
#![allow(clippy::print_stdout, reason = "talks to the person who starts it")]

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use orchestrator::app::Patience;
use orchestrator::auth::{clients, roles::Role};
use orchestrator::store::records::{self, Client};
use orchestrator::store::{Expect, ResourceStore as _, sqlite::SqliteStore};
use orchestrator::{Config, Orchestrator};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Control plane of Site Recovery.
#[derive(Parser)]
#[command(name = "siterecovery-orchestrator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves API and engine gateway until SIGTERM or SIGINT.
    Serve(Serve),
    /// Manages API clients; works while the orchestrator runs.
    Admin {
        #[command(subcommand)]
        command: Admin,
    },
}

#[derive(Args)]
struct Serve {
    /// Folder of database, keys and certificates; made at the first start.
    #[arg(long, env = "SITERECOVERY_DATA")]
    data: PathBuf,
    /// Address of the API.
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Address of the engine gateway.
    #[arg(long, default_value = "127.0.0.1:8444")]
    gateway: SocketAddr,
    /// URL under which clients reach the API.
    #[arg(long)]
    public_url: Option<String>,
    /// `host:port` under which hosts reach the gateway.
    #[arg(long)]
    public_gateway: Option<String>,
    /// Region of this installation; may be repeated. Without it any region is taken.
    #[arg(long = "region")]
    regions: Vec<String>,
    /// Folder that scripts of recovery plans may come from; without it none runs on this machine.
    #[arg(long)]
    scripts_folder: Option<PathBuf>,
    /// Settings of the way into Azure (JSON: tenantId, clientId, clientSecretFile); without it no VM is recovered there.
    #[arg(long)]
    azure_target: Option<PathBuf>,
    /// At the first start, writes what to export into this file (0600); the secret is then not printed.
    #[arg(long)]
    write_admin_env: Option<PathBuf>,
    /// Written once both addresses are served.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Logs as JSON.
    #[arg(long)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Admin {
    /// Makes a client and prints its secret once.
    CreateClient {
        /// Folder of the orchestrator.
        #[arg(long, env = "SITERECOVERY_DATA")]
        data: PathBuf,
        /// Name for people.
        #[arg(long)]
        name: String,
        /// Built-in role.
        #[arg(long, value_enum)]
        role: Role,
        /// ARM scope, such as /subscriptions/…/resourceGroups/….
        #[arg(long, default_value = "/")]
        scope: String,
    },
    /// Lists the clients.
    ListClients {
        /// Folder of the orchestrator.
        #[arg(long, env = "SITERECOVERY_DATA")]
        data: PathBuf,
    },
    /// Removes a client; its tokens stop counting at once.
    RemoveClient {
        /// Folder of the orchestrator.
        #[arg(long, env = "SITERECOVERY_DATA")]
        data: PathBuf,
        /// Client id.
        client_id: String,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Serve(options) => serve(options).await,
        Command::Admin { command } => admin(command).await,
    }
}

async fn serve(options: Serve) -> Result<()> {
    let filter =
        EnvFilter::try_from_env("SITERECOVERY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    if options.log_json {
        logs.json().init();
    } else {
        logs.init();
    }
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let orchestrator = Orchestrator::start(Config {
        data: options.data,
        listen: options.listen,
        gateway: options.gateway,
        public_url: options.public_url,
        public_gateway: options.public_gateway,
        regions: options.regions,
        patience: Patience::default(),
        scripts_folder: options.scripts_folder,
        azure_target: options
            .azure_target
            .as_deref()
            .map(orchestrator::azure_target::read)
            .transpose()?,
    })
    .await?;
    if let Some(admin) = &orchestrator.admin {
        // What a service manager keeps of the output is read by more people than the file.
        if let Some(path) = &options.write_admin_env {
            admin.write(path)?;
            println!("# First start. The secret is in {} only:", path.display());
            print!("{}", admin.exports_without_secret());
        } else {
            println!("# First start. The secret is shown this once:");
            print!("{}", admin.exports());
        }
    }
    if let Some(path) = &options.ready_file {
        std::fs::write(path, format!("{}\n", orchestrator.app.public_url))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
        () = orchestrator.stopped() => {
            orchestrator.stop().await;
            bail!("an essential part stopped; see the log");
        }
    }
    orchestrator.stop().await;
    Ok(())
}

async fn admin(command: Admin) -> Result<()> {
    let open = |data: &PathBuf| {
        let path = data.join("metadata.db");
        if !path.exists() {
            bail!(
                "{} is no data folder of an orchestrator: start `serve` once first",
                data.display()
            );
        }
        Ok(SqliteStore::open(&path)?)
    };
    match command {
        Admin::CreateClient {
            data,
            name,
            role,
            scope,
        } => {
            let (client, secret) = clients::create(&open(&data)?, &name, role, &scope).await?;
            println!("export SITERECOVERY_CLIENT_ID={}", client.client_id);
            println!("export SITERECOVERY_CLIENT_SECRET={secret}");
        }
        Admin::ListClients { data } => {
            for client in records::list::<Client>(&open(&data)?, "~client/").await? {
                let client = client.record;
                println!(
                    "{}  {:24}  {:28}  {}",
                    client.client_id,
                    client.name,
                    client.role.as_str(),
                    client.scope
                );
            }
        }
        Admin::RemoveClient { data, client_id } => {
            let change = orchestrator::store::Change::Delete {
                key: clients::key(&client_id),
                expect: Expect::Present,
            };
            open(&data)?
                .apply(vec![change])
                .await
                .context("no such client")?;
        }
    }
    Ok(())
}

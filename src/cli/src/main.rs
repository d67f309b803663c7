//! The operator's command line: look at vaults, hosts, items, points and jobs; start a drill and clean it up.
//!
//! Everything that an action of the provider does can be done here too, so that no Terraform version is needed for it.

#![allow(clippy::print_stdout, reason = "a command talks to its terminal")]

mod connection;
mod drill;
mod lookup;
mod show;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::connection::{Connection, ConnectionArguments};
use crate::drill::{CleanUp, Start};
use crate::lookup::Vault;

#[derive(Parser)]
#[command(
    name = "siterecovery",
    version,
    about = "Site Recovery from the terminal"
)]
struct Arguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// Vault: name or id. Not needed when there is only one
    #[arg(long, global = true, env = "SITERECOVERY_VAULT")]
    vault: Option<String>,
    /// Print JSON in place of a table
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Vaults of the subscription
    #[command(subcommand)]
    Vault(List),
    /// Hosts registered in the vault, with their connection
    #[command(subcommand)]
    Host(List),
    /// VMs that the hosts report, protected or not
    #[command(subcommand)]
    Vm(List),
    /// Protected VMs
    #[command(subcommand)]
    Item(Item),
    /// Recovery points of a protected VM
    #[command(subcommand)]
    Point(Point),
    /// Recovery plans
    #[command(subcommand)]
    Plan(List),
    /// Jobs of the vault
    #[command(subcommand)]
    Job(Job),
    /// Drill: boot replicas beside the originals, and clean up afterwards
    #[command(subcommand)]
    TestFailover(Drill),
}

#[derive(Subcommand)]
enum List {
    /// One line each
    List,
}

#[derive(Subcommand)]
enum Item {
    /// One line each: state, progress, RPO, bytes
    List,
    /// Everything about one
    Show {
        /// VM name, item name or id
        item: String,
    },
}

#[derive(Subcommand)]
enum Point {
    /// Newest last
    List {
        /// VM name, item name or id
        item: String,
    },
}

#[derive(Subcommand)]
enum Job {
    /// Newest first
    List,
    /// One job with its tasks
    Show {
        /// Job id
        job: String,
    },
    /// Ask a running job to stop
    Cancel {
        /// Job id
        job: String,
    },
}

#[derive(Subcommand)]
enum Drill {
    /// Boot the replica of an item, or of a whole plan in its order
    Start(Start),
    /// Remove the VMs of the drill
    Cleanup(CleanUp),
}

/// An item or a plan.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// Protected VM: VM name, item name or id
    #[arg(long)]
    item: Option<String>,
    /// Recovery plan: name or id
    #[arg(long)]
    plan: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let connection = Connection::new(&arguments.connection)?;
    let json = arguments.json;
    if let Command::Vault(List::List) = arguments.command {
        return show::vaults(&connection.vaults().await?, json);
    }
    let vault = Vault::find(&connection, arguments.vault.as_deref()).await?;
    match arguments.command {
        Command::Vault(List::List) => Ok(()),
        Command::Host(List::List) => show::hosts(
            &vault.list("replicationRecoveryServicesProviders").await?,
            json,
        ),
        Command::Vm(List::List) => show::vms(&vault.protectable_items().await?, json),
        Command::Item(Item::List) => {
            show::items(&vault.list("replicationProtectedItems").await?, json)
        }
        Command::Item(Item::Show { item }) => show::whole(&vault.item(&item).await?),
        Command::Point(Point::List { item }) => {
            let item = vault.item(&item).await?;
            show::points(&vault.points(&item).await?, json)
        }
        Command::Plan(List::List) => {
            show::plans(&vault.list("replicationRecoveryPlans").await?, json)
        }
        Command::Job(Job::List) => show::jobs(&vault.list("replicationJobs").await?, json),
        Command::Job(Job::Show { job }) => show::job(&vault.job(&job).await?, json),
        Command::Job(Job::Cancel { job }) => vault.cancel(&job).await,
        Command::TestFailover(Drill::Start(start)) => drill::start(&vault, &start, json).await,
        Command::TestFailover(Drill::Cleanup(clean_up)) => {
            drill::clean_up(&vault, &clean_up, json).await
        }
    }
}

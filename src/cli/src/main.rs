//! The operator's command line: look at vaults, hosts, policies, accounts, items, points and jobs; compare, throttle, change
//! disks, rotate keys; start a drill and clean it up; fail over and back. What has no word of its own is reached by `rest`.
//!
//! Everything that an action of the provider does can be done here too, so that no Terraform version is needed for it.

#![allow(clippy::print_stdout, reason = "a command talks to its terminal")]

mod connection;
mod drill;
mod failover;
mod job_watch;
mod lookup;
mod manage;
mod plan_part;
mod point_choice;
mod rest;
mod show;
mod show_item;
mod show_job;
mod show_vm;

use std::process::ExitCode;

use anyhow::Result;
use arm_client::ClientError;
use clap::{Args, Parser, Subcommand};

use crate::connection::{Connection, ConnectionArguments};
use crate::drill::{CleanUp, Report, Start};
use crate::lookup::Vault;

/// What `failover --help` begins with.
const FAILOVER: &str = "\
Failover and failback, step by step.

Away:  planned or unplanned, look at the recovered VM, perhaps change-point, then commit. Until commit, cancel takes it back.
Back:  back, complete once the data is synchronised, look at the VM, commit, then reprotect.
Stay:  complete-migration keeps the recovered VM and ends protection.

`siterecovery item show VM` tells the state and which operations are allowed. Every step starts a job and shows it. Exit code: 0 when \
the job has succeeded, 1 when it failed or was cancelled, 3 when it waits for a person, 130 after Ctrl-C (the job goes on).";

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
    /// Vaults of the subscription, and their encryption key
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Storage accounts of the subscription; credentials are never shown
    #[command(subcommand)]
    Storage(List),
    /// Replication policies of the vault
    #[command(subcommand)]
    Policy(List),
    /// Hosts registered in the vault, with their connection and rate limits
    #[command(subcommand)]
    Host(HostCommand),
    /// VMs that the hosts report, protected or not, and what the checks before protection say of them
    #[command(subcommand, visible_alias = "protectable")]
    Vm(VmCommand),
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
    /// Compare a protected VM with its replica now and send the differences
    Resync(manage::Resync),
    /// Send a request to the orchestration API and print the answer
    Rest(rest::Rest),
    /// Drill: boot replicas beside the originals, and clean up afterwards
    #[command(subcommand)]
    TestFailover(Drill),
    /// Failover and failback, step by step
    #[command(subcommand, long_about = FAILOVER)]
    Failover(failover::Failover),
}

#[derive(Subcommand)]
enum List {
    /// One line each
    List,
}

#[derive(Subcommand)]
enum VmCommand {
    /// One line each, with how many findings there are
    List,
    /// Everything about one: its disks, and each finding with why and what to do
    Show {
        /// VM name or GUID
        vm: String,
        /// Judge it for this recovery target only
        #[arg(long, value_parser = ["Azure", "RecoveryHost"])]
        recovery_target: Option<String>,
    },
}

#[derive(Subcommand)]
enum VaultCommand {
    /// One line each
    List,
    /// Give the vault a new encryption key; older keys stay for as long as recovery points need them
    RotateKey,
}

#[derive(Subcommand)]
enum HostCommand {
    /// One line each
    List,
    /// Set or lift the rate limit of all VMs of a host together; it takes effect at once
    Throttle {
        /// Host name or id
        host: String,
        #[command(flatten)]
        limit: manage::Limit,
    },
}

#[derive(Subcommand)]
enum Item {
    /// One line each: state, progress, RPO, bytes
    List,
    /// Everything about one: tracking, backlog, cadence, points, problems
    Show {
        /// VM name, item name or id
        item: String,
    },
    /// Set or lift the rate limit of a VM; it takes effect at once
    Throttle {
        /// VM name, item name or id
        item: String,
        #[command(flatten)]
        limit: manage::Limit,
    },
    /// Let VMs of one host share their recovery points; without a group the VM is alone
    Group {
        /// VM name, item name or id
        item: String,
        /// Name of the group
        group: Option<String>,
    },
    /// Replicate another disk of the VM; the others are not copied again
    AddDisk(manage::Disk),
    /// Leave a disk out from now on; older recovery points keep it
    RemoveDisk(manage::Disk),
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
    /// The report of a drill or a failover, for the auditor: RPO and RTO of each VM, steps, checks, screenshots
    #[command(long_about = drill::REPORT)]
    Report(Report),
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
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            for line in advice(&error) {
                eprintln!("  {line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What the service says of cause and next step of a request that it refused.
fn advice(error: &anyhow::Error) -> Vec<String> {
    let refused = error.chain().find_map(|cause| cause.downcast_ref());
    let details = refused.map_or(&[][..], |error: &ClientError| error.details());
    let mut lines = Vec::new();
    for detail in details {
        for (word, text) in [
            ("possible cause", &detail.possible_causes),
            ("next step", &detail.recommended_action),
        ] {
            if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
                lines.push(format!("{word}: {text}"));
            }
        }
    }
    lines
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    let connection = Connection::new(&arguments.connection)?;
    if let Command::Failover(step) = &arguments.command {
        let vault = Vault::find(&connection, arguments.vault.as_deref()).await?;
        return failover::run(&vault, step, arguments.json).await;
    }
    command(&connection, arguments)
        .await
        .map(|()| ExitCode::SUCCESS)
}

async fn command(connection: &Connection, arguments: Arguments) -> Result<()> {
    let json = arguments.json;
    match &arguments.command {
        Command::Vault(VaultCommand::List) => {
            return show::vaults(&connection.vaults().await?, json);
        }
        Command::Storage(List::List) => {
            return show::storage_accounts(&connection.storage_accounts().await?, json);
        }
        Command::Rest(request) => return rest::send(connection, request).await,
        _ => {}
    }
    let vault = Vault::find(connection, arguments.vault.as_deref()).await?;
    match arguments.command {
        // Answered above, without a vault or with an exit code of its own.
        Command::Vault(VaultCommand::List)
        | Command::Storage(_)
        | Command::Rest(_)
        | Command::Failover(_) => Ok(()),
        Command::Vault(VaultCommand::RotateKey) => manage::rotate_key(&vault, json).await,
        Command::Policy(List::List) => {
            show::policies(&vault.list("replicationPolicies").await?, json)
        }
        Command::Host(HostCommand::List) => show::hosts(
            &vault.list("replicationRecoveryServicesProviders").await?,
            json,
        ),
        Command::Host(HostCommand::Throttle { host, limit }) => {
            manage::throttle_host(&vault, &host, &limit, json).await
        }
        Command::Vm(VmCommand::List) => show::vms(&vault.protectable_items().await?, json),
        Command::Vm(VmCommand::Show {
            vm,
            recovery_target,
        }) => {
            let found = vault.protectable_item(&vm, recovery_target.as_deref());
            show_vm::show(&found.await?, json)
        }
        Command::Item(Item::List) => {
            show::items(&vault.list("replicationProtectedItems").await?, json)
        }
        Command::Item(Item::Show { item }) => show_item::show(&vault.item(&item).await?, json),
        Command::Item(Item::Throttle { item, limit }) => {
            manage::throttle_item(&vault, &item, &limit, json).await
        }
        Command::Item(Item::Group { item, group }) => {
            manage::group(&vault, &item, group.as_deref(), json).await
        }
        Command::Item(Item::AddDisk(disk)) => {
            manage::change_disk(&vault, &disk, "addDisks", json).await
        }
        Command::Item(Item::RemoveDisk(disk)) => {
            manage::change_disk(&vault, &disk, "removeDisks", json).await
        }
        Command::Resync(resync) => manage::resync(&vault, &resync, json).await,
        Command::Point(Point::List { item }) => {
            let item = vault.item(&item).await?;
            show::points(&vault.points(&item).await?, json)
        }
        Command::Plan(List::List) => {
            show::plans(&vault.list("replicationRecoveryPlans").await?, json)
        }
        Command::Job(Job::List) => show::jobs(&vault.list("replicationJobs").await?, json),
        Command::Job(Job::Show { job }) => show_job::job(&vault.job(&job).await?, json),
        Command::Job(Job::Cancel { job }) => vault.cancel(&job).await,
        Command::TestFailover(Drill::Start(start)) => drill::start(&vault, &start, json).await,
        Command::TestFailover(Drill::Cleanup(clean_up)) => {
            drill::clean_up(&vault, &clean_up, json).await
        }
        Command::TestFailover(Drill::Report(report)) => drill::report(&vault, &report, json).await,
    }
}

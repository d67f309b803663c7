//! `siterecovery-engine`: the replication engine of one host, and the tools around it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use engine::config::Config;
use engine::{
    bench, control, convert, inspect, platform, profile, qualify, replicate, verify, vm_command,
};
#[cfg(unix)]
use engine::{daemon, supervisor};
use tokio_util::sync::CancellationToken;

/// Replicates the virtual machines of this host and runs recovered ones.
#[derive(Parser)]
#[command(name = "siterecovery-engine", version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the engine until SIGTERM or SIGINT (on Windows Ctrl-C); logs go to standard error.
    Run {
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Leave the terminal and log to <data_folder>/engine.log. `start` uses it.
        #[arg(long)]
        detached: bool,
    },
    /// Run as a service of Windows: install, start, stop, delete.
    #[cfg(windows)]
    Service {
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Keep a detached engine running: start it again when it dies. `start` uses it.
    #[cfg(unix)]
    #[command(hide = true)]
    Supervise {
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Start the engine in the background; returns when it answers, or says why it does not.
    #[cfg(unix)]
    Start {
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Stop the engine of this configuration: SIGTERM, and SIGKILL after 20 seconds. Virtual machines go on running.
    #[cfg(unix)]
    Stop {
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show what the engine is doing. Exit code 3 when it does not run.
    Status {
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List, start or stop virtual machines of a folder (driver qemu).
    Vm {
        #[command(subcommand)]
        command: VmCommand,
    },
    /// Show a disk image (VHDX, VHD, raw), replication log, journal object, block hashes, stored object or a whole replica.
    Inspect(inspect::Options),
    /// Read everything of an image or a replica again and say what is damaged. Exit code 4 when something is.
    Verify(verify::Options),
    /// Measure this machine's ceilings: disk, hash, compression, encryption, TLS, store.
    Bench(bench::Options),
    /// Try what the driver takes for granted of this host, on a throw-away virtual machine. Exit code 5 when something is broken.
    Qualify(qualify::Options),
    /// Record how much the disks of VMs change, and what bandwidth and room that needs.
    Profile(profile::Options),
    /// Replicate image files of VMs that are off into a store, without an orchestrator.
    Replicate(replicate::Options),
    /// Convert a disk image (VHDX, VHD, raw, differencing chains) into another format.
    Convert(convert::Convert),
    /// Read a whole disk image in order: how fast, and the hash of its bytes.
    #[command(hide = true)]
    Read(convert::Read),
    /// List the recovery points of a replica.
    Points {
        /// Folder of the storage account.
        #[arg(long, value_name = "FOLDER")]
        store: PathBuf,
        /// Folder name of the vault in it.
        #[arg(long, value_name = "NAME")]
        vault_key: String,
        /// Protected item (GUID).
        #[arg(long, value_name = "ID")]
        item: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[cfg(windows)]
#[derive(Subcommand)]
enum ServiceCommand {
    /// Make the service, or bring one that is there to this program and configuration; it starts with the system.
    Install {
        /// Name of the service.
        #[arg(long, value_name = "NAME", default_value = engine::service::NAME)]
        name: String,
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Start the service; returns when the engine answers, or says why it does not.
    Start {
        /// Name of the service.
        #[arg(long, value_name = "NAME", default_value = engine::service::NAME)]
        name: String,
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Stop the service and wait for its end.
    Stop {
        /// Name of the service.
        #[arg(long, value_name = "NAME", default_value = engine::service::NAME)]
        name: String,
    },
    /// Stop the service and take it away. Its folders stay.
    Delete {
        /// Name of the service.
        #[arg(long, value_name = "NAME", default_value = engine::service::NAME)]
        name: String,
    },
    /// What the service control manager starts.
    #[command(hide = true)]
    Run {
        /// Configuration file (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Subcommand)]
enum VmCommand {
    /// List the virtual machines.
    List {
        /// Folder with one folder a virtual machine.
        #[arg(long, value_name = "FOLDER")]
        vm_folder: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start a virtual machine; one that runs is left alone.
    Start {
        /// Folder with one folder a virtual machine.
        #[arg(long, value_name = "FOLDER")]
        vm_folder: PathBuf,
        /// Name or id.
        name: String,
    },
    /// Shut a virtual machine down; one that does not end in 20 seconds is turned off.
    Stop {
        /// Folder with one folder a virtual machine.
        #[arg(long, value_name = "FOLDER")]
        vm_folder: PathBuf,
        /// Turn it off at once.
        #[arg(long)]
        turn_off: bool,
        /// Name or id.
        name: String,
    },
    /// Print what a virtual machine has written to its console since it was started.
    Console {
        /// Folder with one folder a virtual machine.
        #[arg(long, value_name = "FOLDER")]
        vm_folder: PathBuf,
        /// Name or id.
        name: String,
    },
}

fn main() -> ExitCode {
    engine::memory::limit_arenas();
    let arguments = Arguments::parse();
    match execute(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            say_error(&format!("siterecovery-engine: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<ExitCode> {
    // Replicas, logs and recovered disks hold what is inside of the VMs: for the owner's eyes only.
    platform::keep_files_private();
    #[cfg(windows)]
    if let Command::Service {
        command: ServiceCommand::Run { config },
    } = command
    {
        // The manager's thread is this one; the runtime is made in the service's own.
        engine::service::dispatch(config)?;
        return Ok(ExitCode::SUCCESS);
    }
    #[cfg(unix)]
    if let Command::Run { detached: true, .. } | Command::Supervise { .. } = &command {
        // Before the runtime has threads.
        daemon::detach()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(dispatch(command))
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config, detached } => {
            let config = Config::load(&config)?;
            run(&config, detached).await?;
        }
        #[cfg(windows)]
        Command::Service { command } => service(command).await?,
        #[cfg(unix)]
        Command::Supervise { config: path } => {
            supervisor::supervise(&path, &Config::load(&path)?).await?;
        }
        #[cfg(unix)]
        Command::Start { config: path } => {
            say(&daemon::start(&path, &Config::load(&path)?).await?)?
        }
        #[cfg(unix)]
        Command::Stop { config } => say(&daemon::stop(&Config::load(&config)?).await?)?,
        Command::Status { config, json } => return status(&Config::load(&config)?, json).await,
        Command::Vm { command } => vm(command).await?,
        Command::Inspect(options) => show(&inspect::run(&options).await?, options.json)?,
        Command::Verify(options) => {
            let (value, sound) = verify::run(&options).await?;
            show(&value, options.json)?;
            if !sound {
                return Ok(ExitCode::from(verify::DAMAGED));
            }
        }
        Command::Bench(options) => show(&bench::run(&options).await?, options.json)?,
        Command::Qualify(options) => {
            engine_protocol::tls::install_crypto();
            let (text, code) = qualify::run(&options).await?;
            say(text.trim_end())?;
            return Ok(ExitCode::from(code));
        }
        Command::Profile(options) => show(&profile::run(&options).await?, options.json)?,
        Command::Replicate(options) => replicate(&options).await?,
        Command::Convert(options) => show(&convert::convert(&options)?, options.json)?,
        Command::Read(options) => show(&convert::read(&options)?, options.json)?,
        Command::Points {
            store,
            vault_key,
            item,
            json,
        } => {
            show(&inspect::points(&store, &vault_key, &item).await?, json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(config: &Config, detached: bool) -> anyhow::Result<()> {
    engine::engine::prepare(config, detached)?;
    let stop = CancellationToken::new();
    let wished = platform::stop_wished()?;
    let trigger = stop.clone();
    engine::task::spawn_named("signals", async move {
        wished.await;
        trigger.cancel();
    });
    engine::engine::run(config, stop).await
}

#[cfg(windows)]
async fn service(command: ServiceCommand) -> anyhow::Result<()> {
    use engine::service;
    match command {
        ServiceCommand::Install { name, config } => say(&service::install(&name, &config)?),
        ServiceCommand::Start { name, config } => {
            say(&service::start(&name, &Config::load(&config)?).await?)
        }
        ServiceCommand::Stop { name } => say(&service::stop(&name).await?),
        ServiceCommand::Delete { name } => say(&service::delete(&name).await?),
        // Seen to before there was a runtime.
        ServiceCommand::Run { .. } => Ok(()),
    }
}

async fn replicate(options: &replicate::Options) -> anyhow::Result<()> {
    engine_protocol::tls::install_crypto();
    let value = replicate::run(options, |point| {
        if options.prints_points() {
            say(&point.to_string())?;
        }
        Ok(())
    })
    .await?;
    // With --watch and --json the points were the output.
    if options.prints_points() {
        return Ok(());
    }
    show(&value, options.json)
}

async fn status(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    match control::ask(&config.control_socket()).await {
        Ok(status) => {
            show(
                &serde_json::to_value(&status).context("status as JSON")?,
                json,
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            say_error(&format!("engine does not run: {error:#}"));
            Ok(ExitCode::from(3))
        }
    }
}

async fn vm(command: VmCommand) -> anyhow::Result<()> {
    match command {
        VmCommand::List { vm_folder, json } => {
            let list = vm_command::list(vm_command::driver(&vm_folder)?.as_ref()).await?;
            show(&serde_json::json!({ "virtualMachines": list }), json)
        }
        VmCommand::Start { vm_folder, name } => {
            say(&vm_command::start(vm_command::driver(&vm_folder)?.as_ref(), &name).await?)
        }
        VmCommand::Stop {
            vm_folder,
            turn_off,
            name,
        } => say(
            &vm_command::stop(vm_command::driver(&vm_folder)?.as_ref(), &name, turn_off).await?,
        ),
        VmCommand::Console { vm_folder, name } => {
            let bytes =
                vm_command::console(vm_command::driver(&vm_folder)?.as_ref(), &name).await?;
            std::io::stdout()
                .write_all(&bytes)
                .context("write to standard output")
        }
    }
}

fn show(value: &serde_json::Value, json: bool) -> anyhow::Result<()> {
    if json {
        say(&serde_json::to_string_pretty(value).context("as JSON")?)
    } else {
        say(inspect::text(value).trim_end())
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("write to standard output")
}

fn say_error(text: &str) {
    // Nobody is left to tell when standard error is closed.
    writeln!(std::io::stderr(), "{text}").ok();
}

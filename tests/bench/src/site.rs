//! A site as a user has it: the real orchestrator, two hosts with an engine each, set up by Terraform, and guests that run.
//!
//! ```text
//!   guests ─► source host ─► replica in a folder ─► recovery host
//!                └─────── orchestrator ◄─ REST ─ this program
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use arm_client::{Client, ClientConfig, Method, Secret};
use disk_image::{Access, CreateOptions, DiskImage, Format};
use serde_json::{Value, json};
use system_tests::process::{catch, is_alive, pid_in};
use system_tests::story::{BOOT, files_below, wait_for_points};
use system_tests::{Cli, Console, Guest, Lab, Orchestrator, Terraform};

use crate::data::Random;
use crate::setting::Setting;

const MIB: u64 = 1 << 20;
/// Below this the guest's own disk lies: boot loader, kernel, its stamps.
pub const OURS_AT: u64 = 256 * MIB;
/// Data beyond lies in runs of so many MiB, spread over the whole disk.
const RUN: u64 = 16;
const LIMIT: Duration = Duration::from_secs(240);

/// A guest to be.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// Size of its first disk.
    pub disk_bytes: u64,
    /// Noise on that disk, beside what the guest boots from.
    pub data_bytes: u64,
}

/// A site.
pub struct Site {
    /// Folder and guests.
    pub lab: Lab,
    /// The operator's command line.
    pub cli: Cli,
    /// For what is asynchronous.
    pub runtime: tokio::runtime::Runtime,
    client: Client,
    subscription: String,
    _orchestrator: Orchestrator,
}

/// What an engine notes of a VM that it recovered.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Its folder: disks, sockets, console.
    pub folder: PathBuf,
    /// The record itself.
    pub record: PathBuf,
    /// When QEMU ran it; 0 = not yet.
    pub started_unix_ms: i64,
    /// When the firmware, or whatever came first, had written to the serial port; 0 = not yet.
    pub first_output_unix_ms: i64,
}

/// The wall clock.
pub fn unix_ms() -> i64 {
    (time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64
}

/// Where a disk has noise, in MiB.
pub fn noise_at(plan: &Plan) -> Vec<u64> {
    let count = plan.data_bytes / MIB;
    let runs = count.div_ceil(RUN).max(1);
    let room = (plan.disk_bytes - OURS_AT) / MIB / runs;
    (0..count)
        .map(|number| OURS_AT / MIB + number / RUN * room + number % RUN)
        .collect()
}

/// The noise of one MiB.
pub fn noise_of(mib: u64) -> Vec<u8> {
    Random::new(mib + 0x5eed).plain(MIB as usize)
}

impl Site {
    /// Guests run, are protected, and have a recovery point each. `groups` are those of the recovery plan.
    pub fn new(
        setting: &Setting,
        name: &str,
        plans: &[Plan],
        groups: &[Vec<&str>],
    ) -> Result<Self> {
        setting.lab("prerequisites.sh", &[])?;
        let lab = Lab::with_programs(name, setting.programs())?;
        let orchestrator = Orchestrator::start(&lab)?;
        let environment = orchestrator.environment()?;
        let text = |name: &str| {
            let value = environment.get(name).cloned();
            value.with_context(|| format!("the orchestrator did not say {name}"))
        };
        let mut config = ClientConfig::new(
            text("SITERECOVERY_ENDPOINT")?,
            text("SITERECOVERY_TENANT_ID")?,
            text("SITERECOVERY_CLIENT_ID")?,
            Secret::new(text("SITERECOVERY_CLIENT_SECRET")?),
        );
        config.ca_pem = Some(std::fs::read_to_string(text("SITERECOVERY_CA_FILE")?)?);
        let cli = Cli::new(&lab, &orchestrator)?;
        let site = Self {
            client: Client::new(config)?,
            subscription: text("SITERECOVERY_SUBSCRIPTION_ID")?,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?,
            lab,
            cli,
            _orchestrator: orchestrator,
        };
        match site.set_up(plans, groups, &environment) {
            Ok(()) => Ok(site),
            Err(error) => site.end(Err(error)),
        }
    }

    fn set_up(
        &self,
        plans: &[Plan],
        groups: &[Vec<&str>],
        environment: &std::collections::BTreeMap<String, String>,
    ) -> Result<()> {
        for plan in plans {
            self.build(plan)?;
            self.lab.start_vm(plan.name)?;
        }
        for plan in plans {
            self.lab.console(plan.name).wait_for_sequence(1, BOOT)?;
        }
        let folder = self.lab.folder().to_owned();
        let variables = json!({
            "vm_folder": self.lab.vm_folder(),
            "source_folder": folder.join("host"),
            "recovery_folder": folder.join("recovery"),
            "replica_folder": folder.join("storage"),
            "boot_order": groups,
            "replication_interval_in_seconds": 30,
        });
        let terraform = Terraform::new(&self.lab, "failover", environment, &variables)?;
        terraform.run(&["init"])?;
        terraform.apply()?;
        for plan in plans {
            wait_for_points(&self.cli, plan.name, 1)?;
        }
        Ok(())
    }

    /// A bootable guest whose first disk is as large, and as full, as planned.
    fn build(&self, plan: &Plan) -> Result<()> {
        self.lab.build_guest(&Guest {
            name: plan.name,
            generation: 2,
            marker: None,
            fill_mib: 0,
            app_mib: 0,
        })?;
        let path = self.disk(plan.name);
        let small = DiskImage::open(&path, Access::ReadOnly)?;
        let made = path.with_extension("made.vhdx");
        let mut options = CreateOptions::new(Format::VhdxDynamic, plan.disk_bytes);
        options.block_size = Some(1 << 20);
        let mut large = DiskImage::create(&made, &options)?;
        let mut buffer = vec![0; MIB as usize];
        for extent in small.allocated(0..small.virtual_size()) {
            let mut at = extent.offset;
            while at < extent.end() {
                let part = (extent.end() - at).min(MIB) as usize;
                small.read_at(&mut buffer[..part], at)?;
                large.write_at(&buffer[..part], at)?;
                at += part as u64;
            }
        }
        for mib in noise_at(plan) {
            large.write_at(&noise_of(mib), mib * MIB)?;
        }
        large.close()?;
        drop(small);
        std::fs::rename(&made, &path)?;
        Ok(())
    }

    /// The first disk of a guest at its source.
    pub fn disk(&self, name: &str) -> PathBuf {
        let folder = self.lab.vm_folder().join(name);
        folder.join(format!("{name}-os.vhdx"))
    }

    /// Whether a guest runs at its source.
    pub fn runs_at_source(&self, name: &str) -> bool {
        pid_in(&self.lab.vm_folder().join(name).join("run/pid")).is_ok_and(is_alive)
    }

    /// Where the recovery host keeps its VMs.
    pub fn recovery(&self) -> PathBuf {
        self.lab.folder().join("recovery/data/recovered")
    }

    /// ARM id of a protected VM or a plan.
    pub fn id(&self, segment: &str, name: &str) -> Result<String> {
        self.runtime.block_on(async {
            let vaults = format!(
                "/subscriptions/{}/providers/Microsoft.RecoveryServices/vaults",
                self.subscription
            );
            let vaults: Vec<Value> = self.client.list(&vaults).await?;
            let vault = vaults
                .first()
                .and_then(|vault| vault["id"].as_str())
                .context("no vault")?;
            let all: Vec<Value> = self.client.list(&format!("{vault}/{segment}")).await?;
            let found = all.iter().find(|one| {
                one["name"] == name || one.pointer("/properties/friendlyName") == Some(&name.into())
            });
            let id = found.and_then(|one| one["id"].as_str());
            let id = id.with_context(|| format!("no {segment} {name}"))?;
            Ok(id.to_owned())
        })
    }

    /// Reads a resource.
    pub fn get(&self, path: &str) -> Result<Value> {
        Ok(self.runtime.block_on(self.client.get(path))?)
    }

    /// Sends an action that begins no job.
    pub fn post(&self, path: &str, body: &Value) -> Result<()> {
        let sent = self.client.request(Method::Post, path, Some(body));
        self.runtime.block_on(sent)?;
        Ok(())
    }

    /// Sends an action; gives the instant right before the request, and the path of its job.
    pub fn act(&self, id: &str, action: &str, body: Option<&Value>) -> Result<(i64, String)> {
        // The token is there already, as it is in a portal or a command that was used a moment ago.
        self.runtime.block_on(self.client.sign_in())?;
        let asked = unix_ms();
        let path = format!("{id}/{action}");
        let begun = self.client.begin(Method::Post, &path, body);
        let operation = self.runtime.block_on(begun)?;
        let job = operation.job_id().context("no job")?;
        let vault = arm_client::vault_path_of(id).context("no vault in the id")?;
        Ok((asked, format!("{vault}/replicationJobs/{job}")))
    }

    /// Waits for the end of a job, or until it waits for a person. Tells `seen` of each look.
    pub fn follow(&self, job: &str, mut seen: impl FnMut(&Value)) -> Result<Value> {
        catch(&format!("the end of {job}"), LIMIT, || {
            std::thread::sleep(Duration::from_millis(45));
            let job = self.get(job)?;
            seen(&job);
            let state = job.pointer("/properties/state").and_then(Value::as_str);
            match state {
                Some("Succeeded" | "Suspended") => Ok(Some(job)),
                Some("Failed" | "Cancelled") => bail!("a job failed: {job}"),
                _ => Ok(None),
            }
        })
    }

    /// Cancels a job and waits until all that it did is taken back.
    pub fn take_back(&self, job: &str) -> Result<()> {
        let vault = arm_client::vault_path_of(job).context("no vault in the id")?;
        let name = job.rsplit('/').next().unwrap_or_default();
        self.runtime.block_on(self.client.cancel_job(vault, name))?;
        catch(&format!("{job} is taken back"), LIMIT, || {
            std::thread::sleep(Duration::from_millis(45));
            let job = self.get(job)?;
            let state = job.pointer("/properties/state").and_then(Value::as_str);
            match state {
                Some("Cancelled") => Ok(Some(())),
                Some("Failed" | "Succeeded") => bail!("a job was not cancelled: {job}"),
                _ => Ok(None),
            }
        })
    }

    /// An action and the end of its job.
    pub fn complete(&self, id: &str, action: &str, body: Option<&Value>) -> Result<Value> {
        let (_, job) = self.act(id, action, body)?;
        self.follow(&job, |_| {})
    }

    /// What the recovery host has noted of VMs that it recovered for a guest.
    pub fn recovered(&self, guest: &str) -> Result<Option<Recovered>> {
        let all = self.recovery();
        let mut found = Vec::new();
        for file in files_below(&all) {
            let is_record = file.ends_with(".json") && !file.ends_with(".shipped.json");
            if !is_record {
                continue;
            }
            // It may be gone or be replaced at this moment.
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            let is_meant = value["name"]
                .as_str()
                .is_some_and(|name| name.starts_with(&format!("{guest}-dr")));
            let Some(id) = value["id"].as_str().filter(|_| is_meant) else {
                continue;
            };
            found.push(Recovered {
                folder: all.join(id),
                record: PathBuf::from(file),
                started_unix_ms: value["startedUnixMs"].as_i64().unwrap_or(0),
                first_output_unix_ms: value["firstOutputUnixMs"].as_i64().unwrap_or(0),
            });
        }
        ensure!(found.len() < 2, "{guest} has two recovered VMs: {found:?}");
        Ok(found.pop())
    }

    /// Waits until a recovered VM runs, as its engine notes it.
    pub fn wait_for_recovered(&self, guest: &str) -> Result<Recovered> {
        catch(&format!("{guest} runs at the recovery side"), LIMIT, || {
            let found = self.recovered(guest)?;
            Ok(found.filter(|vm| vm.started_unix_ms != 0))
        })
    }

    /// Waits until it has written its first byte, too.
    pub fn wait_for_output(&self, guest: &str) -> Result<Recovered> {
        catch(&format!("{guest} writes to its console"), LIMIT, || {
            let found = self.recovered(guest)?;
            Ok(found.filter(|vm| vm.first_output_unix_ms != 0))
        })
    }

    /// Waits until nothing is left of the recovered VM of a guest.
    pub fn wait_until_gone(&self, guest: &str) -> Result<()> {
        catch(&format!("{guest} is gone"), LIMIT, || {
            Ok(self.recovered(guest)?.is_none().then_some(()))
        })
    }

    /// When an engine wrote a line into its log that holds all of `words`, behind `since`.
    pub fn logged(&self, host: &str, since: i64, words: &[&str]) -> Result<i64> {
        let path = self.lab.folder().join(host).join("data/engine.log");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut instants = text
            .lines()
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .filter_map(|line| {
                let format = &time::format_description::well_known::Rfc3339;
                let instant = line.split_whitespace().next()?;
                let instant = time::OffsetDateTime::parse(instant, format).ok()?;
                Some((instant.unix_timestamp_nanos() / 1_000_000) as i64)
            })
            .filter(|instant| *instant >= since);
        instants
            .next()
            .with_context(|| format!("{host}'s log has no line with {words:?}"))
    }

    /// The console of a recovered VM.
    pub fn console(&self, recovered: &Recovered) -> Console {
        Console::at(&recovered.folder.join("run/console.log"))
    }

    /// The image of a replica's disk of so many bytes, in the folder store.
    pub fn base(&self, disk_bytes: u64) -> Result<PathBuf> {
        let storage = self.lab.folder().join("storage");
        let files = files_below(&storage);
        let base = files.iter().map(Path::new).find(|path| {
            let length = path.metadata().map_or(0, |metadata| metadata.len());
            length >= disk_bytes && length < disk_bytes + MIB
        });
        Ok(base.context("no base in the store")?.to_owned())
    }

    /// Passes an outcome on; after a failure the lab says what its programs logged.
    pub fn end<T>(mut self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            self.lab.failed();
        }
        outcome
    }
}

/// A size as people say it.
pub fn size(bytes: u64) -> String {
    if bytes >= 1 << 40 {
        format!("{} TiB", bytes >> 40)
    } else {
        format!("{} GiB", bytes >> 30)
    }
}

//! `initial-azurite`: a VHDX into a page blob of Azurite, against `qemu-img convert` and AzCopy, which needs a VHD.
//!
//! Bounded are the client's processor time per GiB (with its children) and its wall time. Azurite is a program of its own
//! and counts for neither.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, ensure};
use azure_storage::clock::SystemClock;
use azure_storage::emulator::{Azurite, AzuriteOptions};
use azure_storage::sas::{self, Permissions, Protocols, SasRequest};

use crate::data;
use crate::outcome::{Bound, Measure, Outcome, median};
use crate::process::{Cost, execute, run_json};
use crate::setting::Setting;

const VIRTUAL: u64 = 2 << 30;
const PERCENT: u64 = 35;
const CONTAINER: &str = "bench";

/// A fresh emulator for every upload, so that none pays for what another one left.
pub fn run(setting: &Setting) -> Result<Outcome> {
    setting.lab("azurite.sh", &["install"])?;
    let azcopy = setting.lab("azcopy.sh", &[])?;
    let scratch = setting.scratch("initial-azurite")?;
    let vms = scratch.folder("vms")?;
    let input = vms.join("disk.vhdx");
    let virtual_size = setting.size(VIRTUAL);
    data::vhdx(&input, virtual_size, PERCENT, 12)?;
    data::warm(&input)?;
    let bytes = data::data_bytes(virtual_size, PERCENT);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..setting.rounds.min(2) {
        let state = scratch.folder("state")?;
        let emulator = Emulator::start(&runtime, &scratch.folder("azurite")?)?;
        ours.push(replicate(setting, &emulator, &vms, &input, &state)?);
        drop(emulator);
        let work = scratch.folder("azcopy")?;
        let emulator = Emulator::start(&runtime, &scratch.folder("azurite")?)?;
        theirs.push(copy(&azcopy, &emulator, &input, &work)?);
    }
    let gib = bytes as f64 / f64::from(1 << 30);
    let of = |costs: &[Cost], what: fn(&Cost) -> f64| median(costs.iter().map(what).collect());
    Ok(Outcome {
        name: "initial-azurite",
        what: format!(
            "initial replication of {} MiB (VHDX of {} MiB) to Azurite; peer: `qemu-img convert` to a fixed VHD and AzCopy to a page blob",
            bytes >> 20,
            virtual_size >> 20
        ),
        measures: vec![
            Measure::new(
                "client processor time",
                of(&ours, |cost| cost.cpu) / gib,
                of(&theirs, |cost| cost.cpu) / gib,
                "s per GiB",
            )
            .bound(Bound::AtMost(0.5)),
            Measure::new(
                "wall time",
                of(&ours, |cost| cost.wall),
                of(&theirs, |cost| cost.wall),
                "s",
            )
            .bound(Bound::AtMost(1.0)),
        ],
        ceiling: None,
        notes: vec![
            "user and system time of client processes; recovery point equal by BLAKE3, read back from Azurite; AzCopy checks its own transfer"
                .to_owned(),
        ],
    })
}

/// A running Azurite with one container.
struct Emulator {
    azurite: Azurite,
    query: String,
}

impl Emulator {
    fn start(runtime: &tokio::runtime::Runtime, folder: &Path) -> Result<Self> {
        runtime.block_on(async {
            let azurite = Azurite::start(AzuriteOptions {
                folder: Some(folder.to_owned()),
                ..AzuriteOptions::default()
            })
            .await
            .context("start azurite")?
            .context("azurite is not installed: tests/lab/azurite.sh install")?;
            azurite.make_container(CONTAINER, &[]).await?;
            let request = SasRequest {
                container: CONTAINER.to_owned(),
                permissions: Permissions::REPLICATE,
                protocols: Protocols::of_endpoint(azurite.endpoint()),
                now_unix_ms: SystemClock::shared().unix_ms(),
                lifetime_ms: 3_600_000,
            };
            let query = sas::mint(&azurite.key()?, &request).query;
            Ok(Self { azurite, query })
        })
    }

    fn url(&self) -> String {
        format!("{}/{CONTAINER}", self.azurite.endpoint())
    }
}

fn replicate(
    setting: &Setting,
    emulator: &Emulator,
    vms: &Path,
    input: &Path,
    state: &Path,
) -> Result<Cost> {
    let mut command = setting.engine();
    command
        .args(["replicate", "--json"])
        .arg(vms)
        .args(["--store", &emulator.url(), "--state"])
        .arg(state)
        .env("AZURE_STORAGE_SAS_TOKEN", &emulator.query);
    let (value, cost) = run_json(&mut command)?;
    let item = value["virtualMachines"][0]["item"]
        .as_str()
        .context("no item")?;
    let mut command = setting.engine();
    command
        .args(["verify", "--json", "--points", "newest"])
        .arg(format!("{}/files/{item}", emulator.url()))
        .env("AZURE_STORAGE_SAS_TOKEN", &emulator.query);
    let (proof, _) = run_json(&mut command)?;
    let mut command = setting.engine();
    let (source, _) = run_json(command.args(["read", "--hash", "--json"]).arg(input))?;
    let found = &proof["points"][0]["disks"][0]["blake3"];
    ensure!(
        found.is_string() && *found == source["blake3"],
        "the recovery point is not the image"
    );
    Ok(cost)
}

/// Conversion and upload.
fn copy(azcopy: &str, emulator: &Emulator, input: &Path, work: &Path) -> Result<Cost> {
    let vhd = work.join("disk.vhd");
    let mut command = Command::new("qemu-img");
    command.args([
        "convert",
        "-f",
        "vhdx",
        "-O",
        "vpc",
        "-o",
        "subformat=fixed,force_size=on",
    ]);
    let (_, converted) = execute(command.arg(input).arg(&vhd))?;
    let mut command = Command::new(azcopy);
    command
        .arg("copy")
        .arg(&vhd)
        .arg(format!("{}/disk.vhd?{}", emulator.url(), emulator.query))
        .args(["--blob-type", "PageBlob", "--from-to", "LocalBlob"])
        .args(["--output-type", "json", "--skip-version-check"])
        .env("AZCOPY_LOG_LOCATION", work)
        .env("AZCOPY_JOB_PLAN_LOCATION", work)
        .env("HOME", work);
    let (output, uploaded) = execute(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Also "failed" ends with success in some of its versions.
    if !text.contains("Completed") || text.contains("CompletedWithErrors") {
        return Err(anyhow!("azcopy did not complete: {text}"));
    }
    Ok(converted + uploaded)
}

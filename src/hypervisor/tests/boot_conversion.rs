//! Guests that were installed for UEFI, started by a BIOS, and by UEFI again: the whole way of a failover to generation 1 and back.
//!
//! ```text
//!   source, generation 2 ─ runs, stops ─► its disks, never written again below
//!        ─► conversion laid over them as they are served ─► NBD ─► copy-on-write ─► machine of generation 1 ─ runs, stops
//!        ─► that machine's disks, undone ─► source, generation 2 ─ runs
//! ```
//!
//! The guest's own check decides each time whether its disks are whole; it stamps on, so nothing of a stage may be lost in the next.

mod support;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use disk_image::boot::{
    BiosStart, ConversionPlan, CorePlace, PlanState, USUAL_CORE_BYTES, Verdict, inspect, judge,
};
use disk_image::{Access, DiskImage};
use hypervisor::nbd::{BlockReader, NbdExport, NbdServer, serve};
use hypervisor::{
    DiskId, DiskSource, Generation, Hypervisor, NewDisk, NewVirtualMachine, Stop, VmId,
    bios_boot_loader,
};
use support::{Lab, MIB, build_guest, content, tool};
use uuid::Uuid;

/// A boot takes some 20 s in software emulation, and much longer beside other tests.
const BOOT: Duration = Duration::from_secs(600);
const OS_SIZE: u64 = 128 * MIB;
const DATA_SIZE: u64 = 128 * MIB;
/// The guest's stamps on its OS disk: the last partition.
const STAMPS: std::ops::Range<usize> = 123 << 20..127 << 20;

/// A disk as the product serves it: read from an image that is never written, converted on its way.
struct Converted {
    image: DiskImage,
    plan: Option<ConversionPlan>,
}

#[async_trait]
impl BlockReader for Converted {
    async fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; length];
        self.image
            .read_at(&mut buffer, offset)
            .map_err(io::Error::other)?;
        if let Some(plan) = &self.plan {
            plan.convert(offset, &mut buffer);
        }
        Ok(buffer.into())
    }
}

struct Guest {
    lab: Lab,
    source: VmId,
    folder: PathBuf,
}

impl Guest {
    fn build(layout: &str) -> Self {
        let lab = Lab::new();
        let id = Uuid::new_v4();
        build_guest(&lab, id, &["--layout", layout, "--append", "lab.rate=200"]);
        let folder = lab.vms().join("guest");
        Self {
            lab,
            source: VmId(id),
            folder,
        }
    }

    fn os_image(&self) -> PathBuf {
        self.folder.join("guest-os.vhdx")
    }

    fn data_image(&self) -> PathBuf {
        self.folder.join("guest-data.vhdx")
    }

    /// Starts a machine, and pulls the plug when it has found everything up to record `stamped` and stamped on. Gives the
    /// last record that it named as durable.
    async fn run(&self, vm: VmId, stamped: u64) -> u64 {
        self.lab.driver.start(vm).await.unwrap();
        let console = self.lab.driver.console(vm).await.unwrap();
        let deadline = Instant::now() + BOOT;
        let (text, last) = loop {
            let text = std::fs::read(&console).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let last = numbers(&text, "LAB sequence=").last().copied();
            // The first one after a check may name what the check found.
            if let Some(last) = last.filter(|last| *last > checked(&text)) {
                break (text, last);
            }
            assert!(
                Instant::now() < deadline && !text.contains("boot-menu-missing"),
                "no stamp: {text}"
            );
            // A file that another process appends to has no event.
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.lab.driver.stop(vm, Stop::TurnOff).await.unwrap();
        assert!(checked(&text) >= stamped, "{stamped} is lost: {text}");
        last
    }

    /// A machine of generation 1 over served disks; its writes stay in its own layer.
    async fn recovered(&self, plan: &ConversionPlan) -> (VmId, NbdServer) {
        let export =
            |name: &str, path: &Path, size_bytes, plan: Option<ConversionPlan>| NbdExport {
                name: name.to_owned(),
                size_bytes,
                reader: Arc::new(Converted {
                    image: DiskImage::open(path, Access::ReadOnly).unwrap(),
                    plan,
                }),
            };
        let exports = vec![
            export("os", &self.os_image(), OS_SIZE, Some(plan.clone())),
            export("data", &self.data_image(), DATA_SIZE, None),
        ];
        let server = serve(&self.lab.folder.path().join("point.sock"), exports)
            .await
            .unwrap();
        let id = VmId(Uuid::new_v4());
        let disk = |export: &str, size_bytes| NewDisk {
            id: DiskId(Uuid::new_v4()),
            source: DiskSource::Nbd {
                socket: server.socket().to_owned(),
                export: export.to_owned(),
                size_bytes,
                overlay: format!("{export}.qcow2").into(),
            },
        };
        let machine = NewVirtualMachine {
            id,
            name: "guest-recovered".to_owned(),
            generation: Generation::One,
            memory_bytes: 256 << 20,
            processors: 1,
            os_type: "Linux".to_owned(),
            folder: self.lab.vms().join("recovered"),
            disks: vec![disk("os", OS_SIZE), disk("data", DATA_SIZE)],
            networks: vec![],
        };
        self.lab.driver.create(machine).await.unwrap();
        (id, server)
    }

    /// A disk of the recovered machine as a whole, read by QEMU's own tool.
    async fn recovered_disk(&self, export: &str, server: &NbdServer) -> PathBuf {
        let raw = self.lab.folder.path().join(format!("{export}.raw"));
        let image = format!(
            "driver=qcow2,file.driver=file,file.filename={},backing.driver=nbd,backing.export={export},\
             backing.server.type=unix,backing.server.path={}",
            self.lab
                .vms()
                .join(format!("recovered/{export}.qcow2"))
                .display(),
            server.socket().display()
        );
        let arguments = ["convert", "-O", "raw", "--image-opts", &image];
        let target = raw.to_str().unwrap().to_owned();
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        // Beside this program's own server, so not on its threads.
        tokio::task::spawn_blocking(move || {
            let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
            all.push(&target);
            tool("qemu-img", &all);
        })
        .await
        .unwrap();
        raw
    }

    /// Puts a raw disk in place of the source's.
    fn replace(&self, raw: &Path, image: &Path) {
        std::fs::remove_file(image).unwrap();
        let (raw, image) = (raw.to_str().unwrap(), image.to_str().unwrap());
        tool("qemu-img", &["convert", "-O", "vhdx", raw, image]);
    }
}

/// Numbers behind a word on the console, of lines that have their end.
fn numbers(text: &str, word: &str) -> Vec<u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let parts = whole.split(word).skip(1);
    parts
        .map(|rest| {
            let digits = rest.find(|c: char| !c.is_ascii_digit());
            rest[..digits.unwrap_or(rest.len())].parse().unwrap()
        })
        .collect()
}

/// What the guest's check found last on its disks; 0 when they were never stamped, and a failed check never stamps on.
fn checked(text: &str) -> u64 {
    numbers(text, "LAB check ok disk=data last_sequence=")
        .last()
        .copied()
        .unwrap_or(0)
}

/// The parts of an OS disk that no stage of the guest writes: everything but its stamps.
fn at_rest(disk: &[u8]) -> [&[u8]; 2] {
    [&disk[..STAMPS.start], &disk[STAMPS.end..]]
}

/// From generation 2 to 1 and back, with the guest writing at each stage.
async fn circle(layout: &str, place: CorePlace) {
    let guest = Guest::build(layout);
    let stamped = guest.run(guest.source, 0).await;
    let before = content(&guest.os_image());

    let loader = bios_boot_loader(guest.lab.folder.path()).await.unwrap();
    let image = DiskImage::open(guest.os_image(), Access::ReadOnly).unwrap();
    let verdict = judge(&inspect(&image).unwrap(), USUAL_CORE_BYTES);
    assert!(
        matches!(&verdict, Verdict::Convertible { place: found, .. } if *found == place),
        "{verdict:?}"
    );
    let plan = ConversionPlan::make(&image, &loader).unwrap();
    let kept = plan.to_bytes();
    drop(image);

    let (recovered, server) = guest.recovered(&plan).await;
    let stamped = guest.run(recovered, stamped).await;
    assert_eq!(
        content(&guest.os_image()),
        before,
        "the source of the layer was written"
    );
    let os = guest.recovered_disk("os", &server).await;
    let data = guest.recovered_disk("data", &server).await;
    server.stop().await;
    let verified = tool("sgdisk", &["--verify", os.to_str().unwrap()]);
    assert!(verified.contains("No problems found"), "{verified}");
    partitions_are_equal(&before, &std::fs::read(&os).unwrap());

    // What was kept beside the machine is all that the way back needs.
    let plan = ConversionPlan::from_bytes(&kept).unwrap();
    let mut image = DiskImage::open(&os, Access::ReadWrite).unwrap();
    assert_eq!(plan.state(&image).unwrap(), PlanState::Converted);
    assert_eq!(inspect(&image).unwrap().bios, BiosStart::Grub);
    plan.undo(&mut image).unwrap();
    image.close().unwrap();
    assert_eq!(
        at_rest(&std::fs::read(&os).unwrap()),
        at_rest(&before),
        "the way back left something"
    );
    guest.replace(&os, &guest.os_image());
    guest.replace(&data, &guest.data_image());
    guest.run(guest.source, stamped).await;
}

/// Everything inside partitions except the stamps.
fn partitions_are_equal(before: &[u8], after: &[u8]) {
    let mut compared = 0;
    let image = |bytes: &[u8]| {
        let file = Box::new(disk_image::MemoryFile::from_bytes(bytes.to_vec()));
        DiskImage::open_raw(file, Access::ReadOnly, 512).unwrap()
    };
    for partition in disk_image::partitions::read(&image(before))
        .unwrap()
        .partitions
    {
        let start = usize::try_from(partition.start).unwrap();
        let end = start + usize::try_from(partition.length).unwrap();
        if start != STAMPS.start {
            assert!(before[start..end] == after[start..end], "{partition:?}");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_menu_and_kernel_on_its_system_partition_goes_to_generation_1_and_back() {
    circle("esp", CorePlace::BeforeFirst).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_as_debian_installs_it_goes_to_generation_1_and_back() {
    circle("debian", CorePlace::BeforeFirst).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_a_gap_goes_to_generation_1_and_back() {
    circle("tight", CorePlace::BehindLast).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_entry_files_alone_goes_to_generation_1_and_back() {
    circle("entries", CorePlace::BeforeFirst).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_menu_reads_entry_files_goes_to_generation_1_and_back() {
    circle("blscfg", CorePlace::BeforeFirst).await;
}

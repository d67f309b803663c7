//! Disks of generation 2 as Linux tools make them: verdicts, conversions, and the way back.

mod boot_disks;
mod support;

use boot_disks::{BootDisk, CORE_BYTES, loader, open, tool};
use disk_image::boot::{
    BiosStart, Caution, ConversionPlan, CorePlace, Guest, Obstacle, PlanError, PlanState, Verdict,
    WindowsFinding, grub, inspect, judge,
};
use disk_image::{Access, CreateOptions, DiskImage, Format, MemoryFile};
use support::read_all;

const MIB: u64 = 1 << 20;

fn verdict(disk: &[u8]) -> Verdict {
    judge(
        &inspect(&open(disk, Access::ReadOnly)).unwrap(),
        CORE_BYTES as u64,
    )
}

fn obstacles(disk: &[u8]) -> Vec<Obstacle> {
    match verdict(disk) {
        Verdict::Impossible(obstacles) => obstacles,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_linux_disk_with_the_usual_gap_is_convertible_into_the_gap() {
    let found = inspect(&open(&BootDisk::linux().bytes, Access::ReadOnly)).unwrap();
    assert_eq!(
        (found.guest, found.bios),
        (Guest::Linux, BiosStart::Nothing)
    );
    let system = found.system_partition.as_ref().unwrap();
    assert!(system.grub && system.menu && !system.windows, "{system:?}");
    assert_eq!(system.unreadable, None);
    assert_eq!(
        judge(&found, CORE_BYTES as u64),
        Verdict::Convertible {
            place: CorePlace::BeforeFirst,
            cautions: vec![]
        }
    );
}

#[test]
fn system_partitions_of_12_and_16_bits_and_folders_of_several_clusters_are_read() {
    // Long names take several entries each, so that the folder needs more than one cluster in front of the menu.
    let mut files: Vec<String> = (0..24)
        .map(|i| format!("EFI/debian/a rather long name, as some installers give them {i}"))
        .collect();
    files.push("EFI/debian/grub.cfg".to_owned());
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    for (mib, sectors) in [(8, 4096), (24, 40960)] {
        let disk = BootDisk::new(mib)
            .partition(&format!("1:2048:+{sectors}"), "ef00")
            .system(&files);
        let found = inspect(&open(&disk.bytes, Access::ReadOnly)).unwrap();
        let system = found.system_partition.unwrap();
        assert!(system.menu && system.unreadable.is_none(), "{system:?}");
        let head = &disk.bytes[2048 * 512..][54..59];
        assert_eq!(head, if mib == 8 { b"FAT12" } else { b"FAT16" });
    }
}

#[test]
fn the_memory_disk_is_a_tar_archive_whose_scripts_grub_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("memdisk.tar");
    std::fs::write(&archive, grub::memory_disk(b"the module")).unwrap();
    let place = folder.path().to_str().unwrap();
    tool("tar", &["-xf", archive.to_str().unwrap(), "-C", place]);
    let module = folder.path().join(grub::FORMAT).join(grub::LATE_MODULE);
    assert_eq!(std::fs::read(module).unwrap(), b"the module");
    let mut scripts = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "cfg") {
            // A script of functions alone is refused as one that does nothing.
            let text = std::fs::read_to_string(&path).unwrap() + "true\n";
            std::fs::write(&path, text).unwrap();
            tool("grub-script-check", &[path.to_str().unwrap()]);
            scripts += 1;
        }
    }
    assert_eq!(scripts, 5);
}

#[test]
fn without_a_gap_the_room_behind_the_last_partition_is_taken_and_said() {
    let disk = BootDisk::new(8)
        .partition("1:40:+4096", "ef00")
        .system(&["EFI/debian/grub.cfg"]);
    assert_eq!(
        verdict(&disk.bytes),
        Verdict::Convertible {
            place: CorePlace::BehindLast,
            cautions: vec![Caution::BehindLast]
        }
    );
    let plan = ConversionPlan::make(&open(&disk.bytes, Access::ReadOnly), &loader()).unwrap();
    // Behind the system partition, before the spare table.
    assert_eq!(plan.pieces()[0].offset, (40 + 4096) * 512);
}

#[test]
fn a_bios_boot_partition_is_where_the_core_goes() {
    let disk = BootDisk::new(8)
        .partition("1:2048:+4096", "ef00")
        .partition("14:8192:+1024", "ef02")
        .system(&["EFI/debian/grub.cfg"]);
    let Verdict::Convertible { place, .. } = verdict(&disk.bytes) else {
        panic!("{:?}", verdict(&disk.bytes))
    };
    assert_eq!(place, CorePlace::BiosBootPartition(14));
    let mut image = open(&disk.bytes, Access::ReadWrite);
    let plan = ConversionPlan::make(&image, &loader()).unwrap();
    assert_eq!(plan.pieces()[0].offset, 8192 * 512);
    plan.apply(&mut image).unwrap();
    assert_eq!(inspect(&image).unwrap().bios, BiosStart::Grub);
}

#[test]
fn a_disk_without_room_is_refused_with_figures_and_advice() {
    let disk = BootDisk::new(8)
        .partition("1:40:16350", "ef00")
        .system(&["EFI/debian/grub.cfg"]);
    let found = obstacles(&disk.bytes);
    assert_eq!(
        found,
        [Obstacle::NoRoom {
            needed_bytes: CORE_BYTES as u64,
            largest_bytes: 6 * 512
        }]
    );
    assert!(found[0].advice().contains("1 MiB"));
    let error = ConversionPlan::make(&open(&disk.bytes, Access::ReadOnly), &loader()).unwrap_err();
    assert!(error.to_string().contains("3072"), "{error}");
}

#[test]
fn a_disk_that_a_bios_starts_already_is_left_alone() {
    let mut image = open(&BootDisk::linux().bytes, Access::ReadWrite);
    let plan = ConversionPlan::make(&image, &loader()).unwrap();
    plan.apply(&mut image).unwrap();
    assert_eq!(verdict(&read_all(&image)), Verdict::NotNeeded);
    let again = ConversionPlan::make(&image, &loader()).unwrap_err();
    assert!(matches!(again, PlanError::NotNeeded), "{again}");
    // Generation 1: an MBR with somebody's boot code.
    let mut mbr = vec![0; MIB as usize];
    mbr[0] = 0xfa;
    mbr[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0]);
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(verdict(&mbr), Verdict::NotNeeded);
}

#[test]
fn grub_without_its_core_is_no_reason_to_leave_a_disk_alone() {
    let mut image = open(&BootDisk::linux().bytes, Access::ReadWrite);
    let plan = ConversionPlan::make(&image, &loader()).unwrap();
    plan.apply(&mut image).unwrap();
    image.write_at(&[0; 512], plan.pieces()[0].offset).unwrap();
    assert_eq!(inspect(&image).unwrap().bios, BiosStart::Other);
    assert!(matches!(
        verdict(&read_all(&image)),
        Verdict::Convertible { .. }
    ));
}

#[test]
fn a_data_disk_is_no_system_disk() {
    let disk = BootDisk::new(8).partition("1:2048:+4096", "8300");
    assert_eq!(obstacles(&disk.bytes), [Obstacle::NotASystemDisk]);
    assert_eq!(
        obstacles(&vec![0; MIB as usize]),
        [Obstacle::NotASystemDisk]
    );
}

#[test]
fn windows_is_judged_with_all_that_stands_in_the_way() {
    let mut disk = BootDisk::new(8)
        .partition("1:2048:+2048", "ef00")
        .partition("2:4096:+1024", "0c01")
        .partition("3:6144:+1024", "0700")
        .partition("4:8192:+1024", "0700")
        .partition("5:10240:+1024", "2700")
        .partition("6:12288:+1024", "0700")
        .system(&["EFI/Microsoft/Boot/bootmgfw.efi"]);
    disk.put(6144 * 512 + 3, b"NTFS    ");
    assert_eq!(
        obstacles(&disk.bytes),
        [Obstacle::Windows(vec![WindowsFinding::Partitions(5)])]
    );
    disk.put(8192 * 512 + 3, b"-FVE-FS-");
    let found = obstacles(&disk.bytes);
    assert_eq!(
        found,
        [Obstacle::Windows(vec![
            WindowsFinding::Partitions(5),
            WindowsFinding::BitLocker(4)
        ])]
    );
    assert_eq!(
        found[0].to_string(),
        "it is a Windows disk, which needs firmware of generation 2 here; 5 partitions, an MBR takes 4; \
         partition 4 is a BitLocker volume"
    );
    assert_eq!(found[0].advice(), "recover to a target with generation 2");
}

#[test]
fn windows_beside_linux_is_a_caution() {
    let mut disk = BootDisk::new(8)
        .partition("1:2048:+4096", "ef00")
        .partition("2:8192:+1024", "0700")
        .partition("3:10240:+1024", "8300")
        .system(&["EFI/Microsoft/Boot/bootmgfw.efi", "EFI/fedora/grub.cfg"]);
    disk.put(8192 * 512 + 3, b"NTFS    ");
    assert_eq!(
        verdict(&disk.bytes),
        Verdict::Convertible {
            place: CorePlace::BeforeFirst,
            cautions: vec![Caution::WindowsBeside]
        }
    );
}

#[test]
fn unified_kernels_alone_are_refused_and_beside_a_menu_left_out() {
    let disk = |files: &[&str]| {
        BootDisk::new(8)
            .partition("1:2048:+4096", "ef00")
            .partition("2:8192:+1024", "8304")
            .system(files)
    };
    let image = "EFI/Linux/distribution-6.1.efi";
    assert_eq!(
        obstacles(&disk(&["EFI/systemd/systemd-bootx64.efi", image]).bytes),
        [Obstacle::UnifiedKernel(vec![
            "distribution-6.1.efi".to_owned()
        ])]
    );
    assert_eq!(
        verdict(&disk(&["loader/entries/machine-6.1.conf", image]).bytes),
        Verdict::Convertible {
            place: CorePlace::BeforeFirst,
            cautions: vec![Caution::EntryFiles, Caution::UnifiedKernels]
        }
    );
}

#[test]
fn a_menu_inside_encrypted_partitions_is_refused_and_beside_them_a_caution() {
    let disk = |files: &[&str]| {
        let mut disk = BootDisk::new(8)
            .partition("1:2048:+4096", "ef00")
            .partition("2:8192:+4096", "8300")
            .system(files);
        disk.put(8192 * 512, b"LUKS\xba\xbe\0\x02");
        disk
    };
    assert_eq!(
        obstacles(&disk(&["EFI/debian/grubx64.efi"]).bytes),
        [Obstacle::Encrypted]
    );
    assert_eq!(
        verdict(&disk(&["loader/entries/machine-6.1.conf"]).bytes),
        Verdict::Convertible {
            place: CorePlace::BeforeFirst,
            cautions: vec![Caution::Encryption, Caution::EntryFiles]
        }
    );
}

#[test]
fn a_system_partition_that_cannot_be_read_is_told_apart_from_an_empty_one() {
    let disk = |files: &[&str]| {
        BootDisk::new(8)
            .partition("1:2048:+4096", "ef00")
            .partition("2:8192:+1024", "8300")
            .system(files)
    };
    assert_eq!(obstacles(&disk(&["notes.txt"]).bytes), [Obstacle::NoMenu]);
    let mut broken = disk(&["EFI/debian/grub.cfg"]);
    broken.put(2048 * 512 + 11, &[7, 7]);
    let found = obstacles(&broken.bytes);
    assert!(
        matches!(&found[..], [Obstacle::SystemPartition(why)] if why.starts_with("FAT boot sector at 1 MiB")),
        "{found:?}"
    );
}

#[test]
fn a_broken_primary_table_is_refused() {
    let mut disk = BootDisk::linux();
    disk.put(512 + 60, &[0xff]);
    assert_eq!(obstacles(&disk.bytes), [Obstacle::SpareTable]);
    let end = disk.bytes.len();
    disk.put(end - 512 + 60, &[0xff]);
    let found = obstacles(&disk.bytes);
    assert!(matches!(&found[..], [Obstacle::Table(_)]), "{found:?}");
}

#[test]
fn disks_with_large_sectors_are_refused() {
    let mut options = CreateOptions::new(Format::VhdxDynamic, 64 * MIB);
    options.logical_sector_size = 4096;
    let file = Box::new(MemoryFile::new());
    let mut image = DiskImage::create_file(file, &options).unwrap();
    // A table for sectors of 4096 bytes: a protective MBR and one system partition.
    let mut mbr = [0; 512];
    mbr[446..462].copy_from_slice(&[0, 0, 2, 0, 0xef, 0, 0, 0, 0, 1, 0, 0, 0, 16, 0, 0]);
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    image.write_at(&mbr, 0).unwrap();
    let Verdict::Impossible(found) = judge(&inspect(&image).unwrap(), CORE_BYTES as u64) else {
        panic!("a verdict without obstacles")
    };
    assert!(found.contains(&Obstacle::Sectors(4096)), "{found:?}");
}

#[test]
fn a_plan_is_for_its_own_disk_and_layout_only() {
    let disk = BootDisk::linux();
    let plan = ConversionPlan::make(&open(&disk.bytes, Access::ReadOnly), &loader()).unwrap();
    let other = disk
        .clone()
        .identity("5c1a0000-0000-4000-8000-0000000000bb");
    let mut other = open(&other.bytes, Access::ReadWrite);
    let error = plan.apply(&mut other).unwrap_err();
    assert!(matches!(error, PlanError::OtherDisk), "{error}");
    // The same disk, with a partition where the gap was.
    let crowded = disk.partition("9:35:+1000", "8300");
    let mut image = open(&crowded.bytes, Access::ReadWrite);
    let error = plan.apply(&mut image).unwrap_err();
    assert!(
        matches!(error, PlanError::Occupied { partition: 9 }),
        "{error}"
    );
    assert_eq!(read_all(&image), crowded.bytes);
    assert_eq!(plan.state(&image).unwrap(), PlanState::Original);
}

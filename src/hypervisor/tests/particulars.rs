//! What the drivers tell for the checks before protection, of images that qemu-img and sgdisk made.

#[cfg(unix)]
mod support;

use std::path::Path;
use std::process::Command;

use disk_image::boot::{Guest, Table};
use disk_image::{Access, CreateOptions, DiskImage, Format};
use hypervisor::{FilesDriver, Hypervisor as _, Particulars, Presence};

fn tool(program: &str, arguments: &[&str]) {
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
}

/// A VHDX with these partitions (of sgdisk) and bytes.
fn image(path: &Path, partitions: &[(&str, &str)], bytes: &[(usize, &[u8])]) {
    let raw = path.with_extension("made");
    std::fs::write(&raw, vec![0; 8 << 20]).unwrap();
    let file = raw.to_str().unwrap();
    for (place, kind) in partitions {
        let number = place.split(':').next().unwrap();
        let kind = format!("{number}:{kind}");
        tool("sgdisk", &["-a", "1", "-n", place, "-t", &kind, file]);
    }
    let mut content = std::fs::read(&raw).unwrap();
    for (at, new) in bytes {
        content[*at..*at + new.len()].copy_from_slice(new);
    }
    std::fs::write(&raw, content).unwrap();
    let made = path.to_str().unwrap();
    tool(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "vhdx", file, made],
    );
    std::fs::remove_file(raw).unwrap();
}

async fn only(driver: &dyn hypervisor::Hypervisor) -> Particulars {
    let mut all = driver.particulars().await.unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[tokio::test]
async fn files_tell_of_their_disks_and_nothing_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let vm = folder.path().join("win01");
    std::fs::create_dir(&vm).unwrap();
    image(
        &vm.join("0-os.vhdx"),
        &[("1:2048:+2048", "ef00"), ("2:4096:+2048", "0700")],
        &[(4096 * 512 + 3, b"-FVE-FS-")],
    );
    image(&vm.join("1-data.vhdx"), &[("1:2048:+2048", "4201")], &[]);
    let large = CreateOptions {
        logical_sector_size: 4096,
        ..CreateOptions::new(Format::VhdxDynamic, 8 << 20)
    };
    DiskImage::create(vm.join("2-large.vhdx"), &large)
        .unwrap()
        .close()
        .unwrap();
    let driver = FilesDriver::new(folder.path()).unwrap();
    let found = only(&driver).await;
    assert_eq!(found.vm, driver.virtual_machines().await.unwrap()[0].id);
    assert_eq!(
        (found.secure_boot, found.fibre_channel),
        (Presence::Unknown, Presence::Unknown)
    );
    let [os, data, large] = found.disks.as_slice() else {
        panic!("{found:?}");
    };
    let look = os.look.unwrap();
    assert!(look.bitlocker && look.efi_system_partition && !look.dynamic_disk);
    assert_eq!((look.table, look.guest), (Table::Gpt, Guest::Windows));
    assert!(data.look.unwrap().dynamic_disk);
    assert_eq!(
        (os.logical_sector_bytes, large.logical_sector_bytes),
        (512, 4096)
    );
    assert_eq!(os.format, "VHDX");
    assert!(os.volume_free_bytes.is_some() && os.volume == data.volume);
}

#[tokio::test]
async fn an_image_that_changed_is_looked_at_again_and_one_that_did_not_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one.raw");
    let mut content = vec![0; 1 << 20];
    std::fs::write(&path, &content).unwrap();
    let driver = FilesDriver::new(folder.path()).unwrap();
    let look = |found: Particulars| found.disks[0].look.unwrap();
    assert!(!look(only(&driver).await).bitlocker);
    content[3..11].copy_from_slice(b"-FVE-FS-");
    // Another disk under the same name: at once.
    std::fs::remove_file(&path).unwrap();
    let other = folder.path().join("other.raw");
    std::fs::write(&other, &content).unwrap();
    assert!(look(only(&driver).await).bitlocker);
    // The very same file: nothing is read, whatever lies there.
    let before = std::fs::metadata(&other).unwrap().modified().unwrap();
    content[3..11].fill(0);
    std::fs::write(&other, &content).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&other)
        .unwrap()
        .set_modified(before)
        .unwrap();
    assert!(look(only(&driver).await).bitlocker);
}

#[tokio::test]
async fn hostile_images_are_looked_at_without_harm() {
    let folder = tempfile::tempdir().unwrap();
    let vm = folder.path().join("bad");
    std::fs::create_dir(&vm).unwrap();
    // An extended partition that leads to itself, and a table whose partitions lie behind the end.
    let mut circle = vec![0; 1 << 20];
    for (at, first) in [(0, 16_u32), (16 * 512, 0)] {
        circle[at + 446 + 4] = 5;
        circle[at + 446 + 20] = 5;
        circle[at + 446 + 8..at + 446 + 12].copy_from_slice(&first.to_le_bytes());
        circle[at + 446 + 12..at + 446 + 16].copy_from_slice(&64_u32.to_le_bytes());
        circle[at + 446 + 24..at + 446 + 28].copy_from_slice(&1_u32.to_le_bytes());
        circle[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    }
    std::fs::write(vm.join("circle.raw"), &circle).unwrap();
    let mut far = circle.clone();
    far[446 + 4] = 7;
    far[446 + 12..446 + 16].fill(0xff);
    std::fs::write(vm.join("far.raw"), &far).unwrap();
    let driver = FilesDriver::new(folder.path()).unwrap();
    let found = only(&driver).await;
    assert_eq!(found.disks.len(), 2);
    for disk in &found.disks {
        assert_eq!(disk.look.unwrap().table, Table::Damaged, "{}", disk.name);
    }
}

#[cfg(unix)]
mod qemu {
    use super::support::Lab;
    use super::*;

    #[tokio::test]
    async fn a_vm_that_runs_is_looked_at_and_does_not_notice() {
        let lab = Lab::new();
        let vm = lab.vm("win02", 2, &[64]).await;
        let path = lab.driver.disk_path(vm.id, vm.disks[0]).await.unwrap();
        let mut disk = DiskImage::open(&path, Access::ReadWrite).unwrap();
        let mut first = [0; 512];
        first[446 + 4] = 0x42;
        first[446 + 9] = 8;
        first[446 + 13] = 8;
        first[510..].copy_from_slice(&[0x55, 0xaa]);
        disk.write_at(&first, 0).unwrap();
        disk.close().unwrap();
        lab.driver.start(vm.id).await.unwrap();
        // The guest goes on writing, also where new blocks are allocated.
        lab.write(&vm, 0, 32 << 20, 1 << 16, 7).await;
        let found = only(&lab.driver).await;
        assert_eq!(found.vm, vm.id);
        let look = found.disks[0].look.unwrap();
        assert!(look.dynamic_disk && look.table == Table::Mbr, "{look:?}");
        assert_eq!(found.disks[0].id, Some(vm.disks[0]));
        assert_eq!(found.disks[0].shared, Presence::NotPresent);
        assert_eq!(found.fibre_channel, Presence::NotPresent);
        lab.write(&vm, 0, 48 << 20, 1 << 16, 8).await;
        let state = lab.driver.power_state(vm.id).await.unwrap();
        assert_eq!(state, hypervisor::PowerState::Running);
    }

    #[tokio::test]
    async fn an_image_of_two_vms_is_shared() {
        let lab = Lab::new();
        let one = lab.vm("one", 2, &[8]).await;
        let two = lab.vm("two", 2, &[8]).await;
        let toml = two.folder.join("vm.toml");
        let text = std::fs::read_to_string(&toml).unwrap();
        let text = text.replace("d0.vhdx", "../one/d0.vhdx");
        std::fs::write(&toml, text).unwrap();
        let all = lab.driver.particulars().await.unwrap();
        assert_eq!(all.len(), 2);
        for found in &all {
            assert_eq!(found.disks[0].shared, Presence::Present);
            assert_eq!(found.disks[0].id, Some(one.disks[0]));
        }
    }
}

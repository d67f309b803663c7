//! A VM whose host has lost it, or disks of it: what is made again, and what is never touched.

mod support;

use std::path::Path;

use disk_image::{Access, DiskImage};
use hypervisor::{
    ErrorKind, Generation, Hypervisor, LostDisk, LostVirtualMachine, NewNetwork, VirtualMachine,
};
use support::{Lab, LabVm, MIB};

async fn machine(lab: &Lab, vm: &LabVm) -> VirtualMachine {
    let machines = lab.driver.virtual_machines().await.unwrap();
    let found = machines.into_iter().find(|found| found.id == vm.id);
    found.unwrap()
}

fn as_it_was(vm: &VirtualMachine) -> LostVirtualMachine {
    LostVirtualMachine {
        id: vm.id,
        name: vm.name.clone(),
        generation: Generation::Two,
        memory_bytes: vm.memory_bytes,
        processors: vm.processors,
        os_type: vm.os_type.clone(),
        disks: vm
            .disks
            .iter()
            .map(|disk| LostDisk {
                id: disk.id,
                name: disk.name.clone(),
                size_bytes: disk.size_bytes,
            })
            .collect(),
        networks: vm
            .network_adapters
            .iter()
            .map(|adapter| NewNetwork {
                network_name: Some(adapter.network_name.clone()),
                segment: None,
                mac_address: Some(adapter.mac_address.clone()),
            })
            .collect(),
    }
}

fn mark(path: &Path, byte: u8) {
    let mut image = DiskImage::open(path, Access::ReadWrite).unwrap();
    image.write_at(&[byte; 512], 4096).unwrap();
    image.close().unwrap();
}

fn marked(path: &Path) -> u8 {
    let image = DiskImage::open(path, Access::ReadOnly).unwrap();
    let mut data = [0];
    image.read_at(&mut data, 4096).unwrap();
    data[0]
}

#[tokio::test]
async fn a_vm_that_is_gone_is_made_as_it_was_and_again_is_the_same() {
    let lab = Lab::new();
    let vm = lab.vm("web01", 2, &[8, 16]).await;
    let before = machine(&lab, &vm).await;
    std::fs::remove_dir_all(&vm.folder).unwrap();
    lab.driver.restore(as_it_was(&before)).await.unwrap();
    assert_eq!(machine(&lab, &vm).await, before);
    mark(&vm.folder.join("d1.vhdx"), 7);
    lab.driver.restore(as_it_was(&before)).await.unwrap();
    assert_eq!(machine(&lab, &vm).await, before);
    assert_eq!(marked(&vm.folder.join("d1.vhdx")), 7, "it was there");
}

#[tokio::test]
async fn images_that_still_lie_where_the_vm_was_are_used_and_the_rest_is_made() {
    let lab = Lab::new();
    let vm = lab.vm("web01", 2, &[8, 16]).await;
    let before = machine(&lab, &vm).await;
    mark(&vm.folder.join("d0.vhdx"), 9);
    std::fs::remove_file(vm.folder.join("vm.toml")).unwrap();
    std::fs::remove_file(vm.folder.join("d1.vhdx")).unwrap();
    // What a try that was cut leaves.
    let half = vm
        .folder
        .join(format!(".{}.unfinished", before.disks[1].id));
    std::fs::write(&half, b"half").unwrap();
    // And somebody's file.
    std::fs::write(vm.folder.join("d1.unfinished"), b"mine").unwrap();
    lab.driver.restore(as_it_was(&before)).await.unwrap();
    assert!(!half.exists());
    assert_eq!(
        std::fs::read(vm.folder.join("d1.unfinished")).unwrap(),
        b"mine"
    );
    assert_eq!(machine(&lab, &vm).await, before);
    assert_eq!(marked(&vm.folder.join("d0.vhdx")), 9);
    assert_eq!(marked(&vm.folder.join("d1.vhdx")), 0);
}

#[tokio::test]
async fn an_image_that_is_damaged_or_of_another_disk_is_left_alone_and_a_new_one_takes_its_place() {
    let lab = Lab::new();
    let vm = lab.vm("web01", 2, &[8, 16]).await;
    let before = machine(&lab, &vm).await;
    let damaged = vm.folder.join("d0.vhdx");
    std::fs::write(&damaged, b"nothing of an image").unwrap();
    lab.driver.restore(as_it_was(&before)).await.unwrap();
    let after = machine(&lab, &vm).await;
    assert_eq!(after.findings, []);
    let ids = |vm: &VirtualMachine| vm.disks.iter().map(|disk| disk.id).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&before), "in their order");
    assert_eq!(after.disks[0].size_bytes, 8 * MIB);
    assert_eq!(std::fs::read(&damaged).unwrap(), b"nothing of an image");
}

#[tokio::test]
async fn a_link_to_an_image_that_is_away_stays_and_nothing_is_made_outside_of_the_vms_folder() {
    let lab = Lab::new();
    let vm = lab.vm("web01", 2, &[8, 16]).await;
    let before = machine(&lab, &vm).await;
    let volume = tempfile::tempdir().unwrap();
    let away = volume.path().join("d1.vhdx");
    let link = vm.folder.join("d1.vhdx");
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&away, &link).unwrap();
    lab.driver.restore(as_it_was(&before)).await.unwrap();
    assert_eq!(std::fs::read_link(&link).unwrap(), away);
    assert!(!away.exists(), "its volume is only not mounted");
    let after = machine(&lab, &vm).await;
    let ids = |vm: &VirtualMachine| vm.disks.iter().map(|disk| disk.id).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&before));
}

#[tokio::test]
async fn a_configuration_that_can_not_be_read_may_be_the_vms_so_none_is_made_beside_it() {
    let lab = Lab::new();
    let vm = lab.vm("web01", 2, &[8]).await;
    let before = machine(&lab, &vm).await;
    let renamed = vm.folder.with_file_name("kept");
    std::fs::rename(&vm.folder, &renamed).unwrap();
    std::fs::write(renamed.join("vm.toml"), "name = ").unwrap();
    lab.driver.restore(as_it_was(&before)).await.unwrap_err();
    assert!(!vm.folder.exists());
    assert!(lab.driver.is_gone(before.id).await.is_err());
}

#[tokio::test]
async fn a_vm_that_runs_is_refused_and_one_whose_place_is_taken_is_made_beside() {
    let lab = Lab::new();
    let vm = lab.running_vm("web01", 1, &[8]).await;
    let before = as_it_was(&machine(&lab, &vm).await);
    let error = lab.driver.restore(before.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VmRunning);
    // Its process runs on without its folder.
    let away = lab.folder.path().join("away");
    std::fs::rename(&vm.folder, &away).unwrap();
    let error = lab.driver.restore(before.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VmRunning, "{error:?}");
    assert!(!lab.driver.is_gone(vm.id).await.unwrap());
    std::fs::rename(&away, &vm.folder).unwrap();
    support::kill_qemu(&vm.folder).await;
    std::fs::rename(&vm.folder, &away).unwrap();
    assert!(lab.driver.is_gone(vm.id).await.unwrap());
    let other = lab.vm("web01", 1, &[8]).await;
    let text = std::fs::read(other.folder.join("vm.toml")).unwrap();
    lab.driver.restore(before).await.unwrap();
    assert_ne!(machine(&lab, &vm).await.id, other.id);
    assert_eq!(std::fs::read(other.folder.join("vm.toml")).unwrap(), text);
}

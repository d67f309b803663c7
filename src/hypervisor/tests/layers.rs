//! What a recovered VM has written above its recovery point, while it runs and when it is off.

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use hypervisor::nbd::{BlockReader, NbdExport, NbdServer, serve};
use hypervisor::{
    Changes, Consistency, DiskId, DiskSource, ErrorKind, Generation, Hypervisor, NewDisk,
    NewVirtualMachine, Stop, VmId,
};
use support::{BLOCK, Lab, MIB, frozen_content, kill_qemu, tracking};
use uuid::Uuid;

const SIZE: u64 = 16 * MIB;

/// A recovery point: every byte tells its 64 KiB block.
struct Pattern;

#[async_trait]
impl BlockReader for Pattern {
    async fn read(&self, offset: u64, length: usize) -> std::io::Result<Bytes> {
        Ok((offset..offset + length as u64)
            .map(|byte| (byte / BLOCK % 251) as u8)
            .collect())
    }
}

struct Recovered {
    lab: Lab,
    vm: NewVirtualMachine,
    _point: NbdServer,
}

impl Recovered {
    async fn running() -> Self {
        let lab = Lab::new();
        let exports = (0..2).map(|index| NbdExport {
            name: format!("disk{index}"),
            size_bytes: SIZE,
            reader: Arc::new(Pattern),
        });
        let point = serve(&lab.folder.path().join("point.sock"), exports.collect())
            .await
            .unwrap();
        let disks = (0..2).map(|index| NewDisk {
            id: DiskId(Uuid::new_v4()),
            source: DiskSource::Nbd {
                socket: point.socket().to_owned(),
                export: format!("disk{index}"),
                size_bytes: SIZE,
                overlay: format!("disk{index}.qcow2").into(),
            },
        });
        let vm = NewVirtualMachine {
            id: VmId(Uuid::new_v4()),
            name: "web01".to_owned(),
            generation: Generation::One,
            memory_bytes: 32 << 20,
            processors: 1,
            os_type: "Linux".to_owned(),
            folder: lab.vms().join("recovered"),
            disks: disks.collect(),
            networks: Vec::new(),
        };
        lab.driver.create(vm.clone()).await.unwrap();
        lab.driver.start(vm.id).await.unwrap();
        Self {
            lab,
            vm,
            _point: point,
        }
    }

    fn disks(&self) -> Vec<DiskId> {
        self.vm.disks.iter().map(|disk| disk.id).collect()
    }

    async fn write(&self, disk: usize, block: u64, byte: u8) {
        let id = self.vm.disks[disk].id;
        let written = self
            .lab
            .driver
            .write_as_guest(self.vm.id, id, block * BLOCK, BLOCK, byte);
        written.await.unwrap();
    }
}

fn expected(written: &[(u64, u8)]) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE).map(|at| (at / BLOCK % 251) as u8).collect();
    for (block, byte) in written {
        let at = (block * BLOCK) as usize;
        bytes[at..at + BLOCK as usize].fill(*byte);
    }
    bytes
}

fn blocks(extents: Option<Vec<hypervisor::Extent>>) -> Vec<u64> {
    let extents = extents.expect("the disk is a layer above a point");
    extents
        .iter()
        .flat_map(|range| range.offset / BLOCK..range.end().div_ceil(BLOCK))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovered_vm_that_runs_tells_what_it_has_written_above_its_point() {
    let recovered = Recovered::running().await;
    let driver = &recovered.lab.driver;
    recovered.write(0, 3, 0xa1).await;
    recovered.write(0, 200, 0xa2).await;
    let disks = recovered.disks();
    let frozen = driver.freeze(
        recovered.vm.id,
        &disks,
        None,
        tracking(1),
        Consistency::Crash,
    );
    let point = frozen.await.unwrap();
    let [first, second] = &point.disks[..] else {
        panic!("two disks")
    };
    assert_eq!(
        blocks(driver.own_extents(&point, first.disk).await.unwrap()),
        [3, 200]
    );
    assert!(blocks(driver.own_extents(&point, second.disk).await.unwrap()).is_empty());
    // What is written behind the freeze may be named, and the frozen content stays.
    recovered.write(0, 50, 0xa3).await;
    let named = blocks(driver.own_extents(&point, first.disk).await.unwrap());
    assert!(named.contains(&3) && named.contains(&200));
    assert!(frozen_content(first).await == expected(&[(3, 0xa1), (200, 0xa2)]));
    driver.release(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovered_vm_whose_process_is_gone_is_read_with_what_it_has_written() {
    let recovered = Recovered::running().await;
    let driver = &recovered.lab.driver;
    let (id, disks) = (recovered.vm.id, recovered.disks());
    recovered.write(1, 7, 0xb1).await;
    driver.stop(id, Stop::TurnOff).await.unwrap();
    let point = driver
        .freeze_off(id, &disks, Some(tracking(1)), tracking(2))
        .await
        .unwrap();
    assert_eq!(point.disks[1].changes, Changes::Unknown);
    assert!(blocks(driver.own_extents(&point, disks[0]).await.unwrap()).is_empty());
    assert_eq!(
        blocks(driver.own_extents(&point, disks[1]).await.unwrap()),
        [7]
    );
    assert!(frozen_content(&point.disks[1]).await == expected(&[(7, 0xb1)]));
    let again = driver.freeze_off(id, &disks, None, tracking(3)).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Busy);
    driver.release(point).await.unwrap();
    // Nothing holds the images: the VM starts.
    driver.start(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_engine_left_over_a_vm_that_is_off_is_cleaned_up_and_does_not_keep_it_from_starting()
 {
    let recovered = Recovered::running().await;
    let driver = &recovered.lab.driver;
    let (id, disks) = (recovered.vm.id, recovered.disks());
    kill_qemu(&recovered.vm.folder).await;
    // Never dropped, as by `kill -9`.
    let left = driver.freeze_off(id, &disks, None, tracking(1)).await;
    std::mem::forget(left.unwrap());
    let next = recovered.lab.another_driver();
    next.clean_up(id).await.unwrap();
    let left = next.freeze_off(id, &disks, None, tracking(1)).await;
    std::mem::forget(left.unwrap());
    next.start(id).await.unwrap();
}

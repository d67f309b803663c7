//! The way back out of Azure: rounds while the VM runs, the rest when it is off, cut anywhere, done by two, taken back.

#[path = "../../../tests/azure_target/disks.rs"]
mod disks;

use azure_compute::double::Fault;
use azure_storage::double::{Call as StorageCall, Fault as StorageFault, Rule as StorageRule};

use super::*;

const TAKES: u64 = 5;

struct Back {
    bench: Bench,
    /// The VM's disk, as container and name.
    disk: String,
    /// What the guest sees.
    image: Vec<u8>,
    managed: bool,
}

impl Back {
    /// A VM that runs in Azure.
    async fn new(managed: bool) -> Self {
        let mut bench = Bench::new().await;
        disks::keep(&bench.compute, &bench.storage);
        if !managed {
            bench.item.request.use_managed_disks = Some("false".to_owned());
            let live = bench.app.fleet.get("e").expect("host");
            let mut report = (*live.report).clone();
            report.virtual_machines[0].generation = 1;
            let now = bench.app.now_ms();
            bench.app.fleet.observe("e", Arc::new(report), now);
        }
        let mut back = Self {
            disk: format!("{CONTAINER}/recovered/v-1/i/{VM}/{DISK}.vhd"),
            image: content(),
            bench,
            managed,
        };
        back.bench.lives(&back.runs(1, TAKES, 0), 30).await;
        if managed {
            let ids = back.bench.compute.ids();
            let id = ids.iter().find(|id| id.contains("/disks/"));
            back.disk = disks::path_of(id.expect("a disk"));
        }
        back
    }

    fn runs(&self, epoch: u64, takes: u64, ships: u64) -> Wish {
        let order = RecoveryOrder::Run {
            instance: protection::Generation(1),
            takes: protection::Generation(takes),
        };
        Wish {
            ships,
            order: Some((protection::Generation(epoch), order)),
            ..self.bench.wish(Goal::Runs(Some(takes)), false)
        }
    }

    fn kept(&self, epoch: u64, ships: u64) -> Wish {
        Wish {
            ships,
            order: Some((protection::Generation(epoch), RecoveryOrder::Stop)),
            ..self.bench.wish(Goal::Kept, false)
        }
    }

    /// The guest writes whole pages.
    fn write(&mut self, offset: usize, byte: u8, length: usize) {
        let bytes = vec![byte; length];
        self.bench.storage.write(&self.disk, offset as u64, &bytes);
        self.image[offset..offset + length].copy_from_slice(&bytes);
    }

    /// The guest gives pages back.
    fn trim(&mut self, offset: usize, length: usize) {
        let range = offset as u64..(offset + length) as u64;
        self.bench.storage.clear(&self.disk, range);
        self.image[offset..offset + length].fill(0);
    }

    /// Lives of so many steps, one after another, until the record is so.
    async fn until(&self, wish: &Wish, steps: usize, there: impl Fn(&AzureVm) -> bool) {
        for _ in 0..1_000 {
            if there(&self.bench.vm().await) {
                return;
            }
            if let Err(trouble) = self.bench.life(wish, steps).await {
                assert!(!trouble.is_final, "{trouble:?}");
            }
        }
        panic!("it never comes there: {:?}", self.bench.vm().await);
    }

    /// What the source would take: the newest point of the generation holds what the guest sees, bit by bit.
    async fn check_head(&self, generation: u64) -> RecoveryPoint {
        let (target, key) = self.bench.place();
        let reader = ReplicaReader::open(&target, &key).await.expect("replica");
        let newest = reader.newest_of(Generation(generation)).await;
        let point = newest.expect("reads").expect("a point");
        let view = reader.view(replica_store::PointSelector::Id(point.id));
        let view = view.await.expect("view");
        let read = view.read(DISK, 0, SIZE).await.expect("read");
        assert!(read == self.image, "the replica differs from the VM's disk");
        point
    }

    fn vm_power(&self) -> &'static str {
        let vms = self.bench.vms();
        self.bench.compute.power(&vms[0]).expect("VM")
    }

    fn snapshots(&self) -> usize {
        let ids = self.bench.compute.ids().into_iter();
        let of_disks = ids.filter(|id| id.contains("/snapshots/")).count();
        of_disks + self.bench.storage.snapshots(&self.disk)
    }

    async fn gone(&self) {
        self.bench.removed().await;
        assert_eq!(disks::open(&self.bench.storage), Vec::<String>::new());
        assert!(self.bench.compute.open_snapshots().is_empty());
    }
}

fn shipped(round: u64) -> impl Fn(&AzureVm) -> bool {
    move |vm| {
        let back = vm.back.as_ref();
        let shipped = back.and_then(|back| back.shipped.as_ref());
        shipped.is_some_and(|shipped| shipped.round > round)
    }
}

fn rest(vm: &AzureVm) -> bool {
    let back = vm.back.as_ref();
    vm.off && back.is_some_and(|back| back.rest && !back.has_snapshots)
}

fn round(vm: &AzureVm) -> u64 {
    vm.back.as_ref().map_or(0, |back| back.round)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vm_writes_comes_into_its_replica_while_it_runs_and_the_rest_when_it_is_off() {
    for (managed, steps) in [(true, 1), (true, 2), (true, 7), (false, 1), (false, 7)] {
        let mut back = Back::new(managed).await;
        back.write(8192, 201, 512);
        back.trim(1 << 20, 64 << 10);
        back.until(&back.runs(1, TAKES, TAKES), steps, shipped(0))
            .await;
        let first = back.check_head(TAKES).await;
        assert!(first.changed_bytes > 0 && first.changed_bytes < 128 << 10);

        back.write(512, 77, 512);
        let before = round(&back.bench.vm().await);
        back.until(&back.runs(1, TAKES, TAKES), steps, shipped(before))
            .await;
        let second = back.check_head(TAKES).await;
        assert_eq!(second.changed_bytes, 4096);

        // What it writes until it is off is not lost.
        back.write(SIZE - 512, 9, 512);
        back.until(&back.kept(2, TAKES), steps, rest).await;
        assert_eq!(back.vm_power(), "deallocated");
        back.check_head(TAKES).await;
        assert_eq!(back.snapshots(), 0, "managed: {}", back.managed);
        let vm = back.bench.vm().await;
        let host = back.bench.host();
        let said = |ships| {
            let wish = back.kept(2, ships);
            let vms = std::iter::once((vm.id.clone(), vm.clone())).collect();
            host.status(Some(&wish), Some(&vm), &vms)
                .expect("status")
                .recovery
        };
        assert!(said(TAKES).is_some(), "stopped");
        assert!(said(0).is_some(), "still, when the source starts");
        assert!(
            said(9).is_none(),
            "under another generation nothing is shipped"
        );
        back.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_is_not_said_before_azure_says_deallocated_and_the_rest_is_shipped() {
    let mut back = Back::new(true).await;
    back.write(0, 3, 512);
    back.bench.compute.faults().add(
        Rule::once(
            Fault::Refuse {
                status: 503,
                code: "ServerBusy",
                retry_after: None,
            },
            |call| call.path.ends_with("/deallocate"),
        )
        .times(3),
    );
    let wish = back.kept(2, TAKES);
    let mut told = false;
    for _ in 0..100 {
        let vm = back.bench.vm().await;
        let vms = std::iter::once((vm.id.clone(), vm.clone())).collect();
        let status = back.bench.host().status(Some(&wish), Some(&vm), &vms);
        if status.expect("status").recovery.is_some() {
            assert_eq!(back.vm_power(), "deallocated");
            back.check_head(TAKES).await;
            told = true;
            break;
        }
        let _what_passes_is_tried_again = back.bench.life(&wish, 1).await;
    }
    assert!(told);
    // Somebody starts it at the portal: it goes off again, and what it wrote comes along.
    let vms = back.bench.vms();
    back.bench.compute.set_power(&vms[0], "running");
    back.write(4096, 4, 512);
    let before = round(&back.bench.vm().await);
    back.until(&wish, 1, |vm| round(vm) > before && rest(vm))
        .await;
    assert_eq!(back.vm_power(), "deallocated");
    back.check_head(TAKES).await;
    back.gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_within_a_round_leaves_nothing_open_and_ships_no_torn_state() {
    for managed in [true, false] {
        for nth in 0..3 {
            let mut back = Back::new(managed).await;
            back.write(4096, 50, 4096);
            let gate = Arc::new(Semaphore::new(0));
            let wish = back.runs(1, TAKES, TAKES);
            for _ in 0..nth {
                let before = round(&back.bench.vm().await);
                back.until(&wish, 3, shipped(before)).await;
                back.write(8192, 60, 512);
            }
            let hold = StorageFault::Hold(Arc::clone(&gate));
            let rule = StorageRule::once(hold, |call| call.comp == "pagelist");
            back.bench.storage.faults().add(rule);
            {
                let mut work = back.bench.work();
                let round = async { while work.towards(&wish).await.is_ok() {} };
                let held = async {
                    while !back.bench.storage.faults().used_up() {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! {
                    () = round => panic!("the round went on"),
                    () = held => {}
                }
            }
            // It is dead, with snapshots that are open; the guest goes on.
            assert!(back.snapshots() > 0);
            back.write(12288, 70, 512);
            back.until(&back.kept(2, TAKES), 2, rest).await;
            back.check_head(TAKES).await;
            assert_eq!(back.snapshots(), 0);
            gate.add_permits(1);
            back.gone().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_late_with_an_older_round_can_not_take_the_rest_back() {
    for managed in [true, false] {
        let mut back = Back::new(managed).await;
        back.write(4096, 50, 4096);
        let gate = Arc::new(Semaphore::new(0));
        let hold = StorageFault::Hold(Arc::clone(&gate));
        let rule = StorageRule::once(hold, |call| call.comp == "pagelist");
        back.bench.storage.faults().add(rule);
        let wish = back.runs(1, TAKES, TAKES);
        let late = async {
            let mut work = back.bench.work();
            loop {
                if let Err(trouble) = work.towards(&wish).await {
                    return trouble;
                }
            }
        };
        let newer = async {
            while !back.bench.storage.faults().used_up() {
                tokio::task::yield_now().await;
            }
            let path = &back.disk;
            back.bench.storage.write(path, 4096, &[51; 4096]);
            back.until(&back.kept(2, TAKES), 3, rest).await;
            gate.add_permits(1);
        };
        let (trouble, ()) = tokio::join!(late, newer);
        assert!(!trouble.is_final, "{trouble:?}");
        back.image[4096..8192].fill(51);
        back.check_head(TAKES).await;
        // Nor start it again by an order of before.
        let trouble = back.bench.life(&wish, 5).await.expect_err("late");
        assert_eq!(trouble.code, "Overtaken");
        assert_eq!(back.vm_power(), "deallocated");
        back.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_that_is_taken_back_at_any_step_leaves_a_vm_that_runs_behind_a_new_fence() {
    for steps in 1..9 {
        let mut back = Back::new(true).await;
        back.write(4096, 50, 512);
        back.bench
            .life(&back.runs(1, TAKES, TAKES), 3)
            .await
            .expect("a round");
        let _how_far_it_came = back.bench.life(&back.kept(2, TAKES), steps).await;
        back.bench.lives(&back.runs(3, 6, 0), 2).await;
        assert_eq!(back.vm_power(), "running", "{steps}");
        assert_eq!(back.snapshots(), 0);
        let vm = back.bench.vm().await;
        assert!(vm.back.is_none() && !vm.off);
        let (target, key) = back.bench.place();
        let owner = replica_store::owner_generation(&target, &key).await;
        assert_eq!(owner.expect("owner"), Some(Generation(6)));
        // The next one ships under a number of its own.
        back.write(0, 1, 512);
        back.until(&back.kept(4, 6), 3, rest).await;
        back.check_head(6).await;
        back.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_and_refusals_leak_no_snapshot_and_lose_no_write() {
    for seed in 1..4 {
        let mut back = Back::new(true).await;
        back.bench.compute.faults().chaos(seed, 150);
        back.write(4096, 50, 512);
        back.until(&back.runs(1, TAKES, TAKES), 4, shipped(0)).await;
        back.write(8192, 51, 512);
        back.until(&back.kept(2, TAKES), 4, rest).await;
        back.bench.compute.faults().chaos(seed, 0);
        back.check_head(TAKES).await;
        assert_eq!(back.snapshots(), 0, "seed {seed}");
        back.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_somebody_newer_owns_is_not_written_to() {
    let mut back = Back::new(true).await;
    back.write(4096, 50, 512);
    let (target, key) = back.bench.place();
    replica_store::take_over(&target, &key, Generation(9))
        .await
        .expect("taken over");
    let trouble = back.bench.life(&back.runs(1, TAKES, TAKES), 9).await;
    let trouble = trouble.expect_err("fenced");
    assert_eq!((trouble.code, trouble.is_final), ("ReplicaTakenOver", true));
    back.gone().await;
}

/// Runs towards a wish until a call is held, and dies there.
async fn dies_at(back: &Back, wish: &Wish, at: impl Fn(&StorageCall) -> bool + Send + 'static) {
    let gate = Arc::new(Semaphore::new(0));
    let rule = StorageRule::once(StorageFault::Hold(gate), at);
    back.bench.storage.faults().add(rule);
    let mut work = back.bench.work();
    let goes_on = async { while work.towards(wish).await.is_ok() {} };
    let held = async {
        while !back.bench.storage.faults().used_up() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = goes_on => panic!("it went on"),
        () = held => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cut_round_wrote_and_the_guest_took_back_since_is_taken_back_in_the_replica() {
    for managed in [true, false] {
        let mut back = Back::new(managed).await;
        back.trim(1 << 20, 64 << 10);
        let wish = back.runs(1, TAKES, TAKES);
        back.until(&wish, 3, shipped(0)).await;
        // It is in the journal when the process dies, and no point says so.
        back.write(1 << 20, 50, 4096);
        dies_at(&back, &wish, |call| {
            call.method == "PUT" && call.blob.contains("/points/")
        })
        .await;
        // For Azure nothing has happened there since the round before.
        back.trim(1 << 20, 64 << 10);
        back.write(12288, 70, 512);
        back.until(&back.kept(2, TAKES), 2, rest).await;
        back.check_head(TAKES).await;
        back.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_somebody_starts_while_its_rest_is_read_is_not_said_to_be_shipped() {
    for (managed, power) in [
        (true, "running"),
        (true, "deallocated"),
        (false, "running"),
        (false, "deallocated"),
    ] {
        let mut back = Back::new(managed).await;
        back.write(0, 3, 512);
        back.until(&back.runs(1, TAKES, TAKES), 3, shipped(0)).await;
        let gate = Arc::new(Semaphore::new(0));
        let hold = StorageFault::Hold(Arc::clone(&gate));
        // What is read of a frozen disk is told before it is compared: whatever is written now is not in it.
        let rule = StorageRule::once(hold, |call| {
            call.method == "PUT" && call.blob.contains("/points/")
        });
        back.bench.storage.faults().add(rule);
        back.write(8192, 7, 512);
        back.image[4096..4608].fill(4);
        let wish = back.kept(2, TAKES);
        let somebody = async {
            while !back.bench.storage.faults().used_up() {
                tokio::task::yield_now().await;
            }
            let vm = &back.bench.vms()[0];
            back.bench.compute.set_power(vm, "running");
            back.bench.storage.write(&back.disk, 4096, &[4; 512]);
            back.bench.compute.set_power(vm, power);
            gate.add_permits(1);
        };
        let says = |vm: &AzureVm| vm.back.as_ref().is_some_and(|back| back.rest);
        tokio::join!(back.until(&wish, 1, says), somebody);
        back.check_head(TAKES).await;
        back.until(&wish, 1, rest).await;
        assert_eq!(back.vm_power(), "deallocated");
        back.gone().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_disks_were_changed_in_azure_is_not_stopped_for_a_failback_that_would_lose_them()
{
    let back = Back::new(true).await;
    let vm = &back.bench.vms()[0];
    let of_it = "/properties/storageProfile";
    let before = back.bench.compute.body(vm).expect("VM");
    let added = json!({ "lun": 3, "managedDisk": { "id": "/…/disks/data-of-later" } });
    back.bench.compute.change(vm, |body| {
        body.pointer_mut(of_it).expect("disks")["dataDisks"] = json!([added]);
    });
    let wishes = [back.runs(1, TAKES, TAKES), back.kept(2, TAKES)];
    for wish in &wishes {
        let trouble = back.bench.life(wish, 9).await.expect_err("refused");
        assert_eq!(
            (trouble.code, trouble.is_final),
            ("RecoveredDisksChanged", true)
        );
        assert!(trouble.text.contains("data-of-later"), "{}", trouble.text);
        assert_eq!(back.vm_power(), "running");
    }
    back.bench.compute.change(vm, |body| *body = before);
    back.until(&wishes[1], 2, rest).await;
    back.check_head(TAKES).await;
    back.gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_takes_no_snapshot_now_is_asked_again_and_the_round_before_stays_of_use() {
    let mut back = Back::new(false).await;
    let wish = back.runs(1, TAKES, TAKES);
    back.until(&wish, 3, shipped(0)).await;
    back.write(512, 77, 512);
    let refusal = StorageFault::Refuse {
        status: 409,
        code: "SnaphotOperationRateExceeded",
        retry_after_seconds: None,
    };
    let rule = StorageRule::once(refusal, |call| call.comp == "snapshot");
    back.bench.storage.faults().add(rule);
    let trouble = back.bench.life(&wish, 3).await.expect_err("refused");
    assert_eq!(
        (trouble.code, trouble.is_final),
        ("TooManySnapshots", false)
    );
    let vm = back.bench.vm().await;
    let known = vm.back.and_then(|back| back.shipped).expect("shipped");
    assert_eq!(back.snapshots(), 1);
    back.until(&wish, 1, shipped(known.round)).await;
    back.check_head(TAKES).await;
    assert_eq!(back.snapshots(), 1, "the older one is gone");
    back.gone().await;
}

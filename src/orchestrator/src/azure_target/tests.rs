//! The steps towards a VM in Azure: cut after each, done by two, refused in between, taken back from anywhere.

use std::sync::Arc;
use std::time::Duration;

use azure_compute::double::{Double, Rule};
use azure_compute::{CancellationToken, ClientConfig, Limits, Secret, Target};
use azure_storage::double::{Double as Storage, DoubleOptions};
use bytes::Bytes;
use engine_protocol::{Authority, v1};
use protection::life::RecoveryOrder;
use replica_store::{
    AzureTarget, DiskSpec, Generation, Position, RecoveryPoint, ReplicaKey, ReplicaReader,
    ReplicaWriter, StoreTarget,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::blobs::{self, Reach};
use super::host::{Host, Task};
use super::record::{self, AzureVm, Stage};
use super::steps::{Next, Turns, Work};
use super::trouble::Trouble;
use super::wish::{Drill, Goal, Wish};
use crate::app::{App, Parts, Patience};
use crate::auth::jwt::SigningKey;
use crate::auth::token::TokenIssuer;
use crate::seal::Sealer;
use crate::store::records::{self, AccountSecret, AzurePlace, Item, Plain, Vault};
use crate::store::sqlite::SqliteStore;
use crate::store::{Change, Expect};

mod failback;

const DISK: Uuid = Uuid::from_u128(0xd15c);
const SIZE: usize = (2 << 20) + 512;
const VM: &str = "5d3c51a4-8f0b-4b39-9a5e-6c1d27e084b1";
const POINT: Uuid = Uuid::from_u128(0x9017);
const CONTAINER: &str = "replicas";
/// As in the double.
const KEY: &str = "c2l0ZS1yZWNvdmVyeS1kb3VibGUta2V5LW9mLXRoZS10ZXN0cw==";

struct Bench {
    _folder: TempDir,
    app: Arc<App>,
    compute: Double,
    storage: Arc<Storage>,
    target: Target,
    item: Item,
    before: Vec<String>,
}

fn content() -> Vec<u8> {
    (0..SIZE)
        .map(|at| u8::try_from(at / 4096 % 250).unwrap_or_default())
        .collect()
}

async fn app(folder: &TempDir) -> Arc<App> {
    engine_protocol::tls::install_crypto();
    let store = SqliteStore::open(&folder.path().join("metadata.db")).expect("store");
    let key = SigningKey::from_pkcs8(&SigningKey::generate().expect("key")).expect("key");
    let (app, _receiver) = App::new(Parts {
        store: Arc::new(store),
        authority: Authority::generate("test", time::OffsetDateTime::now_utc()).expect("CA"),
        tokens: TokenIssuer::new(key, "https://localhost", "t"),
        public_url: "https://localhost".to_owned(),
        gateway: "localhost:1".to_owned(),
        regions: Vec::new(),
        tenant_id: "t".to_owned(),
        patience: Patience::default(),
        sealer: Sealer::new(&[7; 32]).expect("sealer"),
    });
    app
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let app = app(&folder).await;
        let compute = Double::start(1).await.expect("compute");
        let options = DoubleOptions {
            limits: false,
            ..DoubleOptions::default()
        };
        let storage = Arc::new(Storage::start(options).await.expect("storage"));
        storage.make_container(CONTAINER);
        let blobs = Arc::clone(&storage);
        compute.see_blobs(move |uri| {
            let look = blobs.look(uri)?;
            assert!(
                look.bytes[..SIZE] == content()[..],
                "a disk is made of another content"
            );
            let has_footer = look.bytes[look.bytes.len() - 512..].starts_with(b"conectix");
            Some((look.length, look.is_page_blob, has_footer))
        });
        let mut client = ClientConfig::new(compute.endpoint(), "t", "c", Secret::new("s"));
        client.attempts = 1;
        let limits = Limits {
            resource: Duration::from_secs(60),
            pause: Duration::from_millis(1),
            attempts: 1,
        };
        let bench = Self {
            _folder: folder,
            target: Target::new(client, limits).expect("target"),
            item: item(&compute, &storage),
            before: compute.ids(),
            app,
            compute,
            storage,
        };
        bench.records().await;
        bench.replica().await;
        bench
    }

    async fn records(&self) {
        let world = self.compute.world();
        let plain = |id: &str, body| Plain {
            id: id.to_owned(),
            location: world.place.location.clone(),
            body,
        };
        let account = world.account_id.to_ascii_lowercase();
        let secret_key = records::account_secret_key(&account);
        let secret = AccountSecret {
            account_key: Some(
                self.app
                    .sealer
                    .seal(&secret_key, KEY.as_bytes())
                    .expect("sealed"),
            ),
            client_secret: None,
        };
        let vault =
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v";
        let body = json!({ "sku": { "name": "Standard_LRS" }, "properties": { "blobEndpoint": self.storage.endpoint(), "containerName": CONTAINER } });
        let changes = vec![
            records::put(
                vault.to_ascii_lowercase(),
                &Vault(plain(vault, json!({}))),
                Expect::Any,
            )
            .expect("vault"),
            records::put(
                account,
                &records::Storage(plain(&world.account_id, body)),
                Expect::Any,
            )
            .expect("account"),
            records::put(secret_key, &secret, Expect::Any).expect("secret"),
            records::put(self.item.id.to_ascii_lowercase(), &self.item, Expect::Any).expect("item"),
        ];
        self.app.store.apply(changes).await.expect("stored");
        let machine = v1::VirtualMachine {
            id: "vm".to_owned(),
            name: "web".to_owned(),
            generation: 2,
            processor_count: 2,
            memory_bytes: 4 << 30,
            os_type: "Linux".to_owned(),
            disks: vec![v1::Disk {
                id: DISK.to_string(),
                name: "system.vhdx".to_owned(),
                size_bytes: SIZE as u64,
                operating_system: true,
            }],
            network_adapters: vec![v1::NetworkAdapter {
                id: "nic".to_owned(),
                network_name: "lan".to_owned(),
                ..v1::NetworkAdapter::default()
            }],
            ..v1::VirtualMachine::default()
        };
        let report = v1::EngineReport {
            virtual_machines: vec![machine],
            ..v1::EngineReport::default()
        };
        self.app
            .fleet
            .observe("e", Arc::new(report), self.app.now_ms());
    }

    fn place(&self) -> (StoreTarget, ReplicaKey) {
        let credential = self.storage.credential(CONTAINER);
        let target = AzureTarget::new(self.storage.endpoint(), CONTAINER, credential);
        (
            StoreTarget::Azure(target),
            ReplicaKey::new("v-1", "i").expect("key"),
        )
    }

    async fn replica(&self) {
        let (target, key) = self.place();
        let disk = DiskSpec {
            id: DISK,
            size_bytes: SIZE as u64,
            name: "system.vhdx".to_owned(),
        };
        let writer = ReplicaWriter::open(&target, &key, Generation(1), &[disk])
            .await
            .expect("writer");
        writer
            .base_write(DISK, 0, Bytes::from(content()))
            .await
            .expect("base");
        let point = RecoveryPoint {
            id: POINT,
            time_unix_ms: 1_764_000_000_000,
            position: Position::BASE,
            ..RecoveryPoint::default()
        };
        writer.complete_base(point).await.expect("complete");
    }

    fn wish(&self, goal: Goal, drill: bool) -> Wish {
        Wish {
            id: VM.to_owned(),
            name: "web".to_owned(),
            item: self.item.clone(),
            point_id: POINT.to_string(),
            goal,
            drill: drill.then(|| Drill {
                job: "/jobs/0a1b2c3d".to_owned(),
                network_id: None,
            }),
            ships: 0,
            order: None,
        }
    }

    fn work(&self) -> Work<'_> {
        self.work_with(1)
    }

    /// With so many that may copy at once.
    fn work_with(&self, turns: usize) -> Work<'_> {
        let turns = Turns::new(turns);
        Work::new(&self.app, &self.target, turns, CancellationToken::new())
    }

    fn host(&self) -> Host {
        let client = ClientConfig::new(self.compute.endpoint(), "t", "c", Secret::new("s"));
        let target = Target::new(client, Limits::default()).expect("target");
        Host::new(Arc::clone(&self.app), Arc::new(target))
    }

    async fn vm(&self) -> AzureVm {
        let stored = record::get(&self.app, VM).await.expect("store");
        stored.expect("record").record
    }

    /// Steps of one process; it dies after so many.
    async fn life(&self, wish: &Wish, steps: usize) -> Result<Next, Trouble> {
        let mut work = self.work();
        let mut next = Next::Again;
        for _ in 0..steps {
            next = work.towards(wish).await?;
            if next != Next::Again {
                break;
            }
        }
        Ok(next)
    }

    /// Lives one after another until the VM is as it shall be; what passes is tried again.
    async fn lives(&self, wish: &Wish, steps: usize) {
        for _ in 0..1_000 {
            match self.life(wish, steps).await {
                Ok(Next::Settled) => return,
                Ok(_) => {}
                Err(trouble) => assert!(!trouble.is_final, "{trouble:?}"),
            }
        }
        panic!("it never ends");
    }

    fn vms(&self) -> Vec<String> {
        let all = self.compute.ids().into_iter();
        all.filter(|id| id.contains("/virtualMachines/")).collect()
    }

    async fn removed(&self) {
        for _ in 0..1_000 {
            match self.work().remove(VM).await {
                Ok(_) => break,
                Err(trouble) => assert!(!trouble.is_final, "{trouble:?}"),
            }
        }
        self.work()
            .remove(VM)
            .await
            .expect("a second time does nothing");
        assert_eq!(self.compute.ids(), self.before);
        assert!(record::get(&self.app, VM).await.expect("store").is_none());
        let blob = format!(
            "{}/{CONTAINER}/recovered/v-1/i/{VM}/{DISK}.vhd",
            self.storage.endpoint()
        );
        assert_eq!(self.storage.look(&blob), None);
        let (target, key) = self.place();
        let reader = ReplicaReader::open(&target, &key).await.expect("replica");
        assert_eq!(reader.pins().await.expect("pins"), []);
    }
}

fn item(compute: &Double, storage: &Storage) -> Item {
    let world = compute.world();
    let item = json!({
        "id": "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v/replicationFabrics/f/replicationProtectionContainers/c/replicationProtectedItems/i",
        "life": protection::Life::new(protection::Generation(1)),
        "engine_id": "e", "vm_id": "vm", "vm_name": "web", "disk_ids": [DISK.to_string()], "policy_id": "",
        "storage_id": world.account_id, "folder": "", "vault_key": "v-1",
        "azure": AzurePlace { endpoint: storage.endpoint(), container: CONTAINER.to_owned() },
        "request": { "recoveryTarget": "Azure", "targetAzureV2ResourceGroupId": world.place.group_path(),
            "targetAzureNetworkId": world.network_id },
        "last_test_failover": null, "drill_job": null, "correlation_id": "",
    });
    serde_json::from_value(item).expect("item")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_after_any_step_leaves_a_vm_that_is_made_once_and_removed_whole() {
    // A claim counts for the process that made it: two steps are the least that get on.
    for steps in 2..6 {
        let bench = Bench::new().await;
        bench
            .lives(&bench.wish(Goal::Runs(Some(5)), false), steps)
            .await;
        let vms = bench.vms();
        assert_eq!(vms.len(), 1);
        assert_eq!(bench.compute.times_created(&vms[0]), 1);
        let (target, key) = bench.place();
        let owner = replica_store::owner_generation(&target, &key)
            .await
            .expect("owner");
        assert_eq!(
            owner,
            Some(Generation(5)),
            "the fence is up before the VM runs"
        );
        bench.removed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_back_after_any_number_of_steps_leaves_nothing() {
    let mut settled = false;
    for steps in 0..20 {
        let bench = Bench::new().await;
        let next = bench
            .life(&bench.wish(Goal::Runs(None), true), steps)
            .await
            .expect("steps");
        settled |= next == Next::Settled;
        bench.removed().await;
        if settled {
            break;
        }
    }
    assert!(settled, "the last round took back a VM that ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_claims_the_blobs_later_writes_and_the_service_refuses_the_other() {
    let bench = Bench::new().await;
    let wish = bench.wish(Goal::Runs(None), true);
    let (mut older, mut newer) = (bench.work(), bench.work());
    assert_eq!(older.towards(&wish).await.expect("noted"), Next::Again);
    assert_eq!(older.towards(&wish).await.expect("claimed"), Next::Again);
    assert_eq!(newer.towards(&wish).await.expect("claimed"), Next::Again);
    let refused = older.towards(&wish).await.expect_err("overtaken");
    assert_eq!(
        (refused.code, refused.is_final),
        ("Overtaken", false),
        "{refused:?}"
    );
    while newer.towards(&wish).await.expect("goes on") == Next::Again {}
    assert_eq!(bench.vms().len(), 1);
    bench.removed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_blob_that_vanishes_in_mid_copy_is_copied_from_its_beginning() {
    let bench = Bench::new().await;
    let wish = bench.wish(Goal::Runs(None), true);
    assert_eq!(
        bench
            .life(&wish, 3)
            .await
            .expect("noted, claimed, one slice"),
        Next::Again
    );
    let vm = bench.vm().await;
    assert_eq!(
        (vm.stage, vm.progress().0),
        (Stage::Noted, SIZE as u64),
        "in the midst of it"
    );
    let reach = Reach::of(&bench.app, &vm).await.expect("reach");
    blobs::remove(&reach, &vm)
        .await
        .expect("somebody's mistake");
    // The double compares the content when a disk is made of it.
    bench.lives(&wish, 30).await;
    assert_eq!(bench.vms().len(), 1);
    bench.removed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_is_said_once_no_vm_of_the_item_is_left_whatever_its_id() {
    let bench = Bench::new().await;
    bench.lives(&bench.wish(Goal::Runs(None), false), 30).await;
    let host = bench.host();
    let wish = Wish {
        id: Uuid::from_u128(2).to_string(),
        order: Some((protection::Generation(9), RecoveryOrder::Absent)),
        ..bench.wish(Goal::Absent, false)
    };
    let said = |vm: Option<AzureVm>| {
        let vms = vm.into_iter().map(|vm| (vm.id.clone(), vm)).collect();
        host.status(Some(&wish), None, &vms)
            .expect("status")
            .recovery
    };
    let vm = bench.vm().await;
    assert_eq!(said(Some(vm.clone())), None, "the old VM is still there");
    let left = AzureVm {
        stage: Stage::Left,
        ..vm.clone()
    };
    assert!(said(Some(left)).is_some());
    let drill = AzureVm {
        drill: Some("/jobs/d".to_owned()),
        ..vm
    };
    assert!(said(Some(drill)).is_some());
    bench.removed().await;
    assert!(said(None).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_item_was_dropped_is_not_removed_when_the_item_is_enabled_again() {
    let bench = Bench::new().await;
    bench.lives(&bench.wish(Goal::Runs(None), false), 30).await;
    let host = bench.host();
    let vm = bench.vm().await;
    let task = host.task(None, Some(&vm)).await.expect("store");
    assert!(
        matches!(task, Some(Task::Remove)),
        "the same protection: {task:?}"
    );
    let key = bench.item.id.to_ascii_lowercase();
    let dropped = Change::Delete {
        key: key.clone(),
        expect: Expect::Any,
    };
    bench.app.store.apply(vec![dropped]).await.expect("dropped");
    assert!(host.task(None, Some(&vm)).await.expect("store").is_none());
    let anew = Item {
        correlation_id: "another".to_owned(),
        ..bench.item.clone()
    };
    let enabled = records::put(key, &anew, Expect::Any).expect("item");
    bench.app.store.apply(vec![enabled]).await.expect("enabled");
    let task = host.task(None, Some(&vm)).await.expect("store");
    assert!(task.is_none(), "{task:?}");
    // Even when its id is drawn again; and it keeps no failover of the new protection waiting.
    let mut wish = bench.wish(Goal::Absent, false);
    wish.item = anew;
    let task = host.task(Some(&wish), Some(&vm)).await.expect("store");
    assert!(task.is_none(), "{task:?}");
    assert!(!vm.stands_for(&wish.item));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_copying_waits_for_a_turn() {
    let bench = Bench::new().await;
    let wish = bench.wish(Goal::Runs(None), true);
    let mut work = bench.work_with(0);
    assert_eq!(work.towards(&wish).await.expect("noted"), Next::Again);
    let waits = tokio::time::timeout(Duration::from_millis(300), work.towards(&wish)).await;
    assert!(waits.is_err(), "all others copy: {waits:?}");
    drop(work);
    bench.life(&wish, 3).await.expect("copied");
    let removed = bench.work_with(0).remove(VM).await.expect("at once");
    assert_eq!(removed, Next::Settled);
    bench.removed().await;
}

#[test]
fn vms_of_one_drill_share_a_network_when_they_share_it_in_production() {
    let subnets = |prefix: &str| {
        [azure_compute::SubnetSpec {
            name: "apps".to_owned(),
            prefix: prefix.to_owned(),
        }]
    };
    let name = |like: &str, prefix: &str| {
        super::spec::isolated_name("drill-0a1b2c3d-4e5f", like, &subnets(prefix))
    };
    let one = name("/networks/One", "10.1.0.0/24");
    assert!(one.starts_with("siterecovery-drill-0a1b2c3d-"), "{one}");
    assert_eq!(one, name("/networks/one", "10.1.0.0/24"));
    assert_ne!(one, name("/networks/two", "10.1.0.0/24"));
    assert_ne!(one, name("/networks/one", "10.2.0.0/24"));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_fail_or_whose_answers_are_lost_make_nothing_twice() {
    for seed in 1..6 {
        let bench = Bench::new().await;
        bench.compute.faults().chaos(seed, 150);
        bench.lives(&bench.wish(Goal::Runs(None), true), 30).await;
        let vms = bench.vms();
        assert_eq!(vms.len(), 1, "seed {seed}");
        assert_eq!(bench.compute.times_created(&vms[0]), 1, "seed {seed}");
        bench.removed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_vm_costs_no_machine_and_one_that_is_left_is_never_taken_away() {
    let bench = Bench::new().await;
    bench.lives(&bench.wish(Goal::Prepared, true), 30).await;
    assert_eq!(
        bench.compute.ids(),
        bench.before,
        "disks are ready, nothing is made"
    );
    bench.removed().await;
    bench.lives(&bench.wish(Goal::Left(7), false), 30).await;
    let vms = bench.vms();
    bench.work().remove(VM).await.expect("the record goes");
    assert_eq!(bench.vms(), vms);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_azure_is_final_and_says_what_to_do() {
    let bench = Bench::new().await;
    bench.compute.limit_cores(0);
    let trouble = bench
        .life(&bench.wish(Goal::Runs(None), true), 30)
        .await
        .expect_err("no quota");
    assert!(
        trouble.is_final && trouble.text.contains("targetVmSize"),
        "{trouble:?}"
    );
    let finding = trouble.finding();
    assert!(finding.critical && !finding.recommended_action.is_empty());
    bench.removed().await;
    let rule = Rule::once(azure_compute::double::Fault::DropAfter, |call| {
        call.method == "PUT"
    });
    bench.compute.limit_cores(20);
    bench.compute.faults().add(rule);
    bench.lives(&bench.wish(Goal::Runs(None), true), 30).await;
    bench.removed().await;
}

//! Azure as the doubles have it, a site, and a protected VM with a real replica.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::disks;
use crate::harness::engine::{Engine, WEB};
use crate::harness::{World, patience, policy_body};
use azure_compute::{ClientConfig, Limits, Secret, double::Double};
use azure_storage::double::{Double as Storage, DoubleOptions};
use azure_storage::{Container, ContainerOptions};
use bytes::Bytes;
use engine_protocol::v1;
use orchestrator::azure_target::Settings;
use replica_store::{
    AzureTarget, DiskSpec, Generation, PointKind, Position, RecoveryPoint, ReplicaKey,
    ReplicaReader, ReplicaWriter, StoreTarget,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

/// As in the double.
const KEY: &str = "c2l0ZS1yZWNvdmVyeS1kb3VibGUta2V5LW9mLXRoZS10ZXN0cw==";
const SYSTEM: Uuid = Uuid::from_u128(0xa);
const DATA: Uuid = Uuid::from_u128(0xb);
/// No whole mebibytes, as real disks may be.
const SIZES: [(Uuid, usize); 2] = [(SYSTEM, (5 << 20) + 4096), (DATA, 3 << 20)];

/// Azure, a site, and a protected VM with a replica.
pub struct Azure {
    pub world: World,
    pub engine: Engine,
    pub compute: Double,
    pub storage: Arc<Storage>,
    /// What was in the blobs that disks were made of.
    pub imported: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    pub item: String,
    pub images: BTreeMap<Uuid, Vec<u8>>,
    pub writer: ReplicaWriter,
    place: (StoreTarget, ReplicaKey),
    container: String,
    before: Vec<String>,
}

pub fn settings(compute: &Double) -> Settings {
    let mut client = ClientConfig::new(
        compute.endpoint(),
        "tenant",
        "client",
        Secret::new("arm-secret"),
    );
    client.back_off = Duration::from_millis(1);
    Settings {
        client,
        limits: Limits {
            resource: Duration::from_secs(60),
            pause: Duration::from_millis(1),
            attempts: 4,
        },
    }
}

pub async fn storage() -> Arc<Storage> {
    let options = DoubleOptions {
        limits: false,
        page_size: 100,
        ..DoubleOptions::default()
    };
    Arc::new(Storage::start(options).await.expect("storage"))
}

pub fn location() -> &'static str {
    "westeurope"
}

/// Vault, account, network, site and policy; account and network under their ids in Azure.
pub async fn base(world: &World, compute: &Double, storage: &Storage) {
    let vault = json!({ "location": location(), "sku": { "name": "RS0" } });
    assert_eq!(
        world.put(&world.vault(), vault).await.status,
        StatusCode::CREATED
    );
    let account = json!({ "location": location(), "sku": { "name": "Standard_LRS" }, "kind": "StorageV2",
        "properties": { "blobEndpoint": storage.endpoint(), "accountKey": KEY } });
    let answer = world.put(&compute.world().account_id, account).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let subnet = |name: &str, prefix: &str| json!({ "name": name, "properties": { "addressPrefix": prefix } });
    let network = json!({ "location": location(), "properties": { "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] },
        "subnets": [subnet("web", "10.0.1.0/24"), subnet("apps", "10.0.2.0/24")] } });
    let answer = world.put(&compute.world().network_id, network).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let site = json!({ "properties": { "customDetails": { "instanceType": "HyperVSite" } } });
    world.done(&world.put(&world.fabric(), site).await).await;
    world
        .done(&world.put(&world.policy(), policy_body(30)).await)
        .await;
}

pub async fn site(world: &World) -> Engine {
    let key = world.registration_key().await;
    let engine = Engine::start(&key, &world.orchestrator.gateway.to_string()).await;
    engine.behave(|behaviour| {
        behaviour.disks = Some(
            SIZES
                .iter()
                .enumerate()
                .map(|(index, (id, size))| v1::Disk {
                    id: id.to_string(),
                    name: ["system.vhdx", "data.vhdx"][index].to_owned(),
                    size_bytes: *size as u64,
                    operating_system: index == 0,
                })
                .collect(),
        );
    });
    let vms = format!("{}/replicationProtectionContainers", world.fabric());
    world
        .until(&vms, |list| list["value"][0]["id"].is_string())
        .await;
    let items = format!("{}/replicationProtectableItems", world.container().await);
    world
        .until(&items, |list| {
            list["value"].to_string().contains("system.vhdx")
                || list["value"].to_string().contains(&SYSTEM.to_string())
        })
        .await;
    world.associate().await;
    engine
}

pub fn group(compute: &Double) -> String {
    compute.world().place.group_path()
}

pub async fn enable_body(world: &World, compute: &Double) -> Value {
    json!({ "properties": {
        "policyId": world.policy(),
        "protectableItemId": format!("{}/replicationProtectableItems/{WEB}", world.container().await),
        "providerSpecificDetails": {
            "instanceType": "HyperVReplicaAzure", "hvHostVmId": WEB,
            "targetStorageAccountId": compute.world().account_id,
            "targetAzureNetworkId": compute.world().network_id, "targetAzureSubnetId": "apps",
            "targetAzureV2ResourceGroupId": group(compute), "targetAzureVmName": "web-dr",
            "recoveryTarget": "Azure", "targetVmTags": { "team": "web" }, "licenseType": "NoLicenseType",
        },
    } })
}

/// A VM's image with holes, edges and an end that is no whole piece.
pub fn image(size: usize, seed: u8) -> Vec<u8> {
    let mut image = vec![0_u8; size];
    for (start, end) in [
        (0, 512),
        ((1 << 20) + 100, (1 << 20) + 9000),
        (size - 700, size),
    ] {
        for (at, byte) in image.iter_mut().enumerate().take(end).skip(start) {
            *byte = u8::try_from(at % 251).expect("small") ^ seed;
        }
    }
    image
}

impl Azure {
    pub async fn start() -> Self {
        let compute = Double::start(1).await.expect("compute");
        let storage = storage().await;
        let imported: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
        let (seen, blobs) = (Arc::clone(&imported), Arc::clone(&storage));
        compute.see_blobs(move |uri| {
            let look = blobs.look(uri)?;
            let footer = look.bytes.len().checked_sub(512)?;
            let has_footer = look.bytes[footer..].starts_with(b"conectix");
            let name = uri.rsplit('/').next().expect("name").to_owned();
            seen.lock().expect("lock").insert(name, look.bytes);
            Some((look.length, look.is_page_blob, has_footer))
        });
        disks::keep(&compute, &storage);
        let world = World::aimed(patience(), Some(settings(&compute))).await;
        base(&world, &compute, &storage).await;
        let engine = site(&world).await;
        let item = world.item(WEB).await;
        let answer = world.put(&item, enable_body(&world, &compute).await).await;
        let protected = world.done(&answer).await;
        let details = &protected["properties"]["providerSpecificDetails"];
        let folder = details["replicaFolder"].as_str().expect("folder");
        let rest = folder
            .strip_prefix(&format!("{}/", storage.endpoint()))
            .expect("in the account");
        let parts: Vec<String> = rest.split('/').map(str::to_owned).collect();
        let generation = details["replicationGeneration"]
            .as_u64()
            .expect("generation");
        let credential = storage.credential(&parts[0]);
        let target = StoreTarget::Azure(AzureTarget::new(
            storage.endpoint(),
            parts[0].clone(),
            credential,
        ));
        let key = ReplicaKey::new(parts[1].clone(), parts[2].clone()).expect("key");
        let specs: Vec<DiskSpec> = SIZES
            .iter()
            .map(|(id, size)| DiskSpec {
                id: *id,
                size_bytes: *size as u64,
                name: format!("disk-{:x}.vhdx", id.as_u128()),
            })
            .collect();
        let writer = ReplicaWriter::open(&target, &key, Generation(generation), &specs)
            .await
            .expect("writer");
        let images = SIZES
            .iter()
            .map(|(id, size)| (*id, vec![0; *size]))
            .collect();
        let mut azure = Self {
            before: compute.ids(),
            container: parts[0].clone(),
            place: (target, key),
            world,
            engine,
            compute,
            storage,
            imported,
            item,
            images,
            writer,
        };
        azure.first_copy().await;
        azure.cycle(1).await;
        azure
    }

    async fn first_copy(&mut self) {
        for (id, size) in SIZES {
            let image = image(size, 0);
            self.writer
                .base_write(id, 0, Bytes::from(image.clone()))
                .await
                .expect("base");
            self.images.insert(id, image);
        }
        let point = point(0);
        self.writer
            .complete_base(point)
            .await
            .expect("base is complete");
    }

    /// Another cycle with a point, which the source then tells of.
    pub async fn cycle(&mut self, position: u64) {
        let at = position * 4096;
        let mut cycle = self
            .writer
            .begin_cycle(Position(position), point(position).time_unix_ms)
            .await
            .expect("cycle");
        for (id, _) in SIZES {
            let data = vec![u8::try_from(position).expect("small") + 100; 5000];
            let image = self.images.get_mut(&id).expect("disk");
            let start = usize::try_from(at).expect("small");
            image[start..start + 5000].copy_from_slice(&data);
            cycle.write(id, at, Bytes::from(data)).await.expect("write");
        }
        cycle.commit().await.expect("commit");
        let point = point(position);
        self.writer.add_point(point.clone()).await.expect("point");
        self.engine.behave(|behaviour| {
            behaviour.point = Some(v1::RecoveryPoint {
                id: point.id.to_string(),
                time_unix_ms: point.time_unix_ms,
                kind: v1::recovery_point::Kind::CrashConsistent.into(),
                position,
                ..v1::RecoveryPoint::default()
            });
        });
        let points = format!("{}/recoveryPoints", self.item);
        self.world
            .until(&points, |list| {
                list["value"].to_string().contains(&point.id.to_string())
            })
            .await;
    }

    /// Names of the container's blobs below a folder.
    pub async fn blobs(&self, folder: &str) -> Vec<String> {
        let options = ContainerOptions::new(
            self.storage.endpoint(),
            &self.container,
            self.storage.credential(&self.container),
        );
        let container = Container::open(&options).expect("container");
        let listed = container.list(folder, false).await.expect("listed");
        listed.into_iter().map(|blob| blob.name).collect()
    }

    /// The disks were made of exactly what the VM had at the point, in fixed VHDs of whole mebibytes.
    pub fn check_disks(&self) {
        let imported = self.imported.lock().expect("lock");
        for (id, image) in &self.images {
            let vhd = &imported[&format!("{id}.vhd")];
            let size = vhd.len() - 512;
            assert_eq!(size % (1 << 20), 0);
            assert!(vhd[..image.len()] == image[..], "disk {id} differs");
            assert!(vhd[image.len()..size].iter().all(|byte| *byte == 0));
        }
    }

    /// A guest in Azure writes to each of its disks, whole pages, and gives some back.
    pub fn guest_writes(&mut self, byte: u8) {
        for (id, path) in self.disk_paths() {
            let image = self.images.get_mut(&id).expect("disk");
            let at = usize::from(byte) * 4096;
            self.storage.write(&path, at as u64, &[byte; 1024]);
            image[at..at + 1024].fill(byte);
            self.storage.clear(&path, 0..512);
            image[..512].fill(0);
        }
    }

    /// Disks of the VM in Azure, by the source's id.
    fn disk_paths(&self) -> Vec<(Uuid, String)> {
        let all = self.compute.ids().into_iter();
        let disks = all.filter(|id| id.contains("/disks/"));
        disks
            .map(|id| {
                let body = self.compute.body(&id).expect("disk");
                let uri = body["properties"]["creationData"]["sourceUri"].clone();
                let uri = uri.as_str().expect("uri").to_owned();
                let name = uri.rsplit('/').next().expect("name").replace(".vhd", "");
                (name.parse().expect("GUID"), disks::path_of(&id))
            })
            .collect()
    }

    /// The disks in Azure, and the newest point of the replica, which is what the source takes, hold the same, bit by bit.
    pub async fn check_replica(&self) {
        let differing = self.differing().await;
        assert_eq!(differing, None, "a disk differs in the replica");
    }

    /// Waits until they do: the source of these tests doesn't wait for a point.
    pub async fn comes_into_the_replica(&self) {
        within_a_minute(async || self.differing().await.is_none()).await;
    }

    async fn differing(&self) -> Option<Uuid> {
        let (target, key) = &self.place;
        let reader = ReplicaReader::open(target, key).await.expect("replica");
        let view = reader.view(replica_store::PointSelector::Newest);
        let view = view.await.expect("newest point");
        for (id, path) in self.disk_paths() {
            let image = &self.images[&id];
            let disk = disks::content(&self.storage, &path);
            assert!(disk[..image.len()] == image[..], "disk {id} in Azure");
            let read = view.read(id, 0, image.len()).await.expect("read");
            if read != image[..] {
                return Some(id);
            }
        }
        None
    }

    /// Power state of the VM in Azure.
    pub fn power(&self) -> &'static str {
        let id = format!(
            "{}/providers/Microsoft.Compute/virtualMachines/web-dr",
            group(&self.compute)
        );
        self.compute.power(&id).expect("VM")
    }

    /// Waits until it runs: that a failback is taken back is known before Azure has started the VM.
    pub async fn runs_again(&self) {
        within_a_minute(async || self.power() == "running").await;
    }

    /// The job that the item is in, once it waits for a person.
    pub async fn suspended(&self) -> String {
        let item = self.world.get(&self.item).await.body;
        let job = property(&item, "currentScenario")["jobId"].clone();
        let job = job.as_str().expect("job").to_owned();
        self.world
            .until(&job, |job| property(job, "state") == "Suspended")
            .await;
        job
    }

    /// Waits until no disk is frozen and nothing is open.
    pub async fn nothing_is_frozen(&self) {
        within_a_minute(async || {
            let ids = self.compute.ids();
            let frozen = ids.iter().any(|id| id.contains("/snapshots/"));
            !frozen && disks::open(&self.storage).is_empty()
        })
        .await;
    }

    pub fn vm(&self, name: &str) -> Option<Value> {
        self.compute.body(&format!(
            "{}/providers/Microsoft.Compute/virtualMachines/{name}",
            group(&self.compute)
        ))
    }

    /// Nothing of a recovery is left: no resource, no blob, no held point.
    pub async fn check_nothing_is_left(&self) {
        assert_eq!(self.compute.ids(), self.before);
        assert_eq!(self.blobs("recovered/").await, Vec::<String>::new());
        let (target, key) = &self.place;
        let reader = ReplicaReader::open(target, key).await.expect("replica");
        assert_eq!(reader.pins().await.expect("pins"), []);
    }

    pub async fn stop(self) {
        self.world.orchestrator.stop().await;
    }
}

pub fn point(position: u64) -> RecoveryPoint {
    RecoveryPoint {
        id: Uuid::from_u128((0x9017 << 64) + u128::from(position)),
        time_unix_ms: 1_764_000_000_000 + i64::try_from(position).expect("small") * 60_000,
        kind: PointKind::Crash,
        position: Position(position),
        ..RecoveryPoint::default()
    }
}

pub fn property<'a>(item: &'a Value, name: &str) -> &'a Value {
    &item["properties"][name]
}

async fn within_a_minute(there: impl AsyncFn() -> bool) {
    let looks = async {
        while !there().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let within = Duration::from_secs(60);
    tokio::time::timeout(within, looks).await.expect("in time");
}

pub fn back(data: &str) -> Value {
    json!({ "properties": {
        "failoverDirection": "RecoveryToPrimary",
        "providerSpecificDetails": {
            "instanceType": "HyperVReplicaAzureFailback",
            "dataSyncOption": data,
            "recoveryVmCreationOption": "NoAction",
        },
    } })
}

pub fn away() -> Value {
    json!({ "properties": {
        "failoverDirection": "PrimaryToRecovery",
        "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" },
    } })
}

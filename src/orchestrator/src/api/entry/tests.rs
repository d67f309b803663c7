//! Requests that are cut short, or overtaken by others, at the worst instant.

use std::sync::Arc;
use std::time::Duration;

use arm_model::VaultId;
use arm_model::policy::PolicyDetails;
use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use engine_protocol::Authority;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc};

use super::handle;
use crate::app::{App, Parts, Patience};
use crate::auth::clients;
use crate::auth::jwt::SigningKey;
use crate::auth::roles::Role;
use crate::auth::token::TokenIssuer;
use crate::store::records::{self, JobRecord, Plain, Policy, Vault};
use crate::store::sqlite::SqliteStore;
use crate::store::{Change, Document, Expect, Query, ResourceStore, StoreError};

/// Longest that a test waits for anything.
const LONG: Duration = Duration::from_secs(60);

/// A store whose batches that make a job stop before they are made and after it, until they are let go.
struct Held {
    inner: SqliteStore,
    come: Semaphore,
    begin: Semaphore,
    made: Semaphore,
    finish: Semaphore,
}

#[async_trait]
impl ResourceStore for Held {
    async fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        self.inner.get(key).await
    }

    async fn list(&self, query: Query) -> Result<Vec<Document>, StoreError> {
        self.inner.list(query).await
    }

    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<u64>, StoreError> {
        let job = |change: &Change| matches!(change, Change::Put { kind, .. } if *kind == "job");
        if !changes.iter().any(job) {
            return self.inner.apply(changes).await;
        }
        self.come.add_permits(1);
        pass(&self.begin).await;
        let result = self.inner.apply(changes).await;
        self.made.add_permits(1);
        pass(&self.finish).await;
        result
    }

    fn revision(&self) -> u64 {
        self.inner.revision()
    }
}

async fn pass(gate: &Semaphore) {
    gate.acquire().await.expect("gate").forget();
}

struct World {
    _folder: TempDir,
    store: Arc<Held>,
    app: Arc<App>,
    jobs: mpsc::UnboundedReceiver<String>,
    vault: VaultId,
    token: String,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let inner = SqliteStore::open(&folder.path().join("metadata.db")).expect("store");
        let gate = || Semaphore::new(0);
        let store = Arc::new(Held {
            inner,
            come: gate(),
            begin: gate(),
            made: gate(),
            finish: gate(),
        });
        let key = SigningKey::generate().expect("key");
        let key = || SigningKey::from_pkcs8(&key).expect("key");
        let now = time::OffsetDateTime::now_utc();
        let (app, jobs) = App::new(Parts {
            store: Arc::clone(&store) as Arc<dyn ResourceStore>,
            authority: Authority::generate("test", now).expect("CA"),
            tokens: TokenIssuer::new(key(), "https://localhost", "t"),
            public_url: "https://localhost".to_owned(),
            gateway: "localhost:1".to_owned(),
            regions: Vec::new(),
            tenant_id: "t".to_owned(),
            patience: Patience::default(),
            sealer: crate::seal::Sealer::new(&[7; 32]).expect("sealer"),
        });
        let (client, _) = clients::create(store.as_ref(), "n", Role::Owner, "/")
            .await
            .expect("client");
        let token = app.tokens.issue(&client, now.unix_timestamp());
        let vault = VaultId::new("s", "g", "v");
        let record = Vault(Plain {
            id: vault.to_string(),
            location: "northeurope".to_owned(),
            body: json!({}),
        });
        let put = records::put(vault.key(), &record, Expect::Absent).expect("record");
        store.apply(vec![put]).await.expect("stored");
        Self {
            _folder: folder,
            token: token.expect("token"),
            store,
            app,
            jobs,
            vault,
        }
    }

    fn put_policy(&self, interval: u32) -> Request {
        let body = json!({ "properties": { "providerSpecificInput": {
            "instanceType": "HyperVReplicaAzure", "replicationInterval": interval,
        } } });
        Request::builder()
            .method("PUT")
            .uri(format!("{}?api-version=2025-08-01", self.vault.policy("p")))
            .header("authorization", format!("Bearer {}", self.token))
            .body(Body::from(body.to_string()))
            .expect("request")
    }

    async fn write_policy(&self, immutability_in_hours: u32) {
        let id = self.vault.policy("p");
        let record = Policy {
            id: id.to_string(),
            details: PolicyDetails {
                immutability_in_hours,
                ..PolicyDetails::default()
            },
            promise: None,
        };
        let put = records::put(id.key(), &record, Expect::Any).expect("record");
        self.store.apply(vec![put]).await.expect("stored");
    }
}

#[tokio::test]
async fn a_job_that_was_stored_is_run_even_when_its_client_has_gone() {
    let mut world = World::new().await;
    let request = handle(State(Arc::clone(&world.app)), world.put_policy(30));
    // The client goes when its job is stored, before anybody was told of it.
    {
        let stored = async {
            pass(&world.store.come).await;
            world.store.begin.add_permits(1);
            pass(&world.store.made).await;
        };
        tokio::select! {
            _ = request => panic!("the store holds the request"),
            () = stored => {}
        }
    }
    world.store.finish.add_permits(1);
    let handed_over = tokio::time::timeout(LONG, world.jobs.recv()).await;
    let handed_over = handed_over.expect("in time");
    let handed_over = handed_over.expect("a job for the runner");
    let job = records::get::<JobRecord>(world.store.as_ref(), &handed_over).await;
    assert!(job.expect("store").is_some());
}

#[tokio::test]
async fn a_job_does_not_begin_on_a_document_that_was_changed_since_its_request_read_it() {
    let world = World::new().await;
    world.write_policy(0).await;
    let request = tokio::spawn(handle(State(Arc::clone(&world.app)), world.put_policy(300)));
    pass(&world.store.come).await;
    world.write_policy(48).await;
    world.store.begin.add_permits(1);
    world.store.finish.add_permits(1);
    let answer = request.await.expect("answer");
    assert_eq!(answer.status(), StatusCode::PRECONDITION_FAILED);
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await;
    let body: Value = serde_json::from_slice(&body.expect("body")).expect("JSON");
    assert_eq!(body["error"]["code"], "PreconditionFailed");
    let jobs = records::list::<JobRecord>(world.store.as_ref(), "").await;
    assert!(jobs.expect("jobs").is_empty(), "nothing was begun");
}

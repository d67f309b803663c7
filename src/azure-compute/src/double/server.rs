//! The double's server: takes calls off sockets, lets faults happen, asks who calls, and answers.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::faults::{Call, Fault, Faults};
use super::route;
use super::state::{Blob, Contents, Disks, Reply, State, Storage, text};
use crate::spec::Place;

/// What there is before anything is recovered.
#[derive(Debug, Clone)]
pub struct World {
    /// Subscription, group `rg-recovery` and region `westeurope`.
    pub place: Place,
    /// Network with the subnets `web` (10.0.1.0/24) and `apps` (10.0.2.0/24).
    pub network_id: String,
    /// General purpose storage account.
    pub account_id: String,
    /// Premium page blob account.
    pub premium_account_id: String,
    /// Availability set for managed disks.
    pub set_id: String,
    /// Availability set for page blobs.
    pub classic_set_id: String,
}

impl World {
    fn new() -> World {
        let place = Place {
            subscription_id: "00000000-0000-0000-0000-000000000001".to_owned(),
            resource_group: "rg-recovery".to_owned(),
            location: "westeurope".to_owned(),
        };
        let id = |kind: &str, name: &str| format!("{}/providers/{kind}/{name}", place.group_path());
        World {
            network_id: id("Microsoft.Network/virtualNetworks", "vnet-recovery"),
            account_id: id("Microsoft.Storage/storageAccounts", "replicas"),
            premium_account_id: id("Microsoft.Storage/storageAccounts", "premium"),
            set_id: id("Microsoft.Compute/availabilitySets", "set-managed"),
            classic_set_id: id("Microsoft.Compute/availabilitySets", "set-classic"),
            place,
        }
    }

    fn fill(&self, state: &mut State) {
        state
            .groups
            .insert(self.place.resource_group.to_lowercase());
        let subnet = |name: &str, prefix: &str| {
            json!({ "name": name, "id": format!("{}/subnets/{name}", self.network_id),
                "properties": { "addressPrefix": prefix } })
        };
        let location = &self.place.location;
        state.put(
            &self.network_id,
            json!({ "location": location, "properties": {
            "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] },
            "subnets": [subnet("web", "10.0.1.0/24"), subnet("apps", "10.0.2.0/24")] } }),
        );
        state.put(
            &self.account_id,
            json!({ "location": location, "kind": "StorageV2",
            "sku": { "name": "Standard_LRS", "tier": "Standard" }, "properties": {} }),
        );
        state.put(
            &self.premium_account_id,
            json!({ "location": location, "kind": "StorageV2",
            "sku": { "name": "Premium_LRS", "tier": "Premium" }, "properties": {} }),
        );
        for (id, sku) in [(&self.set_id, "Aligned"), (&self.classic_set_id, "Classic")] {
            state.put(
                id,
                json!({ "location": location, "sku": { "name": sku },
                "properties": { "platformFaultDomainCount": 2, "platformUpdateDomainCount": 5 } }),
            );
        }
    }
}

/// A running Azure Resource Manager with one subscription. It ends when this is dropped.
#[derive(Debug)]
pub struct Double {
    address: SocketAddr,
    world: World,
    state: Arc<Mutex<State>>,
    faults: Faults,
    server: JoinHandle<()>,
}

impl Drop for Double {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Double {
    /// Starts it on a free port of this machine. An operation ends after `polls` looks at it.
    pub async fn start(polls: u32) -> io::Result<Double> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let world = World::new();
        let mut state = State {
            polls,
            page_size: 3,
            core_limit: 20,
            ..State::default()
        };
        world.fill(&mut state);
        let state = Arc::new(Mutex::new(state));
        let faults = Faults::default();
        let server = tokio::spawn(serve(listener, address, Arc::clone(&state), faults.clone()));
        Ok(Double {
            address,
            world,
            state,
            faults,
            server,
        })
    }

    /// Its address, without a path.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What there is.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The switchboard.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Puts a fixed VHD of so many bytes, footer not counted, into a page blob.
    pub fn add_vhd(&self, uri: &str, bytes: u64) {
        self.add_blob(uri, bytes + 512, true, true);
    }

    /// Puts any blob there, also one that no disk can be made of.
    pub fn add_blob(&self, uri: &str, bytes: u64, is_page_blob: bool, has_footer: bool) {
        let blob = Blob {
            bytes,
            is_page_blob,
            has_footer,
        };
        self.state().blobs.insert(uri.to_owned(), blob);
    }

    /// Blobs are looked up in a storage service: whole length with the footer, whether it is a page blob, whether a VHD's footer is
    /// at its end.
    pub fn see_blobs(&self, look: impl Fn(&str) -> Option<(u64, bool, bool)> + Send + 'static) {
        self.state().storage = Storage::new(move |uri| {
            let (bytes, is_page_blob, has_footer) = look(uri)?;
            Some(Blob {
                bytes,
                is_page_blob,
                has_footer,
            })
        });
    }

    /// Contents of managed disks and snapshots are kept by somebody.
    pub fn keep_disks(&self, disks: impl Disks + 'static) {
        self.state().contents = Contents(Some(Box::new(disks)));
    }

    /// Snapshots that are open for reading.
    pub fn open_snapshots(&self) -> Vec<String> {
        self.state().open.iter().cloned().collect()
    }

    /// A VM's power state, as somebody at the portal changes it.
    pub fn set_power(&self, id: &str, power: &'static str) {
        if let Some(entry) = self.state().resources.get_mut(&id.to_lowercase()) {
            entry.power = power;
            entry.changes += 1;
        }
    }

    /// Changes the body of a resource, as somebody at the portal does.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Value)) {
        if let Some(entry) = self.state().resources.get_mut(&id.to_lowercase()) {
            change(&mut entry.body);
            entry.changes += 1;
        }
    }

    /// A VM's power state.
    pub fn power(&self, id: &str) -> Option<&'static str> {
        self.state().entry(id).map(|entry| entry.power)
    }

    /// Puts a resource there as somebody else would have.
    pub fn add_resource(&self, id: &str, body: Value) {
        self.state().put(id, body);
    }

    /// Takes a resource away as somebody else would.
    pub fn take_resource(&self, id: &str) {
        self.state().resources.remove(&id.to_lowercase());
    }

    /// Cores that the subscription may use.
    pub fn limit_cores(&self, cores: u64) {
        self.state().core_limit = cores;
    }

    /// All tokens end now.
    pub fn end_tokens(&self) {
        self.state().tokens.clear();
    }

    /// Ids of everything that exists, in order.
    pub fn ids(&self) -> Vec<String> {
        self.state()
            .resources
            .values()
            .map(|e| e.id.clone())
            .collect()
    }

    /// A resource's body.
    pub fn body(&self, id: &str) -> Option<Value> {
        self.state().entry(id).map(|e| e.body.clone())
    }

    /// How often a resource came into being.
    pub fn times_created(&self, id: &str) -> u32 {
        self.state()
            .created
            .get(&id.to_lowercase())
            .copied()
            .unwrap_or(0)
    }

    /// Writes that met an operation that was still running.
    pub fn collisions(&self) -> u32 {
        self.state().collisions
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    faults: Faults,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (state, faults) = (Arc::clone(&state), faults.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                handle(request, address, Arc::clone(&state), faults.clone())
            });
            // An error is a connection that a fault has cut.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn handle(
    request: Request<Incoming>,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    faults: Faults,
) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let path = head.uri.path().to_owned();
    let base = format!("http://{address}");
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    if path.ends_with("/oauth2/v2.0/token") {
        let token = lock().token();
        return respond(&Reply::ok(
            json!({ "token_type": "Bearer", "access_token": token, "expires_in": 3600 }),
        ));
    }
    let bearer = head
        .headers
        .get("authorization")
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .unwrap_or_default()
        .to_owned();
    if !lock().tokens.contains(&bearer) {
        return respond(&Reply::error(
            401,
            "InvalidAuthenticationToken",
            "The access token is invalid.",
        ));
    }
    let call = Call {
        method: head.method.to_string(),
        path: path.clone(),
    };
    let fault = faults.of(&call);
    match fault {
        Some(Fault::DropBefore) => return Err(cut()),
        Some(Fault::Refuse {
            status,
            code,
            retry_after,
        }) => {
            let mut reply = Reply::error(status, code, "The double was told to refuse.");
            if let Some(seconds) = retry_after {
                reply.headers.push(("Retry-After", seconds.to_string()));
            }
            return respond(&reply);
        }
        _ => {}
    }
    let reply = {
        let mut state = lock();
        if let Some(Fault::FailLater(code)) = fault {
            state.fail_later = Some(code);
        }
        let request = route::Request {
            method: head.method.as_str(),
            path: &path,
            query: head.uri.query().unwrap_or_default(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
            base: &base,
        };
        let reply = route::answer(&mut state, &request);
        state.fail_later = None;
        reply
    };
    tracing::trace!(method = %head.method, path, status = reply.status, code = text(&reply.body, "/error/code"), "double");
    match fault {
        Some(Fault::DropAfter) => Err(cut()),
        Some(Fault::DoneBut { status, code }) => respond(&Reply::error(
            status,
            code,
            "The double was told to lose its word.",
        )),
        _ => respond(&reply),
    }
}

fn cut() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "a fault cuts the connection",
    )
}

fn respond(reply: &Reply) -> io::Result<Response<Full<Bytes>>> {
    let mut builder = Response::builder()
        .status(reply.status)
        .header("x-ms-request-id", "double");
    for (name, value) in &reply.headers {
        builder = builder.header(*name, value);
    }
    let bytes = if reply.body.is_null() {
        Bytes::new()
    } else {
        builder = builder.header("Content-Type", "application/json; charset=utf-8");
        Bytes::from(reply.body.to_string())
    };
    builder.body(Full::new(bytes)).map_err(io::Error::other)
}

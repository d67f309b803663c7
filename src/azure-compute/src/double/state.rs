//! What the double remembers: resources, operations, blobs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Value, json};

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Value,
}

/// A refusal: status, code, message.
pub(super) struct Refusal(pub(super) u16, pub(super) String, pub(super) String);

pub(super) type Outcome<T = Reply> = Result<T, Refusal>;

pub(super) fn refuse<T>(
    status: u16,
    code: impl Into<String>,
    message: impl Into<String>,
) -> Outcome<T> {
    Err(Refusal(status, code.into(), message.into()))
}

impl Reply {
    pub(super) fn ok(body: Value) -> Reply {
        Reply::of(200, body)
    }

    pub(super) fn of(status: u16, body: Value) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body,
        }
    }

    pub(super) fn error(status: u16, code: &str, message: &str) -> Reply {
        Reply::of(
            status,
            json!({ "error": { "code": code, "message": message } }),
        )
    }
}

impl From<Refusal> for Reply {
    fn from(Refusal(status, code, message): Refusal) -> Reply {
        Reply::error(status, &code, &message)
    }
}

/// A resource.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its id as it was first written.
    pub(super) id: String,
    /// Its body without what is computed.
    pub(super) body: Value,
    /// `provisioningState`.
    pub(super) state: String,
    /// Power state of a VM.
    pub(super) power: &'static str,
    /// Operations that have ended.
    pub(super) changes: u32,
    /// The operation that runs on it.
    pub(super) operation: Option<String>,
}

/// What an operation does when it ends.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Settle,
    Delete,
    Power(&'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Operation {
    /// What its final answer is, if not the resource.
    pub(super) result: Option<Value>,
    pub(super) target: String,
    pub(super) polls_left: u32,
    pub(super) effect: Effect,
    pub(super) failure: Option<&'static str>,
    pub(super) ended: bool,
}

/// A blob in a storage account.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blob {
    /// Whole length, footer included.
    pub(super) bytes: u64,
    pub(super) is_page_blob: bool,
    pub(super) has_footer: bool,
}

/// Gives a blob by its address.
type Look = dyn Fn(&str) -> Option<Blob> + Send;

/// Blobs that somebody else keeps.
#[derive(Default)]
pub(super) struct Storage(Option<Box<Look>>);

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Storage").field(&self.0.is_some()).finish()
    }
}

impl Storage {
    pub(super) fn new(look: impl Fn(&str) -> Option<Blob> + Send + 'static) -> Self {
        Storage(Some(Box::new(look)))
    }
}

/// Contents of managed disks and snapshots, kept by somebody who has a blob service. Ids are in lower case.
pub trait Disks: Send {
    /// A disk is made of a page blob.
    fn import(&self, disk: &str, uri: &str);
    /// A snapshot of a disk is taken now.
    fn freeze(&self, disk: &str, snapshot: &str);
    /// A snapshot is opened; gives its address with a signature.
    fn open(&self, snapshot: &str) -> String;
    /// Its addresses are worth nothing any more.
    fn close(&self, snapshot: &str);
    /// A disk or a snapshot is gone.
    fn remove(&self, id: &str);
    /// A page blob becomes the disk of a VM, which leases it until the VM is gone.
    fn lease(&self, uri: &str, is_leased: bool);
}

#[derive(Default)]
pub(super) struct Contents(pub(super) Option<Box<dyn Disks>>);

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Contents").field(&self.0.is_some()).finish()
    }
}

impl Contents {
    fn removed(&self, id: &str) {
        if let Some(disks) = &self.0
            && (id.contains("/disks/") || id.contains("/snapshots/"))
        {
            disks.remove(id);
        }
    }

    /// Leases the page blobs of a VM, or gives them free.
    fn lease(&self, vm: &Value, is_leased: bool) {
        let Some(disks) = &self.0 else { return };
        let system = vm.pointer("/properties/storageProfile/osDisk").into_iter();
        for disk in system.chain(list(vm, "/properties/storageProfile/dataDisks")) {
            let uri = text(disk, "/vhd/uri");
            if !uri.is_empty() {
                disks.lease(uri, is_leased);
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) resources: BTreeMap<String, Entry>,
    pub(super) operations: BTreeMap<String, Operation>,
    pub(super) blobs: BTreeMap<String, Blob>,
    pub(super) storage: Storage,
    pub(super) contents: Contents,
    /// Snapshots that are open for reading.
    pub(super) open: BTreeSet<String>,
    pub(super) groups: BTreeSet<String>,
    pub(super) tokens: BTreeSet<String>,
    /// How often each id came into being.
    pub(super) created: BTreeMap<String, u32>,
    /// Writes that met a running operation.
    pub(super) collisions: u32,
    /// Cores that the subscription may use in all.
    pub(super) core_limit: u64,
    /// Polls until an operation ends.
    pub(super) polls: u32,
    pub(super) page_size: usize,
    /// What the next accepted operation fails with.
    pub(super) fail_later: Option<&'static str>,
    pub(super) counter: u64,
}

impl State {
    /// A blob that was put there, or that the storage service has.
    pub(super) fn blob(&self, uri: &str) -> Option<Blob> {
        let elsewhere = || self.storage.0.as_ref().and_then(|look| look(uri));
        self.blobs.get(uri).copied().or_else(elsewhere)
    }

    pub(super) fn entry(&self, id: &str) -> Option<&Entry> {
        self.resources.get(&id.to_lowercase())
    }

    /// All of one type, by the end of their path before the name.
    pub(super) fn of_type<'a>(&'a self, arm_type: &str) -> impl Iterator<Item = &'a Entry> {
        let part = format!("/providers/{}/", arm_type.to_lowercase());
        self.resources
            .iter()
            .filter(move |(id, _)| id.contains(&part))
            .map(|(_, entry)| entry)
    }

    pub(super) fn token(&mut self) -> String {
        self.counter += 1;
        let token = format!("token-{}", self.counter);
        self.tokens.insert(token.clone());
        token
    }

    /// Begins an operation on a resource and gives its id.
    pub(super) fn begin(&mut self, target: &str, word: &str, effect: Effect) -> String {
        self.counter += 1;
        let id = format!("op-{}", self.counter);
        if let Some(entry) = self.resources.get_mut(target) {
            word.clone_into(&mut entry.state);
            entry.operation = Some(id.clone());
        }
        let operation = Operation {
            result: None,
            target: target.to_owned(),
            polls_left: self.polls,
            effect,
            failure: self.fail_later.take(),
            ended: false,
        };
        self.operations.insert(id.clone(), operation);
        id
    }

    /// Somebody looks: the operation comes nearer to its end.
    pub(super) fn poll(&mut self, id: &str) {
        let Some(operation) = self.operations.get_mut(id).filter(|o| !o.ended) else {
            return;
        };
        if operation.polls_left > 0 {
            operation.polls_left -= 1;
            return;
        }
        operation.ended = true;
        let operation = operation.clone();
        let Some(entry) = self.resources.get_mut(&operation.target) else {
            return;
        };
        entry.operation = None;
        if operation.failure.is_some() {
            "Failed".clone_into(&mut entry.state);
            return;
        }
        "Succeeded".clone_into(&mut entry.state);
        entry.changes += 1;
        match operation.effect {
            Effect::Settle => {}
            Effect::Power(power) => entry.power = power,
            Effect::Delete => {
                self.contents.removed(&operation.target);
                if let Some(gone) = self.resources.remove(&operation.target) {
                    self.contents.lease(&gone.body, false);
                }
            }
        }
    }

    /// Puts a resource there, or its new body.
    pub(super) fn put(&mut self, id: &str, body: Value) {
        let key = id.to_lowercase();
        self.contents.lease(&body, true);
        if let Some(entry) = self.resources.get_mut(&key) {
            entry.body = body;
            return;
        }
        *self.created.entry(key.clone()).or_default() += 1;
        let entry = Entry {
            id: id.to_owned(),
            body,
            state: "Succeeded".to_owned(),
            power: "deallocated",
            changes: 0,
            operation: None,
        };
        self.resources.insert(key, entry);
    }
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

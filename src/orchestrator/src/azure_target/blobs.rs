//! The container of a VM's page blobs, which is the one of its replica's base, and the replica beside them.
//!
//! ```text
//!  <container>/<vault>/<item>/…                              the replica
//!  <container>/recovered/<vault>/<item>/<vm id>/<disk>.vhd   page blobs of one VM, ours by their place
//! ```

use azure_storage::{
    Condition, Container, ContainerOptions, Credential, CredentialHandle, ErrorKind,
};
use engine_protocol::v1::{self, azure_credential, store_target};
use replica_store::{AzureTarget, ReplicaKey, ReplicaReader, StoreTarget};
use replication_log::KeyRing;
use uuid::Uuid;

use super::record::AzureVm;
use super::trouble::Trouble;
use crate::access;
use crate::app::App;
use crate::gateway::reports::vault_of;
use crate::store::records::{self, Item, Policy};
use crate::vault_keys;

/// A container that can be reached, with the handle that renews the way to it.
#[derive(Clone)]
pub(super) struct Reached {
    options: ContainerOptions,
    message: v1::AzureStorage,
}

/// Where a VM's blobs and its replica are.
pub(super) struct Reach {
    pub(super) base: Reached,
    log: Option<Reached>,
}

fn no_store() -> Trouble {
    Trouble::lasting(
        "StorageAccountNotInAzure",
        "the replica lies in a folder, and a VM in Azure is made of page blobs",
        "Protect the VM with a storage account in Azure.",
    )
}

fn credential(message: &v1::AzureStorage) -> Credential {
    match message
        .credential
        .as_ref()
        .and_then(|c| c.kind.clone().map(|kind| (kind, c.expires_unix_ms)))
    {
        Some((azure_credential::Kind::Sas(query), expires)) => Credential::sas(query, expires),
        Some((azure_credential::Kind::BearerToken(token), expires)) => {
            Credential::bearer(token, expires)
        }
        // Without any, the service refuses with a reason.
        None => Credential::sas(String::new(), 0),
    }
}

fn reached(message: &v1::StoreTarget) -> Result<Reached, Trouble> {
    let Some(store_target::Kind::Azure(azure)) = &message.kind else {
        return Err(no_store());
    };
    let handle = CredentialHandle::new(credential(azure));
    let mut options = ContainerOptions::new(&azure.blob_endpoint, &azure.container, handle);
    options.proxy = Some(azure.proxy_url.clone()).filter(|url| !url.is_empty());
    options.ca_pem.clone_from(&azure.ca_pem);
    Ok(Reached {
        options,
        message: azure.clone(),
    })
}

// === impl Reached ===

impl Reached {
    /// A page blob that another service has signed for, by its address: its container, and its name there.
    pub(super) fn elsewhere(&self, address: &str) -> Result<(Container, String), Trouble> {
        // The text itself is a secret, so it is in no message.
        let unreadable = || {
            Trouble::lasting(
                "AzureRefused",
                "the address of a snapshot of a disk is no address of a blob",
                "See the orchestrator's log.",
            )
        };
        let (place, signature) = address.split_once('?').ok_or_else(unreadable)?;
        let (place, name) = place.rsplit_once('/').ok_or_else(unreadable)?;
        let (endpoint, container) = place.rsplit_once('/').ok_or_else(unreadable)?;
        let handle = CredentialHandle::new(Credential::sas(signature, 0));
        let options = ContainerOptions {
            proxy: self.options.proxy.clone(),
            ca_pem: self.options.ca_pem.clone(),
            ..ContainerOptions::new(endpoint, container, handle)
        };
        Ok((Container::open(&options)?, name.to_owned()))
    }

    pub(super) fn container(&self) -> Result<Container, Trouble> {
        Container::open(&self.options).map_err(Trouble::from)
    }

    /// Whether it is a premium account.
    pub(super) fn is_premium(&self) -> bool {
        self.message.premium
    }

    fn target(&self) -> AzureTarget {
        let azure = &self.message;
        AzureTarget::new(
            &azure.blob_endpoint,
            &azure.container,
            self.options.credential.clone(),
        )
        .premium(azure.premium)
        .stripes(azure.stripes)
        .proxy(&azure.proxy_url)
        .certificate_authorities(azure.ca_pem.clone())
    }

    fn renew(&self, message: &v1::StoreTarget) {
        if let Some(store_target::Kind::Azure(azure)) = &message.kind
            && azure.credential.is_some()
        {
            self.options.credential.renew(credential(azure));
        }
    }
}

// === impl Reach ===

impl Reach {
    /// The way to a VM's blobs, with a fresh credential.
    pub(super) async fn of(app: &App, vm: &AzureVm) -> Result<Self, Trouble> {
        let message = access::target(app, vm.replica.place(), vm.replica.log.as_ref()).await?;
        Ok(Self {
            base: reached(&message)?,
            log: message.log.as_deref().map(reached).transpose()?,
        })
    }

    /// Renews the credentials of those who use it: signatures live for hours, copies of disks for longer.
    pub(super) async fn renew(&self, app: &App, vm: &AzureVm) -> Result<(), Trouble> {
        let message = access::target(app, vm.replica.place(), vm.replica.log.as_ref()).await?;
        self.base.renew(&message);
        if let (Some(log), Some(message)) = (&self.log, message.log.as_deref()) {
            log.renew(message);
        }
        Ok(())
    }

    /// The replica's store.
    pub(super) fn store(&self) -> StoreTarget {
        let base = StoreTarget::Azure(self.base.target());
        match &self.log {
            None => base,
            Some(log) => base.with_log(StoreTarget::Azure(log.target())),
        }
    }

    /// Opens the replica with the keys that its journal may need.
    pub(super) async fn reader(&self, app: &App, vm: &AzureVm) -> Result<ReplicaReader, Trouble> {
        let keys = keys(app, vm, false).await?;
        Ok(ReplicaReader::open_with_keys(&self.store(), &replica_key(vm)?, keys).await?)
    }
}

/// Names the replica.
pub(super) fn replica_key(vm: &AzureVm) -> Result<ReplicaKey, Trouble> {
    Ok(ReplicaKey::new(&vm.replica.vault_key, &vm.replica.item_id)?)
}

/// The vault's keys. Who writes encrypts, if the policy says so.
pub(super) async fn keys(app: &App, vm: &AzureVm, writes: bool) -> Result<KeyRing, Trouble> {
    let mut ring = KeyRing::new();
    let item = records::get::<Item>(app.store.as_ref(), &vm.item).await?;
    let Some(vault) = item.as_ref().and_then(|item| vault_of(&item.record)) else {
        return Ok(ring);
    };
    let unreadable = |why: String| {
        Trouble::lasting(
            "EncryptionKeyMissing",
            format!("the vault's keys can't be used: {why}"),
            "Restore the orchestrator's data folder with the vault's keys.",
        )
    };
    let policy = match &item {
        Some(item) => policy(app, &item.record).await?,
        None => None,
    };
    let encrypts = policy.is_some_and(|policy| vault_keys::encrypts(&policy));
    let stored = vault_keys::load(app, &vault).await?;
    if writes && encrypts && stored.keys.is_empty() {
        return Err(unreadable("there are none".to_owned()));
    }
    let encryption = vault_keys::for_engine(app, &vault, &stored, writes && encrypts)
        .map_err(|error| unreadable(error.to_string()))?;
    for key in &encryption.keys {
        let id: Uuid = key
            .id
            .parse()
            .map_err(|_| unreadable("an id is no GUID".to_owned()))?;
        ring.insert(id, &key.key)
            .map_err(|error| unreadable(error.to_string()))?;
    }
    let active = encryption.active_key_id.parse().ok();
    ring.activate(active)
        .map_err(|error| unreadable(error.to_string()))?;
    Ok(ring)
}

/// The policy of an item.
pub(super) async fn policy(app: &App, item: &Item) -> Result<Option<Policy>, Trouble> {
    let key = item.policy_id.to_ascii_lowercase();
    let policy = records::get::<Policy>(app.store.as_ref(), &key).await?;
    Ok(policy.map(|policy| policy.record))
}

/// The folder of a VM's page blobs.
pub(super) fn folder(vm: &AzureVm) -> String {
    format!(
        "recovered/{}/{}/{}/",
        vm.replica.vault_key, vm.replica.item_id, vm.id
    )
}

/// Removes the page blobs of a VM, and only those; may be repeated.
pub(super) async fn remove(reach: &Reach, vm: &AzureVm) -> Result<(), Trouble> {
    let container = reach.base.container()?;
    let listed = match container.list(&folder(vm), false).await {
        Ok(listed) => listed,
        // The container is gone, and with it everything in it.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for blob in listed {
        container.delete(&blob.name, Condition::None).await?;
    }
    Ok(())
}

/// Lets go of the point; a replica that is gone holds none.
pub(super) async fn let_point_go(app: &App, reach: &Reach, vm: &AzureVm) -> Result<(), Trouble> {
    let key = replica_key(vm)?;
    let reader = match ReplicaReader::open_with_keys(
        &reach.store(),
        &key,
        keys(app, vm, false).await?,
    )
    .await
    {
        Ok(reader) => reader,
        Err(error) if error.kind() == replica_store::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    Ok(reader.unpin(&vm.owner()).await?)
}

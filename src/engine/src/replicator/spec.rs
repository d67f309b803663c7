//! What shall be replicated where, checked once at the edge.

use std::path::PathBuf;

use engine_protocol::v1;
use hypervisor::{DiskId, VmId};
use replica_store::{Generation, ReplicaKey, StoreTarget};
use uuid::Uuid;

pub use super::policy::{Policy, Seed};
use crate::stores;

/// One item to replicate. Everything but the policy is fixed for a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The protected item.
    pub item_id: String,
    /// Its replica.
    pub key: ReplicaKey,
    /// Fencing generation.
    pub generation: Generation,
    /// Source VM.
    pub vm: VmId,
    /// Its name, for people.
    pub vm_name: String,
    /// Disks to replicate.
    pub disks: Vec<DiskId>,
    /// Where the replica is kept.
    pub store: StoreTarget,
    /// The same as a path, for messages.
    pub store_folder: PathBuf,
}

/// What the orchestrator wants of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Replicate.
    Active(Box<Policy>),
    /// Stop, leave nothing on the host.
    Retired {
        /// And delete the replica.
        delete_replica: bool,
    },
}

impl Spec {
    /// Reads a message; the error is for a finding.
    pub fn read(message: &v1::Replication) -> Result<(Self, Wish), String> {
        Ok((Self::place(message)?, Wish::read(message)?))
    }

    /// Which VM and which replica a message is about, whatever it wants of them; the error is for a finding.
    pub fn place(message: &v1::Replication) -> Result<Self, String> {
        let (store, store_folder) = stores::target(message.store.as_ref())?;
        let key = ReplicaKey::new(&message.vault_key, &message.item_id)
            .map_err(|error| error.to_string())?;
        let vm = guid("virtual machine", &message.vm_id)?;
        let disks = message
            .disk_ids
            .iter()
            .map(|id| guid("disk", id).map(DiskId))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            item_id: message.item_id.clone(),
            key,
            generation: Generation(message.generation),
            vm: VmId(vm),
            vm_name: message.vm_name.clone(),
            disks,
            store,
            store_folder,
        })
    }
}

impl Wish {
    /// Reads a message; the error is for a finding.
    pub fn read(message: &v1::Replication) -> Result<Self, String> {
        match message.phase() {
            v1::replication::Phase::Active => {
                if message.disk_ids.is_empty() {
                    return Err("no disk to replicate".to_owned());
                }
                Ok(Self::Active(Box::new(Policy::read(message)?)))
            }
            v1::replication::Phase::Retired => Ok(Self::Retired {
                delete_replica: message.delete_replica,
            }),
            v1::replication::Phase::Unspecified => {
                Err("a phase that this engine does not know".to_owned())
            }
        }
    }
}

/// Reads a GUID of a message.
pub(super) fn guid(what: &str, text: &str) -> Result<Uuid, String> {
    text.parse()
        .map_err(|_| format!("{what} id {text:?} is not a GUID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> v1::Replication {
        v1::Replication {
            item_id: Uuid::from_u128(1).to_string(),
            vault_key: "vault-00000000".to_owned(),
            generation: 3,
            vm_id: Uuid::from_u128(2).to_string(),
            disk_ids: vec![Uuid::from_u128(3).to_string()],
            store: Some(v1::StoreTarget {
                kind: Some(v1::store_target::Kind::Folder("/srv/store".to_owned())),
                ..v1::StoreTarget::default()
            }),
            policy: Some(v1::Policy {
                replication_interval_seconds: 30,
                retention_hours: 2,
                ..v1::Policy::default()
            }),
            phase: v1::replication::Phase::Active.into(),
            vm_name: "web01".to_owned(),
            ..v1::Replication::default()
        }
    }

    #[test]
    fn a_good_message_is_read_whole() {
        let (spec, wish) = Spec::read(&message()).unwrap();
        assert_eq!(spec.disks, [DiskId(Uuid::from_u128(3))]);
        let Wish::Active(policy) = wish else {
            panic!("{wish:?}")
        };
        assert_eq!((policy.interval.as_secs(), policy.retention.hours), (30, 2));
    }

    #[test]
    fn nothing_in_a_message_can_name_a_file_outside_the_store() {
        for key in ["..", "../x", "a/b", "", ".hidden"] {
            assert!(
                Spec::read(&v1::Replication {
                    vault_key: key.to_owned(),
                    ..message()
                })
                .is_err(),
                "{key:?}"
            );
            assert!(
                Spec::read(&v1::Replication {
                    item_id: key.to_owned(),
                    ..message()
                })
                .is_err(),
                "{key:?}"
            );
        }
        let foreign = v1::StoreTarget::default();
        assert!(
            Spec::read(&v1::Replication {
                store: Some(foreign),
                ..message()
            })
            .is_err()
        );
        let relative = v1::StoreTarget {
            kind: Some(v1::store_target::Kind::Folder("store".to_owned())),
            ..v1::StoreTarget::default()
        };
        assert!(
            Spec::read(&v1::Replication {
                store: Some(relative),
                ..message()
            })
            .is_err()
        );
        assert!(
            Spec::read(&v1::Replication {
                store: None,
                ..message()
            })
            .is_err()
        );
        assert!(
            Spec::read(&v1::Replication {
                vm_id: "x".to_owned(),
                ..message()
            })
            .is_err()
        );
    }

    #[test]
    fn a_newer_credential_is_the_same_specification_and_reaches_whoever_uses_the_older_one() {
        let azure = |sas: &str, expires| v1::Replication {
            store: Some(v1::StoreTarget {
                kind: Some(v1::store_target::Kind::Azure(v1::AzureStorage {
                    blob_endpoint: "https://account.blob.example".to_owned(),
                    container: "replicas".to_owned(),
                    credential: Some(v1::AzureCredential {
                        kind: Some(v1::azure_credential::Kind::Sas(sas.to_owned())),
                        expires_unix_ms: expires,
                    }),
                    ..v1::AzureStorage::default()
                })),
                ..v1::StoreTarget::default()
            }),
            ..message()
        };
        let (before, _) = Spec::read(&azure("sig=one", 1)).unwrap();
        let (after, _) = Spec::read(&azure("sig=two", 2)).unwrap();
        assert_eq!(before, after);
        let StoreTarget::Azure(target) = &before.store else {
            panic!("{before:?}")
        };
        assert_eq!(target.credential().expires_unix_ms(), 2);
        assert!(!format!("{before:?}").contains("sig="));
    }

    #[test]
    fn keys_never_show_in_what_is_printed_and_a_wrong_one_is_told_without_its_bytes() {
        let key = |bytes: Vec<u8>| v1::Replication {
            encryption: Some(v1::Encryption {
                keys: vec![v1::EncryptionKey {
                    id: Uuid::from_u128(5).to_string(),
                    key: bytes,
                }],
                active_key_id: Uuid::from_u128(5).to_string(),
            }),
            ..message()
        };
        let (_, wish) = Spec::read(&key(vec![0xab; 32])).unwrap();
        assert!(!format!("{wish:?}").contains("171"), "{wish:?}");
        let problem = Spec::read(&key(vec![0xab; 31])).unwrap_err();
        assert!(
            problem.contains("31") && !problem.contains("171"),
            "{problem}"
        );
    }
}

//! `Debug` of the messages that hold secrets: everything but the secret.

use std::fmt::{self, Debug, Formatter};

use crate::v1::{AzureCredential, EncryptionKey, EnrolRequest, azure_credential::Kind};

const HIDDEN: &str = "<hidden>";

impl Debug for AzureCredential {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Some(Kind::Sas(_)) => "shared access signature",
            Some(Kind::BearerToken(_)) => "bearer token",
            None => "none",
        };
        f.debug_struct("AzureCredential")
            .field("kind", &kind)
            .field("expires_unix_ms", &self.expires_unix_ms)
            .finish_non_exhaustive()
    }
}

impl Debug for EncryptionKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptionKey")
            .field("id", &self.id)
            .field("key", &HIDDEN)
            .finish()
    }
}

impl Debug for EnrolRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolRequest")
            .field("engine_id", &self.engine_id)
            .field("secret", &HIDDEN)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::v1::{
        AzureCredential, AzureStorage, DesiredState, Encryption, EncryptionKey, EnrolRequest,
        Replication, StoreTarget, azure_credential::Kind, store_target,
    };

    #[test]
    fn no_secret_is_in_the_debug_text_of_a_message() {
        let store = |kind| StoreTarget {
            kind: Some(store_target::Kind::Azure(AzureStorage {
                credential: Some(AzureCredential {
                    kind: Some(kind),
                    expires_unix_ms: 1,
                }),
                ..AzureStorage::default()
            })),
            log: None,
        };
        let replication = |kind: Kind| Replication {
            store: Some(StoreTarget {
                log: Some(Box::new(store(kind.clone()))),
                ..store(kind)
            }),
            encryption: Some(Encryption {
                keys: vec![EncryptionKey {
                    id: "shown".to_owned(),
                    key: vec![201; 32],
                }],
                active_key_id: "shown".to_owned(),
            }),
            ..Replication::default()
        };
        let state = DesiredState {
            replications: vec![
                replication(Kind::Sas("sig=geheim".to_owned())),
                replication(Kind::BearerToken("geheim".to_owned())),
            ],
            ..DesiredState::default()
        };
        let enrol = EnrolRequest {
            secret: "geheim".to_owned(),
            engine_id: "shown".to_owned(),
            ..EnrolRequest::default()
        };
        for text in [format!("{state:?}"), format!("{enrol:?}")] {
            assert!(text.contains("shown"), "{text}");
            assert!(!text.contains("geheim") && !text.contains("201"), "{text}");
        }
    }
}

//! The vault's key.

use engine_protocol::v1;
use replication_log::KeyRing;
use uuid::Uuid;

const KEY: Uuid = Uuid::from_u128(0x6b);

/// What new objects are encrypted with.
pub fn encryption() -> v1::Encryption {
    v1::Encryption {
        keys: vec![v1::EncryptionKey {
            id: KEY.to_string(),
            key: vec![9; 32],
        }],
        active_key_id: KEY.to_string(),
    }
}

pub fn keys() -> KeyRing {
    let mut keys = KeyRing::new();
    keys.insert(KEY, &[9; 32]).unwrap();
    keys
}

//! The reading side of a frozen disk in memory.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use hypervisor::{ErrorKind, FrozenReader, HypervisorError};

use super::Inner;

pub struct Reader {
    pub inner: Arc<Mutex<Inner>>,
    pub data: Arc<Vec<u8>>,
}

#[async_trait]
impl FrozenReader for Reader {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        tokio::task::yield_now().await;
        let mut inner = self.inner.lock().unwrap();
        if inner.fail_reads {
            return Err(HypervisorError::new(ErrorKind::Io, "read of a frozen disk"));
        }
        assert!(inner.frozen, "read of a point that was given back");
        inner.read_bytes += length as u64;
        // The guest does not stop for us.
        if inner.running {
            inner.guest_writes();
        }
        Ok(Bytes::copy_from_slice(
            &self.data[offset as usize..offset as usize + length],
        ))
    }
}

//! The host that this process runs on: WMI through COM, and virtdisk.dll. The only code of the driver that calls foreign
//! functions; it decides nothing.

mod library;
#[cfg(test)]
mod tests;
mod variant;
mod virtdisk;
mod wmi;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::host::{Host, HostError, Instance, OpenDisk, VIRTUALIZATION, Value};
use wmi::{Events, Namespace};

/// What tells that VMs or their settings were made, changed, moved here or away, or removed.
const CHANGES: &str = "SELECT * FROM __InstanceOperationEvent WITHIN 2 WHERE TargetInstance ISA 'Msvm_ComputerSystem' \
                       OR TargetInstance ISA 'Msvm_VirtualSystemSettingData'";

/// See the head of this file.
pub(super) struct LocalHost {
    virtualization: Namespace,
    others: Mutex<HashMap<String, Namespace>>,
    /// Kept from the first wait on, so that nothing is missed between two.
    events: Mutex<Option<Events>>,
}

impl LocalHost {
    /// Fails with `NO_NAMESPACE` without the Hyper-V role.
    pub fn connect() -> Result<Self, HostError> {
        Ok(Self {
            virtualization: Namespace::connect(VIRTUALIZATION)?,
            others: Mutex::default(),
            events: Mutex::default(),
        })
    }
}

impl Host for LocalHost {
    fn instances(&self, namespace: &str, class: &str) -> Result<Vec<Instance>, HostError> {
        let query = format!("SELECT * FROM {class}");
        if namespace == VIRTUALIZATION {
            return self.virtualization.query(&query);
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match others.entry(namespace.to_owned()) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(Namespace::connect(namespace)?)
            }
        };
        known.query(&query)
    }

    fn associated(&self, path: &str, result: &str) -> Result<Vec<Instance>, HostError> {
        // The query has no placeholders; braces and paths of WMI's own making go together.
        let query = format!("ASSOCIATORS OF {{{path}}} WHERE ResultClass = {result}");
        self.virtualization.query(&query)
    }

    fn object(&self, path: &str) -> Result<Instance, HostError> {
        self.virtualization.object(path)
    }

    fn call(
        &self,
        path: &str,
        method: &str,
        arguments: Vec<(&'static str, Value)>,
    ) -> Result<Instance, HostError> {
        self.virtualization.call(path, method, &arguments)
    }

    fn open_disk(&self, file: &Path) -> Result<Box<dyn OpenDisk>, HostError> {
        Ok(Box::new(virtdisk::Disk::open(file)?))
    }

    fn enable_tracking(&self, file: &Path) -> Result<(), HostError> {
        virtdisk::enable_tracking(file)
    }

    fn wait_for_change(&self, patience: Duration) -> Result<bool, HostError> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match &*events {
            Some(known) => known,
            None => events.insert(self.virtualization.notifications(CHANGES)?),
        };
        match known.wait(patience) {
            Ok(told) => Ok(told),
            Err(error) => {
                // A subscription that broke is made anew; what happened meanwhile nobody knows.
                *events = None;
                Err(error)
            }
        }
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

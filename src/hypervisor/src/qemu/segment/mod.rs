//! Private segments: networks that exist between VMs of this host and nowhere else.
//!
//! A segment is a GUID; adapters with the same one, of VMs in folders side by side, reach one another. It needs neither root nor
//! a bridge: QEMU's `dgram` back end sends frames to a socket of this process, which repeats them ([`hub`]). VMs of two
//! drills have two GUIDs, so two sockets, and there is no way from one to the other or to a network of the host.

mod frame;
mod hub;
mod knock;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use self::frame::Mac;
use self::hub::{Hub, Port, Segment};
use super::FoundVm;
use super::folder::VmFolder;
use crate::{ErrorKind, HypervisorError, PortAnswer, VmId};

/// Folder beside those of the VMs.
const FOLDER: &str = "segments";

/// The segments that this process repeats.
#[derive(Debug, Default)]
pub(super) struct Segments {
    open: Mutex<HashMap<PathBuf, Segment>>,
}

/// The socket of a segment, for a VM of this folder. It is as long as a VM folder named by a GUID.
pub(super) fn socket(folder: &VmFolder, segment: Uuid) -> PathBuf {
    let parent = folder.path().parent().unwrap_or(folder.path());
    parent
        .join(FOLDER)
        .join(format!("{}.sock", segment.simple()))
}

impl Segments {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Segment>> {
        // A segment is opened before it is put in.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects the adapters of a VM; those that are connected stay so.
    ///
    /// # Errors
    /// When a segment's socket can't be made; [`ErrorKind::Busy`] while another process has the segment.
    pub(super) fn attach(&self, found: &FoundVm) -> Result<(), HypervisorError> {
        for (index, network) in found.config.networks.iter().enumerate() {
            let Some(segment) = network.segment else {
                continue;
            };
            let path = socket(&found.folder, segment);
            self.join(found, index, path.clone()).map_err(|error| {
                let step = format!(
                    "connect adapter {index} of vm {} to {}",
                    found.config.name,
                    path.display()
                );
                if error.kind() == io::ErrorKind::AddrInUse {
                    let text = format!(
                        "{step}: a running engine serves this private network, and it is not taken from it: let that engine start the vm, or stop that engine first"
                    );
                    return HypervisorError::new(ErrorKind::Busy, text);
                }
                HypervisorError::with_source(ErrorKind::Io, step, error)
            })?;
        }
        Ok(())
    }

    fn join(&self, found: &FoundVm, index: usize, path: PathBuf) -> io::Result<()> {
        let mac = Mac::parse(&found.config.mac(index)).ok_or(io::ErrorKind::InvalidInput)?;
        let mut open = self.lock();
        let known = open.get(&path).filter(|segment| segment.is_open());
        let hub = match known {
            Some(segment) => segment.hub().clone(),
            None => {
                let segment = Segment::open(&path)?;
                let hub = segment.hub().clone();
                // Others that were connected before it had to be opened anew.
                if let Some(before) = open.get(&path) {
                    for port in before.hub().ports() {
                        hub.add(port.vm, port.socket, port.mac);
                    }
                }
                open.insert(path, segment);
                hub
            }
        };
        // Still locked: a segment without ports ends as soon as any VM leaves.
        hub.add(found.id(), found.folder.adapter_socket(index), mac);
        drop(open);
        Ok(())
    }

    /// Takes a VM's adapters away; a segment without any ends.
    pub(super) fn detach(&self, vm: VmId) {
        self.lock().retain(|_, segment| segment.hub().remove(vm));
    }

    fn ports(&self, vm: VmId) -> Vec<(Arc<Hub>, Port)> {
        let open = self.lock();
        let all = open.values().flat_map(|segment| {
            let hub = segment.hub();
            let ports = hub.ports().into_iter();
            ports.map(move |port| (hub.clone(), port))
        });
        all.filter(|(_, port)| port.vm == vm).collect()
    }

    /// Asks for a port at all addresses of a VM, those that were used last first. `more`: what else the guest is known to
    /// have, by card.
    pub(super) async fn ask(
        &self,
        vm: VmId,
        port: u16,
        more: &[(String, std::net::Ipv4Addr)],
    ) -> PortAnswer {
        let mut answer = PortAnswer::NotConnected;
        for (hub, adapter) in self.ports(vm) {
            let mut addresses = adapter.addresses.clone();
            for (mac, address) in more {
                if Mac::parse(mac) == Some(adapter.mac) && !addresses.contains(address) {
                    addresses.insert(0, *address);
                }
            }
            answer = answer.or(PortAnswer::NoAddress);
            for address in addresses.into_iter().rev() {
                answer = answer.or(knock::knock(&hub, &adapter, address, port).await);
                if answer == PortAnswer::Open {
                    return answer;
                }
            }
        }
        answer
    }

    /// Whether nothing is known of a VM's addresses though it is connected.
    pub(super) fn is_quiet(&self, vm: VmId) -> bool {
        let ports = self.ports(vm);
        !ports.is_empty() && ports.iter().all(|(_, port)| port.addresses.is_empty())
    }
}

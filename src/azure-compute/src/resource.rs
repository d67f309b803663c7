//! The kinds of resources that are made, in the order in which they are.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::Place;

/// Kind of a resource. A later one needs earlier ones, so this is the order of making, and backwards the order of removing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `Microsoft.Network/networkSecurityGroups`
    SecurityGroup,
    /// `Microsoft.Network/virtualNetworks`
    Network,
    /// `Microsoft.Network/publicIPAddresses`
    PublicAddress,
    /// `Microsoft.Compute/disks`
    Disk,
    /// `Microsoft.Network/networkInterfaces`
    Nic,
    /// `Microsoft.Compute/virtualMachines`
    Vm,
    /// `Microsoft.Compute/snapshots`: of a disk that is on its way back; never part of a plan.
    Snapshot,
}

impl Kind {
    /// All kinds that a VM is made of, in the order of making.
    pub const ALL: [Kind; 6] = [
        Kind::SecurityGroup,
        Kind::Network,
        Kind::PublicAddress,
        Kind::Disk,
        Kind::Nic,
        Kind::Vm,
    ];

    /// Provider and type, as ids have them.
    pub fn arm_type(self) -> &'static str {
        match self {
            Kind::SecurityGroup => "Microsoft.Network/networkSecurityGroups",
            Kind::Network => "Microsoft.Network/virtualNetworks",
            Kind::PublicAddress => "Microsoft.Network/publicIPAddresses",
            Kind::Disk => "Microsoft.Compute/disks",
            Kind::Nic => "Microsoft.Network/networkInterfaces",
            Kind::Vm => "Microsoft.Compute/virtualMachines",
            Kind::Snapshot => "Microsoft.Compute/snapshots",
        }
    }

    /// Version of the API that is spoken with it. Compute versions its types one by one.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Disk | Kind::Snapshot => "2023-10-02",
            Kind::Vm => "2024-03-01",
            _ => "2023-09-01",
        }
    }

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Kind::SecurityGroup => "security group",
            Kind::Network => "network",
            Kind::PublicAddress => "public address",
            Kind::Disk => "disk",
            Kind::Nic => "NIC",
            Kind::Vm => "VM",
            Kind::Snapshot => "snapshot",
        }
    }

    /// ARM id of one of this kind.
    pub fn id_of(self, place: &Place, name: &str) -> String {
        format!(
            "{}/providers/{}/{name}",
            place.group_path(),
            self.arm_type()
        )
    }

    /// Path of all of this kind in the group.
    pub(crate) fn list_path(self, place: &Place) -> String {
        format!(
            "{}/providers/{}?api-version={}",
            place.group_path(),
            self.arm_type(),
            self.api_version()
        )
    }
}

/// One resource that is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: String,
    /// ARM id.
    pub id: String,
    /// Recovery id that it carries.
    pub owner: String,
    /// Body, with tags.
    pub body: Value,
    /// Of a NIC: the body that is sent when its address was taken in the meantime and another will do.
    pub with_any_address: Option<Value>,
}

impl Planned {
    /// For people: kind and name.
    pub fn about(&self) -> String {
        format!("{} {}", self.kind.word(), self.name)
    }

    pub(crate) fn path(&self) -> String {
        path_of(self.kind, &self.id)
    }
}

pub(crate) fn path_of(kind: Kind, id: &str) -> String {
    format!("{id}?api-version={}", kind.api_version())
}

/// Whether a text is an ARM id of this type.
pub(crate) fn is_id_of(id: &str, arm_type: &str) -> bool {
    let lower = id.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split('/').collect();
    let plain = |text: &str| !text.contains(['?', '#', '%', ' ', '\\']) && text != "..";
    let of_type = arm_type.to_ascii_lowercase();
    matches!(parts.as_slice(),
        ["", "subscriptions", s, "resourcegroups", g, "providers", provider, kind, name]
            if !s.is_empty() && !g.is_empty() && !name.is_empty()
                && format!("{provider}/{kind}") == of_type)
        && parts.iter().all(|p| plain(p))
}

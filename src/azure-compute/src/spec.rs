//! What a recovered VM shall be, in Site Recovery's words. Everything here comes from the protected item's settings and the source's inventory.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Subscription, resource group and region that the VM is made in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Subscription id.
    pub subscription_id: String,
    /// Name of the resource group; it must exist.
    pub resource_group: String,
    /// Region, such as `westeurope`.
    pub location: String,
}

impl Place {
    /// Path of the resource group.
    pub fn group_path(&self) -> String {
        format!(
            "/subscriptions/{}/resourceGroups/{}",
            self.subscription_id, self.resource_group
        )
    }
}

/// Guest's operating system, which Azure wants to know of an OS disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsType {
    /// Windows.
    Windows,
    /// Linux.
    Linux,
}

impl OsType {
    /// ARM's word.
    pub fn word(self) -> &'static str {
        match self {
            OsType::Windows => "Windows",
            OsType::Linux => "Linux",
        }
    }
}

/// Generation of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Generation {
    /// BIOS.
    V1,
    /// UEFI.
    V2,
}

impl Generation {
    /// ARM's word.
    pub fn word(self) -> &'static str {
        match self {
            Generation::V1 => "V1",
            Generation::V2 => "V2",
        }
    }
}

/// Type of a managed disk: Site Recovery's `DiskAccountType`, ARM's `sku.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(non_camel_case_types, reason = "ARM's words, as they stand in bodies")]
pub enum DiskType {
    /// Standard HDD.
    Standard_LRS,
    /// Standard SSD.
    StandardSSD_LRS,
    /// Premium SSD.
    Premium_LRS,
    /// Standard SSD, in every zone of the region.
    StandardSSD_ZRS,
    /// Premium SSD, in every zone of the region.
    Premium_ZRS,
    /// Premium SSD v2.
    PremiumV2_LRS,
    /// Ultra disk.
    UltraSSD_LRS,
}

impl DiskType {
    /// ARM's word.
    pub fn word(self) -> &'static str {
        match self {
            DiskType::Standard_LRS => "Standard_LRS",
            DiskType::StandardSSD_LRS => "StandardSSD_LRS",
            DiskType::Premium_LRS => "Premium_LRS",
            DiskType::StandardSSD_ZRS => "StandardSSD_ZRS",
            DiskType::Premium_ZRS => "Premium_ZRS",
            DiskType::PremiumV2_LRS => "PremiumV2_LRS",
            DiskType::UltraSSD_LRS => "UltraSSD_LRS",
        }
    }

    /// Whether the VM's size must support premium storage.
    pub fn is_premium(self) -> bool {
        !matches!(
            self,
            DiskType::Standard_LRS | DiskType::StandardSSD_LRS | DiskType::StandardSSD_ZRS
        )
    }

    /// Whether it lies in all zones.
    pub fn is_zone_redundant(self) -> bool {
        matches!(self, DiskType::StandardSSD_ZRS | DiskType::Premium_ZRS)
    }

    /// Whether a disk of this type can be made from a VHD blob and hold an operating system.
    pub fn is_made_by_import(self) -> bool {
        !matches!(self, DiskType::PremiumV2_LRS | DiskType::UltraSSD_LRS)
    }
}

/// One disk of the recovery point, materialised as a fixed VHD in a page blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The source's id of the disk (`diskId`, `vhdId`).
    pub id: String,
    /// The source's name of the disk (`vhdName`).
    pub name: String,
    /// Whether the operating system starts from it.
    pub is_os: bool,
    /// Its virtual size in bytes, without the VHD's footer.
    pub bytes: u64,
    /// Address of the page blob, without a signature.
    pub blob_uri: String,
    /// ARM id of the account that holds the blob.
    pub storage_account_id: String,
    /// Wished name (`targetDiskName`).
    pub target_name: Option<String>,
    /// Type of the managed disk.
    pub disk_type: DiskType,
    /// Wished size in GiB when it shall be larger than the source's.
    pub size_gib: Option<u32>,
    /// Key set that the managed disk is encrypted with (`diskEncryptionSetId`).
    pub encryption_set_id: Option<String>,
    /// Wished unit number (`lunId`) of a data disk.
    pub lun: Option<u32>,
}

/// Whether a NIC is made at the target (`selectionType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selection {
    /// Not made.
    NotSelected,
    /// Made, because it was there when protection began.
    SelectedByDefault,
    /// Made, because somebody said so.
    SelectedByUser,
}

/// Which address a NIC gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Address {
    /// The next free one, given by Azure.
    Dynamic,
    /// The source's, when it lies in the subnet and is free; else the next free one.
    Keep(Ipv4Addr),
    /// This one (`replicaNicStaticIPAddress`). A failover fails when it is taken; a drill takes another free one.
    Exactly(Ipv4Addr),
}

/// Public address of a NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PublicAddress {
    /// None.
    None,
    /// A new static one, which goes with the VM.
    New,
    /// One that exists and stays (`recoveryPublicIPAddressId`).
    Existing(String),
}

/// One NIC of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// The source's id of the NIC.
    pub id: String,
    /// Whether it is made.
    pub selection: Selection,
    /// Name of the source's subnet, when known.
    pub source_subnet: Option<String>,
    /// Wished subnet (`recoveryVMSubnetName`, in a drill `tfoSubnetName`).
    pub subnet: Option<String>,
    /// Its address.
    pub address: Address,
    /// Its public address.
    pub public_address: PublicAddress,
    /// Wished name (`targetNicName`).
    pub target_name: Option<String>,
    /// Security group (`recoveryNetworkSecurityGroupId`).
    pub security_group_id: Option<String>,
    /// `enableAcceleratedNetworkingOnRecovery`; left off, with a warning, when the size can't.
    pub accelerated: bool,
}

/// A subnet of an isolated network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec {
    /// Name, the same as in production.
    pub name: String,
    /// Addresses, such as `10.1.0.0/24`, the same as in production.
    pub prefix: String,
}

/// Where NICs are connected. All NICs of a VM are in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// A network that exists: the mapped one, or the one chosen for a drill.
    Existing {
        /// Its ARM id.
        id: String,
        /// Whether it is the production network: a drill in it is warned of.
        production: bool,
    },
    /// A network of its own, connected to nothing, without access to and from the internet. VMs of one drill share it.
    Isolated {
        /// Its name.
        name: String,
        /// Who owns it, as a recovery id: the drill. [`crate::Target::remove`] with this id takes it away.
        owner: String,
        /// Its subnets.
        subnets: Vec<SubnetSpec>,
    },
}

/// Where in the region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// Anywhere.
    Region,
    /// In an availability set, by ARM id.
    AvailabilitySet(String),
    /// In a zone, such as `1`.
    Zone(String),
}

/// Licence that is brought along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Licence {
    /// None.
    None,
    /// Windows Server with Azure Hybrid Benefit.
    WindowsServer,
    /// Red Hat Enterprise Linux.
    RhelByos,
    /// SUSE Linux Enterprise Server.
    SlesByos,
}

impl Licence {
    /// From Site Recovery's `licenseType` and `linuxLicenseType`; which Linux it is, the name of the system tells.
    pub fn from_site_recovery(
        licence: &str,
        linux_licence: &str,
        os_name: &str,
    ) -> Result<Licence, String> {
        let os = os_name.to_ascii_lowercase();
        match (licence, linux_licence) {
            ("WindowsServer", _) => Ok(Licence::WindowsServer),
            (_, "LinuxServer") if os.contains("suse") || os.contains("sles") => {
                Ok(Licence::SlesByos)
            }
            (_, "LinuxServer") if os.contains("red hat") || os.contains("rhel") => {
                Ok(Licence::RhelByos)
            }
            (_, "LinuxServer") => Err(format!(
                "a Linux licence is brought along for Red Hat and SUSE only, and the system is `{os_name}`"
            )),
            ("" | "NotSpecified" | "NoLicenseType", "" | "NotSpecified" | "NoLicenseType") => {
                Ok(Licence::None)
            }
            (other, _) => Err(format!("`{other}` is no licence type")),
        }
    }

    pub(crate) fn word(self) -> Option<&'static str> {
        match self {
            Licence::None => None,
            Licence::WindowsServer => Some("Windows_Server"),
            Licence::RhelByos => Some("RHEL_BYOS"),
            Licence::SlesByos => Some("SLES_BYOS"),
        }
    }
}

/// Tags that users want.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WishedTags {
    /// On the VM (`targetVmTags`).
    pub vm: BTreeMap<String, String>,
    /// On NICs and public addresses (`targetNicTags`).
    pub nics: BTreeMap<String, String>,
    /// On managed disks (`targetManagedDiskTags`).
    pub disks: BTreeMap<String, String>,
}

/// A VM that shall be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetSpec {
    /// Names this one recovery: everything made carries it, nothing without it is touched. A new drill or failover has a new one.
    pub recovery_id: String,
    /// Where.
    pub place: Place,
    /// Wished name of the VM (`targetAzureVmName`), without a drill's suffix.
    pub vm_name: String,
    /// Whether this is a drill.
    pub drill: bool,
    /// Processors of the source.
    pub cores: u32,
    /// Memory of the source in MiB.
    pub memory_mib: u64,
    /// Generation of the disks as they are in the blobs.
    pub generation: Generation,
    /// Guest.
    pub os: OsType,
    /// Wished size (`targetVmSize`); without one the smallest that fits is taken.
    pub size: Option<String>,
    /// Disks; exactly one holds the operating system.
    pub disks: Vec<DiskSpec>,
    /// Managed disks, or the page blobs as they are (`useManagedDisks`).
    pub managed_disks: bool,
    /// Network.
    pub network: Network,
    /// NICs of the source, in its order.
    pub nics: Vec<NicSpec>,
    /// The source's NIC that becomes the primary one (`selectedSourceNicId`); the first that is made without it.
    pub primary_nic: Option<String>,
    /// Placement.
    pub placement: Placement,
    /// `targetProximityPlacementGroupId`.
    pub proximity_group_id: Option<String>,
    /// `targetCapacityReservationGroupId`.
    pub capacity_group_id: Option<String>,
    /// Licence.
    pub licence: Licence,
    /// Tags.
    pub tags: WishedTags,
}

//! What the checks go by. Everything may be unknown: an empty text, a zero, an absent look.

/// Whether something is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Presence {
    /// The host can't tell.
    #[default]
    Unknown,
    /// It is not.
    NotPresent,
    /// It is.
    Present,
}

impl Presence {
    /// Text in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::NotPresent => "NotPresent",
            Self::Present => "Present",
        }
    }

    pub(super) fn is_present(self) -> bool {
        self == Self::Present
    }
}

/// A VM as its host knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Name on the host.
    pub name: String,
    /// 1 or 2; 0 when unknown.
    pub generation: u32,
    /// "Windows" or "Linux"; empty when unknown.
    pub os_type: String,
    /// Such as "Windows Server 2022 Datacenter"; empty when unknown.
    pub os_name: String,
    /// Of the guest: "`x86_64`", "x86", "aarch64"; empty when unknown.
    pub architecture: String,
    /// Whether the firmware starts signed code only.
    pub secure_boot: Presence,
    /// A virtual TPM.
    pub virtual_tpm: Presence,
    /// A virtual Fibre Channel adapter.
    pub fibre_channel: Presence,
    /// Checkpoints of the VM.
    pub checkpoints: Presence,
    /// Network adapters; none when unknown.
    pub adapters: Option<usize>,
    /// All disks, the one with the operating system first.
    pub disks: Vec<DiskFacts>,
}

/// A disk of the VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFacts {
    /// Empty when it has none, as a pass-through disk.
    pub id: String,
    /// File name.
    pub name: String,
    /// Virtual size in bytes; 0 when unknown.
    pub size_bytes: u64,
    /// Whether the VM boots from it.
    pub operating_system: bool,
    /// 0 when unknown.
    pub logical_sector_bytes: u32,
    /// Another VM has it, too.
    pub shared: Presence,
    /// It is a disk of the host.
    pub pass_through: Presence,
    /// Disks with the same text lie on one volume of the host; empty when unknown.
    pub volume: String,
    /// Free bytes of that volume.
    pub volume_free_bytes: Option<u64>,
    /// What its first sectors say.
    pub look: Option<Look>,
}

/// Kind of a partition table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Table {
    /// None: empty, or a file system on the whole disk.
    #[default]
    None,
    /// Master boot record.
    Mbr,
    /// GUID partition table.
    Gpt,
    /// It contradicts itself or the disk.
    Damaged,
}

/// Whose traces lie on a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Guest {
    /// Nobody's, or several's.
    #[default]
    Unknown,
    /// Linux's.
    Linux,
    /// Windows'.
    Windows,
}

impl Guest {
    /// Text in the API; empty when unknown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Linux => "Linux",
            Self::Windows => "Windows",
        }
    }
}

/// What the first sectors of a disk say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Kind of the partition table.
    pub table: Table,
    /// How many partitions it lists.
    pub partitions: u32,
    /// Of Windows' Logical Disk Manager.
    pub dynamic_disk: bool,
    /// One of the partitions is a BitLocker volume.
    pub bitlocker: bool,
    /// One of them is a LUKS container.
    pub luks: bool,
    /// One of them is a physical volume of LVM.
    pub lvm: bool,
    /// There is an EFI system partition.
    pub efi_system_partition: bool,
    /// Whose traces lie on it.
    pub guest: Guest,
}

/// Where the VM is to be recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// As a VM of Azure.
    Azure,
    /// On a recovery host.
    RecoveryHost,
}

impl Target {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Azure, Self::RecoveryHost];

    /// Text in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Azure => "Azure",
            Self::RecoveryHost => "RecoveryHost",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where the VM is to be recovered.
    pub target: Target,
    /// Ids of the disks to replicate; none for all.
    pub disks: Option<Vec<String>>,
    /// Of the policy: more waiting changes than this part of the disks lead to a comparison. 0 stands for the usual 50.
    pub log_quota_percent: u32,
}

impl Request {
    /// All disks, with the usual quota.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            disks: None,
            log_quota_percent: 0,
        }
    }

    /// Whether a disk is to be replicated. A disk without an id can't be chosen, so it is left out when a choice is made.
    #[must_use]
    pub fn includes(&self, disk: &DiskFacts) -> bool {
        self.disks
            .as_ref()
            .is_none_or(|ids| ids.iter().any(|id| id.eq_ignore_ascii_case(&disk.id)))
    }

    pub(super) fn quota_percent(&self) -> u32 {
        match self.log_quota_percent {
            0 => 50,
            percent => percent,
        }
    }
}

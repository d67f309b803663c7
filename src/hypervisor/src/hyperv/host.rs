//! What the `hyperv` driver needs of its host, as small as it can be: objects and methods of WMI, and disks of virtdisk.
//!
//! Names of classes, properties and methods are Microsoft's and stand in the driver, not here, so that a double of this
//! trait sees what a real host would. Calls block; the driver makes them on threads for that.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Extent;

/// Name space of Hyper-V.
pub const VIRTUALIZATION: &str = r"root\virtualization\v2";
/// Name space of the operating system.
pub const CIMV2: &str = r"root\cimv2";
/// Name space of a failover cluster; hosts that are in none do not have it.
pub const CLUSTER: &str = r"root\MSCluster";

/// `WBEM_E_INVALID_NAMESPACE`: the role is not installed.
pub const NO_NAMESPACE: u32 = 0x8004_100E;
/// `WBEM_E_NOT_FOUND`: the object is gone.
pub const NOT_FOUND: u32 = 0x8004_1002;
/// `WBEM_E_ACCESS_DENIED`.
pub const ACCESS_DENIED: u32 = 0x8004_1003;
/// `ERROR_VHD_INVALID_CHANGE_TRACKING_ID`.
pub const INVALID_CHANGE_TRACKING_ID: u32 = 0xC03A_0029;
/// `ERROR_VHD_CHANGE_TRACKING_DISABLED`.
pub const CHANGE_TRACKING_DISABLED: u32 = 0xC03A_002A;
/// `ERROR_VHD_MISSING_CHANGE_TRACKING_INFORMATION`.
pub const MISSING_CHANGE_TRACKING_INFORMATION: u32 = 0xC03A_0030;
/// `ERROR_SHARING_VIOLATION`.
pub const SHARING_VIOLATION: u32 = 32;
/// `ERROR_NOT_SUPPORTED`.
pub const NOT_SUPPORTED: u32 = 50;

/// A failure of WMI or virtdisk, as the system numbers it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text} (0x{code:08X})")]
pub struct HostError {
    /// HRESULT of WMI, or Win32 code of virtdisk.
    pub code: u32,
    /// What was tried and what the system says of it.
    pub text: String,
}

impl HostError {
    /// With a code of the system.
    pub fn new(code: u32, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// Whether RCT itself says that it can't tell the changes: only a comparison can.
    pub fn tracking_is_lost(&self) -> bool {
        matches!(
            self.code,
            INVALID_CHANGE_TRACKING_ID
                | CHANGE_TRACKING_DISABLED
                | MISSING_CHANGE_TRACKING_INFORMATION
        )
    }
}

/// Value of a property or an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Not set.
    Null,
    /// `boolean`.
    Bool(bool),
    /// Any integer; 64-bit ones come out of WMI as text, which [`Instance::number`] reads as well.
    Number(i64),
    /// `string`, a reference (path of an object), or an instance as XML in what comes out.
    Text(String),
    /// `string[]`, references included.
    Texts(Vec<String>),
    /// Numbers, of any width.
    Numbers(Vec<i64>),
    /// An instance that goes in, as the XML text of it.
    Embedded(Instance),
    /// Several.
    EmbeddedAll(Vec<Instance>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

/// An object of WMI, or the settings of one that shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Class.
    pub class: String,
    /// Path; empty for what is not there yet.
    pub path: String,
    /// Properties that were asked for or set.
    pub properties: BTreeMap<String, Value>,
}

impl Instance {
    /// One that does not exist yet, to be filled with [`Self::with`]. The system gives the rest its defaults.
    pub fn new(class: &str) -> Self {
        Self {
            class: class.to_owned(),
            ..Self::default()
        }
    }

    /// The same with a property set.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.properties.insert(name.to_owned(), value);
        self
    }

    /// A text; empty when there is none.
    pub fn text(&self, name: &str) -> &str {
        match self.properties.get(name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<i64> {
        match self.properties.get(name)? {
            Value::Number(number) => Some(*number),
            Value::Bool(bool) => Some(i64::from(*bool)),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// A truth; absent is false.
    pub fn is(&self, name: &str) -> bool {
        self.properties.get(name) == Some(&Value::Bool(true))
    }

    /// Texts; none when there are none.
    pub fn texts(&self, name: &str) -> &[String] {
        match self.properties.get(name) {
            Some(Value::Texts(texts)) => texts,
            _ => &[],
        }
    }
}

/// What virtdisk says of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// `VIRTUAL_DISK_ID`: the same over the life of the disk, whichever file it is in.
    pub id: uuid::Uuid,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    /// Physical sector size in bytes.
    pub physical_sector: u32,
    /// Whether RCT is on.
    pub tracking: bool,
}

/// A file of a disk, opened for reading with `OpenVirtualDisk`. What it holds ends with it.
pub trait OpenDisk: Send + Sync {
    /// `GetVirtualDiskInformation`.
    ///
    /// # Errors
    /// Those of virtdisk.
    fn facts(&self) -> Result<DiskFacts, HostError>;

    /// `QueryChangesVirtualDisk`: changed ranges in `offset..offset + length` since the RCT id, and how many bytes of the
    /// range the answer is about; ask on behind them.
    ///
    /// # Errors
    /// [`HostError::tracking_is_lost`], and those of virtdisk.
    fn changes(
        &self,
        since: &str,
        offset: u64,
        length: u64,
    ) -> Result<(Vec<Extent>, u64), HostError>;

    /// `AttachVirtualDisk` without a device for the host: from here on it can be read.
    ///
    /// # Errors
    /// Those of virtdisk, such as [`SHARING_VIOLATION`].
    fn attach(&self) -> Result<(), HostError>;

    /// Reads at a virtual offset; offset and length are multiples of the physical sector.
    ///
    /// # Errors
    /// Those of the system.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), HostError>;
}

/// A host.
pub trait Host: Send + Sync {
    /// All objects of a class, those of derived classes included.
    ///
    /// # Errors
    /// Those of WMI, such as [`NO_NAMESPACE`].
    fn instances(&self, namespace: &str, class: &str) -> Result<Vec<Instance>, HostError>;

    /// The objects of class `result` that are associated with the one at `path` in [`VIRTUALIZATION`], in the system's order.
    ///
    /// # Errors
    /// [`NOT_FOUND`] and others of WMI.
    fn associated(&self, path: &str, result: &str) -> Result<Vec<Instance>, HostError>;

    /// The object at `path` in [`VIRTUALIZATION`].
    ///
    /// # Errors
    /// [`NOT_FOUND`] and others of WMI.
    fn object(&self, path: &str) -> Result<Instance, HostError>;

    /// Calls a method; gives what comes out, `ReturnValue` included.
    ///
    /// # Errors
    /// Those of WMI. What the method itself says is in `ReturnValue`.
    fn call(
        &self,
        path: &str,
        method: &str,
        arguments: Vec<(&'static str, Value)>,
    ) -> Result<Instance, HostError>;

    /// Opens a file of a disk for reading.
    ///
    /// # Errors
    /// Those of virtdisk.
    fn open_disk(&self, file: &Path) -> Result<Box<dyn OpenDisk>, HostError>;

    /// `SetVirtualDiskInformation`: RCT on, for a disk that nobody uses.
    ///
    /// # Errors
    /// Those of virtdisk, such as [`SHARING_VIOLATION`].
    fn enable_tracking(&self, file: &Path) -> Result<(), HostError>;

    /// Waits until VMs or their settings were made, changed or removed, at most for `patience`; tells whether they were.
    /// May tell too often, never too rarely.
    ///
    /// # Errors
    /// Those of WMI.
    fn wait_for_change(&self, patience: std::time::Duration) -> Result<bool, HostError>;

    /// Lets time pass between two looks at a job. A double needs none.
    fn pause(&self, time: std::time::Duration);
}

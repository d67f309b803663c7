//! virtdisk.dll, loaded when a disk is first opened.
//!
//! Not linked: a host without it, or with one from before Windows Server 2016, could not even start the program then, and
//! so not say why. Only the system's own folder is looked in, never the program's or the current one, where somebody else
//! may have put a file of that name. It stays loaded.
#![expect(
    unsafe_code,
    reason = "functions of a library that is loaded at run time are foreign and have no types"
)]

use std::sync::OnceLock;

use windows::Win32::Foundation::{HANDLE, HMODULE, WIN32_ERROR};
use windows::Win32::Security::PSECURITY_DESCRIPTOR;
use windows::Win32::Storage::Vhd::{
    ATTACH_VIRTUAL_DISK_FLAG, ATTACH_VIRTUAL_DISK_PARAMETERS, GET_VIRTUAL_DISK_INFO,
    OPEN_VIRTUAL_DISK_FLAG, OPEN_VIRTUAL_DISK_PARAMETERS, QUERY_CHANGES_VIRTUAL_DISK_FLAG,
    QUERY_CHANGES_VIRTUAL_DISK_RANGE, SET_VIRTUAL_DISK_INFO, VIRTUAL_DISK_ACCESS_MASK,
    VIRTUAL_STORAGE_TYPE,
};
use windows::Win32::System::IO::OVERLAPPED;
use windows::Win32::System::LibraryLoader::{
    GetProcAddress, LOAD_LIBRARY_SEARCH_SYSTEM32, LoadLibraryExW,
};
use windows::core::{PCSTR, PCWSTR, s, w};

use super::super::host::HostError;

// As virtdisk.h declares them. All give a Win32 code.
type Open = unsafe extern "system" fn(
    *const VIRTUAL_STORAGE_TYPE,
    PCWSTR,
    VIRTUAL_DISK_ACCESS_MASK,
    OPEN_VIRTUAL_DISK_FLAG,
    *const OPEN_VIRTUAL_DISK_PARAMETERS,
    *mut HANDLE,
) -> WIN32_ERROR;
type Attach = unsafe extern "system" fn(
    HANDLE,
    PSECURITY_DESCRIPTOR,
    ATTACH_VIRTUAL_DISK_FLAG,
    u32,
    *const ATTACH_VIRTUAL_DISK_PARAMETERS,
    *const OVERLAPPED,
) -> WIN32_ERROR;
type GetInformation = unsafe extern "system" fn(
    HANDLE,
    *mut u32,
    *mut GET_VIRTUAL_DISK_INFO,
    *mut u32,
) -> WIN32_ERROR;
type SetInformation =
    unsafe extern "system" fn(HANDLE, *const SET_VIRTUAL_DISK_INFO) -> WIN32_ERROR;
type QueryChanges = unsafe extern "system" fn(
    HANDLE,
    PCWSTR,
    u64,
    u64,
    QUERY_CHANGES_VIRTUAL_DISK_FLAG,
    *mut QUERY_CHANGES_VIRTUAL_DISK_RANGE,
    *mut u32,
    *mut u64,
) -> WIN32_ERROR;

/// What the driver calls of it.
pub(super) struct VirtDisk {
    pub open: Open,
    pub attach: Attach,
    pub get_information: GetInformation,
    pub set_information: SetInformation,
    pub query_changes: QueryChanges,
}

/// The library of this host.
///
/// # Errors
/// `ERROR_MOD_NOT_FOUND` without it, `ERROR_PROC_NOT_FOUND` when it is older than RCT.
pub(super) fn virtdisk() -> Result<&'static VirtDisk, HostError> {
    static LOADED: OnceLock<Result<VirtDisk, HostError>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<VirtDisk, HostError> {
    // SAFETY: the name ends with a zero; virtdisk.dll is the system's own and does nothing at its start that others must
    // not do at the same time.
    let library = unsafe { LoadLibraryExW(w!("virtdisk.dll"), None, LOAD_LIBRARY_SEARCH_SYSTEM32) }
        .map_err(|error| needs_newer("load virtdisk.dll", &error))?;
    // SAFETY (all five): the types are those that virtdisk.h declares for these names.
    Ok(unsafe {
        VirtDisk {
            open: function(library, s!("OpenVirtualDisk"))?,
            attach: function(library, s!("AttachVirtualDisk"))?,
            get_information: function(library, s!("GetVirtualDiskInformation"))?,
            set_information: function(library, s!("SetVirtualDiskInformation"))?,
            query_changes: function(library, s!("QueryChangesVirtualDisk"))?,
        }
    })
}

/// # Safety
/// `F` is the type of a function pointer, and that of the function of this name.
unsafe fn function<F: Copy>(library: HMODULE, name: PCSTR) -> Result<F, HostError> {
    const { assert!(size_of::<F>() == size_of::<unsafe extern "system" fn() -> isize>()) }
    // SAFETY: the library stays loaded; the name ends with a zero.
    match unsafe { GetProcAddress(library, name) } {
        // SAFETY: of the same size, and of that type, as the caller says.
        Some(found) => Ok(unsafe { std::mem::transmute_copy(&found) }),
        None => {
            let error = windows::core::Error::from_thread();
            // SAFETY: a literal that ends with a zero.
            let name = unsafe { name.display() };
            Err(needs_newer(&format!("find {name} in virtdisk.dll"), &error))
        }
    }
}

fn needs_newer(step: &str, error: &windows::core::Error) -> HostError {
    let said = super::wmi::host_error(step, error);
    let text = format!(
        "{}; the driver hyperv needs Windows Server 2016 or later",
        said.text
    );
    HostError::new(said.code, text)
}

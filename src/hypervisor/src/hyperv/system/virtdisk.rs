//! Disks through virtdisk.dll: opened for reading, attached without a device of the host, read on the same handle.
//!
//! No attachment is permanent: when the handle goes, with the process at the latest, it ends.
#![expect(unsafe_code, reason = "virtdisk.dll has foreign functions only")]

use std::os::windows::ffi::OsStrExt as _;
use std::os::windows::io::{AsRawHandle as _, FromRawHandle as _, OwnedHandle};
use std::path::Path;
use std::sync::Mutex;

use uuid::Uuid;
use windows::Win32::Foundation::{ERROR_IO_PENDING, HANDLE, WIN32_ERROR};
use windows::Win32::Security::PSECURITY_DESCRIPTOR;
use windows::Win32::Storage::FileSystem::ReadFile;
use windows::Win32::Storage::Vhd::{
    ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST, ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY,
    GET_VIRTUAL_DISK_INFO, GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE,
    GET_VIRTUAL_DISK_INFO_IDENTIFIER, GET_VIRTUAL_DISK_INFO_SIZE, GET_VIRTUAL_DISK_INFO_VERSION,
    GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE, GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID,
    OPEN_VIRTUAL_DISK_FLAG_NONE, OPEN_VIRTUAL_DISK_PARAMETERS, OPEN_VIRTUAL_DISK_PARAMETERS_0,
    OPEN_VIRTUAL_DISK_PARAMETERS_0_1, OPEN_VIRTUAL_DISK_VERSION_2,
    QUERY_CHANGES_VIRTUAL_DISK_FLAG_NONE, QUERY_CHANGES_VIRTUAL_DISK_RANGE, SET_VIRTUAL_DISK_INFO,
    SET_VIRTUAL_DISK_INFO_0, SET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE, VIRTUAL_DISK_ACCESS_NONE,
    VIRTUAL_STORAGE_TYPE, VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN, VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN,
};
use windows::Win32::System::IO::{GetOverlappedResult, OVERLAPPED};
use windows::Win32::System::Threading::CreateEventW;
use windows::core::{GUID, HSTRING, PCWSTR};

use super::super::host::{DiskFacts, HostError, OpenDisk, SHARING_VIOLATION};
use super::library::virtdisk;
use crate::Extent;

/// Ranges in one answer.
const RANGES: usize = 256;
/// Room for an RCT id behind the fixed part of an answer, which may be longer than documented ones.
const ROOM: usize = 4096;
/// `ERROR_HANDLE_EOF`
const END: u32 = 38;

#[derive(Clone, Copy)]
enum Purpose {
    Read,
    Look,
    Change,
}

/// An open disk.
pub(super) struct Disk {
    handle: OwnedHandle,
    attached: Mutex<bool>,
}

fn done(code: WIN32_ERROR, step: impl FnOnce() -> String) -> Result<(), HostError> {
    if code.0 == 0 {
        return Ok(());
    }
    let text = windows::core::Error::from_hresult(code.to_hresult()).message();
    Err(HostError::new(code.0, format!("{}: {text}", step())))
}

fn open(file: &Path, purpose: Purpose) -> Result<OwnedHandle, HostError> {
    let kind = VIRTUAL_STORAGE_TYPE {
        DeviceId: VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN,
        VendorId: VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN,
    };
    let parameters = OPEN_VIRTUAL_DISK_PARAMETERS {
        Version: OPEN_VIRTUAL_DISK_VERSION_2,
        Anonymous: OPEN_VIRTUAL_DISK_PARAMETERS_0 {
            Version2: OPEN_VIRTUAL_DISK_PARAMETERS_0_1 {
                GetInfoOnly: matches!(purpose, Purpose::Look).into(),
                ReadOnly: (!matches!(purpose, Purpose::Change)).into(),
                // One that nobody has, so that the driver shares no object with another opener.
                ResiliencyGuid: GUID::from_u128(Uuid::new_v4().as_u128()),
            },
        },
    };
    let name: Vec<u16> = file.as_os_str().encode_wide().chain([0]).collect();
    let mut handle = HANDLE::default();
    let library = virtdisk()?;
    // SAFETY: all of them outlive the call; the name ends with a zero; the union's member fits the version.
    let code = unsafe {
        (library.open)(
            &raw const kind,
            PCWSTR(name.as_ptr()),
            VIRTUAL_DISK_ACCESS_NONE,
            OPEN_VIRTUAL_DISK_FLAG_NONE,
            &raw const parameters,
            &raw mut handle,
        )
    };
    done(code, || format!("open {}", file.display()))?;
    // SAFETY: the handle was just opened and is nobody else's; CloseHandle is what ends it.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle.0) })
}

/// Turns RCT on for a disk that nobody uses.
pub(super) fn enable_tracking(file: &Path) -> Result<(), HostError> {
    let handle = open(file, Purpose::Change)?;
    let info = SET_VIRTUAL_DISK_INFO {
        Version: SET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE,
        Anonymous: SET_VIRTUAL_DISK_INFO_0 {
            ChangeTrackingEnabled: true.into(),
        },
    };
    // SAFETY: the handle is open, and the union's member fits the version.
    let code = unsafe { (virtdisk()?.set_information)(raw(&handle), &raw const info) };
    done(code, || {
        format!("turn on change tracking of {}", file.display())
    })
}

fn raw(handle: &OwnedHandle) -> HANDLE {
    HANDLE(handle.as_raw_handle())
}

impl Disk {
    /// A file that a running VM writes can be looked at only.
    pub fn open(file: &Path) -> Result<Self, HostError> {
        let handle = match open(file, Purpose::Read) {
            Err(error) if error.code == SHARING_VIOLATION => open(file, Purpose::Look)?,
            other => other?,
        };
        Ok(Self {
            handle,
            attached: Mutex::new(false),
        })
    }

    fn handle(&self) -> HANDLE {
        raw(&self.handle)
    }

    /// Asks for one kind of information and hands it to `read`.
    fn ask<T>(
        &self,
        what: GET_VIRTUAL_DISK_INFO_VERSION,
        read: impl FnOnce(&GET_VIRTUAL_DISK_INFO) -> T,
    ) -> Result<T, HostError> {
        #[repr(C)]
        struct Answer {
            info: GET_VIRTUAL_DISK_INFO,
            room: [u8; ROOM],
        }
        let mut answer = Box::new(Answer {
            info: GET_VIRTUAL_DISK_INFO::default(),
            room: [0; ROOM],
        });
        answer.info.Version = what;
        let mut size = u32::try_from(size_of::<Answer>()).unwrap_or(u32::MAX);
        let pointer: *mut Answer = &raw mut *answer;
        let library = virtdisk()?;
        // SAFETY: the answer is as large as its size says, and outlives the call.
        let code = unsafe {
            (library.get_information)(
                self.handle(),
                &raw mut size,
                pointer.cast(),
                std::ptr::null_mut(),
            )
        };
        done(code, || format!("ask a disk for information {}", what.0))?;
        Ok(read(&answer.info))
    }
}

impl OpenDisk for Disk {
    fn facts(&self) -> Result<DiskFacts, HostError> {
        // SAFETY: each reads the member of the union that belongs to what was asked.
        let id = self
            .ask(GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID, |info| unsafe {
                info.Anonymous.VirtualDiskId
            })
            // A VHD has a unique id in its footer instead.
            .or_else(|_| {
                // SAFETY: as above.
                self.ask(GET_VIRTUAL_DISK_INFO_IDENTIFIER, |info| unsafe {
                    info.Anonymous.Identifier
                })
            })?;
        // SAFETY: as above.
        let size_bytes = self.ask(GET_VIRTUAL_DISK_INFO_SIZE, |info| unsafe {
            info.Anonymous.Size.VirtualSize
        })?;
        let physical_sector = self
            // SAFETY: as above.
            .ask(
                GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE,
                |info| unsafe { info.Anonymous.VhdPhysicalSectorSize },
            )
            .unwrap_or(512);
        let tracking = self
            // SAFETY: as above.
            .ask(GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE, |info| unsafe {
                info.Anonymous.ChangeTrackingState.Enabled.as_bool()
            })
            // A VHD has none.
            .unwrap_or(false);
        Ok(DiskFacts {
            id: Uuid::from_u128(id.to_u128()),
            size_bytes,
            physical_sector,
            tracking,
        })
    }

    fn changes(
        &self,
        since: &str,
        offset: u64,
        length: u64,
    ) -> Result<(Vec<Extent>, u64), HostError> {
        let mut ranges = [QUERY_CHANGES_VIRTUAL_DISK_RANGE::default(); RANGES];
        let mut count = u32::try_from(RANGES).unwrap_or(u32::MAX);
        let mut processed = 0;
        let since_text = HSTRING::from(since);
        let library = virtdisk()?;
        // SAFETY: there is room for as many ranges as the count says; all of them outlive the call.
        let code = unsafe {
            (library.query_changes)(
                self.handle(),
                PCWSTR(since_text.as_ptr()),
                offset,
                length,
                QUERY_CHANGES_VIRTUAL_DISK_FLAG_NONE,
                ranges.as_mut_ptr(),
                &raw mut count,
                &raw mut processed,
            )
        };
        done(code, || {
            format!("ask for changes since {since} at {offset}")
        })?;
        let count = usize::try_from(count).unwrap_or(RANGES).min(RANGES);
        let found = ranges.iter().take(count).map(|range| Extent {
            offset: range.ByteOffset,
            length: range.ByteLength,
        });
        Ok((found.collect(), processed))
    }

    fn attach(&self) -> Result<(), HostError> {
        let mut attached = self
            .attached
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *attached {
            return Ok(());
        }
        let flags = ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY | ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST;
        let library = virtdisk()?;
        let nobody = PSECURITY_DESCRIPTOR::default();
        let (plain, now) = (std::ptr::null(), std::ptr::null());
        // SAFETY: the handle is open; neither descriptor, parameters nor an overlapped end are given.
        let code = unsafe { (library.attach)(self.handle(), nobody, flags, 0, plain, now) };
        done(code, || "attach a disk for reading".to_owned())?;
        *attached = true;
        Ok(())
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), HostError> {
        let failed = |error: &windows::core::Error| {
            super::wmi::host_error(&format!("read {offset} of a disk"), error)
        };
        // SAFETY: no pointers; an event of this read alone, because others read on the same handle.
        let event = unsafe { CreateEventW(None, true, false, PCWSTR::null()) }
            .map_err(|error| failed(&error))?;
        // SAFETY: it was just made and is nobody else's.
        let event = unsafe { OwnedHandle::from_raw_handle(event.0) };
        let mut place = OVERLAPPED {
            hEvent: raw(&event),
            ..OVERLAPPED::default()
        };
        // The system wants the place in two halves.
        place.Anonymous.Anonymous.Offset = u32::try_from(offset & 0xFFFF_FFFF).unwrap_or_default();
        place.Anonymous.Anonymous.OffsetHigh = u32::try_from(offset >> 32).unwrap_or_default();
        let mut count = 0;
        // SAFETY: buffer, place and event outlive the read, because its end is waited for below in every case.
        let begun = unsafe {
            ReadFile(
                self.handle(),
                Some(&mut *buffer),
                None,
                Some(&raw mut place),
            )
        };
        if let Err(error) = begun
            && error.code() != ERROR_IO_PENDING.to_hresult()
        {
            return Err(failed(&error));
        }
        // SAFETY: as above; it returns when the read has ended.
        unsafe { GetOverlappedResult(self.handle(), &raw const place, &raw mut count, true) }
            .map_err(|error| failed(&error))?;
        if usize::try_from(count).ok() != Some(buffer.len()) {
            return Err(HostError::new(
                END,
                format!("read {offset} of a disk: only {count} bytes came"),
            ));
        }
        Ok(())
    }
}

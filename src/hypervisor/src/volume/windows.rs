//! `GetDiskFreeSpaceExW`, which takes any folder of a volume, a Cluster Shared Volume's and a share's included.

use std::io;
use std::os::windows::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use windows_sys::Win32::Storage::FileSystem::GetDiskFreeSpaceExW;

use super::Volume;

pub(super) fn volume(path: &Path) -> io::Result<Volume> {
    // It wants a folder.
    let folder = if std::fs::metadata(path)?.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    let name: Vec<u16> = folder.as_os_str().encode_wide().chain([0]).collect();
    let mut volume = Volume {
        free_bytes: 0,
        total_bytes: 0,
    };
    #[expect(
        unsafe_code,
        reason = "the system's own call; the standard library has none for it"
    )]
    // SAFETY: `name` ends with a zero and both numbers outlive the call, which keeps no pointer.
    let done = unsafe {
        GetDiskFreeSpaceExW(
            name.as_ptr(),
            &raw mut volume.free_bytes,
            &raw mut volume.total_bytes,
            ptr::null_mut(),
        )
    };
    if done == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(volume)
}

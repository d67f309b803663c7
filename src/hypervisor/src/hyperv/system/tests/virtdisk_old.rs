//! A host whose virtdisk.dll is from before change tracking.

use std::path::Path;

use super::super::virtdisk::Disk;

/// `ERROR_PROC_NOT_FOUND`, as an HRESULT.
const NO_FUNCTION: u32 = 0x8007_007F;

#[test]
#[ignore = "make windows runs it, with a virtdisk.dll as Windows Server 2012 R2 has it"]
fn a_host_before_change_tracking_runs_the_program_and_says_what_it_lacks() {
    let refused = Disk::open(Path::new(r"C:\disk.vhdx")).err().unwrap();
    assert_eq!(refused.code, NO_FUNCTION, "{refused}");
    assert!(
        refused
            .text
            .contains("find QueryChangesVirtualDisk in virtdisk.dll"),
        "{refused}"
    );
    assert!(refused.text.contains("Windows Server 2016"), "{refused}");
}

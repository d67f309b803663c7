//! A host without virtdisk.dll.

use std::path::Path;

use super::super::virtdisk::Disk;

/// `ERROR_MOD_NOT_FOUND`, as an HRESULT.
const NO_MODULE: u32 = 0x8007_007E;

#[test]
#[ignore = "make windows runs it, with a Wine that is told to have no virtdisk.dll"]
fn a_host_without_virtdisk_runs_the_program_and_says_what_it_lacks() {
    let refused = Disk::open(Path::new(r"C:\disk.vhdx")).err().unwrap();
    assert_eq!(refused.code, NO_MODULE, "{refused}");
    assert!(refused.text.contains("load virtdisk.dll"), "{refused}");
    assert!(refused.text.contains("Windows Server 2016"), "{refused}");
}

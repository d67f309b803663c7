//! The foreign functions, called.
//!
//! `make windows` runs these under Wine, by name of the module: WMI and `VARIANT`s are Wine's own, virtdisk.dll is the
//! stand-in of `tests/windows`, in each of the three states that a host can have it in.

mod com;
mod stand_in;
mod virtdisk_missing;
mod virtdisk_old;

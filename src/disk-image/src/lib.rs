//! VHD, VHDX and raw disk images: read, write, replay, check.

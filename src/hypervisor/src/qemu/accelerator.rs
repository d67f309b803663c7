//! Finds out once whether KVM really runs a guest here.
//!
//! `/dev/kvm` may be there and fail, or know only a part of the instructions (nested virtualization that is
//! half there). So a firmware of some bytes is run: floating point, CPUID, SSE, then a write to QEMU's debug
//! exit port, and QEMU's exit code tells.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tracing::info;

/// At the reset vector f000:fff0: `jmp 0xf000`.
const RESET_CODE: [u8; 3] = [0xe9, 0x0d, 0xf0];
/// At f000:f000.
const PROBE_CODE: [u8; 51] = [
    0x9b, 0xdb, 0xe3, // fninit
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
    0x0f, 0xa2, // cpuid
    0xf6, 0xc1, 0x01, // test cl, 1 (SSE3, which every 64-bit kernel of today may expect)
    0x74, 0x21, // jz to the hlt at the end
    0x0f, 0x20, 0xe0, // mov eax, cr4
    0x66, 0x0d, 0x00, 0x06, 0x00, 0x00, // or eax, OSFXSR | OSXMMEXCPT
    0x0f, 0x22, 0xe0, // mov cr4, eax
    0x0f, 0x20, 0xc0, // mov eax, cr0
    0x66, 0x83, 0xe0, 0xfb, // and eax, ~EM
    0x66, 0x83, 0xc8, 0x02, // or eax, MP
    0x0f, 0x22, 0xc0, // mov cr0, eax
    0x0f, 0x57, 0xc0, // xorps xmm0, xmm0
    0xb0, 0x2a, // mov al, 0x2a
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
    0xf4,
];
/// QEMU's debug exit device ends with (value << 1) | 1.
const EXPECTED_EXIT: i32 = (0x2a << 1) | 1;
/// A working KVM needs well under a second for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a guest runs under KVM. `scratch` gets a small file for the time of the test.
pub(super) async fn kvm_works(qemu: &str, scratch: &Path) -> bool {
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let works = probe(qemu, "kvm", scratch).await;
    info!(works, "tested whether kvm runs a guest");
    works
}

async fn probe(qemu: &str, accelerator: &str, scratch: &Path) -> bool {
    let mut image = vec![0xf4u8; 64 << 10];
    image[0xfff0..0xfff0 + RESET_CODE.len()].copy_from_slice(&RESET_CODE);
    image[0xf000..0xf000 + PROBE_CODE.len()].copy_from_slice(&PROBE_CODE);
    let firmware = scratch.join(format!("probe-{}.bin", uuid::Uuid::new_v4()));
    if std::fs::write(&firmware, &image).is_err() {
        return false;
    }
    let child = Command::new(qemu)
        .args([
            "-machine",
            "pc",
            "-accel",
            accelerator,
            "-m",
            "16",
            "-nodefaults",
            "-display",
            "none",
        ])
        .args([
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=1",
            "-no-reboot",
            "-bios",
        ])
        .arg(&firmware)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let works = match child {
        Ok(mut child) => {
            let works = timeout(PATIENCE, outcome(&mut child))
                .await
                .unwrap_or(false);
            // It has ended, or it hangs and must; waiting for it leaves no zombie.
            let _ = child.kill().await;
            works
        }
        Err(_) => false,
    };
    // A file of 64 KiB in our own scratch folder; left behind it does no harm.
    let _ = std::fs::remove_file(&firmware);
    works
}

/// A KVM that fails in the middle does not end QEMU: it prints this and pauses.
async fn outcome(child: &mut Child) -> bool {
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.contains("KVM internal error") || line.contains("error: kvm run failed") {
                return false;
            }
        }
    }
    matches!(child.wait().await, Ok(status) if status.code() == Some(EXPECTED_EXIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_probe_says_yes_under_emulation_and_no_without_an_accelerator() {
        let folder = tempfile::tempdir().unwrap();
        assert!(probe(super::super::QEMU, "tcg", folder.path()).await);
        assert!(!probe(super::super::QEMU, "nonesuch", folder.path()).await);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

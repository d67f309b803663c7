//! The boot loader for converted disks, put together from GRUB as it is installed on this host.
//!
//! GRUB is a program of its own, under its own licence: nothing of it is shipped with this one. The packages are Debian's
//! `grub-pc-bin` and `grub-common` (Fedora: `grub2-pc-modules` and `grub2-tools`).

use std::path::Path;

use disk_image::boot::{BootLoader, grub};
use tokio::fs;
use tokio::process::Command;

use crate::{ErrorKind, HypervisorError};

/// Where distributions put GRUB's modules for BIOS machines.
const MODULES: &str = "/usr/lib/grub/i386-pc";
/// What distributions call the program.
const PROGRAMS: [&str; 2] = ["grub-mkimage", "grub2-mkimage"];
const HOW_TO_INSTALL: &str = "install the packages grub-pc-bin and grub-common (Fedora: grub2-pc-modules and grub2-tools) on this host";

/// Makes a boot loader from the host's GRUB, in about half a second. `scratch` is a folder that exists; nothing stays in it.
///
/// # Errors
/// [`ErrorKind::Missing`] when GRUB is not installed, [`ErrorKind::Refused`] when its program fails, [`ErrorKind::Io`],
/// [`ErrorKind::Configuration`] when what it made is not usable.
pub async fn bios_boot_loader(scratch: &Path) -> Result<BootLoader, HypervisorError> {
    from_modules(Path::new(MODULES), scratch).await
}

async fn from_modules(modules: &Path, scratch: &Path) -> Result<BootLoader, HypervisorError> {
    let boot = module(modules, "boot.img").await?;
    let late = module(modules, grub::LATE_MODULE).await?;
    let folder = scratch.join(format!("boot-loader-{}", uuid::Uuid::new_v4()));
    fs::create_dir(&folder)
        .await
        .map_err(|e| io(&folder, "make folder", e))?;
    let core = core(modules, &folder, &grub::memory_disk(&late)).await;
    let removed = fs::remove_dir_all(&folder)
        .await
        .map_err(|e| io(&folder, "remove folder", e));
    let core = core?;
    removed?;
    BootLoader::new(&boot, &core).map_err(|error| {
        HypervisorError::with_source(
            ErrorKind::Configuration,
            format!("make a boot loader from {}", modules.display()),
            error,
        )
    })
}

async fn module(modules: &Path, name: &str) -> Result<Vec<u8>, HypervisorError> {
    let path = modules.join(name);
    fs::read(&path).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            missing(&path.display().to_string())
        } else {
            io(&path, "read", error)
        }
    })
}

async fn core(modules: &Path, folder: &Path, memory: &[u8]) -> Result<Vec<u8>, HypervisorError> {
    let place = |name: &str| folder.join(name);
    let (memory_disk, script, image) =
        (place("memdisk.tar"), place("early.cfg"), place("core.img"));
    for (path, content) in [
        (&memory_disk, memory),
        (&script, grub::EARLY_SCRIPT.as_bytes()),
    ] {
        fs::write(path, content)
            .await
            .map_err(|e| io(path, "write", e))?;
    }
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.arg("--format").arg(grub::FORMAT);
        command.arg("--directory").arg(modules);
        command.arg("--memdisk").arg(&memory_disk);
        command.arg("--config").arg(&script);
        // Behind the memory disk, which sets a prefix of its own.
        command.arg("--prefix").arg(grub::PREFIX);
        command.arg("--output").arg(&image);
        command.args(grub::MODULES).kill_on_drop(true);
        let output = match command.output().await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io(Path::new(program), "run", error)),
            Ok(output) => output,
        };
        if !output.status.success() {
            return Err(HypervisorError::new(
                ErrorKind::Refused,
                format!(
                    "make a boot loader with {program}: {}: {}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr).trim()
                ),
            ));
        }
        return fs::read(&image).await.map_err(|e| io(&image, "read", e));
    }
    Err(missing(PROGRAMS[0]))
}

fn missing(what: &str) -> HypervisorError {
    HypervisorError::new(
        ErrorKind::Missing,
        format!("make a boot loader for generation 1: {what} is not there; {HOW_TO_INSTALL}"),
    )
}

fn io(path: &Path, step: &str, source: std::io::Error) -> HypervisorError {
    HypervisorError::with_source(
        ErrorKind::Io,
        format!("make a boot loader: {step} {}", path.display()),
        source,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_without_grub_is_told_which_packages_to_install() {
        let folder = tempfile::tempdir().unwrap();
        let error = from_modules(&folder.path().join("nothing"), folder.path())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Missing);
        assert!(error.to_string().contains("grub-pc-bin"), "{error}");
    }

    #[tokio::test]
    async fn the_same_host_gives_the_same_boot_loader_and_keeps_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let first = bios_boot_loader(folder.path()).await.unwrap();
        assert!(first == bios_boot_loader(folder.path()).await.unwrap());
        assert!(first.core_bytes() <= disk_image::boot::USUAL_CORE_BYTES);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

//! Which VMs a folder of image files stands for.
//!
//! ```text
//! root/web01/os.vhdx, data.vhdx   one VM "web01" with two disks, by file name
//! root/db.vhdx                    one VM "db.vhdx" with one disk
//! root.vhdx                       one VM "root.vhdx", when the root itself is an image
//! ```
//!
//! A differencing image (checkpoint) hides the images that it stands on: the newest one is the disk. Parents are opened only
//! out of the folder that the image itself lies in.
//!
//! Promise: a VM keeps its id while its name stays, a disk keeps its id while the image does. An image that can't be used
//! becomes a finding of its VM, never a VM that is silently smaller.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use disk_image::{Access, Details, DiskImage, FolderGate, Format, ImageError};
use uuid::Uuid;

use crate::particulars::Looks;
use crate::{
    DiskId, DiskParticulars, Finding, Generation, Particulars, PowerState, Presence, VirtualDisk,
    VirtualMachine, VmId,
};

/// Name space of ids that are made of names. A fixed random number.
const NAMES: Uuid = Uuid::from_u128(0x7b0e_4c2a_93d1_4f5e_8a66_0d1f_52c9_e3b7);
const IMAGE_EXTENSIONS: [&str; 6] = ["vhdx", "vhd", "avhdx", "avhd", "raw", "img"];

/// A VM and the files of its disks.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub vm: VirtualMachine,
    /// The disk's image first, then the images that it stands on.
    pub files: HashMap<DiskId, Vec<PathBuf>>,
}

/// Opens an image that may stand on others of its folder.
pub(super) fn open(path: &Path) -> Result<DiskImage, ImageError> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            let gate = FolderGate::new([folder])?;
            DiskImage::open_with_parents(path, Access::ReadOnly, &gate)
        }
        _ => DiskImage::open(path, Access::ReadOnly),
    }
}

/// All VMs below `root`, by name.
pub(super) fn survey(root: &Path) -> io::Result<Vec<Listed>> {
    if fs::metadata(root)?.is_file() {
        // Its parents may lie beside it.
        let around: Vec<PathBuf> = match root.parent() {
            Some(folder) => sorted(folder)?
                .into_iter()
                .filter(|file| is_image(file))
                .collect(),
            None => Vec::new(),
        };
        let chain = chain(root, &around);
        return Ok(vec![describe(base_name(&chain), vec![chain])]);
    }
    let mut listed = Vec::new();
    let mut lone = Vec::new();
    for path in sorted(root)? {
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            // Gone between listing and looking.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            if is_hidden(&path) {
                continue;
            }
            let images: Vec<PathBuf> = sorted(&path)?
                .into_iter()
                .filter(|file| is_image(file))
                .collect();
            if !images.is_empty() {
                listed.push(describe(name_of(&path), chains(&images)));
            }
        } else if is_image(&path) {
            lone.push(path);
        }
    }
    for chain in chains(&lone) {
        listed.push(describe(base_name(&chain), vec![chain]));
    }
    listed.sort_by(|a, b| a.vm.name.cmp(&b.vm.name));
    mark_copies(&mut listed);
    Ok(listed)
}

fn sorted(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn is_hidden(path: &Path) -> bool {
    name_of(path).starts_with('.')
}

fn is_image(path: &Path) -> bool {
    !is_hidden(path)
        && path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| {
                let extension = extension.to_ascii_lowercase();
                IMAGE_EXTENSIONS.contains(&extension.as_str())
            })
}

/// The images of a folder as chains, newest image first. An image that another one stands on begins no chain.
fn chains(images: &[PathBuf]) -> Vec<Vec<PathBuf>> {
    let all: Vec<Vec<PathBuf>> = images.iter().map(|image| chain(image, images)).collect();
    let below: HashSet<&PathBuf> = all.iter().flat_map(|chain| chain.iter().skip(1)).collect();
    all.iter()
        .filter(|chain| chain.first().is_some_and(|newest| !below.contains(newest)))
        .cloned()
        .collect()
}

/// The image and those of `around` that it stands on. A chain that leads elsewhere or in a circle ends there; opening it
/// says what is wrong.
fn chain(image: &Path, around: &[PathBuf]) -> Vec<PathBuf> {
    let mut chain = vec![image.to_owned()];
    while let Some(below) = chain.last().and_then(|last| parent(last, around)) {
        if chain.contains(&below) {
            break;
        }
        chain.push(below);
    }
    chain
}

fn parent(image: &Path, around: &[PathBuf]) -> Option<PathBuf> {
    let names = parent_names(&open(image).ok()?.info().ok()?.details);
    names.iter().find_map(|name| {
        around
            .iter()
            .find(|path| name_of(path).eq_ignore_ascii_case(name))
            .cloned()
    })
}

/// File names under which an image looks for its parent.
fn parent_names(details: &Details) -> Vec<String> {
    let name = |path: &str| {
        path.rsplit(['\\', '/'])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    match details {
        Details::Vhdx(details) => details
            .parent
            .iter()
            .flat_map(|parent| parent.values.iter().map(|(_, value)| name(value)))
            .collect(),
        Details::Vhd(details) => details
            .parent
            .iter()
            .flat_map(|parent| parent.locators.iter())
            .map(|locator| name(&locator.path))
            .collect(),
        Details::Raw => Vec::new(),
    }
}

/// Checkpoints come and go; the name of the oldest image stays.
fn base_name(chain: &[PathBuf]) -> String {
    chain.last().map(|path| name_of(path)).unwrap_or_default()
}

fn describe(name: String, chains: Vec<Vec<PathBuf>>) -> Listed {
    let mut vm = VirtualMachine {
        id: VmId(Uuid::new_v5(&NAMES, name.as_bytes())),
        name,
        // Unknown: files do not say. What UEFI and SCSI can hold, BIOS and IDE can, too.
        generation: Generation::Two,
        processors: 1,
        memory_bytes: 1 << 30,
        os_type: String::new(),
        power_state: PowerState::Off,
        disks: Vec::new(),
        network_adapters: Vec::new(),
        findings: Vec::new(),
    };
    let mut files = HashMap::new();
    for chain in chains {
        let Some(path) = chain.first().cloned() else {
            continue;
        };
        let file = name_of(&path);
        match look(&vm, &path, &file) {
            Ok((id, size_bytes)) if !files.contains_key(&id) => {
                vm.disks.push(VirtualDisk {
                    id,
                    name: file,
                    size_bytes,
                    operating_system: vm.disks.is_empty(),
                });
                files.insert(id, chain);
            }
            Ok((id, _)) => vm.findings.push(copy_of(&file, id)),
            Err(problem) => vm.findings.push(Finding {
                code: "DiskUnreadable",
                summary: format!("The image {file} can't be used: {problem}."),
                possible_causes: "The file is damaged, is no disk image, or is a checkpoint whose parent is elsewhere."
                    .to_owned(),
                recommended_action: format!("Look at it with `siterecovery-engine verify {}`.", path.display()),
                critical: true,
            }),
        }
    }
    Listed { vm, files }
}

fn look(vm: &VirtualMachine, path: &Path, file: &str) -> Result<(DiskId, u64), String> {
    let image = open(path).map_err(|error| with_causes(&error))?;
    let id = image.id().unwrap_or_else(|| {
        // A raw image has none in it.
        Uuid::new_v5(&vm.id.0, file.as_bytes())
    });
    Ok((DiskId(id), image.virtual_size()))
}

/// What the checks before protection want to know. Files tell nothing of a machine, and all of its disks.
pub(super) fn particulars(listed: &[Listed], looks: &Looks) -> Vec<Particulars> {
    let all: Vec<PathBuf> = listed
        .iter()
        .flat_map(|listed| listed.files.values().filter_map(|files| files.first()))
        .cloned()
        .collect();
    looks.keep(&all);
    let of = |listed: &Listed| {
        let disks = listed.vm.disks.iter().filter_map(|disk| {
            let path = listed.files.get(&disk.id)?.first()?;
            let mut found = DiskParticulars {
                id: Some(disk.id),
                name: disk.name.clone(),
                pass_through: Presence::NotPresent,
                ..DiskParticulars::default()
            };
            found.place(path);
            if let Ok(image) = open(path) {
                found.logical_sector_bytes = image.logical_sector_size();
                found.format = match image.format() {
                    Format::Raw => "Raw",
                    Format::VhdFixed | Format::VhdDynamic | Format::VhdDifferencing => "VHD",
                    _ => "VHDX",
                }
                .to_owned();
            }
            found.look = looks.at(disk.id, path);
            Some(found)
        });
        Particulars {
            disks: disks.collect(),
            ..Particulars::unknown(listed.vm.id)
        }
    };
    listed.iter().map(of).collect()
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn copy_of(file: &str, id: DiskId) -> Finding {
    Finding {
        code: "DuplicateDiskId",
        summary: format!("Another image has the id {id} of {file} too."),
        possible_causes: "The file was copied, and the copy has the same id inside.".to_owned(),
        recommended_action: "Convert the copy into a new image, which gets a new id.".to_owned(),
        critical: true,
    }
}

/// Two VMs with one disk would be two replicas that each look right and are one disk.
fn mark_copies(listed: &mut [Listed]) {
    let mut count: HashMap<DiskId, usize> = HashMap::new();
    for disk in listed.iter().flat_map(|listed| &listed.vm.disks) {
        *count.entry(disk.id).or_default() += 1;
    }
    for listed in listed {
        for disk in &listed.vm.disks {
            if count.get(&disk.id).is_some_and(|count| *count > 1) {
                listed.vm.findings.push(copy_of(&disk.name, disk.id));
            }
        }
    }
}

//! The tools as a person runs them: replicate images, look at the result, prove it, damage it, prove that too.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use disk_image::{Access, CreateOptions, DiskImage, Format};
use serde_json::Value;

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// One VM with a VHDX of 16 MiB.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["vms/web01", "store"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let lab = Self { folder };
        let mut options = CreateOptions::new(Format::VhdxDynamic, 16 << 20);
        options.block_size = Some(1 << 20);
        DiskImage::create(lab.image(), &options)
            .unwrap()
            .close()
            .unwrap();
        lab.write(3 << 20, 0x11);
        lab
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("vms/web01/os.vhdx")
    }

    fn write(&self, offset: u64, byte: u8) {
        let mut image = DiskImage::open(self.image(), Access::ReadWrite).unwrap();
        image.write_at(&[byte; 8192], offset).unwrap();
        image.close().unwrap();
    }

    fn engine(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_siterecovery-engine"))
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.engine(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn replicate(&self) -> Value {
        let answer = self.json(&["replicate", "vms", "--store", "store", "--json"]);
        answer["virtualMachines"][0].clone()
    }

    /// The replica's folder, relative.
    fn replica(&self, vm: &Value) -> String {
        format!("store/files/{}", vm["item"].as_str().unwrap())
    }

    fn journal(&self, replica: &str) -> PathBuf {
        let folder = self.folder.path().join(replica).join("journal");
        let mut objects: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        objects.sort();
        objects.pop().expect("a journal object")
    }
}

fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn images_become_points_that_equal_them_and_later_runs_send_differences() {
    let lab = Lab::new();
    let first = lab.replicate();
    assert_eq!(first["state"], "protected");
    assert_eq!(first["points"].as_array().unwrap().len(), 1);
    lab.write(5 << 20, 0x22);
    let second = lab.replicate();
    let points = second["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    assert_eq!(points[1]["changedBytes"], 8192, "two blocks of 4 KiB");
    let whole = lab.json(&["verify", "vms/web01/os.vhdx", "--json"]);
    let proof = lab.json(&["verify", &lab.replica(&second), "--json"]);
    assert_eq!(proof["sound"], true);
    assert_eq!(
        proof["points"][1]["disks"][0]["blake3"], whole["blake3"],
        "the newest point is the image"
    );
    assert_ne!(proof["points"][0]["disks"][0]["blake3"], whole["blake3"]);
}

#[test]
fn a_damaged_journal_object_is_named_and_ends_with_exit_code_4() {
    let lab = Lab::new();
    lab.replicate();
    lab.write(5 << 20, 0x22);
    let vm = lab.replicate();
    let replica = lab.replica(&vm);
    let object = lab.journal(&replica);
    damage(&object);
    let output = lab.engine(&["verify", &replica, "--json"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["sound"], false);
    let named: Vec<&str> = value["damaged"]
        .as_array()
        .unwrap()
        .iter()
        .map(|damage| damage["object"].as_str().unwrap())
        .collect();
    let name = object.file_name().unwrap().to_str().unwrap();
    assert!(named.iter().any(|named| named.ends_with(name)), "{named:?}");
    assert!(
        named.iter().any(|named| named.contains("recovery point")),
        "{named:?}"
    );
    // The older point does not need it.
    assert_eq!(value["points"].as_array().unwrap().len(), 1);
}

#[test]
fn a_damaged_image_ends_with_exit_code_4() {
    let lab = Lab::new();
    let mut bytes = std::fs::read(lab.image()).unwrap();
    // Both headers.
    bytes[64 << 10] ^= 0xff;
    bytes[128 << 10] ^= 0xff;
    std::fs::write(lab.image(), bytes).unwrap();
    let output = lab.engine(&["verify", "vms/web01/os.vhdx"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let output = lab.engine(&["verify", "vms/nothing.vhdx"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn everything_that_replication_leaves_can_be_looked_at() {
    let lab = Lab::new();
    lab.replicate();
    lab.write(5 << 20, 0x22);
    let vm = lab.replicate();
    let replica = lab.replica(&vm);
    let kind = |path: &str| lab.json(&["inspect", path, "--json"])["kind"].clone();
    let root = lab.folder.path();
    let relative = |path: PathBuf| path.strip_prefix(root).unwrap().display().to_string();
    assert_eq!(kind(&replica), "replica");
    assert_eq!(kind("vms/web01/os.vhdx"), "disk image");
    assert_eq!(kind(&relative(lab.journal(&replica))), "journal object");
    assert_eq!(kind(&format!("{replica}/manifest")), "stored manifest");
    let mut maps = Vec::new();
    find(&root.join("vms/.site-recovery"), "map", &mut maps);
    assert_eq!(maps.len(), 1);
    assert_eq!(kind(&relative(maps.remove(0))), "block hashes");
    let text = lab.engine(&["inspect", &replica]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("kind: CrashConsistent"), "{text}");
}

fn find(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, extension, found);
        } else if path.extension().is_some_and(|ending| ending == extension) {
            found.push(path);
        }
    }
}

#[test]
fn a_lower_generation_is_refused_and_a_higher_one_takes_over() {
    let lab = Lab::new();
    let with = |generation| {
        lab.engine(&[
            "replicate",
            "vms",
            "--store",
            "store",
            "--generation",
            generation,
            "--json",
        ])
    };
    assert!(with("5").status.success());
    let refused = with("4");
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("newer generation"), "{text}");
    lab.write(5 << 20, 0x22);
    let taken = with("6");
    assert!(taken.status.success(), "{taken:?}");
}

#[test]
fn what_can_not_be_replicated_is_said_before_anything_is_done() {
    let lab = Lab::new();
    std::fs::write(lab.folder.path().join("vms/web01/broken.vhdx"), [0; 4096]).unwrap();
    let output = lab.engine(&["replicate", "vms", "--store", "store"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("broken.vhdx"), "{text}");
    let stored = std::fs::read_dir(lab.folder.path().join("store")).unwrap();
    assert_eq!(stored.count(), 0);
    for missing in [["--store", "nowhere"], ["--vm", "nobody"]] {
        let mut arguments = vec!["replicate", "vms", "--store", "store"];
        arguments.extend(missing);
        if missing[0] == "--store" {
            arguments.drain(2..4);
        }
        assert_eq!(lab.engine(&arguments).status.code(), Some(1), "{missing:?}");
    }
}

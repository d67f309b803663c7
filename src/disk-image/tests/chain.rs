//! Differencing images: a chain reads as its layers written over each other, parents come only
//! through the gate, and a power cut shows the parent's sectors or the child's, never a third thing.

mod support;

use std::fs;
use std::sync::Arc;

use disk_image::{
    Access, CreateOptions, Details, DiskImage, ErrorKind, FolderGate, Format, ImageFile,
    LocatorKind, MemoryFile, NoParents, ParentLocator, SuppliedParents,
};
use support::{Random, random_write, read_all};

const SIZE: u64 = (5 << 20) + 512 * 24;

/// Formats of a chain with block size and sector size.
const KINDS: [(Format, u32, u32); 4] = [
    (Format::VhdxDynamic, 1 << 20, 512),
    (Format::VhdxDynamic, 2 << 20, 4096),
    (Format::VhdDynamic, 512 << 10, 512),
    (Format::VhdDynamic, 2 << 20, 512),
];

/// A chain in memory: each layer's file, and what its disk reads as.
struct Chain {
    kind: (Format, u32, u32),
    files: Vec<Arc<MemoryFile>>,
    models: Vec<Vec<u8>>,
}

impl Chain {
    fn new(kind: (Format, u32, u32), random: &mut Random) -> Self {
        let file = Arc::new(MemoryFile::new());
        let options = CreateOptions {
            block_size: Some(kind.1),
            logical_sector_size: kind.2,
            ..CreateOptions::new(kind.0, SIZE)
        };
        let mut image = DiskImage::create_file(Box::new(file.clone()), &options).unwrap();
        let mut model = vec![0; SIZE as usize];
        scribble(&mut image, &mut model, random, 12);
        image.close().unwrap();
        Self {
            kind,
            files: vec![file],
            models: vec![model],
        }
    }

    fn gate(&self) -> SuppliedParents {
        let mut gate = SuppliedParents::new();
        for (i, file) in self.files.iter().enumerate() {
            gate = gate.with(format!("{i}.disk"), file.clone() as Arc<dyn ImageFile>);
        }
        gate
    }

    fn open(&self, layer: usize, access: Access) -> DiskImage {
        let file = Box::new(self.files[layer].clone());
        DiskImage::open_file_with_parents(file, access, &self.gate()).unwrap()
    }

    /// An empty child above the newest layer, open for writing.
    fn child(&self, block_size: Option<u32>) -> (DiskImage, Arc<MemoryFile>) {
        let parent = self.open(self.files.len() - 1, Access::ReadOnly);
        let file = Arc::new(MemoryFile::new());
        let locators = [ParentLocator {
            kind: LocatorKind::Relative,
            path: format!(".\\{}.disk", self.files.len() - 1),
        }];
        let options = CreateOptions {
            block_size,
            ..CreateOptions::new(self.kind.0, SIZE)
        };
        let image = DiskImage::create_differencing_file(
            Box::new(file.clone()),
            parent,
            &locators,
            &options,
        )
        .unwrap();
        (image, file)
    }

    fn grow(&mut self, block_size: Option<u32>, random: &mut Random, writes: usize) {
        let (mut image, file) = self.child(block_size);
        let mut model = self.models[self.models.len() - 1].clone();
        assert!(
            read_all(&image) == model,
            "an empty child reads as its parent"
        );
        scribble(&mut image, &mut model, random, writes);
        assert!(read_all(&image) == model);
        image.close().unwrap();
        self.files.push(file);
        self.models.push(model);
    }
}

fn scribble(image: &mut DiskImage, model: &mut [u8], random: &mut Random, writes: usize) {
    for _ in 0..writes {
        let (offset, data) = random_write(random, model.len() as u64);
        image.write_at(&data, offset).unwrap();
        model[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
        if random.below(5) == 0 {
            image.flush().unwrap();
        }
    }
}

#[test]
fn a_chain_reads_as_its_layers_written_over_each_other() {
    for kind in KINDS {
        for seed in 0..3 {
            let mut random = Random(seed);
            let mut chain = Chain::new(kind, &mut random);
            for layer in 0..4 {
                // Layers need not have the same block size.
                let block_size = [None, Some(kind.1), Some(2 << 20), None][layer];
                chain.grow(block_size, &mut random, 10);
            }
            for layer in 0..chain.files.len() {
                for access in [Access::ReadOnly, Access::ReadWrite] {
                    let image = chain.open(layer, access);
                    let what = format!("{kind:?} seed {seed} layer {layer}");
                    assert!(read_all(&image) == chain.models[layer], "{what}");
                    check_segments(&image, &chain.models[layer], &what);
                    for _ in 0..20 {
                        let from = random.below(SIZE) as usize;
                        let length = (random.below(100_000) as usize).min(SIZE as usize - from);
                        let mut part = vec![0xaa; length];
                        image.read_at(&mut part, from as u64).unwrap();
                        assert!(part == chain.models[layer][from..from + length], "{what}");
                    }
                }
            }
        }
    }
}

/// Segments cover the disk without gaps, say zero only of zeroes, and lie inside of extents.
fn check_segments(image: &DiskImage, model: &[u8], what: &str) {
    let mut at = 0;
    let extents = image.allocated(0..SIZE);
    for segment in image.segments(0..SIZE).unwrap() {
        assert_eq!(segment.offset, at, "{what}");
        let range = at as usize..(at + segment.length) as usize;
        at += segment.length;
        match segment.source {
            disk_image::Source::Zeroes => {
                assert!(model[range].iter().all(|byte| *byte == 0), "{what}");
            }
            disk_image::Source::File { file, offset } => {
                let mut bytes = vec![0; segment.length as usize];
                file.read_at(&mut bytes, offset).unwrap();
                assert!(bytes == model[range.clone()], "{what}");
                let inside = |extent: &disk_image::Extent| {
                    extent.offset <= range.start as u64 && extent.end() >= range.end as u64
                };
                assert!(
                    extents.iter().any(inside),
                    "{what}: {range:?} of {extents:?}"
                );
            }
            disk_image::Source::Read => panic!("{what}: nothing waits to be replayed"),
        }
    }
    assert_eq!(at, SIZE, "{what}");
}

#[test]
fn a_child_takes_no_room_for_what_it_does_not_change() {
    for kind in KINDS {
        let mut random = Random(4);
        let chain = Chain::new(kind, &mut random);
        let (mut image, file) = chain.child(Some(kind.1));
        let empty = file.bytes().len();
        image.write_at(&[1; 512], 3 << 20).unwrap();
        image.close().unwrap();
        // One block, and for a VHDX one bitmap block of 1 MiB.
        let taken = file.bytes().len() - empty;
        assert!(taken <= kind.1 as usize + (2 << 20), "{kind:?}: {taken}");
        let image =
            DiskImage::open_file_with_parents(Box::new(file), Access::ReadOnly, &chain.gate())
                .unwrap();
        let mut model = chain.models[0].clone();
        model[3 << 20..(3 << 20) + 512].fill(1);
        assert!(read_all(&image) == model);
        assert!(matches!(
            image.format(),
            Format::VhdxDifferencing | Format::VhdDifferencing
        ));
    }
}

#[test]
fn zeroes_in_a_child_hide_the_parents_data() {
    for kind in KINDS {
        let mut random = Random(8);
        let mut chain = Chain::new(kind, &mut random);
        chain.models[0] = vec![7; SIZE as usize];
        let mut parent = chain.open(0, Access::ReadWrite);
        parent.write_at(&chain.models[0], 0).unwrap();
        parent.close().unwrap();
        let (mut image, file) = chain.child(None);
        let mut model = chain.models[0].clone();
        for (at, length) in [
            (0, kind.1 as usize),
            (3 << 20, 700),
            ((4 << 20) + 100, 512 * 8),
        ] {
            image.write_at(&vec![0; length], at).unwrap();
            model[at as usize..at as usize + length].fill(0);
        }
        image.close().unwrap();
        let image =
            DiskImage::open_file_with_parents(Box::new(file), Access::ReadOnly, &chain.gate())
                .unwrap();
        assert!(read_all(&image) == model, "{kind:?}");
    }
}

#[test]
fn without_a_gate_the_error_names_what_the_file_asks_for() {
    for kind in KINDS {
        let chain = Chain::new(kind, &mut Random(1));
        let (image, file) = chain.child(None);
        image.close().unwrap();
        let error = DiskImage::open_file(Box::new(file), Access::ReadOnly).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parent);
        let text = error.to_string();
        assert!(
            text.contains("relative path `.\\\\0.disk`") && text.contains("no parents are allowed"),
            "{text}"
        );
    }
}

#[test]
fn a_parent_that_was_changed_or_replaced_is_not_accepted() {
    let mut random = Random(2);
    let chain = Chain::new(KINDS[0], &mut random);
    let (image, file) = chain.child(None);
    image.close().unwrap();
    let mut parent = chain.open(0, Access::ReadWrite);
    parent.write_at(&[1], 0).unwrap();
    parent.close().unwrap();
    let error =
        DiskImage::open_file_with_parents(Box::new(file.clone()), Access::ReadOnly, &chain.gate())
            .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parent);
    assert!(
        error
            .to_string()
            .contains("changed since the child was made"),
        "{error}"
    );
    // Told that the changed state is right, the child goes on with it.
    let (state, wrong) = {
        let info = chain.open(0, Access::ReadOnly).info().unwrap();
        let Details::Vhdx(vhdx) = info.details else {
            panic!("a VHDX")
        };
        (vhdx.data_write_guid, uuid::Uuid::from_u128(1))
    };
    for (linkage, right) in [(wrong, false), (state, true)] {
        let gate =
            SuppliedParents::new().with("0.disk", chain.files[0].clone() as Arc<dyn ImageFile>);
        // The old parent is needed once more to open the child for writing: a copy of its old state.
        let opened = reopen_with_linkage(&file, &chain, linkage);
        let again = DiskImage::open_file_with_parents(Box::new(opened), Access::ReadOnly, &gate);
        assert_eq!(again.is_ok(), right);
    }
}

/// The child with another linkage in its locator, as an administrator reconnects it.
fn reopen_with_linkage(
    child: &Arc<MemoryFile>,
    chain: &Chain,
    linkage: uuid::Uuid,
) -> Arc<MemoryFile> {
    let text = |id: uuid::Uuid| -> Vec<u8> {
        format!("{{{id}}}")
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect()
    };
    let file = Arc::new(MemoryFile::from_bytes(child.bytes()));
    let info = {
        // Forge the present state into it, so that it opens, then set what is asked for.
        let info = chain.open(0, Access::ReadOnly).info().unwrap();
        let Details::Vhdx(vhdx) = info.details else {
            panic!("a VHDX")
        };
        let mut bytes = file.bytes();
        let marker = text(uuid::Uuid::nil())[..2].to_vec();
        let key: Vec<u8> = "parent_linkage"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let at = bytes
            .windows(key.len())
            .position(|part| part == key)
            .unwrap()
            + key.len();
        assert_eq!(bytes[at..at + 2], marker, "the value follows its key");
        let value = text(vhdx.data_write_guid);
        bytes[at..at + value.len()].copy_from_slice(&value);
        bytes
    };
    let file = Arc::new(MemoryFile::from_bytes(info));
    let mut image =
        DiskImage::open_file_with_parents(Box::new(file.clone()), Access::ReadWrite, &chain.gate())
            .unwrap();
    let locator = |path: &str| ParentLocator {
        kind: LocatorKind::Relative,
        path: path.to_owned(),
    };
    image
        .set_parent(linkage, &[locator("..\\somewhere\\else\\0.disk")])
        .unwrap();
    image.close().unwrap();
    file
}

#[test]
fn parents_come_only_from_allowed_folders_and_symbolic_links_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
    for path in [&inside, &outside] {
        fs::create_dir(path).unwrap();
    }
    for ending in ["vhdx", "vhd"] {
        let format = if ending == "vhdx" {
            Format::VhdxDynamic
        } else {
            Format::VhdDynamic
        };
        let parent = outside.join(format!("base.{ending}"));
        let child = inside.join(format!("child.{ending}"));
        let options = CreateOptions::new(format, 4 << 20);
        let mut image = DiskImage::create(&parent, &options).unwrap();
        image.write_at(b"secret", 0).unwrap();
        image.close().unwrap();
        let image = DiskImage::create_differencing(&child, &parent, &options, &NoParents).unwrap();
        image.close().unwrap();
        let open = |folders: &[&std::path::Path]| {
            let gate = FolderGate::new(folders).unwrap();
            DiskImage::open_with_parents(&child, Access::ReadOnly, &gate)
        };
        // Not even a folder beside it is enough.
        let error = open(&[&inside]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parent);
        assert!(
            error.to_string().contains("outside of the allowed folders"),
            "{error}"
        );
        let image = open(&[&outside]).unwrap();
        let mut seen = [0; 6];
        image.read_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"secret");
        // A moved chain is found by its names, a link out of the folder is not followed.
        let moved = inside.join(format!("base.{ending}"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&parent, &moved).unwrap();
            assert_eq!(open(&[&inside]).unwrap_err().kind(), ErrorKind::Parent);
            fs::remove_file(&moved).unwrap();
        }
        fs::rename(&parent, &moved).unwrap();
        open(&[&inside]).unwrap();
        // Upper and lower case are the same where the image comes from.
        fs::rename(
            &moved,
            inside.join(format!("BASE.{}", ending.to_uppercase())),
        )
        .unwrap();
        open(&[&inside]).unwrap();
    }
}

#[test]
fn circles_and_endless_chains_end() {
    // A child that names itself, accepted by identity because it was forged so.
    let chain = Chain::new(KINDS[2], &mut Random(3));
    let (image, file) = chain.child(None);
    image.close().unwrap();
    // VHD: parent id = own id, footer and header checksums put right.
    let mut bytes = file.bytes();
    let own = bytes[68..84].to_vec();
    bytes[512 + 40..512 + 56].copy_from_slice(&own);
    let part = &mut bytes[512..1536];
    part[36..40].fill(0);
    let sum = part
        .iter()
        .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    part[36..40].copy_from_slice(&(!sum).to_be_bytes());
    let evil = Arc::new(MemoryFile::from_bytes(bytes));
    let gate = SuppliedParents::new().with("0.disk", evil.clone() as Arc<dyn ImageFile>);
    let error =
        DiskImage::open_file_with_parents(Box::new(evil), Access::ReadOnly, &gate).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parent);
    assert!(error.to_string().contains("circle"), "{error}");
}

#[test]
fn sectors_of_parent_and_child_must_have_the_same_size() {
    let small = Chain::new(KINDS[0], &mut Random(3));
    let (image, file) = small.child(None);
    image.close().unwrap();
    // The same parent, but with sectors of 4096 bytes: its metadata item follows three others.
    let mut bytes = small.files[0].bytes();
    let item = (2 << 20) + (64 << 10) + 8 + 8 + 16;
    assert_eq!(bytes[item..item + 4], 512_u32.to_le_bytes());
    bytes[item..item + 4].copy_from_slice(&4096_u32.to_le_bytes());
    let gate = SuppliedParents::new().with(
        "0.disk",
        Arc::new(MemoryFile::from_bytes(bytes)) as Arc<dyn ImageFile>,
    );
    let error =
        DiskImage::open_file_with_parents(Box::new(file), Access::ReadOnly, &gate).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parent, "{error}");
}

#[test]
fn a_cut_while_a_child_is_written_shows_flushed_or_later_bytes() {
    for kind in [KINDS[0], KINDS[2]] {
        let mut random = Random(11);
        let mut chain = Chain::new(kind, &mut random);
        chain.grow(None, &mut random, 6);
        let (image, file) = chain.child(None);
        drop(image);
        let empty = file.bytes();
        let below = chain.models[1].clone();
        let steps: Vec<(u64, usize, bool)> = (0..10)
            .map(|_| {
                let length = 1 + random.below(60_000) as usize;
                (
                    random.below(SIZE - length as u64),
                    length,
                    random.below(2) == 0,
                )
            })
            .collect();
        let run = |limit: Option<u64>| {
            let file = Arc::new(MemoryFile::from_bytes(empty.clone()));
            if let Some(limit) = limit {
                file.fail_after(limit);
            }
            let mut flushed = below.clone();
            let mut later: Vec<Vec<u8>> = Vec::new();
            let mut now = below.clone();
            let opened = DiskImage::open_file_with_parents(
                Box::new(file.clone()),
                Access::ReadWrite,
                &chain.gate(),
            );
            if let Ok(mut image) = opened {
                for (i, (offset, length, flush)) in steps.iter().enumerate() {
                    let value = i as u8 + 100;
                    now[*offset as usize..*offset as usize + length].fill(value);
                    later.push(now.clone());
                    if image.write_at(&vec![value; *length], *offset).is_err()
                        || (*flush && image.flush().is_err())
                    {
                        break;
                    }
                    if *flush {
                        flushed.clone_from(&now);
                        later.clear();
                    }
                }
            }
            (file, flushed, later)
        };
        let total = run(None).0.operations();
        assert!(total > 20);
        for limit in 0..=total {
            let (file, flushed, later) = run(Some(limit));
            let mut luck = Random(limit);
            let ways = [
                file.durable_bytes(),
                file.bytes(),
                file.after_power_cut(|_, length| {
                    (luck.below(length as u64 / 512 + 1) * 512) as usize
                }),
                file.after_power_cut(|i, length| if i % 2 == 0 { 0 } else { length }),
            ];
            for (way, bytes) in ways.into_iter().enumerate() {
                let file = Arc::new(MemoryFile::from_bytes(bytes));
                let open = |access| {
                    DiskImage::open_file_with_parents(Box::new(file.clone()), access, &chain.gate())
                        .unwrap_or_else(|e| panic!("{kind:?} cut {limit} way {way}: {e}"))
                };
                let seen = read_all(&open(Access::ReadOnly));
                for (i, byte) in seen.iter().enumerate() {
                    assert!(
                        *byte == flushed[i] || later.iter().any(|model| model[i] == *byte),
                        "{kind:?} cut {limit} way {way}: byte {i} is {byte}, flushed was {}",
                        flushed[i]
                    );
                }
                assert!(
                    read_all(&open(Access::ReadWrite)) == seen,
                    "{kind:?} cut {limit} way {way}"
                );
            }
        }
    }
}

#[test]
fn undefined_and_unmapped_blocks_of_a_child_are_zeroes_and_not_the_parents() {
    let mut random = Random(5);
    let chain = Chain::new(KINDS[0], &mut random);
    let mut parent = chain.open(0, Access::ReadWrite);
    parent.write_at(&vec![7; SIZE as usize], 0).unwrap();
    parent.close().unwrap();
    let (image, file) = chain.child(None);
    image.close().unwrap();
    for (state, value) in [(0_u64, 7), (1, 0), (2, 0), (3, 0)] {
        let mut bytes = file.bytes();
        let bat = 3 << 20;
        bytes[bat..bat + 8].copy_from_slice(&(0x7ff0_0000 | state).to_le_bytes());
        let image = DiskImage::open_file_with_parents(
            Box::new(Arc::new(MemoryFile::from_bytes(bytes))),
            Access::ReadOnly,
            &chain.gate(),
        )
        .unwrap();
        let mut seen = vec![1; 1 << 20];
        image.read_at(&mut seen, 0).unwrap();
        assert!(seen.iter().all(|byte| *byte == value), "state {state}");
    }
}

#[test]
fn an_image_without_its_parent_can_still_be_described() {
    let folder = tempfile::tempdir().unwrap();
    for ending in ["vhdx", "vhd"] {
        let format = if ending == "vhdx" {
            Format::VhdxDynamic
        } else {
            Format::VhdDynamic
        };
        let options = CreateOptions::new(format, 4 << 20);
        let (parent, child) = (
            folder.path().join(format!("a.{ending}")),
            folder.path().join(format!("b.{ending}")),
        );
        DiskImage::create(&parent, &options)
            .unwrap()
            .close()
            .unwrap();
        DiskImage::create_differencing(&child, &parent, &options, &NoParents)
            .unwrap()
            .close()
            .unwrap();
        fs::remove_file(&parent).unwrap();
        let info = DiskImage::describe(&child).unwrap();
        let place = match info.details {
            Details::Vhdx(vhdx) => vhdx.parent.unwrap().values[0].1.clone(),
            Details::Vhd(vhd) => vhd.parent.unwrap().locators[0].path.clone(),
            Details::Raw => panic!("an image"),
        };
        assert_eq!(place, format!(".\\a.{ending}"));
    }
}

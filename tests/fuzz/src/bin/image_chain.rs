//! A chain of differencing images reads as its layers written over each other, whatever is done
//! to the newest one, its power cuts included.

#![no_main]

use std::sync::Arc;

use disk_image::{
    Access, CreateOptions, DiskImage, Format, ImageFile, LocatorKind, MemoryFile, ParentLocator,
    SuppliedParents,
};
use fuzz::Input;

const KINDS: [(Format, u32, u32); 4] = [
    (Format::VhdxDynamic, 1 << 20, 512),
    (Format::VhdxDynamic, 1 << 20, 4096),
    (Format::VhdDynamic, 512 << 10, 512),
    (Format::VhdDynamic, 2 << 20, 512),
];
const SIZE: u64 = (2 << 20) + 4096 * 3;

struct Chain {
    files: Vec<Arc<MemoryFile>>,
    image: DiskImage,
    /// The disk as it must read now.
    now: Vec<u8>,
    flushed: Vec<u8>,
    written: Vec<(usize, Vec<u8>)>,
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (format, block_size, sector) = KINDS[usize::from(input.byte()) % KINDS.len()];
    let mut options = CreateOptions::new(format, SIZE);
    options.block_size = Some(block_size);
    options.logical_sector_size = sector;
    let file = Arc::new(MemoryFile::new());
    let image = DiskImage::create_file(Box::new(file.clone()), &options).expect("legal options");
    let mut chain = Chain {
        files: vec![file],
        image,
        now: vec![0; SIZE as usize],
        flushed: vec![0; SIZE as usize],
        written: Vec::new(),
    };
    for step in 1..=40_u8 {
        if input.is_empty() {
            break;
        }
        chain = chain.step(step, &mut input, &options);
    }
    chain.image.close().expect("memory has room");
    let newest = chain.files.len() - 1;
    let bytes = chain.files[newest].durable_bytes();
    let image = open(&chain.files, bytes, Access::ReadOnly).0;
    assert!(read(&image) == chain.now, "read differently after closing");
});

impl Chain {
    fn step(mut self, step: u8, input: &mut Input<'_>, options: &CreateOptions) -> Self {
        match input.byte() % 8 {
            0..=3 => {
                let at = input.below(SIZE) as usize;
                let length = match input.byte() {
                    n @ 0..200 => usize::from(n) * 23,
                    n => usize::from(n) * 6000,
                }
                .min(self.now.len() - at);
                let value = if input.byte() % 4 == 0 { 0 } else { step };
                let data = vec![value; length];
                self.image
                    .write_at(&data, at as u64)
                    .expect("inside of the disk");
                self.now[at..at + length].fill(value);
                self.written.push((at, data));
            }
            4 => {
                self.image.flush().expect("memory has room");
                self.flushed.clone_from(&self.now);
                self.written.clear();
            }
            5 if self.files.len() < 5 => return self.child(options, input),
            6 => {
                self.image.close().expect("memory has room");
                let newest = self.files.len() - 1;
                let bytes = self.files[newest].durable_bytes();
                let (image, file) = open(&self.files, bytes, Access::ReadWrite);
                assert!(
                    read(&image) == self.now,
                    "read differently after opening again"
                );
                self.files[newest] = file;
                self.image = image;
                self.flushed.clone_from(&self.now);
                self.written.clear();
            }
            _ => return self.cut(input),
        }
        self
    }

    /// The newest image becomes the parent of a new one.
    fn child(self, options: &CreateOptions, input: &mut Input<'_>) -> Self {
        let Self {
            mut files,
            image,
            now,
            ..
        } = self;
        image.close().expect("memory has room");
        let newest = files.len() - 1;
        let (parent, _) = open(&files, files[newest].durable_bytes(), Access::ReadOnly);
        let locators = [ParentLocator {
            kind: LocatorKind::Relative,
            path: format!("..\\{newest}.disk"),
        }];
        let mut options = options.clone();
        if input.byte() & 1 == 1 {
            options.block_size = Some(2 << 20);
        }
        let file = Arc::new(MemoryFile::new());
        let image = DiskImage::create_differencing_file(
            Box::new(file.clone()),
            parent,
            &locators,
            &options,
        )
        .expect("legal options");
        assert!(read(&image) == now, "an empty child reads as its parent");
        files.push(file);
        Self {
            files,
            image,
            flushed: now.clone(),
            now,
            written: Vec::new(),
        }
    }

    /// The power goes: of each write since the last flush some whole sectors arrive.
    fn cut(mut self, input: &mut Input<'_>) -> Self {
        let newest = self.files.len() - 1;
        let mut state = input.number(8) | 1;
        let bytes = self.files[newest].after_power_cut(|_, length| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            match state >> 62 {
                0 => 0,
                1 => (state >> 8) as usize % (length / 512 + 1) * 512,
                _ => length,
            }
        });
        let seen = read(&open(&self.files, bytes.clone(), Access::ReadOnly).0);
        for (i, byte) in seen.iter().enumerate() {
            if *byte != self.flushed[i] {
                let later = self
                    .written
                    .iter()
                    .any(|(at, data)| i.checked_sub(*at).and_then(|i| data.get(i)) == Some(byte));
                assert!(later, "byte {i} is {byte}, neither flushed nor written");
            }
        }
        let (image, file) = open(&self.files, bytes, Access::ReadWrite);
        assert!(
            read(&image) == seen,
            "replay in memory and into the file differ"
        );
        self.files[newest] = file;
        self.image = image;
        self.flushed.clone_from(&seen);
        self.now = seen;
        self.written.clear();
        self
    }
}

/// Opens `bytes` as the newest image of a chain.
fn open(files: &[Arc<MemoryFile>], bytes: Vec<u8>, access: Access) -> (DiskImage, Arc<MemoryFile>) {
    let mut gate = SuppliedParents::new();
    for (i, file) in files.iter().enumerate() {
        gate = gate.with(format!("{i}.disk"), file.clone() as Arc<dyn ImageFile>);
    }
    let file = Arc::new(MemoryFile::from_bytes(bytes));
    let image = DiskImage::open_file_with_parents(Box::new(file.clone()), access, &gate)
        .expect("an image of ours with its parents");
    (image, file)
}

fn read(image: &DiskImage) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(&mut bytes, 0).expect("inside of the disk");
    bytes
}

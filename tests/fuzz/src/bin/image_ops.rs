//! Any sequence of operations leaves an image that equals a plain vector; after a power cut every
//! byte is the flushed one or one written later.

#![no_main]

use std::sync::Arc;

use disk_image::{Access, CreateOptions, DiskImage, Format, MemoryFile};
use fuzz::Input;

const FORMATS: [(Format, u32, u32); 6] = [
    (Format::VhdxDynamic, 1 << 20, 512),
    (Format::VhdxDynamic, 2 << 20, 4096),
    (Format::VhdxFixed, 1 << 20, 512),
    (Format::VhdDynamic, 512 << 10, 512),
    (Format::VhdDynamic, 2 << 20, 512),
    (Format::VhdFixed, 2 << 20, 512),
];

struct World {
    image: DiskImage,
    file: Arc<MemoryFile>,
    /// The disk as it must read now.
    now: Vec<u8>,
    /// The disk as it was at the last flush, and after each write since.
    flushed: Vec<u8>,
    written: Vec<(usize, Vec<u8>)>,
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (format, block_size, sector) = FORMATS[usize::from(input.byte()) % FORMATS.len()];
    let size = (1 << 20)
        + u64::from(input.byte() % 32) * 65_536
        + u64::from(input.byte() % 4) * u64::from(sector);
    let mut options = CreateOptions::new(format, size);
    options.block_size = Some(block_size);
    options.logical_sector_size = sector;
    let file = Arc::new(MemoryFile::new());
    let image = DiskImage::create_file(Box::new(file.clone()), &options).expect("legal options");
    let mut world = World {
        image,
        file,
        now: vec![0; size as usize],
        flushed: vec![0; size as usize],
        written: Vec::new(),
    };
    for step in 1..=48_u8 {
        if input.is_empty() {
            break;
        }
        world = world.step(step, &mut input);
    }
    world.image.close().expect("memory has room");
    let file = MemoryFile::from_bytes(world.file.durable_bytes());
    let image = DiskImage::open_file(Box::new(file), Access::ReadOnly).expect("closed by us");
    assert!(read(&image) == world.now, "read differently after closing");
});

impl World {
    fn step(mut self, step: u8, input: &mut Input<'_>) -> Self {
        match input.byte() % 8 {
            0..=2 => self.write(step, input),
            3 => {
                let at = input.below(self.now.len() as u64) as usize;
                let mut part = vec![0xa5; (input.below(300_000) as usize).min(self.now.len() - at)];
                self.image
                    .read_at(&mut part, at as u64)
                    .expect("inside of the disk");
                assert!(part == self.now[at..at + part.len()], "read something else");
            }
            4 => {
                self.image.flush().expect("memory has room");
                self.durable();
            }
            5 => {
                self.image.close().expect("memory has room");
                return Self::open(self.file.durable_bytes(), self.now);
            }
            6 => self.resize(input),
            _ => return self.cut(input),
        }
        self
    }

    /// Smaller only where nothing is lost; everything is durable afterwards.
    fn resize(&mut self, input: &mut Input<'_>) {
        let sector = u64::from(self.image.logical_sector_size());
        let size = sector * (1 + input.below((4 << 20) / sector));
        let loses = self.now.iter().skip(size as usize).any(|byte| *byte != 0);
        assert_eq!(
            self.image.resize(size).is_ok(),
            !loses,
            "a resize to {size}"
        );
        if !loses {
            self.now.resize(size as usize, 0);
            self.durable();
        }
    }

    fn write(&mut self, step: u8, input: &mut Input<'_>) {
        let at = input.below(self.now.len() as u64) as usize;
        let length = match input.byte() {
            n @ 0..200 => usize::from(n) * 37,
            n => usize::from(n) * 6000,
        }
        .min(self.now.len() - at);
        let value = if input.byte() % 5 == 0 { 0 } else { step };
        self.image
            .write_at(&vec![value; length], at as u64)
            .expect("inside of the disk");
        self.now[at..at + length].fill(value);
        self.written.push((at, vec![value; length]));
    }

    fn durable(&mut self) {
        self.flushed.clone_from(&self.now);
        self.written.clear();
    }

    fn open(bytes: Vec<u8>, now: Vec<u8>) -> Self {
        let file = Arc::new(MemoryFile::from_bytes(bytes));
        let image = DiskImage::open_file(Box::new(file.clone()), Access::ReadWrite)
            .expect("an image of ours");
        assert!(read(&image) == now, "read differently after opening again");
        Self {
            image,
            file,
            flushed: now.clone(),
            now,
            written: Vec::new(),
        }
    }

    /// The power goes: of each write since the last flush some whole sectors arrive.
    fn cut(self, input: &mut Input<'_>) -> Self {
        let luck = input.number(8);
        let mut state = luck | 1;
        let bytes = self.file.after_power_cut(|_, length| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            match state >> 62 {
                0 => 0,
                1 => (state >> 8) as usize % (length / 512 + 1) * 512,
                _ => length,
            }
        });
        let read_only = DiskImage::open_file(
            Box::new(MemoryFile::from_bytes(bytes.clone())),
            Access::ReadOnly,
        )
        .expect("a power cut leaves an image");
        let seen = read(&read_only);
        assert_eq!(seen.len(), self.now.len(), "a power cut changed the size");
        for (i, byte) in seen.iter().enumerate() {
            if *byte != self.flushed[i] {
                let later = self
                    .written
                    .iter()
                    .any(|(at, data)| i.checked_sub(*at).and_then(|i| data.get(i)) == Some(byte));
                assert!(later, "byte {i} is {byte}, neither flushed nor written");
            }
        }
        Self::open(bytes, seen)
    }
}

fn read(image: &DiskImage) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(&mut bytes, 0).expect("inside of the disk");
    bytes
}

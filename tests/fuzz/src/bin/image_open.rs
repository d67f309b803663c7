//! Whatever opens as an image is read the same way every time, and may be gone on with.

#![no_main]

use std::sync::{Arc, LazyLock};

use disk_image::{
    Access, CreateOptions, DiskImage, Format, ImageError, MemoryFile, live_allocation_of,
};
use fuzz::{Input, forge};

const SIZE: u64 = 3 << 20;

/// Small images with data: closed ones, and a VHDX whose log waits to be replayed.
static SAMPLES: LazyLock<Vec<Arc<Vec<u8>>>> = LazyLock::new(|| {
    let make = |format, block_size, close: bool| -> Result<Arc<Vec<u8>>, ImageError> {
        let file = Arc::new(MemoryFile::new());
        let mut options = CreateOptions::new(format, SIZE);
        options.block_size = Some(block_size);
        let mut image = DiskImage::create_file(Box::new(file.clone()), &options)?;
        for i in 0..3_u8 {
            image.write_at(&[i + 1; 5000], u64::from(i) << 20)?;
            image.flush()?;
        }
        if close {
            image.close()?;
        }
        Ok(Arc::new(file.durable_bytes()))
    };
    let made: Result<Vec<_>, _> = [
        (Format::VhdxDynamic, 1 << 20, true),
        (Format::VhdxDynamic, 1 << 20, false),
        (Format::VhdDynamic, 512 << 10, true),
        (Format::VhdFixed, 512 << 10, true),
    ]
    .into_iter()
    .map(|(format, block, close)| make(format, block, close))
    .collect();
    made.expect("samples are made in memory")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let mut image = SAMPLES[usize::from(flags & 3)].to_vec();
    forge::change(&mut image, &mut input);
    if flags & 4 != 0 {
        forge::put_checksums_right(&mut image);
    }
    if flags & 8 != 0 {
        image.truncate(image.len() - (image.len() / 4).min(1 << 20) - 37);
    }
    check(&Arc::new(image));
});

fn open(bytes: &Arc<Vec<u8>>, access: Access) -> Option<(DiskImage, Arc<MemoryFile>)> {
    let file = Arc::new(MemoryFile::from_bytes(bytes.clone()));
    let image = DiskImage::open_file(Box::new(file.clone()), access).ok()?;
    Some((image, file))
}

/// The first and last MiB and the middle; `None` where the file can't give it.
fn look(image: &DiskImage) -> Vec<Option<Vec<u8>>> {
    let size = image.virtual_size();
    [0, size / 2, size.saturating_sub(1 << 20)]
        .into_iter()
        .map(|at| {
            let mut buffer = vec![0xa5; (1 << 20).min((size - at) as usize)];
            image.read_at(&mut buffer, at).ok().map(|()| buffer)
        })
        .collect()
}

fn check(bytes: &Arc<Vec<u8>>) {
    let file = MemoryFile::from_bytes(bytes.clone());
    let live = live_allocation_of(&file);
    let Some((image, file)) = open(bytes, Access::ReadOnly) else {
        return;
    };
    let size = image.virtual_size();
    let info = image.info().expect("what opens can be described");
    assert_eq!(info.virtual_size, size);
    let extents = image.allocated(0..size.min(1 << 40));
    assert!(
        extents
            .windows(2)
            .all(|pair| pair[0].end() < pair[1].offset)
    );
    assert!(
        extents
            .iter()
            .all(|extent| extent.length > 0 && extent.end() <= size)
    );
    if let Ok(live) = live {
        assert!(
            live.allocated
                .iter()
                .all(|extent| extent.end() <= live.virtual_size)
        );
    }
    let first = look(&image);
    assert_eq!(file.operations(), 0, "reading never writes");
    let (again, _) = open(bytes, Access::ReadOnly).expect("it opened before");
    assert!(first == look(&again), "read differently the second time");
    // What lies outside of all extents is zero.
    if extents.is_empty() {
        assert!(first.iter().flatten().flatten().all(|byte| *byte == 0));
    }
    // The log replayed into the file gives the same disk as the one replayed in memory.
    let Some((mut writer, file)) = open(bytes, Access::ReadWrite) else {
        return;
    };
    assert!(
        first == look(&writer),
        "replay in memory and into the file differ"
    );
    let at = size / 2;
    let data = vec![0x5a; 700.min((size - at) as usize)];
    if writer.write_at(&data, at).is_ok() && writer.close().is_ok() {
        let (image, _) =
            open(&Arc::new(file.durable_bytes()), Access::ReadOnly).expect("closed by us");
        let mut seen = vec![0; data.len()];
        image.read_at(&mut seen, at).expect("written by us");
        assert!(seen == data, "what was written is not what is read");
        let mut expected = first.clone();
        for (place, part) in [0, size / 2, size.saturating_sub(1 << 20)]
            .into_iter()
            .zip(&mut expected)
        {
            if let Some(part) = part {
                for (i, byte) in part.iter_mut().enumerate() {
                    if (at..at + data.len() as u64).contains(&(place + i as u64)) {
                        *byte = 0x5a;
                    }
                }
            }
        }
        for (expected, seen) in expected.iter().zip(look(&image)) {
            assert!(
                expected.is_none() || *expected == seen,
                "a write changed something else"
            );
        }
    }
}

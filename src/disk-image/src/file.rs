//! Where an image's bytes live: the small trait below every format.

use std::fs::File;
use std::io;
use std::sync::Arc;

/// A file of an image. All offsets are absolute; no position is shared.
pub trait ImageFile: Send + Sync {
    /// Fills `buffer` from `offset`; `UnexpectedEof` when the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`; the file grows when needed.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when all that was written before survives a power cut.
    fn flush(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts the file or extends it with zeroes.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// The operating system's file below, where there is one: copies may then stay in the kernel.
    fn as_file(&self) -> Option<&File> {
        None
    }
}

#[cfg(unix)]
impl ImageFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        length_by_metadata_or_seek(self)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}

#[cfg(windows)]
impl ImageFile for File {
    fn read_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(self, buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buffer = &mut buffer[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(self, data, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    data = &data[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        length_by_metadata_or_seek(self)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}

/// Block devices report 0 in their metadata; their end is found by seeking. The position of the
/// handle is not used by anything here, so moving it is harmless.
fn length_by_metadata_or_seek(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let mut handle = file;
    io::Seek::seek(&mut handle, io::SeekFrom::End(0))
}

impl<T: ImageFile + ?Sized> ImageFile for Arc<T> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        (**self).write_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }

    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        (**self).set_len(length)
    }

    fn as_file(&self) -> Option<&File> {
        (**self).as_file()
    }
}

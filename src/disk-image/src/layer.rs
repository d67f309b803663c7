//! Reading through a chain of images without recursion: which file holds which part of the disk.
//!
//! ```text
//!   range ─► top layer: data here │ zeroes │ holes ─► parent: data │ zeroes │ holes ─► … ─► zeroes
//! ```
//!
//! Every layer is asked only for what the layers above it left open, so each byte is read once,
//! straight from the file that holds it, however long the chain is.

use std::ops::Range;

use crate::{Extent, ImageError, ImageFile};

/// Where a part of one layer's disk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Reads as zeroes.
    Zero,
    /// At this offset of the layer's file.
    File(u64),
    /// Not in this layer: the parent knows.
    Parent,
}

/// One image of a chain.
pub(crate) trait Layer: Sized {
    /// Size of this layer's disk in bytes.
    fn layer_size(&self) -> u64;
    /// The next layer below.
    fn below(&self) -> Option<&Self>;
    /// Hands out the pieces of `range`, which lies inside the disk, in order.
    fn pieces(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(u64, u64, Place),
    ) -> Result<(), ImageError>;
    /// As [`Self::pieces`], from the block table alone: a block that holds anything counts as data.
    fn coarse(&self, range: Range<u64>, each: &mut dyn FnMut(u64, u64, Place));
    /// Fills `buffer` from an offset of the layer's file.
    fn read_file(&self, buffer: &mut [u8], at: u64) -> Result<(), ImageError>;
    /// The file, when its bytes can be used as they lie there (nothing waits to be replayed).
    fn plain_file(&self) -> Option<&dyn ImageFile>;
}

/// A part of the disk and the layer that holds it; `None` reads as zeroes.
pub(crate) struct Resolved<'a, L> {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) source: Option<(&'a L, u64)>,
}

/// Splits `range` by where it lies: sorted, without gaps, neighbours joined.
pub(crate) fn resolve<L: Layer>(
    top: &L,
    range: Range<u64>,
) -> Result<Vec<Resolved<'_, L>>, ImageError> {
    let mut found: Vec<Resolved<'_, L>> = Vec::new();
    let mut holes = vec![Extent {
        offset: range.start,
        length: range.end.saturating_sub(range.start),
    }];
    let mut layer = Some(top);
    while let Some(current) = layer {
        let mut open = Vec::new();
        for hole in holes {
            let end = hole.end().min(current.layer_size());
            if hole.offset < end {
                current.pieces(hole.offset..end, &mut |offset, length, place| match place {
                    Place::Parent => crate::extent::push(&mut open, offset, length),
                    Place::Zero => join(&mut found, offset, length, None),
                    Place::File(at) => join(&mut found, offset, length, Some((current, at))),
                })?;
            }
            // A child may be larger than its parent; behind the parent's end there is nothing.
            let start = hole.offset.max(end);
            join(&mut found, start, hole.end() - start, None);
        }
        holes = open;
        layer = current.below().filter(|_| !holes.is_empty());
    }
    for hole in holes {
        join(&mut found, hole.offset, hole.length, None);
    }
    found.sort_by_key(|part| part.offset);
    let mut joined: Vec<Resolved<'_, L>> = Vec::with_capacity(found.len());
    for part in found {
        join(&mut joined, part.offset, part.length, part.source);
    }
    Ok(joined)
}

/// Appends a part; joins it with the last one when it goes on where that ends, on both sides.
fn join<'a, L>(
    parts: &mut Vec<Resolved<'a, L>>,
    offset: u64,
    length: u64,
    source: Option<(&'a L, u64)>,
) {
    if length == 0 {
        return;
    }
    if let Some(last) = parts.last_mut()
        && last.offset + last.length == offset
    {
        let goes_on = match (last.source, source) {
            (None, None) => true,
            (Some((a, at)), Some((b, next))) => std::ptr::eq(a, b) && at + last.length == next,
            _ => false,
        };
        if goes_on {
            last.length += length;
            return;
        }
    }
    parts.push(Resolved {
        offset,
        length,
        source,
    });
}

/// Fills `buffer` from byte `offset` of the top layer's disk.
pub(crate) fn read<L: Layer>(top: &L, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
    for part in resolve(top, offset..offset + buffer.len() as u64)? {
        let from = (part.offset - offset) as usize;
        let target = &mut buffer[from..from + part.length as usize];
        match part.source {
            Some((layer, at)) => layer.read_file(target, at)?,
            None => target.fill(0),
        }
    }
    Ok(())
}

/// What may hold anything but zeroes, by the block tables alone: sorted, disjoint, joined.
pub(crate) fn allocated<L: Layer>(top: &L, range: Range<u64>) -> Vec<Extent> {
    let mut found = Vec::new();
    let mut holes = vec![Extent {
        offset: range.start,
        length: range.end.saturating_sub(range.start),
    }];
    let mut layer = Some(top);
    while let Some(current) = layer {
        let mut open = Vec::new();
        for hole in holes {
            let end = hole.end().min(current.layer_size());
            if hole.offset < end {
                current.coarse(hole.offset..end, &mut |offset, length, place| match place {
                    Place::Parent => crate::extent::push(&mut open, offset, length),
                    Place::Zero => {}
                    Place::File(_) => crate::extent::push(&mut found, offset, length),
                });
            }
        }
        holes = open;
        layer = current.below().filter(|_| !holes.is_empty());
    }
    found.sort_unstable();
    let mut joined = Vec::with_capacity(found.len());
    for extent in found {
        crate::extent::push(&mut joined, extent.offset, extent.length);
    }
    joined
}

/// A part of a disk for a caller that moves bytes by itself.
pub struct Segment<'a> {
    /// First byte of the disk.
    pub offset: u64,
    /// Length in bytes; never 0.
    pub length: u64,
    /// Where it lies.
    pub source: Source<'a>,
}

/// Where a [`Segment`] lies.
pub enum Source<'a> {
    /// It reads as zeroes.
    Zeroes,
    /// The bytes lie in one piece at `offset` of `file`.
    File {
        /// The image's own file, or one of a parent.
        file: &'a dyn ImageFile,
        /// Byte offset in it.
        offset: u64,
    },
    /// Only [`crate::DiskImage::read_at`] gives the bytes: a log waits to be replayed.
    Read,
}

/// The disk's parts and the files they lie in.
pub(crate) fn segments<L: Layer>(
    top: &L,
    range: Range<u64>,
) -> Result<Vec<Segment<'_>>, ImageError> {
    let parts = resolve(top, range)?;
    Ok(parts
        .into_iter()
        .map(|part| Segment {
            offset: part.offset,
            length: part.length,
            source: match part.source {
                None => Source::Zeroes,
                Some((layer, offset)) => match layer.plain_file() {
                    Some(file) => Source::File { file, offset },
                    None => Source::Read,
                },
            },
        })
        .collect())
}

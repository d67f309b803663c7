//! The stored form of a plan, kept with the recovered machine until its failback.
//!
//! ```text
//!   0  "SRBOOTPL"   8  version 1 (4)   12  CRC-32C of everything, this field zero (4)
//!  16  bytes of the disk (8)   24  identity: 1 GPT, 2 MBR (4)   28  GUID, or signature and zeroes (16)   44  pieces (4)
//!  48  each piece: offset (8), length (4), original bytes, new bytes                 little endian; nothing behind the last
//! ```

use super::plan::{ConversionPlan, Identity, Piece, PlanError};
use crate::bytes::{array, crc32c_without, guid, le32, le64};

const MAGIC: &[u8; 8] = b"SRBOOTPL";
const VERSION: u32 = 1;
const HEADER: usize = 48;
const CHECKSUM: usize = 12;
/// Both contents of the largest core, and room.
const MAX_BYTES: usize = 4 << 20;
const GPT: u32 = 1;
const MBR: u32 = 2;

impl ConversionPlan {
    /// The stored form: versioned and with a checksum; the same plan gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.disk_bytes.to_le_bytes());
        match self.identity {
            Identity::Gpt(id) => {
                bytes.extend_from_slice(&GPT.to_le_bytes());
                bytes.extend_from_slice(&id.to_bytes_le());
            }
            Identity::Mbr(signature) => {
                bytes.extend_from_slice(&MBR.to_le_bytes());
                bytes.extend_from_slice(&signature.to_le_bytes());
                bytes.extend_from_slice(&[0; 12]);
            }
        }
        bytes.extend_from_slice(&(self.pieces.len() as u32).to_le_bytes());
        for piece in &self.pieces {
            bytes.extend_from_slice(&piece.offset.to_le_bytes());
            bytes.extend_from_slice(&(piece.new.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&piece.original);
            bytes.extend_from_slice(&piece.new);
        }
        let sum = crc32c_without(&bytes, CHECKSUM);
        crate::bytes::put(&mut bytes, CHECKSUM, &sum.to_le_bytes());
        bytes
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`PlanError::Stored`] when it is damaged, of a newer version, or names places outside its disk.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PlanError> {
        let refuse = |why: String| Err(PlanError::Stored(why));
        if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
            return refuse("it does not begin as a conversion plan".to_owned());
        }
        let version = le32(bytes, 8);
        if version != VERSION {
            return refuse(format!(
                "its version is {version}, this program knows {VERSION}"
            ));
        }
        if bytes.len() > MAX_BYTES {
            return refuse(format!(
                "it has {} bytes, at most {MAX_BYTES} are allowed",
                bytes.len()
            ));
        }
        let (stored, computed) = (le32(bytes, CHECKSUM), crc32c_without(bytes, CHECKSUM));
        if stored != computed {
            return refuse(format!(
                "checksum is {stored:#010x}, computed {computed:#010x}"
            ));
        }
        let identity = match le32(bytes, 24) {
            GPT => Identity::Gpt(guid(bytes, 28)),
            MBR => Identity::Mbr(u32::from_le_bytes(array(bytes, 28))),
            other => return refuse(format!("it knows disks by {other}")),
        };
        let plan = Self {
            identity,
            disk_bytes: le64(bytes, 16),
            pieces: pieces(bytes)
                .ok_or_else(|| PlanError::Stored("its pieces do not fill it exactly".to_owned()))?,
        };
        let mut places: Vec<_> = plan.pieces.iter().map(|p| (p.offset, p.end())).collect();
        places.sort_unstable();
        let apart = places
            .windows(2)
            .all(|pair| matches!(pair, [(_, end), (start, _)] if end <= start));
        if !apart || places.iter().any(|(_, end)| *end > plan.disk_bytes) {
            return refuse("its pieces overlap or lie outside the disk".to_owned());
        }
        Ok(plan)
    }
}

fn pieces(bytes: &[u8]) -> Option<Vec<Piece>> {
    let mut rest = bytes.get(HEADER..)?;
    let mut pieces = Vec::new();
    for _ in 0..le32(bytes, 44) {
        let (head, body) = rest.split_at_checked(12)?;
        let length = le32(head, 8) as usize;
        let (original, body) = body.split_at_checked(length)?;
        let (new, body) = body.split_at_checked(length)?;
        if length == 0 {
            return None;
        }
        pieces.push(Piece {
            offset: le64(head, 0),
            original: original.to_vec(),
            new: new.to_vec(),
        });
        rest = body;
    }
    rest.is_empty().then_some(pieces)
}

//! A checked cursor over bytes: running out is an error, never a panic.

use super::JournalError;

pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], JournalError> {
        let (head, tail) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| JournalError::corrupt("a structure ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], JournalError> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u16(&mut self) -> Result<u16, JournalError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, JournalError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, JournalError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// That many records of that size must still be there: bounds an allocation by real bytes.
    pub(super) fn expect(&self, count: usize, record: usize) -> Result<(), JournalError> {
        match count.checked_mul(record) {
            Some(bytes) if bytes <= self.0.len() => Ok(()),
            _ => Err(JournalError::corrupt("a table ends too early")),
        }
    }

    pub(super) fn end(&self) -> Result<(), JournalError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(JournalError::corrupt("a structure has bytes left over"))
        }
    }
}

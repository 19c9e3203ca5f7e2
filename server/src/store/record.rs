//! One record on disk: its content under a checksum that also covers its key.
//!
//! Promises: a record that reads back is the one that was written under this very key; anything else is an error, never
//! another record. It does not know what is inside.

use std::io::{self, BufRead};

use super::damaged;

/// Bytes before the content.
pub const HEADER: usize = 4;

/// The record as it goes to disk.
pub fn seal(key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + content.len());
    out.extend_from_slice(&checksum(key, content).to_le_bytes());
    out.extend_from_slice(content);
    out
}

/// The content, if it is what was sealed under this key.
pub fn open(key: &[u8], record: &[u8]) -> io::Result<Vec<u8>> {
    let (sum, content) = record.split_at_checked(HEADER).ok_or_else(|| damaged("a record is too short"))?;
    let expected = u32::from_le_bytes(sum.try_into().expect("split at four bytes"));
    if checksum(key, content) != expected {
        return Err(damaged("a record's checksum is wrong"));
    }
    Ok(content.to_vec())
}

/// The checksum of a content that is too long to be in memory.
pub fn checksum_of(key: &[u8], content: &mut impl BufRead) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    loop {
        let piece = content.fill_buf()?;
        if piece.is_empty() {
            return Ok(hasher.finalize());
        }
        hasher.update(piece);
        let read = piece.len();
        content.consume(read);
    }
}

fn checksum(key: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(content);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_any_flipped_bit_is_noticed() {
        let record = seal(b"vote", b"content");
        assert_eq!(open(b"vote", &record).unwrap(), b"content");
        for bit in 0..record.len() * 8 {
            let mut bad = record.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(b"vote", &bad).is_err(), "bit {bit}");
        }
        assert!(open(b"else", &record).is_err());
        assert!(open(b"vote", &record[..3]).is_err());
    }
}

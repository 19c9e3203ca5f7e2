//! Bytes that were damaged on their way, for the tests of every reader: of the wire here, of the disk in the server, which includes this
//! file too.
//!
//! What happens to them: a byte changes, the largest number is put in, a part comes twice, the end comes too early; or nothing.

use proptest::prelude::*;
use proptest::sample::Index;

/// What happens to some of the bytes; and where they end, if too early.
pub fn damages() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    (prop::collection::vec((any::<Index>(), any::<u8>()), 0..5), prop::option::weighted(0.2, any::<Index>()))
}

/// The bytes, after that.
pub fn damaged(bytes: &[u8], at: &[(Index, u8)], cut: Option<Index>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, change) in at {
        match change {
            // As large a number as there is.
            0 => {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
            }
            // A part comes twice.
            1 => {
                let at = at.index(bytes.len() + 1);
                let part = bytes[..at].to_vec();
                bytes.extend(part);
            }
            change if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= change;
            }
            _ => {}
        }
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len() + 1));
    }
    bytes
}

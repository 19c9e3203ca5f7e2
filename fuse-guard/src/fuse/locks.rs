//! Locks held through a mount, from /proc/locks. An exclusive one: somebody is in the middle of something (DESIGN 5, step 1).

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// Whose; -1 for a lock of an open file description.
    pub(super) pid: i64,
    /// On which inode, as the mount numbers them.
    pub(super) ino: u64,
}

/// The exclusive locks of a device in the text of /proc/locks. Who only waits for a lock holds nothing.
pub(super) fn exclusive(text: &str, device: (u32, u32)) -> Vec<Held> {
    of(text, device, &["WRITE"])
}

/// All of them, shared ones too.
pub(super) fn all(text: &str, device: (u32, u32)) -> Vec<Held> {
    of(text, device, &["WRITE", "READ"])
}

fn of(text: &str, (major, minor): (u32, u32), kinds: &[&str]) -> Vec<Held> {
    let mut held = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, kind, pid, place, ..] = words[..] else { continue };
        if !kinds.contains(&kind) {
            continue;
        }
        let parts: Vec<&str> = place.split(':').collect();
        let [maj, min, ino] = parts[..] else { continue };
        let device = (u32::from_str_radix(maj, 16), u32::from_str_radix(min, 16));
        if device == (Ok(major), Ok(minor))
            && let (Ok(pid), Ok(ino)) = (pid.parse(), ino.parse())
        {
            held.push(Held { pid, ino });
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exclusive_locks_that_are_held_on_the_mount_count() {
        let text = "1: POSIX  ADVISORY  WRITE 812 00:2d:1234 0 EOF\n\
                    2: FLOCK  ADVISORY  READ 813 00:2d:1235 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 814 08:01:1234 0 EOF\n\
                    3: -> FLOCK  ADVISORY  WRITE 815 00:2d:1234 0 EOF\n\
                    4: OFDLCK ADVISORY  WRITE -1 00:2d:77 100 101\n\
                    garbage\n";
        assert_eq!(exclusive(text, (0, 0x2d)), [Held { pid: 812, ino: 1234 }, Held { pid: -1, ino: 77 }]);
        assert_eq!(all(text, (0, 0x2d)).iter().map(|lock| lock.pid).collect::<Vec<_>>(), [812, 813, -1]);
    }
}

//! `/proc/PID/mountinfo`, read: which mount has which id, where it appears and which part of its filesystem it shows.
//!
//! It promises to read any line the kernel may write (paths are octal-escaped there) and to skip what it cannot read, since a
//! kernel may add fields. It touches no storage, so it cannot hang.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The id of `statx` and of `/proc/PID/fdinfo`.
    pub id: u64,
    /// `major:minor` of the superblock, as the kernel writes it.
    pub device: String,
    /// Which directory of the filesystem is mounted.
    pub root: PathBuf,
    /// Where it appears.
    pub at: PathBuf,
    /// With the subtype: `nfs4`, `ext4`, `fuse.treelease`.
    pub fs_type: String,
    /// What is mounted: a device, `host:/export`, `treelease:dev`.
    pub source: String,
    /// Options of the superblock, comma separated.
    pub options: String,
}

impl Mount {
    /// Whether the superblock has this option (without a value, or with any).
    pub fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|o| o.split('=').next() == Some(name))
    }

    /// Where in the filesystem a path lies that this mount shows; `None` if it does not lie under this mount.
    pub fn inner_path(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.at).ok()?;
        Some(if below.as_os_str().is_empty() { self.root.clone() } else { self.root.join(below) })
    }
}

/// The mounts that a process sees; `self` for this one.
pub fn of(pid: &str) -> std::io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read(format!("/proc/{pid}/mountinfo"))?))
}

/// The mounts in a file of this form.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

fn line(text: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = text.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let string = |f: &[u8]| String::from_utf8_lossy(&unescape(f)).into_owned();
    let path = |f: &[u8]| PathBuf::from(OsString::from_vec(unescape(f)));
    Some(Mount {
        id: std::str::from_utf8(fields.first()?).ok()?.parse().ok()?,
        device: string(fields.get(2)?),
        root: path(fields.get(3)?),
        at: path(fields.get(4)?),
        fs_type: string(fields.get(dash + 1)?),
        source: string(fields.get(dash + 2)?),
        options: fields.get(dash + 3).map(|f| string(f)).unwrap_or_default(),
    })
}

/// `\040` and the like back to bytes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        if let Some(digits) = octal {
            out.push(digits.iter().fold(0_u32, |n, d| n * 8 + u32::from(d - b'0')) as u8);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"36 35 98:0 /export/a\\040b /mnt/with\\040space rw,noatime master:1 shared:2 - nfs4 host:/x rw,vers=4.2,softerr,timeo=50\n\
        40 35 0:55 / /work rw - fuse.treelease treelease:dev rw,user_id=0\ngarbage\n41 35 0:6 / /dev rw - devtmpfs dev\n";

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_read() {
        let mounts = parse(SAMPLE);
        assert_eq!(mounts.len(), 3, "the garbage is skipped");
        assert_eq!(mounts[0].at, Path::new("/mnt/with space"));
        assert_eq!(mounts[0].fs_type, "nfs4");
        assert!(mounts[0].has_option("softerr") && mounts[0].has_option("vers") && !mounts[0].has_option("soft"));
        assert_eq!(mounts[1].fs_type, "fuse.treelease");
    }

    #[test]
    fn a_path_under_a_mount_is_translated_to_its_place_in_the_filesystem() {
        let mounts = parse(SAMPLE);
        assert_eq!(mounts[0].inner_path(Path::new("/mnt/with space/c/d")), Some("/export/a b/c/d".into()));
        assert_eq!(mounts[0].inner_path(Path::new("/mnt/with space")), Some("/export/a b".into()));
        assert_eq!(mounts[0].inner_path(Path::new("/mnt/with spaces")), None);
    }

    #[test]
    fn our_own_mounts_are_read() {
        assert!(of("self").unwrap().iter().any(|m| m.at == Path::new("/proc")));
    }
}

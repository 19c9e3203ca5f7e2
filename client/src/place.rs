//! On which kernel and superblock a root lies (I2's "same kernel"), and what the mount table says about a path.
//!
//! The mount table is read from `/proc/self/mountinfo`, which answers also when a mount hangs: nothing here touches the
//! storage, except [`of`], which asks an open descriptor for its device number.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::words::id::Place;

/// The kernel's boot id: another one after each boot.
pub fn boot_id() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_string())
}

/// The place of an open lower root: two grants with equal places share every dirty page.
pub fn of(root: impl AsFd) -> std::io::Result<Place> {
    let stat = rustix::fs::fstat(root)?;
    Ok(Place { boot: boot_id()?, superblock: stat.st_dev })
}

/// The type that a guarded mount has in the mount table.
pub const GUARD_FSTYPE: &str = "fuse.treelease";

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is mounted.
    pub at: PathBuf,
    /// Major and minor number of its device.
    pub device: (u32, u32),
    /// `ext4`, `nfs4`, `fuse.treelease` and so on.
    pub fstype: String,
    /// What is mounted; of a guarded mount `treelease:NAME`.
    pub source: String,
}

impl MountEntry {
    /// Whether this is a mount of a treelease guard.
    pub fn is_guarded(&self) -> bool {
        self.fstype == GUARD_FSTYPE
    }

    /// The tree's name, of a guarded mount.
    pub fn guarded_tree(&self) -> Option<&str> {
        self.is_guarded().then(|| self.source.strip_prefix("treelease:")).flatten()
    }

    /// Whether other machines may see the same files, or the files come and go with a process.
    pub fn is_shared(&self) -> bool {
        const SHARED: [&str; 12] =
            ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "glusterfs", "lustre", "virtiofs", "fuse"];
        // A container's own root may be FUSE; it is as local as overlayfs.
        let local_fuse = ["fuse.fuse-overlayfs", "fuse.overlayfs"].contains(&self.fstype.as_str());
        SHARED.contains(&self.fstype.as_str()) || (self.fstype.starts_with("fuse.") && !local_fuse)
    }
}

/// The mount table, in the kernel's order: of several mounts at one place the last one is on top.
pub fn mounts() -> Vec<MountEntry> {
    std::fs::read("/proc/self/mountinfo").map(|text| parse_mounts(&text)).unwrap_or_default()
}

/// The mount that a path lies on, judged by its text alone: the path should be absolute and without symlinks.
pub fn mount_of(path: &Path) -> Option<MountEntry> {
    topmost(mounts(), path)
}

fn topmost(mounts: Vec<MountEntry>, path: &Path) -> Option<MountEntry> {
    // `max_by_key` takes the last of equals, which is the one on top.
    mounts.into_iter().filter(|m| path.starts_with(&m.at)).max_by_key(|m| m.at.components().count())
}

fn parse_mounts(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /at rw,noatime shared:1 - ext4 /dev/sda rw`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let at = fields.nth(1)?;
    let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
    let fstype = String::from_utf8_lossy(&unescape(rest.next()?)).into_owned();
    let source = String::from_utf8_lossy(&unescape(rest.next()?)).into_owned();
    Some(MountEntry { at: PathBuf::from(std::ffi::OsString::from_vec(unescape(at))), device, fstype, source })
}

/// `\040` is a space, and so on.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        let octal = field.get(i + 1..i + 4).filter(|d| field[i] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(d) => {
                out.push((d[0] - b'0').wrapping_mul(64).wrapping_add((d[1] - b'0') * 8 + (d[2] - b'0')));
                i += 4;
            }
            None => {
                out.push(field[i]);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        40 22 0:40 / /mnt/nas\\040two rw,relatime shared:7 - nfs4 nas:/export rw,vers=4.2\n\
        41 40 0:41 / /mnt/nas\\040two/dev rw master:1 - fuse.treelease treelease:dev rw\n\
        garbage\n";

    #[test]
    fn a_path_lies_on_the_deepest_mount_above_it() {
        let at = |p: &str| topmost(parse_mounts(TABLE), Path::new(p)).unwrap();
        assert_eq!(at("/home/x").fstype, "ext4");
        assert!(at("/mnt/nas two/other").is_shared());
        let guarded = at("/mnt/nas two/dev/src");
        assert_eq!(guarded.guarded_tree(), Some("dev"));
        assert_eq!((guarded.at.as_path(), guarded.device), (Path::new("/mnt/nas two/dev"), (0, 41)));
        assert!(!at("/mnt/nas two/device").is_guarded(), "a name that only begins alike");
    }

    #[test]
    fn the_last_mount_at_one_place_is_on_top() {
        let twice = b"1 0 8:1 / /a rw - ext4 x rw\n2 1 8:1 / /a rw - nfs y rw\n";
        assert_eq!(topmost(parse_mounts(twice), Path::new("/a")).unwrap().fstype, "nfs");
    }

    #[test]
    fn a_place_names_this_boot_and_the_device() {
        let dir = std::fs::File::open("/").unwrap();
        let place = of(&dir).unwrap();
        assert_eq!(place.boot, boot_id().unwrap());
        assert_eq!(place.boot.len(), 36);
    }
}

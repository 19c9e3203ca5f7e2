//! Extended attributes that a file is known not to have, under the lease: remembered, and not a moment longer than they are not
//! there. Needs /dev/fuse.

mod fs_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fs_support::Tree;
use rustix::fs::{Mode, XattrFlags, getxattr, removexattr, setxattr};

const CAPABILITY: &str = "security.capability";
const DEFAULT_LIST: &str = "system.posix_acl_default";
/// `cap_net_bind_service=ep`, in the kernel's second format.
const BIND: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn has(path: &Path, name: &str) -> bool {
    getxattr(path, name, &mut [0u8; 256][..]).is_ok()
}

/// An access control list in the kernel's form: owner, group and others may read and write.
fn open_to_all() -> Vec<u8> {
    let (owner, group, others): (u16, u16, u16) = (1, 4, 0x20);
    let mut list = 2u32.to_le_bytes().to_vec();
    for tag in [owner, group, others] {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&6u16.to_le_bytes());
        list.extend_from_slice(&u32::MAX.to_le_bytes());
    }
    list
}

/// Whether a file has a capability is asked for at the storage once in a run, and again when an attribute of it is set or removed:
/// setcap is seen at once, and so is what the other side has set when its turn is over.
#[test]
fn a_capability_that_was_not_there_is_seen_when_it_is_set() {
    let t = Tree::held();
    let (file, below) = (t.at.join("f"), t.lower.join("f"));
    fs::write(&file, b"x").unwrap();
    assert!(!has(&file, CAPABILITY));
    setxattr(&file, CAPABILITY, &BIND, XattrFlags::empty()).unwrap();
    assert!(has(&file, CAPABILITY), "set through the mount");
    removexattr(&file, CAPABILITY).unwrap();
    assert!(!has(&file, CAPABILITY), "and removed");
    // The control: it is remembered. Nobody but this side sets anything while it holds the lease.
    setxattr(&below, CAPABILITY, &BIND, XattrFlags::empty()).unwrap();
    assert!(!has(&file, CAPABILITY), "asked for below once more");
    t.release();
    assert!(has(&file, CAPABILITY), "without the lease it is asked for each time");
    t.hold(3, 3);
    assert!(has(&file, CAPABILITY), "after another side's turn it is asked for anew");
    fs::write(&file, b"y").unwrap();
    assert!(!has(&below, CAPABILITY) && !has(&file, CAPABILITY), "a write takes it away, as below");
}

/// A directory's default access control list takes the place of the umask as soon as it is set, and no longer than it is there.
#[test]
fn a_default_list_counts_from_when_it_is_set_to_when_it_is_removed() {
    let t = Tree::held();
    let dir = t.at.join("d");
    fs::create_dir(&dir).unwrap();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let made = |name: &str| {
        fs::write(dir.join(name), b"x").unwrap();
        fs::metadata(t.lower.join("d").join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!([made("a"), made("b")], [0o600, 0o600]);
    setxattr(&dir, DEFAULT_LIST, &open_to_all(), XattrFlags::empty()).unwrap();
    assert_eq!([made("c"), made("d")], [0o666, 0o666]);
    removexattr(&dir, DEFAULT_LIST).unwrap();
    assert_eq!(made("e"), 0o600);
    // The control: that there is none is remembered.
    setxattr(t.lower.join("d"), DEFAULT_LIST, &open_to_all(), XattrFlags::empty()).unwrap();
    assert_eq!(made("f"), 0o600, "asked for below once more");
    t.release();
    t.hold(3, 3);
    assert_eq!(made("g"), 0o666, "after another side's turn it is asked for anew");
}

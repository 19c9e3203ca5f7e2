//! A guard without a free descriptor: a want of its own is no error of the storage. In a file of its own, for it takes all descriptors of
//! its process away.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::fs::{Mode, OFlags};
use treelease_client::words::epoch::Epoch;
use treelease_guard::fs::dirty::Dirty;
use treelease_guard::fs::inode::Nodes;

#[test]
fn where_no_descriptor_is_left_a_flush_asks_on_one_that_is_open_and_calls_nothing_lost() {
    let dir = tempfile::tempdir().unwrap();
    let open = |flags: OFlags| rustix::fs::open(dir.path(), flags | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let (root, nodes) = (open(OFlags::RDONLY), Nodes::new(open(OFlags::PATH)).unwrap());
    let (dirty, node) = (Dirty::default(), nodes.root());
    dirty.begin(&root, Vec::new(), Epoch::from_raw(1)).unwrap();
    let file = File::create(dir.path().join("f")).unwrap();
    let (pipe, _other_end) = std::io::pipe().unwrap();
    let flush = |with: Option<OwnedFd>| {
        node.writable.lock().unwrap().pages = with.map(Arc::new);
        dirty.wrote(node, 1);
        dirty.flush(|_| "f".into(), || true)
    };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Those that are open stay.
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    assert!(File::open(dir.path()).is_err(), "none is left");
    let (asked, nobody, fails) = (flush(Some(file.into())), flush(None), flush(Some(pipe.into())));
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(asked, Ok((1, 1)));
    assert_eq!(nobody, Ok((1, 2)), "what has no descriptor is what the sync of the whole filesystem is for");
    let lost = fails.expect_err("the one that is open is asked");
    assert!(lost[0].starts_with("f: "), "{lost:?}");
}

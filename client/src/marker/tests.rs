//! Markers and stamps on a real directory: made, found again, foreign, copied, torn.

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

struct Root {
    dir: tempfile::TempDir,
    fd: OwnedFd,
    marker: Marker,
}

fn root() -> Root {
    let dir = tempfile::tempdir().unwrap();
    let fd = open_root(dir.path()).unwrap();
    let name = "dev".parse().unwrap();
    let marker = Marker::new(ClusterId::random(), TreeId::random(), name, RootId::random(), vec!["http://127.0.0.1:7420".into()]);
    Root { dir, fd, marker }
}

impl Root {
    fn expected(&self) -> Expected<'_> {
        Expected { cluster: &self.marker.cluster, tree: &self.marker.tree, root: Some(&self.marker.root) }
    }
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
    fn stamp(&self, epoch: u64, session: &SessionId) -> Stamp {
        Stamp {
            epoch: Epoch::from_raw(epoch),
            session: session.clone(),
            cluster: self.marker.cluster.clone(),
            root_state: RootState::Live,
            endpoints: vec![],
        }
    }
}

#[test]
fn i8_a_marker_is_found_as_it_was_made_and_is_made_once() {
    let root = root();
    assert_eq!(read(root.fd.as_fd()).unwrap(), None);
    let made = create(root.fd.as_fd(), &root.marker).unwrap();
    let found = read(root.fd.as_fd()).unwrap().unwrap();
    assert_eq!(found.marker, made);
    assert_eq!(found.inode, std::fs::metadata(root.path(MARKER)).unwrap().ino());
    assert_eq!(check(&found, root.expected()), Ok(()));
    let again = create(root.fd.as_fd(), &root.marker).unwrap_err();
    assert!(matches!(again, MarkerError::Exists { .. }));
    assert_eq!(read(root.fd.as_fd()).unwrap().unwrap(), found, "untouched");
}

#[test]
fn i8_a_marker_of_another_cluster_tree_or_root_is_told_apart() {
    let root = root();
    create(root.fd.as_fd(), &root.marker).unwrap();
    let found = read(root.fd.as_fd()).unwrap().unwrap();
    let (cluster, tree, other_root) = (ClusterId::random(), TreeId::random(), RootId::random());
    let e = root.expected();
    let foreign = check(&found, Expected { cluster: &cluster, ..e }).unwrap_err();
    assert_eq!(foreign, Mismatch::Foreign { cluster: root.marker.cluster.clone() });
    let failure = mismatch_failure(root.dir.path(), &found, &foreign);
    assert_eq!(failure.exit().code(), 78);
    assert!(failure.message.contains(root.marker.cluster.as_str()), "{failure}");
    assert!(failure.hints.iter().any(|hint| hint.contains("treelease join")), "{:?}", failure.hints);
    assert!(matches!(check(&found, Expected { tree: &tree, ..e }), Err(Mismatch::OtherTree { .. })));
    assert!(matches!(check(&found, Expected { root: Some(&other_root), ..e }), Err(Mismatch::OtherRoot { .. })));
    assert_eq!(check(&found, Expected { root: None, ..e }), Ok(()));
}

#[test]
fn i8_a_copied_marker_is_told_by_its_inode() {
    let (original, copy) = (root(), root());
    create(original.fd.as_fd(), &original.marker).unwrap();
    std::fs::copy(original.path(MARKER), copy.path(MARKER)).unwrap();
    let found = read(copy.fd.as_fd()).unwrap().unwrap();
    let mismatch = check(&found, original.expected()).unwrap_err();
    assert!(matches!(mismatch, Mismatch::Copied { .. }));
    assert_eq!(mismatch_failure(copy.dir.path(), &found, &mismatch).hints.len(), 2, "both ways out");
}

#[test]
fn a_torn_marker_is_named_and_only_replace_gets_past_it() {
    let root = root();
    create(root.fd.as_fd(), &root.marker).unwrap();
    let whole = std::fs::read(root.path(MARKER)).unwrap();
    for keep in [0, 1, whole.len() / 2, whole.len() - 3] {
        std::fs::remove_file(root.path(MARKER)).unwrap();
        std::fs::write(root.path(MARKER), &whole[..keep]).unwrap();
        let e = read(root.fd.as_fd()).unwrap_err();
        assert!(matches!(&e, MarkerError::Damaged { torn: true, .. }), "{keep}: {e}");
        let failure = Failure::from(e);
        assert_eq!(failure.exit().code(), 78);
        assert!(failure.message.contains(MARKER));
        assert!(matches!(create(root.fd.as_fd(), &root.marker), Err(MarkerError::Exists { .. })));
    }
    replace(root.fd.as_fd(), &root.marker).unwrap();
    assert_eq!(check(&read(root.fd.as_fd()).unwrap().unwrap(), root.expected()), Ok(()), "with its own inode");
    assert_eq!(std::fs::read_dir(root.dir.path()).unwrap().count(), 1, "nothing left beside it");
}

#[test]
fn what_is_no_marker_is_damaged_and_never_followed() {
    let root = root();
    let is_damaged = |what: &str| match read(root.fd.as_fd()) {
        Err(MarkerError::Damaged { torn: false, .. }) => {}
        other => panic!("{what}: {other:?}"),
    };
    std::fs::write(root.path(MARKER), "{\"format\":1}").unwrap();
    is_damaged("keys are missing");
    std::fs::remove_file(root.path(MARKER)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.path(MARKER)).unwrap();
    is_damaged("a symlink");
    std::fs::remove_file(root.path(MARKER)).unwrap();
    std::fs::create_dir(root.path(MARKER)).unwrap();
    is_damaged("a directory");
    std::fs::remove_dir(root.path(MARKER)).unwrap();
    nix::unistd::mkfifo(&root.path(MARKER), nix::sys::stat::Mode::S_IRWXU).unwrap();
    is_damaged("a FIFO, which is not waited for");
    std::fs::remove_file(root.path(MARKER)).unwrap();
    std::fs::write(root.path(MARKER), "{\"format\":99,\"new\":{}}").unwrap();
    assert!(matches!(read(root.fd.as_fd()), Err(MarkerError::Later { found: 99, .. })));
}

#[test]
fn whoever_may_write_the_root_may_lock_the_marker() {
    let root = root();
    for (dir, file) in [(0o755, 0o644), (0o775, 0o664), (0o777, 0o666)] {
        std::fs::set_permissions(root.dir.path(), std::fs::Permissions::from_mode(dir)).unwrap();
        create(root.fd.as_fd(), &root.marker).unwrap();
        assert_eq!(std::fs::metadata(root.path(MARKER)).unwrap().mode() & 0o7777, file);
        std::fs::remove_file(root.path(MARKER)).unwrap();
    }
}

#[test]
fn root_makes_the_marker_as_the_directorys_owner() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let root = root();
    nix::unistd::chown(root.dir.path(), Some(1234.into()), Some(2345.into())).unwrap();
    create(root.fd.as_fd(), &root.marker).unwrap();
    let meta = std::fs::metadata(root.path(MARKER)).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1234, 2345));
    std::fs::write(root.path("mine"), "").unwrap();
    assert_eq!(std::fs::metadata(root.path("mine")).unwrap().uid(), 0, "and is itself again");
}

#[test]
fn i8_the_largest_stamp_counts_and_older_ones_go() {
    let root = root();
    let session = SessionId::random();
    assert_eq!(largest_stamp(root.fd.as_fd()).unwrap(), None);
    for epoch in [9, 10, 2] {
        write_stamp(root.fd.as_fd(), &root.stamp(epoch, &session)).unwrap();
    }
    std::fs::write(root.path(".treelease-tree.007"), "").unwrap();
    std::fs::write(root.path(".treelease-tree.x"), "").unwrap();
    let largest = largest_stamp(root.fd.as_fd()).unwrap().unwrap();
    assert_eq!(largest.epoch.get(), 10);
    assert_eq!(largest.stamp, Some(root.stamp(10, &session)));
    assert_eq!(remove_older(root.fd.as_fd(), Epoch::from_raw(10)).unwrap(), 2);
    assert_eq!(largest_stamp(root.fd.as_fd()).unwrap().unwrap().epoch.get(), 10);
}

#[test]
fn i8_an_epochs_stamp_is_its_first_writers() {
    let root = root();
    let (ours, other) = (SessionId::random(), SessionId::random());
    write_stamp(root.fd.as_fd(), &root.stamp(5, &ours)).unwrap();
    write_stamp(root.fd.as_fd(), &root.stamp(5, &ours)).unwrap();
    assert!(matches!(write_stamp(root.fd.as_fd(), &root.stamp(5, &other)), Err(MarkerError::Exists { .. })));
    std::fs::write(root.path(".treelease-tree.6"), "{\"epo").unwrap();
    assert!(matches!(write_stamp(root.fd.as_fd(), &root.stamp(6, &ours)), Err(MarkerError::Exists { .. })));
    let torn = largest_stamp(root.fd.as_fd()).unwrap().unwrap();
    assert_eq!((torn.epoch.get(), torn.stamp), (6, None), "its number still counts");
}

#[test]
fn the_tree_of_a_directory_is_the_nearest_marker_above() {
    let root = root();
    let deep = root.path("a/b");
    std::fs::create_dir_all(&deep).unwrap();
    assert_eq!(find_above(&deep).unwrap(), None);
    create(root.fd.as_fd(), &root.marker).unwrap();
    let (dir, found) = find_above(&deep).unwrap().unwrap();
    assert_eq!(dir, root.dir.path().canonicalize().unwrap());
    assert_eq!(found.marker.tree, root.marker.tree);
    assert_eq!(find_above(&root.path("missing")).unwrap_err().exit().code(), 66);
}

#[test]
fn roots_never_overlap() {
    let root = root();
    let deep = root.path("a/b");
    std::fs::create_dir_all(&deep).unwrap();
    create(root.fd.as_fd(), &root.marker).unwrap();
    assert_eq!(overlap(root.dir.path(), Some(&root.marker.tree)), Ok(()), "its own marker is no overlap");
    for tree in [None, Some(&TreeId::random()), Some(&root.marker.tree)] {
        let failure = overlap(&deep, tree).unwrap_err();
        assert_eq!(failure.exit().code(), 78);
    }
}

#[test]
fn our_names_are_the_marker_and_the_stamps_and_no_others() {
    for (name, ours) in [
        (".treelease-tree", true),
        (".treelease-tree.42", true),
        (".treelease-tree.new", true),
        (".treelease-trees", false),
        (".treelease", false),
        ("treelease-tree", false),
    ] {
        assert_eq!(is_ours(OsStr::new(name)), ours, "{name}");
    }
}

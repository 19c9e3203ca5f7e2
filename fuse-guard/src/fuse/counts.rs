//! How many requests of which kind the kernel has sent: each costs its caller two wake-ups, and what the kernel keeps costs none.

use std::collections::BTreeMap;

use crate::sync::{AtomicU64, Ordering};

/// Kinds of requests, as the protocol calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the protocol's names
pub(super) enum Kind {
    Lookup,
    Getattr,
    Setattr,
    Readlink,
    Symlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Rename,
    Link,
    Open,
    Read,
    Write,
    Statfs,
    Release,
    Fsync,
    Setxattr,
    Getxattr,
    Listxattr,
    Removexattr,
    Flush,
    Opendir,
    Readdir,
    Readdirplus,
    Releasedir,
    Fsyncdir,
    Access,
    Create,
    Ioctl,
    Fallocate,
    Lseek,
    CopyFileRange,
}

const NAMES: [&str; 33] = [
    "LOOKUP",
    "GETATTR",
    "SETATTR",
    "READLINK",
    "SYMLINK",
    "MKNOD",
    "MKDIR",
    "UNLINK",
    "RMDIR",
    "RENAME",
    "LINK",
    "OPEN",
    "READ",
    "WRITE",
    "STATFS",
    "RELEASE",
    "FSYNC",
    "SETXATTR",
    "GETXATTR",
    "LISTXATTR",
    "REMOVEXATTR",
    "FLUSH",
    "OPENDIR",
    "READDIR",
    "READDIRPLUS",
    "RELEASEDIR",
    "FSYNCDIR",
    "ACCESS",
    "CREATE",
    "IOCTL",
    "FALLOCATE",
    "LSEEK",
    "COPY_FILE_RANGE",
];

/// Requests counted since the mount was made.
pub(crate) struct Requests([AtomicU64; NAMES.len()]);

impl Default for Requests {
    fn default() -> Self {
        Requests([const { AtomicU64::new(0) }; NAMES.len()])
    }
}

impl Requests {
    pub(super) fn count(&self, kind: Kind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Those kinds that came at all, by the protocol's names.
    pub(crate) fn all(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.0.iter().map(|n| n.load(Ordering::Relaxed));
        NAMES.into_iter().zip(counts).filter(|(_, n)| *n > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_under_its_own_name() {
        let requests = Requests::default();
        requests.count(Kind::Lookup);
        requests.count(Kind::CopyFileRange);
        requests.count(Kind::Create);
        requests.count(Kind::Create);
        assert_eq!(requests.all(), BTreeMap::from([("COPY_FILE_RANGE", 1), ("CREATE", 2), ("LOOKUP", 1)]));
    }
}

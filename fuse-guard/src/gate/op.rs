//! What can be asked of a guarded tree, and which of it needs the lease (the table of DESIGN 4).
//!
//! Whatever is not known to be harmless is a mutation: [`Op::Other`].

/// One kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // named after the system calls
pub enum Op {
    Lookup,
    Getattr,
    Readdir,
    OpenRead,
    Read,
    Readlink,
    Statfs,
    Getxattr,
    Lseek,
    GetFlags,
    Fsync,
    Flush,
    Release,
    /// `access(W_OK)`: changes nothing, but must tell the truth to an editor.
    AccessWrite,
    /// An open with `O_WRONLY`, `O_RDWR` or `O_TRUNC`.
    OpenWrite,
    Create,
    /// Creating git's `index.lock`, as a prompt's `git status` does: takes a free tree, never waits on a held one.
    IndexLock,
    Mkdir,
    Mknod,
    Symlink,
    Link,
    Unlink,
    Rmdir,
    Rename,
    Setattr,
    Truncate,
    Setxattr,
    Removexattr,
    Write,
    /// A write from the kernel's page cache: of a mapping; nobody learns that it was refused.
    PageWrite,
    Fallocate,
    CopyRange,
    SetFlags,
    /// What the table does not name.
    Other,
}

impl Op {
    /// Every kind.
    pub const ALL: [Op; 34] = {
        use Op::*;
        [
            Lookup,
            Getattr,
            Readdir,
            OpenRead,
            Read,
            Readlink,
            Statfs,
            Getxattr,
            Lseek,
            GetFlags,
            Fsync,
            Flush,
            Release,
            AccessWrite,
            OpenWrite,
            Create,
            IndexLock,
            Mkdir,
            Mknod,
            Symlink,
            Link,
            Unlink,
            Rmdir,
            Rename,
            Setattr,
            Truncate,
            Setxattr,
            Removexattr,
            Write,
            PageWrite,
            Fallocate,
            CopyRange,
            SetFlags,
            Other,
        ]
    };

    /// Whether only the holder may. fsync, flush and release always pass down: refusing them would lose what was admitted.
    pub const fn needs_the_lease(self) -> bool {
        use Op::*;
        !matches!(
            self,
            Lookup
                | Getattr
                | Readdir
                | OpenRead
                | Read
                | Readlink
                | Statfs
                | Getxattr
                | Lseek
                | GetFlags
                | Fsync
                | Flush
                | Release
        )
    }

    /// Whether the kernel sends it from its page cache.
    pub const fn page_cache(self) -> bool {
        matches!(self, Op::PageWrite)
    }

    /// Whether the storage is another afterwards; if it finished late, that is a late write.
    pub const fn changes_storage(self) -> bool {
        self.needs_the_lease() && !matches!(self, Op::AccessWrite | Op::OpenWrite)
    }

    /// For people.
    pub const fn as_str(self) -> &'static str {
        use Op::*;
        match self {
            Lookup => "lookup",
            Getattr => "getattr",
            Readdir => "readdir",
            OpenRead => "open for reading",
            Read => "read",
            Readlink => "readlink",
            Statfs => "statfs",
            Getxattr => "getxattr",
            Lseek => "lseek",
            GetFlags => "getflags",
            Fsync => "fsync",
            Flush => "flush",
            Release => "release",
            AccessWrite => "access(W_OK)",
            OpenWrite => "open for writing",
            Create | IndexLock => "create",
            Mkdir => "mkdir",
            Mknod => "mknod",
            Symlink => "symlink",
            Link => "link",
            Unlink => "unlink",
            Rmdir => "rmdir",
            Rename => "rename",
            Setattr => "setattr",
            Truncate => "truncate",
            Setxattr => "setxattr",
            Removexattr => "removexattr",
            Write => "write",
            PageWrite => "write of mapped pages",
            Fallocate => "fallocate",
            CopyRange => "copy_file_range",
            SetFlags => "setflags",
            Other => "unknown operation",
        }
    }
}

//! What kind of filesystem a lower root lies on, and which are refused.
//!
//! Refused: a lower root that is itself a guarded mount (a guard above a guard waits for itself), and NFS mounts with `softerr`
//! or `softreval`, whose client answers a revalidation from old data with success when the server is away (measured, NFS.md):
//! nothing that the guard promises about fresh reads would be true there.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, fstatfs, statx};
use treelease_client::words::refusal::{Code, Refusal};

use super::mountinfo::{self, Mount};

/// A family of filesystems, as far as the guard treats them differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// NFS, any version.
    Nfs,
    /// CIFS or SMB.
    Cifs,
    /// Another FUSE filesystem.
    Fuse,
    /// Overlay: its lower layers are not watched, its locks are its own.
    Overlay,
    /// Memory: gone with the machine.
    Memory,
    /// On a disk of this machine, or one we do not know.
    Local,
}

/// What is known about the filesystem of a lower root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowerFs {
    /// Its family.
    pub kind: Kind,
    /// Its type by the kernel's name, for people: `nfs4`, `ext4`.
    pub name: String,
    /// What is mounted there: `host:/export`.
    pub source: String,
    /// Where that filesystem is mounted.
    pub mounted_at: PathBuf,
    /// NFS version, if it is NFS and says so.
    pub nfs_version: Option<String>,
}

impl LowerFs {
    /// Whether what was written may be in this machine's memory while another machine reads.
    pub fn is_network(&self) -> bool {
        matches!(self.kind, Kind::Nfs | Kind::Cifs | Kind::Fuse)
    }

    /// Whether its client may go on showing pages of a file that another machine has written since, though it has asked for the file's
    /// attributes: NFSv3 has times and lengths alone to tell by. So may every network filesystem that is not known to do better.
    pub fn keeps_old_pages(&self) -> bool {
        match self.kind {
            Kind::Nfs => !self.nfs_version.as_ref().is_some_and(|version| version.starts_with('4')),
            Kind::Cifs | Kind::Fuse => true,
            Kind::Overlay | Kind::Memory | Kind::Local => false,
        }
    }
}

/// Why a directory cannot be a lower root, with the exit code that this ends in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unfit {
    /// Which kind of no.
    pub code: Code,
    /// One sentence, with what to do.
    pub message: String,
}

impl Unfit {
    fn new(code: Code, message: String) -> Self {
        Self { code, message }
    }
}

impl From<Unfit> for Refusal {
    fn from(unfit: Unfit) -> Refusal {
        Refusal::new(unfit.code, unfit.message)
    }
}

const NFS_MAGIC: u64 = 0x6969;
const CIFS_MAGIC: u64 = 0xff53_4d42;
const SMB2_MAGIC: u64 = 0xfe53_4d42;
const FUSE_MAGIC: u64 = 0x6573_5546;
const OVERLAY_MAGIC: u64 = 0x794c_7630;
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

fn kind(magic: u64) -> Kind {
    match magic {
        NFS_MAGIC => Kind::Nfs,
        CIFS_MAGIC | SMB2_MAGIC => Kind::Cifs,
        FUSE_MAGIC => Kind::Fuse,
        OVERLAY_MAGIC => Kind::Overlay,
        TMPFS_MAGIC | RAMFS_MAGIC => Kind::Memory,
        _ => Kind::Local,
    }
}

/// Looks at the filesystem of an opened lower root; `path` is for people. May hang with the storage.
pub fn look(lower: BorrowedFd<'_>, path: &Path) -> Result<LowerFs, Unfit> {
    let failed = |what: &str, e: rustix::io::Errno| {
        Unfit::new(Code::Storage, format!("{}: cannot {what}: {e}. Is the storage there?", path.display()))
    };
    // Of `f_type` only 32 bits mean anything, and some are negative.
    let magic = fstatfs(lower).map_err(|e| failed("ask for its filesystem", e))?.f_type as u64 & 0xffff_ffff;
    let id = statx(lower, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)
        .map_err(|e| failed("ask for its mount", e))?
        .stx_mnt_id;
    let mounts = mountinfo::of("thread-self")
        .map_err(|e| Unfit::new(Code::Internal, format!("/proc/self/mountinfo cannot be read: {e}")))?;
    let mount = mounts.iter().find(|m| m.id == id);
    judge(kind(magic), mount, path)
}

/// [`LowerFs::keeps_old_pages`] of an opened lower root; yes where nobody knows. May hang with the storage.
pub fn keeps_old_pages(lower: BorrowedFd<'_>) -> bool {
    look(lower, Path::new("the tree")).map_or(true, |fs| fs.keeps_old_pages())
}

fn judge(kind: Kind, mount: Option<&Mount>, path: &Path) -> Result<LowerFs, Unfit> {
    let fs_type = mount.map_or("unknown", |m| m.fs_type.as_str());
    let path = path.display();
    if fs_type == "fuse.treelease" {
        return Err(Unfit::new(
            Code::Config,
            format!("{path} is itself a guarded tree: name the directory on the storage, or `treelease umount` it first"),
        ));
    }
    let lies = mount.filter(|_| kind == Kind::Nfs).and_then(|m| ["softerr", "softreval"].into_iter().find(|o| m.has_option(o)));
    if let Some(option) = lies {
        return Err(Unfit::new(
            Code::Config,
            format!(
                "{path} is mounted with `{option}`: when the NFS server is away, such a mount answers from old data and says \
                 it is new. Mount it with `hard` (or `soft`) instead"
            ),
        ));
    }
    let option_value = |m: &Mount| m.options.split(',').find_map(|o| o.strip_prefix("vers=").map(str::to_owned));
    Ok(LowerFs {
        kind,
        name: fs_type.to_owned(),
        source: mount.map(|m| m.source.clone()).unwrap_or_default(),
        mounted_at: mount.map(|m| m.at.clone()).unwrap_or_default(),
        nfs_version: mount.filter(|_| kind == Kind::Nfs).and_then(option_value),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn mount(fs_type: &str, options: &str) -> Mount {
        let line = format!("36 35 0:55 / /mnt rw - {fs_type} host:/x {options}");
        mountinfo::parse(line.as_bytes()).remove(0)
    }

    #[test]
    fn a_guarded_mount_is_refused_as_a_lower_root() {
        let refused = judge(Kind::Fuse, Some(&mount("fuse.treelease", "rw")), Path::new("/mnt")).unwrap_err();
        assert_eq!(refused.code, Code::Config);
    }

    #[test]
    fn an_nfs_mount_that_invents_answers_is_refused_and_a_hard_one_is_taken() {
        for option in ["softerr", "softreval"] {
            let m = mount("nfs4", &format!("rw,vers=4.2,{option},timeo=50"));
            let refused = judge(Kind::Nfs, Some(&m), Path::new("/mnt")).unwrap_err();
            assert!(refused.code == Code::Config && refused.message.contains(option));
        }
        let fs = judge(Kind::Nfs, Some(&mount("nfs4", "rw,vers=4.2,hard")), Path::new("/mnt")).unwrap();
        assert!(fs.is_network());
        assert_eq!(fs.nfs_version.as_deref(), Some("4.2"));
        assert!(!fs.keeps_old_pages(), "it has a change attribute");
        for old in ["rw,soft,vers=3", "rw"] {
            assert!(judge(Kind::Nfs, Some(&mount("nfs", old)), Path::new("/mnt")).unwrap().keeps_old_pages());
        }
    }

    #[test]
    fn a_directory_of_this_machine_is_told_by_its_type() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let fs = look(fd.as_fd(), dir.path()).unwrap();
        assert!(fs.name != "unknown" && !keeps_old_pages(fd.as_fd()));
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(look(proc.as_fd(), Path::new("/proc")).unwrap().name, "proc");
    }
}

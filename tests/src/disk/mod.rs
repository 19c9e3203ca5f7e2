//! A disk with a volatile cache, whose power can be cut: what a program synced is kept, and of the rest chance decides.
//!
//! | what | where |
//! |---|---|
//! | files, names, what of them is only in the cache, and what a cut leaves | [`model`], which knows no kernel |
//! | the same as a mounted filesystem | `face` |
//! | its hanging, as a whole or in its syncs | `hang` |
//! | one whose syncs take their time, hang or fail, and that counts what they have not confirmed | [`pace`] |
//!
//! Promises: a file's content is kept up to its last `fsync` or `fdatasync`, a name up to the last `fsync` of its directory; of
//! what came later, a cut keeps nothing, everything, what came first, or any sectors and names whatever ([`Left`]). It is
//! harder than most filesystems are: ext4 keeps names in order, and a new file's name with its content. And a disk can hang: then
//! nothing is answered, reading neither, until it goes on as if nothing had been.

mod face;
mod hang;
pub mod model;
pub mod pace;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use fuser::{BackgroundSession, Config, MountOption};

use hang::Hangs;
pub use hang::Hung;
pub use model::{Left, Model};
pub use pace::Pace;

use crate::world::rng::Rng;

/// A mounted disk.
pub struct Disk {
    model: Arc<Mutex<Model>>,
    hangs: Hangs,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Mounts what a disk holds.
    pub fn mount(model: Model, at: &Path) -> Disk {
        Self::mount_with(model, None, at)
    }

    /// The same, with syncs of that pace.
    pub fn mount_paced(model: Model, pace: &Arc<Pace>, at: &Path) -> Disk {
        Self::mount_with(model, Some(pace.clone()), at)
    }

    fn mount_with(model: Model, pace: Option<Arc<Pace>>, at: &Path) -> Disk {
        std::fs::create_dir_all(at).expect("a mount point");
        let model = Arc::new(Mutex::new(model));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("treelease-test-disk".into())];
        let hangs = Hangs::default();
        let face = face::Face(model.clone(), hangs.clone(), pace);
        let session = fuser::spawn_mount(face, at, &config).expect("a mount: it needs root and /dev/fuse");
        Disk { model, hangs, at: at.to_owned(), session: Some(session) }
    }

    /// It answers nobody any more.
    pub fn hang(&self) -> Hung {
        self.hangs.begin()
    }

    /// Where it is.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// The power goes before the change that comes after so many more.
    pub fn cut_after(&self, changes: u64) {
        let mut model = self.model();
        // What is dead stays so.
        if model.has_power() {
            model.dies_at = Some(model.changes + changes);
        }
    }

    /// Changes so far; a sync is one.
    pub fn changes(&self) -> u64 {
        self.model().changes
    }

    /// Whether the power is still on.
    pub fn has_power(&self) -> bool {
        self.model().has_power()
    }

    /// Cuts the power, if it is still on, and says what is left. Whoever used the disk must be dead.
    pub fn cut(mut self, left: Left, rng: &mut Rng) -> Model {
        self.model().dies_at = Some(0);
        let session = self.session.take().expect("taken only here and at the end");
        session.umount_and_join().expect("nobody uses the disk any more");
        self.model().after_cut(left, rng)
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().expect("the disk does not panic")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(e) = session.umount_and_join()
        {
            eprintln!("{}: {e}", self.at.display());
            // Somebody has something open there still. It must not stay behind, nor keep this process: what is open is closed when that
            // ends, which would wait for an answer of the disk.
            let flags = nix::mount::MntFlags::MNT_FORCE | nix::mount::MntFlags::MNT_DETACH;
            let _gone = nix::mount::umount2(&self.at, flags);
        }
    }
}

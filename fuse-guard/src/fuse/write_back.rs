//! Writing back, as the daemon has it of a mount ([`crate::fs::write_back`]).

use std::time::Duration;

use treelease_client::words::time::BootTime;

use super::mount::Mount;

impl Mount {
    /// From now on nothing that is written stays unconfirmed for longer than this, where the storage is far; None: as long as
    /// the kernel likes. To be said again and again: threads that could not be had are tried again then.
    pub fn write_back(&self, dirty_max: Option<Duration>) {
        let shared = self.shared();
        let write_back = &shared.fs.write_back;
        write_back.set(dirty_max.filter(|_| !shared.fs.faults.no_write_back));
        write_back.start(|role| {
            let shared = shared.clone();
            let run = move || shared.fs.write_back.run(role, &shared.fs);
            std::thread::Builder::new().name("write-back".into()).spawn(run).map(drop)
        });
    }

    /// Whether threads to write back with are missing, if that is news.
    pub fn take_write_back_trouble(&self) -> Option<bool> {
        self.shared().fs.write_back.take_trouble()
    }

    /// Bytes that the storage has not confirmed, and for how long the oldest has been so. Nothing where writing back is off.
    pub fn unconfirmed(&self) -> (u64, Duration) {
        self.shared().fs.write_back.unconfirmed()
    }

    /// Writes that wait until less is unconfirmed.
    pub fn waiting_for_room(&self) -> usize {
        self.shared().fs.write_back.waiting()
    }

    /// When the storage will have confirmed nothing for so long, if it confirms nothing until then. None: it was not asked to.
    pub fn silent_at(&self, patience: Duration) -> Option<BootTime> {
        self.shared().fs.write_back.silent_at(patience)
    }

    /// Whether writing back has met an error since this was asked last.
    pub fn take_failed(&self) -> bool {
        self.shared().fs.write_back.take_failed()
    }
}

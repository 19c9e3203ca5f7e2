//! Names: lookup, create, mkdir, mknod, symlink, link, unlink, rmdir, rename, readlink.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Statx, StatxFlags, statx};
use treelease_client::words::policy::Mode as PolicyMode;

use super::attr::Attr;
use super::caller::{Caller, own_mask};
use super::error::{Errno, Result, reason};
use super::inode::{Key, Node, ROOT, stat_fd};
use super::lacking::{Asked, Which};
use super::status_dir::{self, StatusDir};
use super::{Entry, Fs, chmod, is_hidden, path_only, proc_path};
use crate::gate::Standing;
use crate::sync::Arc;

const DEFAULT_ACL: &str = "system.posix_acl_default";
/// With no descriptor left, how often a lookup is tried again, and after which pause: then it is EMFILE.
const SHORT_TRIES: u32 = 25;
const SHORT_PAUSE: Duration = Duration::from_millis(20);
const PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What mknod makes, and with which permissions.
#[derive(Debug, Clone, Copy)]
pub struct Making {
    /// Type and permission bits.
    pub mode: u32,
    /// The caller's.
    pub umask: u32,
    /// Of a device.
    pub rdev: u32,
}

impl Fs {
    /// lookup of a name.
    pub fn lookup(&self, who: Caller, parent: u64, name: &OsStr) -> Result<Entry> {
        let seen = self.gate.standing();
        let dir = self.nodes.get(parent)?;
        if is_hidden(name) {
            return Err(reason::HIDDEN);
        }
        self.freshen(&dir, &seen)?;
        self.settle(who, &dir, &seen)?;
        let _acting = self.act(who)?;
        self.find(&dir, name, &seen)
    }

    /// Finds a name below a directory that is fresh, and counts the lookup.
    pub(super) fn find(&self, dir: &Arc<Node>, name: &OsStr, seen: &Standing) -> Result<Entry> {
        if let Some(entry) = self.find_known(dir, name, seen)? {
            self.unfinished.seen(dir, name);
            return Ok(entry);
        }
        let fd = self.open_path(dir, name)?;
        self.unfinished.seen(dir, name);
        self.enter(fd, dir, name, seen)
    }

    /// A descriptor of what has the name; where none is left, it waits until some have been closed.
    fn open_path(&self, dir: &Node, name: &OsStr) -> Result<OwnedFd> {
        for _ in 0..SHORT_TRIES {
            match rustix::fs::openat(&dir.fd, name, PATH, Mode::empty()) {
                Err(Errno::MFILE) => self.nodes.descriptors.none_left(),
                opened => return opened,
            }
            std::thread::sleep(SHORT_PAUSE);
        }
        rustix::fs::openat(&dir.fd, name, PATH, Mode::empty())
    }

    /// The same with one call to below, for the holder, of a node that was revalidated under this standing already.
    fn find_known(&self, dir: &Arc<Node>, name: &OsStr, seen: &Standing) -> Result<Option<Entry>> {
        if !seen.caches(self.gate.now()) {
            return Ok(None);
        }
        let stat = statx(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
        let Some(node) = self.nodes.by_key(Key::of(&stat)).filter(|node| self.believes_found(node, seen)) else {
            return Ok(None);
        };
        let run = self.run_of(seen);
        self.settle_other_names(node.key, dir, name, run);
        // None: the kernel has forgotten it meanwhile, or it was replaced just now.
        let known = self.nodes.enter_known(&stat, dir, name, run);
        Ok(known.map(|node| Entry { attr: Attr::of(&node, &stat), node, seen: *seen }))
    }

    fn enter(&self, fd: OwnedFd, dir: &Arc<Node>, name: &OsStr, seen: &Standing) -> Result<Entry> {
        // As the storage has it: what was revalidated under this standing does not come here.
        let stat = stat_fd(&fd, true)?;
        if self.network && !self.believes_key(&stat, seen) {
            // The server may have given the number of a removed file to a new one: the node that we know is not this file then.
            self.nodes.drop_if_dead(Key::of(&stat));
        }
        let run = self.run_of(seen);
        self.settle_other_names(Key::of(&stat), dir, name, run);
        let node = self.nodes.enter(fd, &stat, dir, name, run);
        node.set_fresh(seen.serial);
        let attr = Attr::of(&node, &stat);
        Ok(Entry { node, attr, seen: *seen })
    }

    /// Whether the known node of this lower inode was revalidated under this standing and not removed since, or there is none.
    fn believes_key(&self, stat: &Statx, seen: &Standing) -> bool {
        self.nodes.by_key(Key::of(stat)).is_none_or(|node| self.believes_found(&node, seen))
    }

    /// A directory in which a name is to be made or removed.
    pub(super) fn dir_to_change(&self, who: Caller, parent: u64, seen: &Standing) -> Result<Arc<Node>> {
        let dir = self.changeable(parent)?;
        if dir.is_foreign() {
            return Err(reason::READ_ONLY);
        }
        self.freshen(&dir, seen)?;
        self.settle_to_change(who, &dir, seen)?;
        Ok(dir)
    }

    /// The permissions of what is made in a directory: its default access control list takes the place of the caller's umask.
    fn mode_in(&self, dir: &Node, making: Making, seen: &Standing) -> u32 {
        let masked = making.mode & !making.umask;
        let listed = masked != making.mode && self.has_default_list(dir, seen);
        (if listed { making.mode } else { masked }) & 0o7777
    }

    fn has_default_list(&self, dir: &Node, seen: &Standing) -> bool {
        if self.lacks(dir, Which::DefaultList, seen) {
            return false;
        }
        let (asked, believed) = (dir.lacking.asks(), self.believes(dir, seen));
        match rustix::fs::getxattr_query(proc_path(&dir.fd), DEFAULT_ACL) {
            Ok(size) => size > 0,
            Err(why) => {
                if believed && matches!(why, Errno::NODATA | Errno::OPNOTSUPP) {
                    dir.lacking.found_none(Which::DefaultList, asked, seen.serial);
                }
                false
            }
        }
    }

    fn new_name(&self, parent: u64, name: &OsStr) -> Result<()> {
        if is_hidden(name) || (parent == ROOT && name == status_dir::NAME) { Err(reason::OURS) } else { Ok(()) }
    }

    /// Finds what was just made, and gives it the permissions that a second mask took from it.
    pub(super) fn made(&self, dir: &Arc<Node>, name: &OsStr, mode: u32, mask: u32, seen: &Standing) -> Result<Entry> {
        let fd = self.open_path(dir, name)?;
        if mode & mask & 0o777 != 0 {
            self.unmask(&fd, mode, seen)?;
        }
        self.unfinished.seen(dir, name);
        self.enter(fd, dir, name, seen)
    }

    /// Gives what was just made all of its permissions. If the time is up meanwhile nothing more is changed (I4), and that is no
    /// error here: the call is late as a whole, and is told so.
    fn unmask(&self, fd: &OwnedFd, mode: u32, seen: &Standing) -> Result<()> {
        match self.still_in_time(seen) {
            Ok(()) => chmod(fd, mode),
            Err(_) => Ok(()),
        }
    }

    /// mkdir(2).
    pub fn mkdir(&self, who: Caller, seen: &Standing, parent: u64, name: &OsStr, making: Making) -> Result<Entry> {
        self.new_name(parent, name)?;
        let dir = self.dir_to_change(who, parent, seen)?;
        let (mode, mask) = (self.mode_in(&dir, making, seen), own_mask());
        let _acting = self.act(who)?;
        self.still_in_time(seen)?;
        rustix::fs::mkdirat(&dir.fd, name, Mode::from_raw_mode(mode))?;
        let entry = self.made(&dir, name, mode, mask, seen)?;
        self.authors.wrote(who.pid, entry.node.key, seen.epoch, true, self.gate.now());
        Ok(entry)
    }

    /// mknod(2): files, FIFOs, sockets and devices.
    pub fn mknod(&self, who: Caller, seen: &Standing, parent: u64, name: &OsStr, making: Making) -> Result<Entry> {
        self.new_name(parent, name)?;
        let dir = self.dir_to_change(who, parent, seen)?;
        let (mode, mask) = (self.mode_in(&dir, making, seen), own_mask());
        let major = (making.rdev >> 8) & 0xfff;
        let minor = (making.rdev & 0xff) | ((making.rdev >> 12) & 0xfff00);
        let kind = FileType::from_raw_mode(making.mode);
        let _acting = self.act(who)?;
        let dev = rustix::fs::makedev(major, minor);
        self.still_in_time(seen)?;
        rustix::fs::mknodat(&dir.fd, name, kind, Mode::from_raw_mode(mode), dev)?;
        let entry = self.made(&dir, name, mode, mask, seen)?;
        if entry.node.is_file() {
            self.dirty.wrote(&entry.node, 0);
        }
        self.authors.wrote(who.pid, entry.node.key, seen.epoch, true, self.gate.now());
        Ok(entry)
    }

    /// symlink(2).
    pub fn symlink(&self, who: Caller, seen: &Standing, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        self.new_name(parent, name)?;
        let dir = self.dir_to_change(who, parent, seen)?;
        let _acting = self.act(who)?;
        self.still_in_time(seen)?;
        rustix::fs::symlinkat(target, &dir.fd, name)?;
        let entry = self.made(&dir, name, 0, 0, seen)?;
        self.authors.wrote(who.pid, entry.node.key, seen.epoch, true, self.gate.now());
        Ok(entry)
    }

    /// readlink(2).
    pub fn readlink(&self, who: Caller, id: u64) -> Result<Vec<u8>> {
        let seen = self.gate.standing();
        let node = self.nodes.get(id)?;
        self.freshen(&node, &seen)?;
        self.settle(who, &node, &seen)?;
        let _acting = self.act(who)?;
        Ok(rustix::fs::readlinkat(&node.fd, "", Vec::new())?.into_bytes())
    }

    /// link(2).
    pub fn link(&self, who: Caller, seen: &Standing, id: u64, parent: u64, name: &OsStr) -> Result<Entry> {
        self.new_name(parent, name)?;
        let node = self.changeable(id)?;
        self.settle(who, &node, seen)?;
        let dir = self.dir_to_change(who, parent, seen)?;
        self.not_of_an_earlier_run(who, node.key, seen)?;
        let _acting = self.act(who)?;
        self.still_in_time(seen)?;
        // The magic link leads to the very inode; a symlink behind it is linked, not followed.
        rustix::fs::linkat(rustix::fs::CWD, proc_path(&node.fd), &dir.fd, name, AtFlags::SYMLINK_FOLLOW)?;
        self.find(&dir, name, seen)
    }

    /// unlink(2) and rmdir(2).
    pub fn remove(&self, who: Caller, seen: &Standing, parent: u64, name: &OsStr, directory: bool) -> Result<()> {
        if is_hidden(name) {
            return Err(reason::HIDDEN);
        }
        let dir = self.dir_to_change(who, parent, seen)?;
        let there = self.key_at(&dir, name);
        let victim = there.and_then(|(key, _)| self.nodes.by_key(key));
        // The storage's client may say how many names it had before another side's turn.
        let counted = victim.as_ref().is_some_and(|victim| !self.network || self.believes(victim, seen));
        let _acting = self.act(who)?;
        self.still_in_time(seen)?;
        rustix::fs::unlinkat(&dir.fd, name, if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() })?;
        self.unfinished.gone(&dir, name);
        if let Some(victim) = victim {
            victim.drop_name(dir.id, name);
            if directory || (counted && there.is_some_and(|(_, names)| names == 1)) {
                victim.lost_its_last_name();
            }
        }
        Ok(())
    }

    /// I6: what this process made or wrote before another side's turn is not moved into place by it.
    fn not_of_an_earlier_run(&self, who: Caller, key: Key, seen: &Standing) -> Result<()> {
        let enforced = seen.mode == PolicyMode::Enforce;
        match enforced && self.authors.is_stale(who.pid, key, seen.stale_below, self.gate.now()) {
            true => Err(reason::STALE),
            false => Ok(()),
        }
    }

    /// rename(2), renameat2(2).
    pub fn rename(&self, who: Caller, seen: &Standing, from: (u64, &OsStr), to: (u64, &OsStr), flags: u32) -> Result<()> {
        if is_hidden(from.1) {
            return Err(reason::HIDDEN);
        }
        self.new_name(to.0, to.1)?;
        let (old, new) = (self.dir_to_change(who, from.0, seen)?, self.dir_to_change(who, to.0, seen)?);
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        // The kernel has locked both directories: these stay what they are.
        let key = |dir: &Node, name| self.key_at(dir, name).map(|(key, _)| key);
        let (source, target) = (key(&old, from.1), key(&new, to.1));
        for key in source.into_iter().chain(target.filter(|_| exchange)) {
            self.not_of_an_earlier_run(who, key, seen)?;
        }
        {
            let _acting = self.act(who)?;
            self.still_in_time(seen)?;
            if flags.is_empty() {
                rustix::fs::renameat(&old.fd, from.1, &new.fd, to.1)?;
            } else {
                rustix::fs::renameat_with(&old.fd, from.1, &new.fd, to.1, flags)?;
            }
        }
        self.unfinished.gone(&old, from.1);
        self.unfinished.seen(&new, to.1);
        // The kernel moves its own entries without asking: so the names are moved here too.
        let run = self.run_of(seen);
        let node = |key: Option<Key>| key.and_then(|key| self.nodes.by_key(key));
        if let Some(target) = node(target) {
            target.drop_name(new.id, to.1);
            if exchange {
                target.add_name(old.id, from.1, run);
            }
        }
        if let Some(moved) = node(source) {
            moved.drop_name(old.id, from.1);
            moved.add_name(new.id, to.1, run);
        }
        if exchange {
            self.unfinished.seen(&old, from.1);
        }
        Ok(())
    }

    /// `open(O_CREAT)` of this name, by somebody who may not create, as an open of what exists: for reading, or EEXIST. None: it is
    /// a creation.
    pub fn open_existing(
        &self,
        who: Caller,
        seen: &Standing,
        (parent, name): (u64, &OsStr),
        flags: i32,
    ) -> Option<Result<(Entry, u64)>> {
        let entry = self.lookup(who, parent, name).ok()?;
        let exclusive = OFlags::from_bits_retain(flags as u32).contains(OFlags::EXCL);
        let opened = if exclusive { Err(Errno::EXIST) } else { self.open(who, seen, entry.node.id, flags) };
        if opened.is_err() {
            // The kernel is told of an error alone: it does not know the node by this lookup.
            self.forget(entry.node.id, 1);
        }
        Some(opened.map(|fh| (entry, fh)))
    }

    /// open(O_CREAT): makes the file. ESTALE: there is one already.
    pub fn create(
        &self,
        who: Caller,
        seen: &Standing,
        (parent, name): (u64, &OsStr),
        making: Making,
        flags: i32,
    ) -> Result<(Entry, u64)> {
        if StatusDir::has(parent) {
            return Err(reason::READ_ONLY);
        }
        self.new_name(parent, name)?;
        let dir = self.dir_to_change(who, parent, seen)?;
        let (mode, mask) = (self.mode_in(&dir, making, seen), own_mask());
        let asked = OFlags::from_bits_retain(flags as u32);
        let _acting = self.act(who)?;
        self.still_in_time(seen)?;
        // Always exclusive: what exists already is not opened here.
        let excl = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&dir.fd, name, super::io::lower_flags(asked) | excl, Mode::from_raw_mode(mode)) {
            Ok(fd) => {
                if mode & mask & 0o777 != 0 {
                    self.unmask(&fd, mode, seen)?;
                }
                self.unfinished.seen(&dir, name);
                let entry = self.enter(path_only(&fd)?, &dir, name, seen)?;
                entry.node.lacking.found_none(Which::Capability, Asked::AT_BIRTH, seen.serial);
                self.dirty.wrote(&entry.node, 0);
                self.authors.wrote(who.pid, entry.node.key, seen.epoch, true, self.gate.now());
                match self.add_handle(&entry.node, fd, asked, seen) {
                    Ok(fh) => Ok((entry, fh)),
                    Err(why) => {
                        self.forget(entry.node.id, 1);
                        // It was made, and another side has had a turn since.
                        Err(if why == reason::STALE { reason::LATE } else { why })
                    }
                }
            }
            // The kernel did not know of it: it looks up again, and opens what is there as that is opened (a FIFO, a symlink, a
            // file from which a program runs).
            Err(Errno::EXIST) if !asked.contains(OFlags::EXCL) => Err(reason::STALE),
            Err(why) => Err(why),
        }
    }
}

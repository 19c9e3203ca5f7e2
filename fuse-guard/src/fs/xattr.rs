//! Extended attributes: passed through, as the caller.

use std::ffi::OsStr;

use rustix::fs::XattrFlags;

use super::caller::Caller;
use super::error::{Errno, Result};
use super::inode::Node;
use super::lacking::Which;
use super::status_dir::StatusDir;
use super::{Fs, proc_path};
use crate::gate::Standing;

/// The largest value or list that Linux has.
const XATTR_MAX: usize = 64 << 10;
const CAPABILITY: &str = "security.capability";

impl Fs {
    /// getxattr(2): the whole value.
    pub fn getxattr(&self, who: Caller, id: u64, name: &OsStr) -> Result<Vec<u8>> {
        if StatusDir::has(id) {
            return Err(Errno::NODATA);
        }
        let node = self.nodes.get(id)?;
        if name != CAPABILITY {
            return self.getxattr_below(who, &node, name);
        }
        // The kernel's question before it lets a file be written.
        let seen = self.gate.standing();
        if self.lacks(&node, Which::Capability, &seen) {
            return Err(Errno::NODATA);
        }
        let (asked, believed) = (node.lacking.asks(), self.believes(&node, &seen));
        let found = self.getxattr_below(who, &node, name);
        if believed && found == Err(Errno::NODATA) {
            node.lacking.found_none(Which::Capability, asked, seen.serial);
        }
        found
    }

    fn getxattr_below(&self, who: Caller, node: &Node, name: &OsStr) -> Result<Vec<u8>> {
        self.freshen_open(node)?;
        let _acting = self.act(who)?;
        whole(|buf| rustix::fs::getxattr(proc_path(&node.fd), name, buf))
    }

    /// listxattr(2): the whole list.
    pub fn listxattr(&self, who: Caller, id: u64) -> Result<Vec<u8>> {
        if StatusDir::has(id) {
            return Ok(Vec::new());
        }
        let node = self.nodes.get(id)?;
        self.freshen_open(&node)?;
        let _acting = self.act(who)?;
        whole(|buf| rustix::fs::listxattr(proc_path(&node.fd), buf))
    }

    /// setxattr(2).
    pub fn setxattr(&self, who: Caller, seen: &Standing, id: u64, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let node = self.changeable(id)?;
        self.settle_to_change(who, &node, seen)?;
        let _acting = self.act(who)?;
        self.still_in_time(seen)?;
        let set = rustix::fs::setxattr(proc_path(&node.fd), name, value, XattrFlags::from_bits_retain(flags as u32));
        node.lacking.changed();
        set
    }

    /// removexattr(2).
    pub fn removexattr(&self, who: Caller, seen: &Standing, id: u64, name: &OsStr) -> Result<()> {
        let node = self.changeable(id)?;
        self.settle_to_change(who, &node, seen)?;
        let _acting = self.act(who)?;
        self.still_in_time(seen)?;
        let removed = rustix::fs::removexattr(proc_path(&node.fd), name);
        node.lacking.changed();
        removed
    }
}

fn whole(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    let n = match read(&mut buf) {
        Err(Errno::RANGE) => {
            buf.resize(XATTR_MAX, 0);
            read(&mut buf)?
        }
        other => other?,
    };
    buf.truncate(n);
    Ok(buf)
}

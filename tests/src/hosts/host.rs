//! A host of its own on this machine: a network namespace with one address.
//!
//! What runs in it is found by its namespace and killed by its number: nothing of a process's memory is read, because that read
//! waits for ever while the process waits for a stopped daemon.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `ip netns` keeps its names.
pub const NAMES: &str = "/run/netns";

/// A named network namespace.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    address: Ipv4Addr,
}

impl Host {
    /// One that exists.
    pub fn new(namespace: &str, address: Ipv4Addr) -> Host {
        Host { namespace: namespace.to_owned(), address }
    }

    /// Its name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Where the others reach it.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A program in it. Not `ip netns exec`, which makes a mount namespace too: what is mounted there is seen by nobody else.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", path(&self.namespace).display())).arg("--").arg(program);
        command
    }

    /// The processes in it, with this executable (any, if `None`).
    pub fn processes(&self, executable: Option<&str>) -> Vec<u32> {
        processes_in(&self.namespace, executable)
    }
}

/// The file by which a namespace is entered.
pub fn path(namespace: &str) -> PathBuf {
    Path::new(NAMES).join(namespace)
}

/// The processes in a namespace, with this executable (any, if `None`).
pub fn processes_in(namespace: &str, executable: Option<&str>) -> Vec<u32> {
    let Ok(wanted) = std::fs::metadata(path(namespace)).map(|m| format!("net:[{}]", m.ino())) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let link = |name: &str| std::fs::read_link(entry.path().join(name)).unwrap_or_default();
        if link("ns/net").as_os_str() != OsStr::new(&wanted) {
            continue;
        }
        // A rebuilt executable is shown as "NAME (deleted)".
        let is = |name: &str| link("exe").file_name().is_some_and(|f| f.to_string_lossy().split(' ').next() == Some(name));
        if executable.is_none_or(is) {
            found.push(pid);
        }
    }
    found
}

//! A network of hosts that belongs to one test alone, in which any two hosts can be cut off from each other, each way.
//!
//! Every host is a network namespace; one more holds the bridge between them. Nothing of it exists outside of these namespaces, so
//! several networks with the same addresses live side by side. A host drops, by nftables, what comes from the hosts in its set
//! `cut`: so a cut has a direction.
//!
//! Everything is gone when it is dropped. What a killed test left behind goes when the next network is made: a network holds a file
//! lock while it lives, which the kernel drops with the process, in whatever process namespace that was.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::hosts::host::{self, Host};
use crate::hosts::{Signal, holds_within, signal};

/// Begins the names of all our namespaces.
const PREFIX: &str = "treelease-";
/// Where the locks of living networks lie.
const LOCKS: &str = "/run/treelease-tests";
/// Until what was killed is gone.
const GONE: Duration = Duration::from_secs(20);
/// Drops what comes from a host in the set.
const RULES: &str = "table ip ends {
  set cut { type ipv4_addr; }
  chain input { type filter hook input priority 0; policy accept; ip saddr @cut drop; }
}
";

/// Hosts and the cuts between them.
pub struct Network {
    bridge: String,
    hosts: Vec<Host>,
    cuts: BTreeSet<(usize, usize)>,
    _lives: File,
}

impl Network {
    /// Hosts with these names.
    pub fn new(names: &[&str]) -> Network {
        sweep();
        let pid = std::process::id();
        let free = (0..).map(|n| format!("{PREFIX}{pid}-{n}")).find_map(|world| Some((try_lock(&world)?, world)));
        let (_lives, world) = free.expect("numbers do not end");
        let mut network = Network { bridge: format!("{world}-bridge"), hosts: Vec::new(), cuts: BTreeSet::new(), _lives };
        ip(&["netns", "add", &network.bridge]);
        ip(&["-n", &network.bridge, "link", "add", "bridge", "type", "bridge"]);
        ip(&["-n", &network.bridge, "link", "set", "bridge", "up"]);
        for (n, name) in (1..).zip(names) {
            network.add(&format!("{world}-{name}"), n);
        }
        network
    }

    fn add(&mut self, namespace: &str, n: u8) {
        let (address, port) = (Ipv4Addr::new(10, 77, 0, n), format!("port-{n}"));
        ip(&["netns", "add", namespace]);
        self.hosts.push(Host::new(namespace, address));
        ip(&["-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &self.bridge]);
        ip(&["-n", &self.bridge, "link", "set", &port, "master", "bridge", "up"]);
        ip(&["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", namespace, "link", "set", "lo", "up"]);
        ip(&["-n", namespace, "link", "set", "eth0", "up"]);
        nft(&self.hosts[self.hosts.len() - 1], RULES);
    }

    /// The host of that number, in the order of the names.
    pub fn host(&self, n: usize) -> &Host {
        &self.hosts[n]
    }

    /// What one host sends does not reach the other any more.
    pub fn cut(&mut self, from: usize, to: usize) {
        if self.cuts.insert((from, to)) {
            nft(&self.hosts[to], &format!("add element ip ends cut {{ {} }}\n", self.hosts[from].address()));
        }
    }

    /// It does again.
    pub fn mend(&mut self, from: usize, to: usize) {
        if self.cuts.remove(&(from, to)) {
            nft(&self.hosts[to], &format!("delete element ip ends cut {{ {} }}\n", self.hosts[from].address()));
        }
    }

    /// No cut is left.
    pub fn mend_all(&mut self) {
        for (from, to) in self.cuts.clone() {
            self.mend(from, to);
        }
    }

    /// Kills whatever runs on any host. The daemons first: a process that waits in a mount is free, and dies, when its daemon is gone.
    pub fn kill_all(&self) {
        let gone = holds_within(GONE, || {
            let left: Vec<u32> = self.hosts.iter().flat_map(|h| h.processes(None)).collect();
            left.iter().for_each(|pid| signal(*pid, Signal::KILL));
            left.is_empty()
        });
        if !gone {
            eprintln!("processes are left on the hosts of {}", self.bridge);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.kill_all();
        for host in &self.hosts {
            let _gone = Command::new("ip").args(["netns", "del", host.namespace()]).output();
        }
        let _gone = Command::new("ip").args(["netns", "del", &self.bridge]).output();
        let _gone = std::fs::remove_file(lock_of(self.bridge.trim_end_matches("-bridge")));
    }
}

fn lock_of(world: &str) -> PathBuf {
    Path::new(LOCKS).join(world)
}

/// The lock of a network that nobody has.
fn try_lock(world: &str) -> Option<File> {
    std::fs::create_dir_all(LOCKS).unwrap_or_else(|e| panic!("{LOCKS}: {e}: these tests need root"));
    let file = File::options().create(true).truncate(false).write(true).open(lock_of(world)).expect("a lock");
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file)
}

/// Removes the namespaces of tests that are gone, with what still runs in them.
fn sweep() {
    for entry in std::fs::read_dir(host::NAMES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(world) = name.rsplit_once('-').map(|(world, _)| world).filter(|world| world.starts_with(PREFIX)) else {
            continue;
        };
        // `node-1` and the like have two parts.
        let world = world.trim_end_matches("-node");
        let Some(_nobody_has_it) = try_lock(world) else { continue };
        host::processes_in(&name, None).into_iter().for_each(|pid| signal(pid, Signal::KILL));
        let _gone = Command::new("ip").args(["netns", "del", &name]).output();
        let _gone = std::fs::remove_file(lock_of(world));
    }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output();
    let done = done.unwrap_or_else(|e| panic!("these tests need `ip` (apt-get install iproute2): {e}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success(),
        "ip {}: {said}\nthese tests need root and a kernel with network namespaces, veth and bridge",
        args.join(" ")
    );
}

fn nft(host: &Host, script: &str) {
    use std::io::Write;
    let child = host.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|e| panic!("these tests need `nsenter` (apt-get install util-linux): {e}"));
    child.stdin.take().expect("piped").write_all(script.as_bytes()).unwrap_or_default();
    let done = child.wait_with_output().expect("our child");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success(),
        "nft: {said}\nthese tests need `nft` (apt-get install nftables) and a kernel with nf_tables\n{script}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says a line from one host to the other and back, by what every machine has.
    fn reaches(network: &Network, from: usize, to: usize) -> bool {
        let address = network.host(to).address();
        let talk = format!("exec 3<>/dev/tcp/{address}/9; echo hello >&3");
        let done = network.host(from).command("timeout").args(["1", "bash", "-c", &talk]).output().expect("bash");
        // Refused is an answer; silence is a cut.
        done.status.code() != Some(124)
    }

    #[test]
    fn a_cut_has_a_direction_and_a_mended_one_is_none() {
        let mut network = Network::new(&["one", "two", "three"]);
        assert!(reaches(&network, 0, 1) && reaches(&network, 1, 0));
        // What two sends is lost: so are its answers.
        network.cut(1, 0);
        assert!(!reaches(&network, 1, 0) && !reaches(&network, 0, 1) && reaches(&network, 0, 2));
        network.mend_all();
        assert!(reaches(&network, 0, 1) && reaches(&network, 1, 0));
    }

    #[test]
    fn what_a_killed_test_left_behind_is_swept_away_and_a_living_network_is_not() {
        let left = format!("{PREFIX}left-{}-node-1", std::process::id());
        ip(&["netns", "add", &left]);
        let living = Network::new(&["node-1"]);
        assert!(!host::path(&left).exists());
        let _another = Network::new(&["node-1"]);
        assert!(host::path(living.host(0).namespace()).exists());
    }

    #[test]
    fn nothing_is_left_of_a_network() {
        let network = Network::new(&["one"]);
        let name = network.host(0).namespace().to_owned();
        let mut sleeps = network.host(0).command("sleep").arg("600").spawn().expect("sleep");
        assert!(holds_within(GONE, || network.host(0).processes(Some("sleep")) == [sleeps.id()]));
        drop(network);
        assert!(!sleeps.wait().expect("our child").success(), "it was killed");
        assert!(!host::path(&name).exists());
    }
}

//! Three nodes, two sides and an operator, each on a host of its own, and one tree that both sides write.
//!
//! A scene keeps a *story*: what was done and seen, with times. When it ends by a panic, the story, the logs and what the programs
//! kept are copied to `ends/` in the target directory, and the place is named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::net::Network;
use super::work::{Habit, Kept, TREE, Work};
use crate::hosts::{Cluster, Host, Pace, Side, Signal, Timer, World, quick, violations, wait_for};
use crate::ledger::Journal;

/// Names of the hosts: nodes are 0 to 2, sides 3 and 4, the operator 5.
const HOSTS: [&str; 6] = ["node-1", "node-2", "node-3", "workstation", "pod", "operator"];
/// The operator's host, which is never cut off.
const OPERATOR: usize = 5;
/// The number of the first side's host.
pub const SIDES: usize = 3;
/// Until a thing that costs a second has happened, on a machine that does ten such things at once.
pub const SOON: Duration = Duration::from_secs(60);
/// A disk that can be filled, in MiB; an idle node needs some hundred KiB.
const SMALL_DISK: u32 = 48;
/// One question of the operator's.
const ASK: [&str; 2] = ["--request-timeout", "2s"];

/// How a scene is set up.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The test's name, and what tells its scenes apart.
    pub name: String,
    /// What replays it.
    pub replay: String,
    /// Policy of the tree, beyond the quick one.
    pub policy: Vec<&'static str>,
    /// Of both sides' sessions.
    pub ttl: &'static str,
    /// Of the nodes.
    pub pace: Pace,
    /// Each node's data lies on a small filesystem of its own.
    pub small_disks: bool,
    /// A rule switched off in the first side's guard.
    pub fault: Option<&'static str>,
    /// Each side mounts over the storage itself, not at an empty directory: what a dead mount leaves bare is the raw tree.
    pub over: bool,
    /// How the database keeps its transactions.
    pub journal: Journal,
    /// For the pace of the programs.
    pub seed: u64,
}

impl Setting {
    /// Short times to live: a holder that starves may lose its lease, and nothing here says that it must not.
    pub fn quick(name: &str) -> Setting {
        Setting {
            name: name.to_owned(),
            replay: format!("cargo nextest run -p treelease-tests {name}"),
            policy: vec!["fence=none"],
            ttl: "5s",
            // The least time to live is 4650 ms then.
            pace: Pace { heartbeat: "100ms", election: "400ms..700ms" },
            small_disks: false,
            fault: None,
            over: false,
            journal: Journal::Delete,
            seed: 0,
        }
    }
}

/// The hosts with all that runs on them.
pub struct Scene {
    pub(super) setting: Setting,
    story: Vec<String>,
    timer: Timer,
    pub(super) work: BTreeMap<usize, Work>,
    /// Nodes, and sides' daemons, that may have ended: they were killed, or their disk was full.
    pub(super) may_have_ended: (BTreeSet<usize>, BTreeSet<usize>),
    /// What ended although it should not have.
    pub(super) ended: Vec<String>,
    pub(super) cluster: Cluster,
    pub(super) sides: [Arc<Side>; 2],
    pub(super) operator: Side,
    pub(super) network: Network,
    pub(super) world: World,
}

impl Scene {
    /// Everything runs, both sides have mounted the tree, nobody holds it.
    pub fn new(setting: Setting) -> Scene {
        let (world, network) = (World::new(), Network::new(&HOSTS));
        if setting.small_disks {
            (1..=3).for_each(|node| small_disk(&world.directory(&format!("cluster/data-{node}"))));
        }
        let cluster = world.cluster_on([network.host(0), network.host(1), network.host(2)], &setting.pace);
        let side = |n: usize| world.side_at(HOSTS[n], &cluster.urls()).ttl(setting.ttl).on(network.host(n));
        let (mut first, second, operator) = (side(SIDES), side(SIDES + 1), side(OPERATOR));
        if let Some(fault) = setting.fault {
            first = first.fault(fault);
        }
        let mut scene = Scene {
            story: Vec::new(),
            timer: Timer::start(),
            work: BTreeMap::new(),
            may_have_ended: Default::default(),
            ended: Vec::new(),
            cluster,
            sides: [Arc::new(first), Arc::new(second)],
            operator,
            network,
            world,
            setting,
        };
        scene.set_up();
        scene
    }

    fn set_up(&mut self) {
        let lower = self.world.directory(&format!("lower-{TREE}"));
        let policy = quick(&self.setting.policy);
        let add = [&["tree", "add", TREE, "--root", lower.to_str().expect("our own path")], &policy[..]].concat();
        wait_for(SOON, "the tree is registered", || {
            self.operator.run(&add).code == 0 || self.operator.run(&["tree", "show", TREE]).code == 0
        });
        for side in &self.sides {
            let at = side.at(TREE);
            if self.setting.over {
                std::fs::create_dir_all(&at).expect("a mount point");
                mount(&["--bind", lower.to_str().expect("our own path")], &at);
                side.configure_mount(TREE, &at);
            } else {
                read_only_mount_point(&at);
                side.configure_mount(TREE, &lower);
            }
        }
        (0..2).for_each(|side| self.up(side));
        self.tell("everything runs");
    }

    /// Starts a side's daemon and its mount.
    pub fn up(&self, side: usize) {
        let mut last = None;
        let up = crate::hosts::holds_within(SOON, || {
            let done = self.sides[side].run(&["up"]);
            let code = done.code;
            last = Some(done);
            code == 0
        });
        assert!(up, "the mount of {} does not come back: {}", self.sides[side].name(), last.expect("it was tried"));
    }

    /// The programs of a side begin.
    pub fn work(&mut self, side: usize, habit: Habit) {
        let kept = self.kept(side);
        let work = Work::start(&self.sides[side], side, &kept, habit, self.setting.journal, self.setting.seed);
        self.work.insert(side, work);
    }

    /// What a side's programs keep.
    pub fn kept(&self, side: usize) -> Kept {
        Kept::new(self.world.dir(), self.sides[side].name())
    }

    /// A side.
    pub fn side(&self, n: usize) -> &Side {
        &self.sides[n]
    }

    /// The host of a side.
    pub fn side_host(&self, n: usize) -> &Host {
        self.network.host(SIDES + n)
    }

    /// Where the tree's files lie.
    pub fn lower(&self) -> PathBuf {
        self.world.lower(TREE)
    }

    /// The servers' table as the operator sees it.
    pub fn table(&self) -> serde_json::Value {
        let done = self.operator.run(&[&["status", "-o", "json"][..], &ASK].concat());
        serde_json::from_str(&done.stdout).unwrap_or_default()
    }

    /// The tree in it.
    pub fn tree(&self) -> serde_json::Value {
        self.table()["trees"][0].clone()
    }

    /// Who leads, if somebody does.
    pub fn leader(&self) -> Option<usize> {
        self.table()["server"]["leader"].as_str().and_then(|l| l.parse().ok()).filter(|node| (1..=3).contains(node))
    }

    /// Who leads, once somebody does.
    pub fn wait_leader(&self) -> usize {
        let mut leader = None;
        wait_for(SOON, "a node leads", || {
            let table = self.table();
            leader = table["server"]["leader"].as_str().and_then(|l| l.parse().ok());
            leader.is_some() && table["server"]["quorum"] == true
        });
        leader.expect("just found")
    }

    /// Vouches for the old holder if the tree waits for that: as an operator would who looked.
    pub fn vouch(&mut self) {
        let tree = self.tree();
        if tree["state"] == "fencing" {
            let epoch = tree["ended_epoch"].as_u64().unwrap_or_default().to_string();
            let reason = ["--reason", "the scene has looked"];
            let done = self.operator.run(&[&["fence", "confirm", TREE, "--epoch", &epoch], &reason[..], &ASK].concat());
            self.tell(&format!("vouched for the holder of epoch {epoch}: {}", done.code));
        }
    }

    /// The side gets the tree for a command of its own, within the limit.
    pub fn goes_on(&mut self, side: usize, limit: Duration) {
        let (timer, mut last) = (Timer::start(), None);
        while timer.elapsed() < limit {
            let done = self.sides[side].run(&["run", "--tree", TREE, "--ask", "--wait", "10s", "--", "true"]);
            if done.code == 0 {
                self.tell(&format!("{} went on after {:?}", self.sides[side].name(), timer.elapsed()));
                return;
            }
            last = Some(done);
            if self.setting.policy.contains(&"fence=manual") {
                self.vouch();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!(
            "{} does not get the tree within {limit:?}: {}\n{}",
            HOSTS[SIDES + side],
            last.expect("it was tried"),
            self.tree()
        );
    }

    /// Notes something.
    pub fn tell(&mut self, what: &str) {
        self.story.push(format!("{:9.3} {what}", self.timer.elapsed().as_secs_f64()));
    }

    /// What has happened.
    pub fn story(&self) -> String {
        self.story.join("\n")
    }

    fn keep(&self) -> std::io::Result<PathBuf> {
        let to = violations().with_file_name("ends").join(format!("{}-{}", self.setting.name, std::process::id()));
        std::fs::create_dir_all(&to)?;
        std::fs::write(to.join("story"), self.story() + "\n")?;
        let copy = |from: &Path| -> std::io::Result<()> {
            for entry in std::fs::read_dir(from)?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_file())) {
                let name = format!("{}-{}", from.file_name().unwrap_or_default().display(), entry.file_name().display());
                std::fs::copy(entry.path(), to.join(name))?;
            }
            Ok(())
        };
        copy(self.world.dir())?;
        copy(self.cluster.dir())?;
        for side in &self.sides {
            let _no_daemon_ran = copy(&side.dir().join("state/log")).and_then(|()| copy(&side.dir().join("run")));
        }
        let lower = to.join("lower");
        std::fs::create_dir_all(&lower)?;
        for entry in std::fs::read_dir(self.lower())?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_file())) {
            std::fs::copy(entry.path(), lower.join(entry.file_name()))?;
        }
        Ok(to)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // First of all: whoever waits in the mount of a stopped daemon is freed by this.
        self.sides.iter().filter_map(|s| s.daemon()).for_each(|pid| crate::hosts::signal(pid, Signal::KILL));
        self.network.kill_all();
        if std::thread::panicking() {
            eprintln!("--- the story of {}\n{}", self.setting.name, self.story());
            match self.keep() {
                Ok(at) => eprintln!("--- kept in {}", at.display()),
                Err(e) => eprintln!("--- its logs could not be kept: {e}"),
            }
            eprintln!("--- again: {}", self.setting.replay);
        }
    }
}

fn small_disk(at: &Path) {
    mount(&["-t", "tmpfs", "-o", &format!("size={SMALL_DISK}m,mode=700"), "treelease-test"], at);
}

/// Between a killed daemon's dead mount and the next one its path may show what lies below. Here nothing can be written there, so
/// that a program which comes just then is refused, and the next mount finds an empty directory.
fn read_only_mount_point(at: &Path) {
    let above = at.parent().expect("it lies in a side's directory");
    mount(&["-t", "tmpfs", "-o", "size=1m", "treelease-test"], above);
    std::fs::create_dir_all(at).expect("a mount point");
    mount(&["-o", "remount,ro"], above);
}

fn mount(words: &[&str], at: &Path) {
    let done = Command::new("mount").args(words).arg(at).output();
    let done = done.unwrap_or_else(|e| panic!("these tests need `mount` (apt-get install mount): {e}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{} on {}: {said}\nthese tests need root and tmpfs", words.join(" "), at.display());
}

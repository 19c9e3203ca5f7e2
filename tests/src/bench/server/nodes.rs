//! The nodes of a lock service as processes, killed when they are dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;

use super::super::Ground;
use crate::hosts::free_ports;

/// Some of them; each has a directory on the measured disk, and ports of its own.
pub struct Nodes {
    dir: PathBuf,
    world: PathBuf,
    ports: Vec<u16>,
    children: Vec<Option<Child>>,
    command: fn(&Nodes, usize) -> Command,
    /// More arguments for each.
    extra: &'static [&'static str],
}

impl Nodes {
    /// Starts them all. `ports` of each are free now; `extra` are arguments beside those of the command.
    pub fn start(
        ground: &Ground,
        name: &str,
        nodes: usize,
        ports: usize,
        command: fn(&Nodes, usize) -> Command,
        extra: &'static [&'static str],
    ) -> anyhow::Result<Nodes> {
        let dir = ground.disk.directory(name)?;
        let world = ground.world.dir().to_owned();
        let children = (0..nodes).map(|_| None).collect();
        let mut all = Nodes { dir, world, ports: free_ports(nodes * ports), children, command, extra };
        for node in 0..nodes {
            all.start_one(node)?;
        }
        Ok(all)
    }

    /// Starts one that does not run.
    pub fn start_one(&mut self, node: usize) -> anyhow::Result<()> {
        assert!(self.children[node].is_none(), "node {node} runs");
        let log = File::options().create(true).append(true).open(self.world.join(format!("{}-{node}.log", self.name())))?;
        let mut command = (self.command)(self, node);
        // By its environment a process belongs to the world, which clears it away whatever happens.
        command.env("TREELEASE_TEST_WORLD", &self.world).env_remove("TREELEASE_CONFIG");
        command.args(self.extra).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("{} starts", command.get_program().to_string_lossy()))?;
        self.children[node] = Some(child);
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.children[node].take() {
            let _ended = child.kill();
            let _ended = child.wait();
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.children.len()
    }

    /// Those that run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.count()).filter(|node| self.children[*node].is_some()).collect()
    }

    /// Of those that run.
    pub fn processes(&self) -> Vec<u32> {
        self.children.iter().flatten().map(Child::id).collect()
    }

    /// `HOST:PORT`, by the node and which of its ports.
    pub fn address(&self, node: usize, port: usize) -> String {
        format!("127.0.0.1:{}", self.ports[port * self.count() + node])
    }

    /// Where a node keeps its data.
    pub fn data(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node-{node}"))
    }

    fn name(&self) -> String {
        Path::new(self.dir.file_name().expect("it has a name")).display().to_string()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        (0..self.count()).for_each(|node| self.kill(node));
    }
}

//! Who a data directory belongs to, kept outside the backend, so that a backend that came back empty is noticed.
//!
//! Promises (I7): the directory's random id is made once and never changes; `initialized` is set durably before the first
//! command is answered, and from then on an empty or incomplete log is damage, never a fresh start: a node that forgot its
//! vote could vote twice, and one that forgot entries could help to elect a leader without them. A directory promises itself
//! to one formation, durably, before it votes or is voted for in it, and never to a second one. It does not know the log.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use treelease_proto::id::{ClusterId, NodeId};

use super::{Kind, damaged, files, record};
use crate::failure::{Failure, Result};

/// The layout of the data directory that this version writes and reads.
const FORMAT: u32 = 3;
/// The formats that are read. 1 had no journal before its store, 2 no salt in the journal's records.
const READ: std::ops::RangeInclusive<u32> = 1..=FORMAT;
/// The file's name.
const FILE: &str = "identity";

/// A member of a cluster: where it is reached, and which data directory it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `HOST:PORT`.
    pub addr: String,
    /// [`Identity::data_dir`] of that node; empty if it was written by a version that had one node only.
    pub disk: String,
}

/// A cluster as it was formed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formation {
    /// Its id.
    pub cluster: ClusterId,
    /// All of its first members.
    pub members: BTreeMap<NodeId, Member>,
}

/// Who a data directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    format: u32,
    /// Random, of this directory: a wiped directory under the same node id is another one.
    pub data_dir: String,
    /// The node.
    pub node: NodeId,
    /// The cluster that it formed, or joined.
    pub cluster: ClusterId,
    /// Whether log and vote were ever complete: from then on they must be.
    pub initialized: bool,
    /// What this directory has promised itself to; none if it is empty, or is a cluster of its own.
    #[serde(default)]
    pub formation: Option<Formation>,
    /// Which backend wrote log and vote.
    #[serde(default)]
    pub store: Kind,
    /// That cluster had begun already and took this directory in: it never begins a log of its own.
    #[serde(default)]
    pub joined: bool,
}

impl Identity {
    /// Reads it, or makes one for an empty directory. `leftovers`: what must not be there without an identity.
    pub fn open(dir: &Path, node: NodeId, leftovers: &[&str]) -> Result<Self> {
        Self::open_as(dir, node, leftovers, None)
    }

    /// The same for a node that was told which backend to use; what another one wrote is refused (78).
    pub fn open_as(dir: &Path, node: NodeId, leftovers: &[&str], store: Option<Kind>) -> Result<Self> {
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                // Its name may be in memory only, since a start that was cut off right after the rename.
                files::sync_dir(dir).map_err(|e| Failure::storage(format!("cannot sync {}: {e}", dir.display())))?;
                Self::read(&bytes).map_err(|e| damaged_dir(dir, &format!("{}: {e}", path.display())))?.checked(dir, node, store)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(found) = leftovers.iter().find(|name| dir.join(name).exists()) {
                    return Err(damaged_dir(dir, &format!("it has `{found}` but no `{FILE}`")));
                }
                let identity = Self {
                    format: FORMAT,
                    data_dir: uuid::Uuid::new_v4().to_string(),
                    node,
                    cluster: ClusterId::random(),
                    initialized: false,
                    formation: None,
                    store: store.unwrap_or_default(),
                    joined: false,
                };
                identity.write(dir)?;
                Ok(identity)
            }
            Err(e) => Err(Failure::storage(format!("cannot read {}: {e}; check its owner and mode", path.display()))),
        }
    }

    /// Whether nobody can have relied on what is in its log: no answer was given from it, and no vote of it has counted.
    pub fn is_unfinished(&self) -> bool {
        !self.initialized && self.formation.is_none()
    }

    /// What is written from now on is of this version's format, and a version that does not know it refuses the directory: it would not see
    /// the journal, or take it for a damaged one, and come up without commits that were acknowledged (I7).
    pub fn upgrade(&mut self, dir: &Path) -> Result<()> {
        if self.format != FORMAT {
            self.format = FORMAT;
            self.write(dir)?;
        }
        Ok(())
    }

    /// Log and vote are complete, and stay so.
    pub fn initialize(&mut self, dir: &Path) -> Result<()> {
        if !self.initialized {
            self.initialized = true;
            self.write(dir)?;
        }
        Ok(())
    }

    /// Promises this directory to a formation, durably. The caller has checked that it is the first.
    pub fn promise(&mut self, dir: &Path, formation: Formation) -> Result<()> {
        self.belong(dir, formation, false)
    }

    /// The same, to a cluster that has begun already.
    pub fn join(&mut self, dir: &Path, formation: Formation) -> Result<()> {
        self.belong(dir, formation, true)
    }

    fn belong(&mut self, dir: &Path, formation: Formation, joined: bool) -> Result<()> {
        self.cluster = formation.cluster.clone();
        self.formation = Some(formation);
        self.joined = joined;
        self.write(dir)
    }

    fn read(bytes: &[u8]) -> io::Result<Self> {
        let json = record::open(FILE.as_bytes(), bytes)?;
        serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))
    }

    fn checked(self, dir: &Path, node: NodeId, store: Option<Kind>) -> Result<Self> {
        if !READ.contains(&self.format) {
            return Err(Failure::storage(format!(
                "the data directory {} has format {}, this version reads 1 to {FORMAT}; use the version that wrote it",
                dir.display(),
                self.format
            )));
        }
        if self.node != node {
            return Err(Failure::config(format!(
                "the data directory {} belongs to node {}, not to node {node}; pass --node-id {} or another --data-dir",
                dir.display(),
                self.node,
                self.node
            )));
        }
        if let Some(other) = store.filter(|store| *store != self.store) {
            let (other, ours) = (other.as_str(), self.store.as_str());
            return Err(Failure::config(format!(
                "the data directory {} was written with --store {ours}, not with {other}: pass --store {ours}, or leave it out. To \
                 change the store of a node, remove the node from its cluster and add it under a new id with an empty directory",
                dir.display(),
            )));
        }
        Ok(self)
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let path: PathBuf = dir.join(FILE);
        let json = serde_json::to_vec(self).expect("plain fields always serialize");
        files::replace(&path, &record::seal(FILE.as_bytes(), &json))
            .map_err(|e| Failure::storage(format!("cannot write {}: {e}; is the disk full or read-only?", path.display())))
    }
}

/// A data directory that was complete once and is not now, and what to do (74).
pub fn damaged_dir(dir: &Path, what: &str) -> Failure {
    Failure::storage(format!(
        "the data directory {} is damaged: {what}. Nothing was changed. Restore a backup of the whole directory, or, with other \
         nodes running, remove this node from the cluster and add it under a new node id with an empty directory; a single node \
         without a backup starts anew with an empty --data-dir, as a new cluster that its sides have to follow",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use treelease_proto::refusal::Code;

    #[test]
    fn an_identity_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Identity::open(dir.path(), 1, &["log"]).unwrap();
        assert!(!made.initialized);
        made.initialize(dir.path()).unwrap();
        assert_eq!(Identity::open(dir.path(), 1, &["log"]).unwrap(), made);
    }

    #[test]
    fn a_log_without_an_identity_and_a_damaged_identity_are_storage_failures() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        assert_eq!(Identity::open(dir.path(), 1, &["log"]).unwrap_err().code, Code::Storage);
        std::fs::remove_dir(dir.path().join("log")).unwrap();
        Identity::open(dir.path(), 1, &[]).unwrap();
        std::fs::write(dir.path().join(FILE), b"{}").unwrap();
        assert_eq!(Identity::open(dir.path(), 1, &[]).unwrap_err().code, Code::Storage);
    }

    #[test]
    fn i7_an_older_format_is_made_this_one_before_anything_is_written_and_a_later_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Identity::open(dir.path(), 1, &[]).unwrap();
        for (format, refused) in [(1, false), (FORMAT, false), (FORMAT + 1, true)] {
            made.format = format;
            made.write(dir.path()).unwrap();
            let opened = Identity::open(dir.path(), 1, &[]);
            assert_eq!(opened.is_err(), refused, "{format}");
            if let Ok(mut opened) = opened {
                opened.upgrade(dir.path()).unwrap();
                assert_eq!(Identity::open(dir.path(), 1, &[]).unwrap().format, FORMAT, "what an older version refuses");
            }
        }
    }

    #[test]
    fn a_promise_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Identity::open(dir.path(), 2, &[]).unwrap();
        assert_eq!(made.formation, None);
        let members = BTreeMap::from([(2, Member { addr: "host:1".into(), disk: made.data_dir.clone() })]);
        made.promise(dir.path(), Formation { cluster: ClusterId::random(), members }).unwrap();
        let again = Identity::open(dir.path(), 2, &[]).unwrap();
        assert_eq!(again, made);
        assert_eq!(again.formation.unwrap().cluster, again.cluster);
    }

    #[test]
    fn a_directory_remembers_which_store_wrote_it_and_another_one_is_refused() {
        for (wrote, other) in [(Kind::Sled, Kind::Redb), (Kind::Redb, Kind::Sled)] {
            let dir = tempfile::tempdir().unwrap();
            let open = |store| Identity::open_as(dir.path(), 1, &[], store);
            assert_eq!(open(Some(wrote)).unwrap().store, wrote);
            let refused = open(Some(other)).unwrap_err();
            assert_eq!(refused.code, Code::Config);
            assert!(refused.message.contains(&format!("--store {}", wrote.as_str())), "{refused}");
            assert_eq!(open(None).unwrap().store, wrote, "what nobody names is as it was");
        }
    }

    #[test]
    fn another_nodes_directory_is_refused_with_the_id_to_pass() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path(), 1, &[]).unwrap();
        let refused = Identity::open(dir.path(), 2, &[]).unwrap_err();
        assert_eq!(refused.code, Code::Config);
        assert!(refused.message.contains("--node-id 1"), "{refused}");
    }
}

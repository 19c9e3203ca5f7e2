//! `nodes.json` in the state directory: which nodes the cluster had when the daemon heard of them last, so that a restarted daemon, and
//! the commands, find the cluster though none of the configured servers is a node any more.
//!
//! It counts only beside the very servers under which it was noted: whoever writes others into the configuration means another
//! cluster, perhaps. A file that is missing, damaged or of another version says nothing: it is a hint, and the configured servers
//! are asked too. The state directory is this user's alone, and so is what it says.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::rpc::Endpoint;

/// The largest file that is read: nine addresses beside nine.
const READ_MAX: u64 = 64 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    endpoints: Vec<String>,
    nodes: Vec<String>,
}

/// Where it lies.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("nodes.json")
}

/// Notes the nodes (`HOST:PORT`) that were heard of through these servers.
pub fn note(state_dir: &Path, configured: &[Endpoint], nodes: &[String]) -> std::io::Result<()> {
    let noted = Noted { endpoints: configured.iter().map(Endpoint::to_string).collect(), nodes: nodes.to_vec() };
    let path = file(state_dir);
    let temp = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temp)?;
    file.write_all(&serde_json::to_vec_pretty(&noted)?)?;
    drop(file);
    std::fs::rename(&temp, &path)
}

/// The nodes that were heard of through these servers.
pub fn noted(state_dir: &Path, configured: &[Endpoint]) -> Vec<String> {
    let path = file(state_dir);
    if !std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= READ_MAX) {
        return Vec::new();
    }
    let read = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Noted>(&text).ok());
    let same = |noted: &Noted| noted.endpoints.iter().eq(configured.iter().map(|endpoint| endpoint.as_str()));
    read.filter(same).map(|noted| noted.nodes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(of: &[&str]) -> Vec<Endpoint> {
        of.iter().map(|address| Endpoint::from_address(address).unwrap()).collect()
    }

    #[test]
    fn nodes_are_read_as_they_were_noted_beside_the_very_same_servers_only() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (endpoints(&["a:1", "b:1"]), endpoints(&["a:1"]));
        let nodes = vec!["c:1".to_owned(), "d:1".to_owned()];
        assert!(noted(dir.path(), &ours).is_empty());
        note(dir.path(), &ours, &nodes).unwrap();
        assert_eq!(noted(dir.path(), &ours), nodes);
        assert!(noted(dir.path(), &theirs).is_empty(), "another configuration");
        note(dir.path(), &ours, &nodes[..1]).unwrap();
        assert_eq!(noted(dir.path(), &ours), nodes[..1]);
    }

    #[test]
    fn a_damaged_file_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ours = endpoints(&["a:1"]);
        for text in ["", "{", "[]", r#"{"endpoints":["http://a:1"]}"#, r#"{"endpoints":["http://a:1"],"nodes":5}"#] {
            std::fs::write(file(dir.path()), text).unwrap();
            assert!(noted(dir.path(), &ours).is_empty(), "{text}");
        }
        let long = format!(r#"{{"endpoints":["http://a:1"],"nodes":["{}"]}}"#, "x".repeat(READ_MAX as usize));
        std::fs::write(file(dir.path()), long).unwrap();
        assert!(noted(dir.path(), &ours).is_empty(), "too large");
        std::fs::remove_file(file(dir.path())).unwrap();
        std::fs::create_dir(file(dir.path())).unwrap();
        assert!(noted(dir.path(), &ours).is_empty(), "a directory");
    }
}

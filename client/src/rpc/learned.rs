//! The cluster's own nodes, as servers to ask: nodes are added, moved and removed while sides run, and a side's configuration stays.
//!
//! # Promises
//!
//! The configured servers are asked always, whatever was learned; those of them that are nodes now come first, then the other nodes.
//! What is learned is one list, replaced as a whole by the next one, at most [`LEARNED_MAX`] long, and is called as the configured ones
//! are: with the same token, over the same network. Beside an embedded server nothing is learned: its token belongs to this machine.
//! No address is learned that means another machine here than at the node: an unspecified one, or this machine's own if no configured
//! one is.
//!
//! # Does not know
//!
//! Whose word is to be learned. The caller takes that of a server of its own cluster that has a quorum (I8).

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};

use super::{Endpoint, Servers, Source};

/// The most nodes that are learned: as many as a cluster can have.
pub const LEARNED_MAX: usize = 9;

/// The nodes, as the cluster named them last.
#[derive(Debug, Default)]
pub(super) struct Learned(Mutex<Vec<Endpoint>>);

impl Learned {
    fn list(&self) -> MutexGuard<'_, Vec<Endpoint>> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

impl Servers {
    /// The cluster's nodes are at these addresses (`HOST:PORT`) now. Whether that is news.
    pub fn learn(&self, addresses: &[String]) -> bool {
        let Source::Fixed { endpoints: configured, .. } = &self.inner.source else { return false };
        let here = configured.iter().any(|endpoint| is_loopback(&host(endpoint)));
        let usable = |endpoint: &Endpoint| {
            let host = host(endpoint);
            !is_unspecified(&host) && (here || !is_loopback(&host))
        };
        let nodes = addresses.iter().filter_map(|address| Endpoint::from_address(address).ok()).filter(usable);
        let nodes: Vec<Endpoint> = nodes.take(LEARNED_MAX).collect();
        let mut learned = self.inner.learned.list();
        // Of a cluster without one usable address the last word stays: that is better than none.
        if nodes.is_empty() || *learned == nodes {
            return false;
        }
        *learned = nodes;
        true
    }

    /// Everybody to ask, and the token for them.
    pub(super) fn everybody(&self) -> Result<(Vec<Endpoint>, Option<String>), String> {
        let (configured, token) = self.inner.source.read()?;
        let learned = self.inner.learned.list().clone();
        let (nodes, others): (Vec<_>, Vec<_>) = configured.into_iter().partition(|endpoint| learned.contains(endpoint));
        let new: Vec<_> = learned.into_iter().filter(|endpoint| !nodes.contains(endpoint)).collect();
        Ok(([nodes, new, others].concat(), token))
    }
}

/// Without the brackets of an IPv6 address.
fn host(endpoint: &Endpoint) -> String {
    let address = endpoint.as_str().trim_start_matches("http://");
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

fn is_loopback(host: &str) -> bool {
    host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.is_loopback())
}

fn is_unspecified(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn servers(configured: &[&str]) -> Servers {
        let endpoints = configured.iter().map(|address| Endpoint::from_address(address).unwrap()).collect();
        Servers::new(endpoints, Some("good".into()), Duration::from_secs(1))
    }

    fn learn(servers: &Servers, addresses: &[&str]) -> bool {
        servers.learn(&addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn configured_servers_are_never_lost_and_those_that_are_nodes_now_come_first() {
        let servers = servers(&["a:1", "b:1", "c:1"]);
        assert_eq!(servers.endpoints(), ["http://a:1", "http://b:1", "http://c:1"]);
        assert!(learn(&servers, &["b:1", "d:1", "c:1"]));
        assert!(!learn(&servers, &["b:1", "d:1", "c:1"]), "no news");
        assert_eq!(servers.endpoints(), ["http://b:1", "http://c:1", "http://d:1", "http://a:1"]);
        // All of them were replaced, and then one more.
        assert!(learn(&servers, &["d:1", "e:1", "f:1"]));
        assert!(learn(&servers.with_timeout(Duration::from_secs(9)), &["e:1", "f:1", "g:1"]), "one list for all that share it");
        assert_eq!(servers.everybody().unwrap().1.as_deref(), Some("good"));
        let all = ["http://e:1", "http://f:1", "http://g:1", "http://a:1", "http://b:1", "http://c:1"];
        assert_eq!(servers.endpoints(), all);
    }

    #[test]
    fn the_list_is_bounded_and_what_is_no_address_of_another_machine_is_left_out() {
        let far = servers(&["lease-0.example:1"]);
        let many: Vec<String> = (0..100).map(|n| format!("node-{n}:1")).collect();
        assert!(far.learn(&many));
        assert_eq!(far.endpoints().len(), LEARNED_MAX + 1);
        assert!(learn(&far, &["0.0.0.0:1", "[::]:1", "127.0.0.1:1", "localhost:1", "[::1]:1", "", "u@h:1", "10.0.0.1:1"]));
        assert_eq!(far.endpoints(), ["http://10.0.0.1:1", "http://lease-0.example:1"]);
        assert!(!learn(&far, &["0.0.0.0:1", ""]), "the last word stays");
        let near = servers(&["[::1]:1"]);
        assert!(learn(&near, &["127.0.0.1:2", "0.0.0.0:1"]));
        assert_eq!(near.endpoints(), ["http://127.0.0.1:2", "http://[::1]:1"]);
    }

    #[test]
    fn beside_an_embedded_server_nothing_is_learned() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("address"), "127.0.0.1:7").unwrap();
        std::fs::write(dir.path().join("token"), "t").unwrap();
        let servers = Servers::embedded(dir.path().to_owned(), Duration::from_secs(1));
        assert!(!learn(&servers, &["127.0.0.1:8"]));
        assert!(servers.endpoints().len() <= 1);
    }
}

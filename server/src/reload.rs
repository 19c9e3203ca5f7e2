//! What of a node's configuration may change while it runs: SIGHUP reads flags and file again.
//!
//! | may change | how |
//! |---|---|
//! | the tokens (`token_file`) | callers may show any of the file's lines, this node shows the first to the others |
//! | `log` | what is logged |
//! | `limits`, but for `streams` and `calls` | [`crate::limits`]; what is beyond them already stays until it ends by itself |
//! | `fence` | which agents a policy may name; one that runs goes on as it began |
//!
//! Promises: all or nothing. What cannot change while the node runs, because others rely on it or it was decided at the start, is
//! named in a sentence, and then nothing changes. `peer` counts only for nodes that are empty, so it may differ. It does not
//! read anything: [`crate::config`] does.
//!
//! To replace a token without a refused call: add the new one as a second line on every node and send SIGHUP; put it first; give
//! it to the sides; then take the old line out.

use std::net::SocketAddr;

use crate::config::Config;
use crate::failure::{Failure, Result};

/// Whether a node that runs with `old` may go on with `new`.
pub fn may_become(old: &Config, new: &Config) -> Result<()> {
    let differs = [
        ("node_id", old.node_id != new.node_id),
        ("data_dir", old.data_dir != new.data_dir),
        // In any order: a resolver may give a name's addresses in another one each time.
        ("listen", sorted(&old.listen) != sorted(&new.listen)),
        ("advertise", old.advertise != new.advertise),
        ("admin", sorted(&old.admin) != sorted(&new.admin)),
        ("store_cache", old.pace.store_cache != new.pace.store_cache),
        ("heartbeat, election_timeout", old.pace != new.pace),
        ("store", old.store != new.store),
        ("limits: streams, calls", old.limits.of_a_connection() != new.limits.of_a_connection()),
        ("reflection", old.reflection != new.reflection),
        ("token_file", old.token.is_some() != new.token.is_some()),
    ];
    match differs.into_iter().find(|(_, differs)| *differs) {
        None => Ok(()),
        Some((key, _)) => Err(Failure::config(format!(
            "`{key}` cannot change while the node runs; restart the node for that, or write what it was"
        ))),
    }
}

fn sorted(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut sorted = addresses.to_vec();
    sorted.sort_unstable();
    sorted
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::Token;
    use crate::limits::Limits;

    fn config() -> Config {
        Config { token: Some(Token::new("one")), ..Config::alone(Path::new("/nowhere")) }
    }

    #[test]
    fn tokens_the_log_limits_and_peers_may_change() {
        let new = Config {
            token: Some(Token::new("two")),
            more_tokens: vec![Token::new("one")],
            token_file: Some("/elsewhere".into()),
            log: Some("debug".into()),
            limits: Limits { trees: 1, sessions: 1, waiters: 1, watches: 1, connections: 99, ..Limits::default() },
            peers: [(2, "host:1".to_owned())].into(),
            ..config()
        };
        assert_eq!(may_become(&config(), &new), Ok(()));
    }

    #[test]
    fn what_others_rely_on_may_not_and_is_named() {
        let pace = crate::consensus::Pace { heartbeat: Duration::from_millis(77), ..config().pace };
        let changed = [
            ("node_id", Config { node_id: 9, ..config() }),
            ("data_dir", Config { data_dir: "/elsewhere".into(), ..config() }),
            ("listen", Config { listen: vec!["127.0.0.1:1".parse().unwrap()], ..config() }),
            ("advertise", Config { advertise: Some("host:1".into()), ..config() }),
            ("admin", Config { admin: vec!["127.0.0.1:1".parse().unwrap()], ..config() }),
            ("heartbeat", Config { pace, ..config() }),
            ("store", Config { store: Some(crate::store::Kind::Redb), ..config() }),
            ("reflection", Config { reflection: true, ..config() }),
            ("token_file", Config { token: None, ..config() }),
            ("streams", Config { limits: Limits { streams: 99, ..Limits::default() }, ..config() }),
            ("calls", Config { limits: Limits { calls: 99, ..Limits::default() }, ..config() }),
        ];
        for (key, new) in changed {
            let refused = may_become(&config(), &new).unwrap_err().to_string();
            assert!(refused.contains(key) && refused.contains("restart"), "{key}: {refused}");
        }
    }
}

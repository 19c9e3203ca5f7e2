//! One node in this process, and what it counts.

use std::net::SocketAddr;

use treelease_server::config::{Config, Token};
use treelease_server::node::Node;

use super::http::{get, number};

/// A node with a configuration that is not the usual one; it goes with its directory.
pub async fn node(change: impl FnOnce(Config) -> Config) -> (tempfile::TempDir, Config, Node) {
    let dir = tempfile::tempdir().unwrap();
    let admin = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let config = change(Config { admin, ..Config::alone(dir.path()) });
    let node = Node::start(config.clone()).await.unwrap();
    (dir, config, node)
}

/// What `/metrics` says now.
pub async fn metric(node: &Node, name: &'static str) -> f64 {
    let at = node.admin_address().unwrap();
    tokio::task::spawn_blocking(move || number(&get(at, "/metrics").1, name)).await.unwrap()
}

/// With these two tokens, the first of which it shows itself.
pub fn tokens(config: Config, all: [&str; 2]) -> Config {
    Config { token: Some(Token::new(all[0])), more_tokens: vec![Token::new(all[1])], ..config }
}

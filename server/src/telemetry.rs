//! What this node has counted since it started, and its numbers as text for Prometheus.
//!
//! Promises: counting never waits and never fails; a label is one of a few words of ours, never the name of a tree, a side or
//! a path: what a metrics store keeps is nobody's business, and its size must not grow with users. It decides nothing.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::consensus::gauges::Gauges;
use crate::lease::Holdings;
use crate::limits::Seats;

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    /// As it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What this node counts.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Commands of callers that this node, as the leader, gave to the log and got an answer for.
    pub commands: Counter,
    /// Calls that this node sent on to the leader.
    pub forwarded: Counter,
    /// Renewals that this node, as the leader, acknowledged.
    pub renewals: Counter,
    /// Renewals that came too late to be acknowledged.
    pub renewals_given_up: Counter,
    /// Renewals that showed that two machines renew one session.
    pub copied: Counter,
    /// Sessions that this node, as the leader, let expire.
    pub expired: Counter,
    /// Graces that this node, as the leader, ended.
    pub graces: Counter,
    /// Connections to this node that are there.
    pub connections: Arc<Seats>,
    /// Connections that were closed at once, because there were too many.
    pub connections_refused: Counter,
    /// Calls over which renewals come, of sides and of other nodes, that are open.
    pub renewal_streams: Arc<Seats>,
    /// Calls over which commands come that are open.
    pub command_streams: Arc<Seats>,
    /// Commands of callers that a configured limit refused.
    pub limited: Counter,
    /// Calls, of callers and of other nodes, that this node answered with a failure, and renewals and commands among others: by gRPC's number
    /// of it.
    failed: [Counter; FAILURES.len()],
}

/// gRPC's status codes by their number; the first one is none, and no answer has it here.
const FAILURES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];
/// The number of `unknown`.
const UNKNOWN: usize = 2;

impl Telemetry {
    /// A call was answered with this status code.
    pub fn answered(&self, code: usize) {
        if code != 0 {
            self.failed.get(code).unwrap_or(&self.failed[UNKNOWN]).add();
        }
    }
}

/// Everything that one scrape shows.
#[derive(Debug)]
pub struct Scrape<'a> {
    /// Whether this node can serve.
    pub ready: bool,
    /// Its part in the agreement.
    pub gauges: Gauges,
    /// What is counted.
    pub counted: &'a Telemetry,
    /// Commits of the store, and how many of them were synced.
    pub store: (u64, u64),
    /// Missing while a large entry is being applied.
    pub holdings: Option<Holdings>,
}

impl Scrape<'_> {
    /// In Prometheus' text format, version 0.0.4.
    pub fn text(&self) -> String {
        let mut page = Page::default();
        let g = &self.gauges;
        page.gauge("treelease_node_ready", "1 if this node can serve", u64::from(self.ready));
        page.gauge("treelease_node_is_leader", "1 if this node leads and a quorum has answered it lately", u64::from(g.leads));
        page.gauge("treelease_raft_members", "nodes of the cluster", u64::from(g.standing.nodes));
        page.gauge("treelease_raft_term", "current term of the agreement", g.term);
        page.gauge("treelease_raft_last_log_index", "index of the last entry in this node's log", g.standing.last_log);
        page.gauge("treelease_raft_applied_index", "index of the last entry applied on this node", g.applied);
        page.gauge("treelease_raft_snapshot_index", "index of the last entry in this node's snapshot", g.snapshot);
        if let Some(age) = g.quorum_ack {
            let help = "age of the last time at which a quorum answered this leader, in seconds";
            page.line("treelease_raft_quorum_ack_age_seconds", "gauge", help, &format!(" {:.3}", age.as_secs_f64()));
        }
        page.counter("treelease_raft_rejected_messages_total", "messages of other nodes that were turned away", g.turned_away);
        if let Some(holdings) = &self.holdings {
            page.gauge("treelease_sessions", "living sessions", holdings.sessions as u64);
            page.head("treelease_trees", "gauge", "trees, by how they stand");
            for (state, count) in &holdings.trees {
                page.value("treelease_trees", &format!("{{state=\"{}\"}} {count}", state.as_str()));
            }
        }
        let c = self.counted;
        page.counter("treelease_commands_total", "commands of callers that were answered here, by the leader", c.commands.get());
        page.counter("treelease_forwarded_requests_total", "calls that this node sent on to the leader", c.forwarded.get());
        page.counter("treelease_renewals_acknowledged_total", "renewals acknowledged here, by the leader", c.renewals.get());
        page.counter(
            "treelease_renewals_given_up_total",
            "renewals that came too late to be acknowledged",
            c.renewals_given_up.get(),
        );
        page.counter("treelease_renewals_copied_total", "renewals that showed two machines with one session", c.copied.get());
        page.counter("treelease_sessions_expired_total", "sessions that expired under this leader", c.expired.get());
        page.gauge("treelease_connections", "connections to this node, other nodes' too", c.connections.taken() as u64);
        let streams = c.renewal_streams.taken() as u64;
        page.gauge("treelease_renewal_streams", "open calls over which renewals come, of sides and other nodes", streams);
        let streams = c.command_streams.taken() as u64;
        page.gauge("treelease_command_streams", "open calls over which commands of sides come", streams);
        let help = "connections that were closed at once, because there were too many";
        page.counter("treelease_connections_refused_total", help, c.connections_refused.get());
        page.counter("treelease_limited_commands_total", "commands refused by [limits] of this leader's", c.limited.get());
        page.counter("treelease_graces_ended_total", "graces that ended under this leader", c.graces.get());
        page.head("treelease_failed_calls_total", "counter", "calls that were answered with a failure, by its gRPC status code");
        for (name, count) in FAILURES.iter().zip(&c.failed).skip(1) {
            page.value("treelease_failed_calls_total", &format!("{{code=\"{name}\"}} {}", count.get()));
        }
        page.counter("treelease_store_commits_total", "commits of the log's store", self.store.0);
        page.counter("treelease_store_syncs_total", "commits of the log's store that were synced to disk", self.store.1);
        let version = format!("{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        page.line("treelease_build_info", "gauge", "which version runs", &version);
        page.0
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.line(name, "gauge", help, &format!(" {value}"));
    }
    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.line(name, "counter", help, &format!(" {value}"));
    }
    fn line(&mut self, name: &str, kind: &str, help: &str, rest: &str) {
        self.head(name, kind, help);
        self.value(name, rest);
    }
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
    fn value(&mut self, name: &str, rest: &str) {
        let _ = writeln!(self.0, "{name}{rest}");
    }
}

#[cfg(test)]
mod tests {
    use treelease_proto::tree::StateName;

    use super::*;
    use crate::consensus::Standing;

    #[test]
    fn a_page_has_a_head_for_each_name_and_labels_of_our_own_only() {
        let counted = Telemetry::default();
        counted.renewals.add();
        [0, 3, 3, 99].into_iter().for_each(|code| counted.answered(code));
        let standing = Standing { leader: Some(1), nodes: 3, quorum: true, last_log: 9, age: None };
        let gauges = Gauges {
            leads: true,
            standing,
            term: 4,
            applied: 8,
            snapshot: 0,
            quorum_ack: Some(std::time::Duration::from_millis(12)),
            turned_away: 2,
        };
        let holdings = Some(Holdings { sessions: 2, trees: vec![(StateName::Free, 1), (StateName::Held, 3)] });
        let text = Scrape { ready: true, gauges, counted: &counted, store: (5, 6), holdings }.text();
        for line in [
            "treelease_raft_quorum_ack_age_seconds 0.012",
            "treelease_trees{state=\"held\"} 3",
            "treelease_renewals_acknowledged_total 1",
            "treelease_failed_calls_total{code=\"invalid_argument\"} 2",
            "treelease_failed_calls_total{code=\"unknown\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
        let mut named = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(head) => named = head.split(' ').next().unwrap(),
                None if line.starts_with('#') => {}
                None => assert_eq!(line.split(['{', ' ']).next().unwrap(), named, "{line}"),
            }
        }
    }
}

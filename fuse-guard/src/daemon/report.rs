//! How things stand, as the JSON of CLI.md: for `treelease status`, for the state file in the runtime directory, and for the
//! virtual `.treelease/` in each mounted root. Built from what the loop remembers: no network, no storage.

use jiff::SignedDuration;
use treelease_client::local::to_local;
use treelease_client::report::{HoldReport, HolderReport, LocalTree, Report, SCHEMA, StatusFile, WriterReport, WritersReport};
use treelease_client::words::refusal::Code;
use treelease_client::words::time::{BootTime, WallTime};
use treelease_client::words::tree::{StateName, TreeStatus};
use treelease_client::words::wire::{HoldsAnswer, ReportAnswer, WritersAnswer};

use super::state_dir::replace;
use super::{Daemon, Tree};
use crate::fuse::Writer;

impl Daemon {
    /// A moment on the elapsed-time clock as wall time, for people.
    fn wall_of(&self, at: BootTime) -> WallTime {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let (ahead, back) = (at.since(now), now.since(at));
        let offset = SignedDuration::try_from(ahead).unwrap_or_default() - SignedDuration::try_from(back).unwrap_or_default();
        WallTime(wall.0.checked_add(offset).unwrap_or(wall.0))
    }

    fn holds_of(tree: &Tree) -> Vec<HoldReport> {
        tree.side
            .holds
            .values()
            .filter(|h| !h.pending())
            .map(|h| HoldReport {
                id: h.id.to_string(),
                tree: tree.side.name.to_string(),
                kind: h.kind.as_str().to_owned(),
                pid: h.pid,
                command: h.command.clone(),
                tty: Some(h.tty.clone()).filter(|t| !t.is_empty()),
                since: h.since,
                note: h.note.clone(),
            })
            .collect()
    }

    fn local(&self, status: &TreeStatus) -> Option<LocalTree> {
        let tree = self.trees.get(&status.id)?;
        Some(LocalTree {
            mounted_at: tree.mounted.as_ref().map(|m| m.at.clone()),
            writes_until: tree.side.writes_until(self.clock.now()).map(|until| self.wall_of(until)),
            holds: Self::holds_of(tree),
            witness: tree.side.witness_word().map(str::to_owned),
            bypassed: tree.alarms.last().cloned(),
        })
    }

    pub(super) fn report(&self) -> Report {
        let mut report = match &self.table {
            Some((table, at)) => Report::new(table, Some(&self.side), self.wall_of(*at), |status| self.local(status)),
            None => Report::unknown(Some(&self.side)),
        };
        // A server that stands still does not refuse a call: a renewal that is late says so before the call's limit does.
        let renewed = self.session.as_ref().is_some_and(|session| session.late(self.clock.now()).is_none());
        report.server.reachable = self.link.reachable && self.table.is_some() && renewed;
        if !self.link.trouble.is_empty() && !report.server.reachable {
            report.server.trouble = Some(self.link.trouble.clone());
        }
        // `mine` is what this side may rely on: an open gate, not the server's word alone.
        let now = self.clock.now();
        let age = self.table.as_ref().map_or(0, |(_, at)| now.since(*at).as_millis() as u64);
        for tree in &mut report.trees {
            // A grace runs down while nothing is read; a holder's time is renewed meanwhile.
            if tree.state == StateName::Cooling {
                tree.expires_in_ms = tree.expires_in_ms.map(|left| left.saturating_sub(age));
            }
            if let Some(here) = self.trees.values().find(|t| t.side.id.as_str() == tree.id) {
                tree.mine = here.side.writes(now);
                tree.notes = here.notes.clone();
                // The table may come from a node that is behind and names an earlier holder: what this side holds, it knows itself.
                if let Some(grant) = here.side.grant().filter(|grant| tree.mine && grant.epoch.get() > tree.epoch) {
                    (tree.state, tree.at_rest, tree.last_end) = (StateName::Held, false, grant.last_end);
                    (tree.epoch, tree.run_start) = (grant.epoch.get(), grant.run_start.0.get());
                    let (side, host) = (self.side.to_string(), self.host.clone());
                    let since = self.clock.wall();
                    tree.holder = Some(HolderReport { side, host, since, note: String::new(), epoch: tree.epoch });
                }
            }
        }
        report
    }

    pub(super) fn report_answer(&self) -> ReportAnswer {
        let report = self.report();
        ReportAnswer {
            server_reachable: report.server.reachable,
            json: serde_json::to_string(&report).expect("a report is plain data"),
            daemon_version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
        }
    }

    pub(super) fn holds_answer(&self, tree: &str) -> Result<HoldsAnswer, treelease_client::error::Failure> {
        if !tree.is_empty() && self.tree_named(tree).is_none() {
            return Err(treelease_client::error::Failure::new(Code::NotFound, format!("this side has no tree \"{tree}\"")));
        }
        let holds: Vec<HoldReport> = self
            .trees
            .values()
            .filter(|t| tree.is_empty() || t.side.name.as_str() == tree || t.side.id.as_str() == tree)
            .flat_map(Self::holds_of)
            .collect();
        let report = treelease_client::report::HoldsReport { schema: treelease_client::report::SCHEMA, holds };
        Ok(HoldsAnswer { json: serde_json::to_string(&report).expect("a report is plain data") })
    }

    /// Who wrote lately in one tree, or in all. Only what is mounted here has writers.
    pub(super) fn writers_answer(&mut self, tree: &str) -> WritersAnswer {
        if !tree.is_empty()
            && let Err(failure) = self.find_tree(tree)
        {
            return WritersAnswer { refused: Some(to_local(&failure)), json: String::new() };
        }
        let named = |t: &&Tree| tree.is_empty() || t.side.name.as_str() == tree || t.side.id.as_str() == tree;
        let writers = self.trees.values().filter(named).flat_map(|t| self.writers_of(t)).collect();
        let report = WritersReport { schema: SCHEMA, writers };
        WritersAnswer { json: serde_json::to_string(&report).expect("a report is plain data"), refused: None }
    }

    fn writers_of(&self, tree: &Tree) -> Vec<WriterReport> {
        let Some(mounted) = &tree.mounted else { return Vec::new() };
        let row = |w: Writer| WriterReport {
            tree: tree.side.name.to_string(),
            pid: w.pid,
            uid: w.uid,
            command: w.command,
            path: w.path,
            count: w.count,
            refused: w.refused,
            first: self.wall_of(w.first),
            last: self.wall_of(w.last),
        };
        mounted.mount.writers().into_iter().map(row).collect()
    }

    /// Replaces the state file and the virtual files.
    pub(super) fn write_reports(&self) {
        let report = self.report();
        for tree in self.trees.values() {
            let Some(mounted) = &tree.mounted else { continue };
            let Some(of) = report.trees.iter().find(|t| t.id == tree.side.id.as_str()) else { continue };
            let json = serde_json::to_vec(of).expect("a report is plain data");
            let holder = of.holder.as_ref().map(|h| format!("{}\n", h.side)).unwrap_or_default();
            mounted.mount.set_status_files(vec![
                ("status.json".into(), json),
                ("holder".into(), holder.into_bytes()),
                ("epoch".into(), format!("{}\n", of.epoch).into_bytes()),
            ]);
        }
        let file = StatusFile { report, written_at: self.clock.wall() };
        let text = serde_json::to_vec(&file).expect("a report is plain data");
        if let Err(error) = replace(&self.config.status_file(), &text, 0o600) {
            tracing::warn!(%error, "the state file could not be written");
        }
    }
}

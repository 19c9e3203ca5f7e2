//! Who waits at the local socket, for a lease or for its end, hears what becomes of it.
//!
//! # Promises
//!
//! - Whoever asked for a lease is told once whether it has come, and of its loss as long as it stays. For that last word there is
//!   always room: who does not read misses only how long it waits.
//! - Whoever asked for the end of one is told how it ended, and then no more.
//!
//! # Does not know
//!
//! Who that is; whether anybody still listens.

use treelease_client::error::Failure;
use treelease_client::local::to_local;
use treelease_client::words::id::{HoldId, TreeId};
use treelease_client::words::refusal::Code;
use treelease_client::words::wire::{self, hold_answer, progress};

use super::Daemon;
use super::tree::EndResult;

/// Words to a waiting command that are kept free for the end of its wait.
const ROOM_FOR_LAST: usize = 8;

impl Daemon {
    pub(super) fn tell_hold(&mut self, id: &TreeId, hold: &HoldId, kind: hold_answer::Kind, last: bool) {
        let Some(tree) = self.trees.get_mut(id) else { return };
        // A command that does not read (stopped by Ctrl-Z) must still find the last word, which it waits for.
        let waits = matches!(kind, hold_answer::Kind::Waiting(_));
        if let Some(stream) = tree.hold_streams.get(hold)
            && !(waits && stream.capacity() <= ROOM_FOR_LAST)
        {
            let _ = stream.try_send(wire::HoldAnswer { kind: Some(kind) });
        }
        if last {
            tree.hold_streams.remove(hold);
        }
    }

    pub(super) fn hold_granted(&mut self, id: &TreeId, hold: &HoldId) {
        let side = self.side.to_string();
        let Some(tree) = self.trees.get(id) else { return };
        let epoch = tree.side.grant().map_or(0, |g| g.epoch.get());
        let kind = tree.side.holds.get(hold).map(|h| h.kind);
        let held = wire::HeldNow {
            hold: hold.to_string(),
            tree: id.to_string(),
            epoch,
            side,
            tree_name: tree.side.name.to_string(),
            mounted_at: tree.mounted.as_ref().map(|m| m.at.display().to_string()).unwrap_or_default(),
            already: false,
        };
        // A person's hold lives without its stream; a command's needs it to hear of a loss.
        let last = kind == Some(super::tree::HoldKind::Acquire);
        self.tell_hold(id, hold, hold_answer::Kind::Held(held), last);
    }

    pub(super) fn hold_waits(&mut self, id: &TreeId, hold: &HoldId) {
        let Some(tree) = self.trees.get(id) else { return };
        let why = tree.side.why_not();
        let holder = tree.side.holder().cloned();
        let place = match tree.side.line {
            super::tree::Line::In { place, .. } => place,
            _ => 0,
        };
        let waiting = wire::Waiting {
            message: why.message,
            place,
            holder_side: holder.as_ref().map(|h| h.side.to_string()).unwrap_or_default(),
            holder_host: holder.as_ref().map(|h| h.host.clone()).unwrap_or_default(),
            holder_since: holder.as_ref().map(|h| h.since.to_string()).unwrap_or_default(),
            holder_note: holder.as_ref().map(|h| h.note.clone()).unwrap_or_default(),
            epoch: holder.as_ref().map_or(0, |h| h.epoch.get()),
        };
        self.tell_hold(id, hold, hold_answer::Kind::Waiting(waiting), false);
    }

    pub(super) fn hold_refused(&mut self, id: &TreeId, hold: &HoldId, mut failure: Failure) {
        if let Some(tree) = self.trees.get(id)
            && failure.hints.is_empty()
        {
            failure = super::calls::with_hint(failure, &tree.side);
        }
        self.tell_hold(id, hold, hold_answer::Kind::Refused(to_local(&failure)), true);
    }

    pub(super) fn tell_enders(&mut self, id: &TreeId, kind: progress::Kind) {
        let Some(tree) = self.trees.get_mut(id) else { return };
        for who in &tree.enders {
            let _ = who.try_send(wire::Progress { kind: Some(kind.clone()) });
        }
    }

    pub(super) fn end_result(&mut self, id: &TreeId, result: EndResult) {
        let Some(tree) = self.trees.get(id) else { return };
        let name = tree.side.name.clone();
        if let (EndResult::Released { .. }, Some(tree)) = (&result, self.trees.get_mut(id)) {
            tree.unflushed = false;
            tree.late.released();
        }
        if let (EndResult::Surrendered(why), Some(ending)) = (&result, &mut self.ending) {
            ending.unclean.push(format!("\"{name}\" ended unclean: {why}"));
        }
        let kind = match result {
            EndResult::Released { files, bytes, not_to } => {
                tracing::info!(tree = %id, files, bytes, "lease released clean");
                match not_to {
                    None => {
                        let message = format!("\"{name}\" released: {files} files, {bytes} bytes made durable.");
                        progress::Kind::Finished(wire::Finished { message, notes: Vec::new() })
                    }
                    Some(why) => progress::Kind::Refused(to_local(&Failure::new(
                        Code::NotFound,
                        format!("\"{name}\" was released, but not given to that side: {why}"),
                    ))),
                }
            }
            EndResult::Kept(refusal) => progress::Kind::Refused(to_local(&refusal.into())),
            EndResult::Surrendered(why) => progress::Kind::Refused(to_local(
                &Failure::new(Code::Storage, format!("\"{name}\" ended unclean: {why}"))
                    .hint("`treelease history` tells what is waited for now"),
            )),
        };
        self.tell_enders(id, kind);
        if let Some(tree) = self.trees.get_mut(id) {
            tree.enders.clear();
        }
    }
}

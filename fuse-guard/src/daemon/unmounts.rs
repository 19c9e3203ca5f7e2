//! Taking mounts away, and the daemon's own end.
//!
//! Unmounting writes back and may hang with the storage, so it runs on a thread that may be lost: renewals of other trees go on
//! meanwhile. While it runs nothing new begins on the mount; should a lease come all the same (a handoff to this side), the
//! mount's remains stay until that has been flushed and let go.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use treelease_client::error::Failure;
use treelease_client::local::to_local;
use treelease_client::words::id::TreeId;
use treelease_client::words::refusal::Code;
use treelease_client::words::time::BootTime;
use treelease_client::words::wire::{Finished, Progress, RemoveMountAnswer, RemoveMountRequest, progress};

use super::mounts::pids;
use super::tree::EndRequest;
use super::{Daemon, Ending, Msg};

/// How long the last unmounts may take; then the process goes, and a path may be left that answers ENOTCONN.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(5);
/// The longest that a person may let `down` wait.
const DOWN_MAX: Duration = Duration::from_secs(3600);

/// What became of an unmount.
#[derive(Debug)]
pub(crate) struct Unmounted {
    tree: TreeId,
    at: String,
    result: Result<(), Failure>,
    answer: Option<oneshot::Sender<RemoveMountAnswer>>,
    notes: Vec<String>,
}

fn refuse(failure: &Failure) -> RemoveMountAnswer {
    RemoveMountAnswer { refused: Some(to_local(failure)), unguarded: Vec::new() }
}

impl Daemon {
    pub(super) fn remove_mount(&mut self, request: RemoveMountRequest, answer: oneshot::Sender<RemoveMountAnswer>) {
        let what = std::path::Path::new(&request.what);
        let found = self.trees.iter_mut().find(|(_, t)| {
            t.mounted.as_ref().is_some_and(|m| t.side.name.as_str() == request.what || m.at == what || m.lower == what)
        });
        let Some((id, tree)) = found else {
            let failure = Failure::new(Code::NotFound, format!("`{}` is not guarded by this side", request.what));
            let _ = answer.send(refuse(&failure.hint("`treelease status` shows what is")));
            return;
        };
        let name = &tree.side.name;
        if tree.side.grant().is_some() {
            let failure = Failure::new(Code::Busy, format!("{} holds \"{name}\"", self.side));
            let _ = answer.send(refuse(&failure.hint(format!("hand it back first: `treelease release {name}`"))));
            return;
        }
        if tree.unmounting {
            let _ = answer.send(refuse(&Failure::new(Code::Busy, format!("\"{name}\" is being unmounted already"))));
            return;
        }
        let Some(mounted) = &tree.mounted else { return };
        tree.unmounting = true;
        let (mount, at, tree, mail) = (mounted.mount.clone(), mounted.at.display().to_string(), id.clone(), self.mail.clone());
        tokio::task::spawn_blocking(move || {
            let result = mount.unmount(request.lazy).map_err(|busy| {
                Failure::new(Code::Busy, format!("{at} is in use by {}: {}", pids(&busy.pids), busy.why))
                    .hint("end them, or use --lazy: the path is unguarded at once, and what is open on it ends")
            });
            let unmounted = Unmounted { tree, at, result, answer: Some(answer), notes: Vec::new() };
            let _ = mail.blocking_send(Msg::Unmounted(unmounted));
        });
    }

    pub(super) fn handle_unmounted(&mut self, unmounted: Unmounted, now: BootTime) {
        let Unmounted { tree, at, result, answer, notes } = unmounted;
        if let Some(ending) = &mut self.ending
            && answer.is_none()
        {
            ending.notes.extend(notes);
            if let Some((_, left)) = &mut ending.unmounting {
                *left = left.saturating_sub(1);
            }
            return;
        }
        if let Some(tree) = self.trees.get_mut(&tree) {
            tree.unmounting = false;
            tree.unmounted = result.is_ok();
        }
        self.drop_unmounted(now);
        let said = match result {
            Ok(()) => {
                tracing::info!(%tree, at, "unguarded");
                RemoveMountAnswer { unguarded: vec![at], refused: None }
            }
            Err(failure) => refuse(&failure),
        };
        if let Some(answer) = answer {
            let _ = answer.send(said);
        }
    }

    /// Lets go of mounts that were taken away, once no lease stands on them: the flush needs what they remember.
    pub(super) fn drop_unmounted(&mut self, now: BootTime) {
        for tree in self.trees.values_mut().filter(|t| t.unmounted) {
            if tree.side.grant().is_none() {
                tree.unmounted = false;
                tree.mounted = None;
                tree.side.mounted = false;
            } else if tree.side.is_open() {
                tree.side.begin_end(EndRequest::Release { now: true }, now);
            }
        }
    }

    pub(super) fn begin_down(&mut self, within: Duration, who: Option<mpsc::Sender<Progress>>, now: BootTime) {
        match &mut self.ending {
            Some(ending) => ending.who.extend(who),
            None => {
                tracing::info!(side = %self.side, "ending: handing over what is held");
                self.ending = Some(Ending {
                    until: now.after(within.min(DOWN_MAX)),
                    who: who.into_iter().collect(),
                    notes: Vec::new(),
                    unclean: Vec::new(),
                    unmounting: None,
                });
                for tree in self.trees.values_mut() {
                    tree.side.handle_down(now);
                }
            }
        }
    }

    pub(super) fn drive_ending(&mut self, now: BootTime) {
        let Some(ending) = &mut self.ending else { return };
        let quiet = self.trees.values().all(|t| t.side.is_quiet());
        if ending.unmounting.is_some() || (!quiet && now < ending.until) {
            return;
        }
        let mut left = 0;
        for (id, tree) in &mut self.trees {
            if tree.side.grant().is_some() || tree.side.owes() {
                ending.unclean.push(format!("\"{}\" was not handed over in time: its lease ends unclean", tree.side.name));
            }
            tree.side.handle_gone_down();
            let Some(mounted) = tree.mounted.take() else { continue };
            // Before it goes, and before the session is closed: from then on nothing publishes for it any more.
            mounted.mount.publish(tree.side.standing(false));
            left += 1;
            let (mail, tree) = (self.mail.clone(), id.clone());
            tokio::task::spawn_blocking(move || {
                let (at, mut notes) = (mounted.at.display().to_string(), Vec::new());
                // First politely; what is still open on it keeps a dead mount (ENOTCONN) that has left the path.
                if let Err(busy) = mounted.mount.unmount(false) {
                    notes.push(format!("{at} was still in use by {}", pids(&busy.pids)));
                    let _ = mounted.mount.unmount(true);
                }
                notes.push(format!("{at} is unguarded now"));
                let unmounted = Unmounted { tree, at, result: Ok(()), answer: None, notes };
                let _ = mail.blocking_send(Msg::Unmounted(unmounted));
            });
        }
        ending.unmounting = Some((now, left));
        self.close_session();
    }

    pub(super) fn is_over(&self) -> bool {
        let Some((ending, (began, left))) = self.ending.as_ref().and_then(|e| Some((e, e.unmounting?))) else { return false };
        let now = self.clock.now();
        let waited = now >= began.after(UNMOUNT_LIMIT);
        (left == 0 || waited) && (!self.link.closing || waited && now >= ending.until)
    }

    /// When the daemon's end has to be looked at.
    pub(super) fn ending_deadline(&self) -> Option<BootTime> {
        let ending = self.ending.as_ref()?;
        Some(ending.unmounting.map_or(ending.until, |(began, _)| ending.until.max(began.after(UNMOUNT_LIMIT))))
    }

    pub(super) fn say_goodbye(&mut self) {
        self.write_reports();
        let Some(ending) = self.ending.take() else { return };
        let message = format!("side daemon of {} ended", self.side);
        let kind = if ending.unclean.is_empty() {
            progress::Kind::Finished(Finished { message, notes: ending.notes })
        } else {
            for what in &ending.unclean {
                tracing::error!("{what}");
            }
            let failure = Failure::new(Code::Storage, format!("{message}; {}", ending.unclean.join("; ")));
            progress::Kind::Refused(to_local(&ending.notes.into_iter().fold(failure, Failure::hint)))
        };
        for who in ending.who {
            let _ = who.try_send(Progress { kind: Some(kind.clone()) });
        }
    }
}

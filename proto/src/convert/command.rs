//! Commands: everything that can be asked of the replicated state.

use super::event::kind as event_kind;
use super::fence::{attempt, outcome};
use super::tree::root_state;
use super::{
    BadMessage, DIGEST_LEN, FILES_MAX, Out, SECRET_MAX, few, id, marker_lock, optional_id, or_empty, pairs_from_wire,
    pairs_to_wire, path, present, say, say_path, text, ttl,
};
use crate::backup::PIECE_MAX;
use crate::command::{Acquire, Command, Leadership, LeaseRef, OpenSession, Release, RestorePiece, Resume, Verb};
use crate::epoch::Epoch;
use crate::wire;
use crate::wire::command::Kind;

/// A lease named by the three fields that every such message has.
fn lease(tree: &str, session: &str, epoch: u64) -> Out<LeaseRef> {
    Ok(LeaseRef { tree: id("tree", tree)?, session: id("session", session)?, epoch: Epoch::from_raw(epoch) })
}

impl From<&Command> for wire::Command {
    fn from(command: &Command) -> Self {
        let kind = match command {
            Command::Lead { node } => Kind::Lead(wire::Lead { node: *node }),
            Command::ExpireSession { session, decided_under } => {
                Kind::ExpireSession(wire::ExpireSession { session: session.to_string(), leadership: decided_under.0 })
            }
            Command::EndCopied { session, incarnation } => {
                Kind::EndCopied(wire::EndCopied { session: session.to_string(), incarnation: *incarnation })
            }
            Command::SettleTtl { session, incarnation, decided_under } => Kind::SettleTtl(wire::SettleTtl {
                session: session.to_string(),
                incarnation: *incarnation,
                leadership: decided_under.0,
            }),
            Command::EndGrace { tree, epoch, decided_under } => {
                Kind::EndGrace(wire::EndGrace { tree: tree.to_string(), epoch: epoch.get(), leadership: decided_under.0 })
            }
            Command::Found { cluster, ttl_min, ttl_max } => Kind::Found(wire::Found {
                cluster: cluster.to_string(),
                ttl_min_ms: ttl_min.as_millis(),
                ttl_max_ms: ttl_max.as_millis(),
            }),
            Command::RaiseTtl { ttl_min } => Kind::RaiseTtl(wire::RaiseTtl { ttl_min_ms: ttl_min.as_millis() }),
            Command::OpenSession(open) => Kind::OpenSession(open.into()),
            Command::CloseSession { session } => Kind::CloseSession(wire::CloseSession { session: session.to_string() }),
            Command::Acquire(acquire) => Kind::Acquire(acquire.into()),
            Command::Cancel { tree, session } => {
                Kind::Cancel(wire::Cancel { tree: tree.to_string(), session: session.to_string() })
            }
            Command::Release(release) => Kind::Release(release.into()),
            Command::GiveBack { lease, reason } => Kind::GiveBack(wire::GiveBack {
                tree: lease.tree.to_string(),
                session: lease.session.to_string(),
                epoch: lease.epoch.get(),
                reason: say(reason),
            }),
            Command::Surrender { lease, reason, files } => Kind::Surrender(wire::Surrender {
                tree: lease.tree.to_string(),
                session: lease.session.to_string(),
                epoch: lease.epoch.get(),
                reason: say(reason),
                files: files.iter().take(FILES_MAX).map(|f| say_path(f)).collect(),
            }),
            Command::GateClosed(lease) => Kind::GateClosed(wire::GateClosed {
                tree: lease.tree.to_string(),
                session: lease.session.to_string(),
                epoch: lease.epoch.get(),
            }),
            Command::Rest { lease, number } => Kind::Rest(wire::Rest {
                tree: lease.tree.to_string(),
                session: lease.session.to_string(),
                epoch: lease.epoch.get(),
                number: *number,
            }),
            Command::Active { lease, number, marker } => Kind::Active(wire::Active {
                tree: lease.tree.to_string(),
                session: lease.session.to_string(),
                epoch: lease.epoch.get(),
                number: *number,
                marker: marker.as_ref().map(Into::into),
            }),
            Command::Witnessed { tree, epoch, attempt, session, marker } => Kind::Witnessed(wire::Witnessed {
                tree: tree.to_string(),
                epoch: epoch.get(),
                attempt: *attempt,
                session: session.to_string(),
                marker: Some(marker.into()),
            }),
            Command::Decline { lease, for_ms, note } => Kind::Decline(wire::Decline {
                tree: lease.tree.to_string(),
                session: lease.session.to_string(),
                epoch: lease.epoch.get(),
                for_ms: *for_ms,
                note: say(note),
            }),
            Command::Break { tree, epoch, reason } => {
                Kind::Break(wire::Break { tree: tree.to_string(), epoch: epoch.get(), reason: say(reason) })
            }
            Command::FenceConfirm { tree, epoch, reason } => {
                Kind::FenceConfirm(wire::FenceConfirm { tree: tree.to_string(), epoch: epoch.get(), reason: say(reason) })
            }
            Command::FenceAttempt { attempt, verb, agent, deadline_ms, decided_under } => {
                Kind::FenceAttempt(wire::FenceAttempt {
                    attempt: Some(attempt.into()),
                    verb: verb.as_str().into(),
                    agent: say(agent),
                    deadline_ms: *deadline_ms,
                    leadership: decided_under.0,
                })
            }
            Command::FenceResult { attempt, outcome, detail, decided_under } => Kind::FenceResult(wire::FenceResult {
                attempt: Some(attempt.into()),
                outcome: outcome.as_str().into(),
                detail: say(detail),
                leadership: decided_under.0,
            }),
            Command::FenceLapsed { attempt, decided_under } => {
                Kind::FenceLapsed(wire::FenceLapsed { attempt: Some(attempt.into()), leadership: decided_under.0 })
            }
            Command::FenceStands { attempt } => Kind::FenceStands(wire::FenceStands { attempt: Some(attempt.into()) }),
            Command::Unfence { tree, side, epoch, reason, by_hand } => Kind::Unfence(wire::Unfence {
                tree: tree.to_string(),
                side: side.to_string(),
                epoch: epoch.get(),
                reason: say(reason),
                by_hand: *by_hand,
            }),
            Command::AddTree { name, tree, policy, root } => Kind::AddTree(wire::AddTree {
                name: name.to_string(),
                tree: tree.to_string(),
                policy: pairs_to_wire(policy),
                root: root.as_ref().map(Into::into),
            }),
            Command::SetPolicy { tree, policy } => {
                Kind::SetPolicy(wire::SetPolicy { tree: tree.to_string(), policy: pairs_to_wire(policy) })
            }
            Command::AddRoot { tree, root } => Kind::AddRoot(wire::AddRoot { tree: tree.to_string(), root: Some(root.into()) }),
            Command::FenceTest { tree, side } => {
                Kind::FenceTest(wire::FenceTest { tree: tree.to_string(), side: side.to_string() })
            }
            Command::FenceTested { tree, number, outcome, detail, decided_under } => Kind::FenceTested(wire::FenceTested {
                tree: tree.to_string(),
                number: *number,
                outcome: outcome.as_str().into(),
                detail: say(detail),
                leadership: decided_under.0,
            }),
            Command::SetRoot { tree, root, epoch, state, reason } => Kind::SetRoot(wire::SetRoot {
                tree: tree.to_string(),
                root: root.to_string(),
                epoch: epoch.get(),
                state: state.as_str().into(),
                reason: say(reason),
            }),
            Command::RemoveRoot { tree, root, reason } => {
                Kind::RemoveRoot(wire::RemoveRoot { tree: tree.to_string(), root: root.to_string(), reason: say(reason) })
            }
            Command::Retire { tree, epoch, reason } => {
                Kind::Retire(wire::Retire { tree: tree.to_string(), epoch: epoch.get(), reason: say(reason) })
            }
            Command::RemoveTree { tree, reason } => {
                Kind::RemoveTree(wire::RemoveTree { tree: tree.to_string(), reason: say(reason) })
            }
            Command::Takeover { name, tree, root, reason, from_cluster, above } => Kind::Takeover(wire::Takeover {
                name: name.to_string(),
                tree: tree.to_string(),
                root: Some(root.into()),
                reason: say(reason),
                from_cluster: say(from_cluster),
                above_epoch: above.get(),
            }),
            Command::RestorePiece(piece) => Kind::RestorePiece(wire::RestorePiece {
                id: piece.id.to_string(),
                index: piece.index,
                count: piece.count,
                text: piece.text.clone(),
            }),
            Command::EndRestore { id, next, decided_under } => {
                Kind::EndRestore(wire::EndRestore { id: id.to_string(), next: *next, leadership: decided_under.0 })
            }
            Command::ForgetSide { side, reason } => {
                Kind::ForgetSide(wire::ForgetSide { side: side.to_string(), reason: say(reason) })
            }
            Command::RaiseEpoch { tree, above, reason } => {
                Kind::RaiseEpoch(wire::RaiseEpoch { tree: tree.to_string(), above_epoch: above.get(), reason: say(reason) })
            }
            Command::Obeys { tree, session, mode_no } => {
                Kind::Obeys(wire::Obeys { tree: tree.to_string(), session: session.to_string(), mode_no: *mode_no })
            }
            Command::Report { lease, event, reason, count } => Kind::Report(wire::Report {
                tree: lease.tree.to_string(),
                session: lease.session.to_string(),
                epoch: lease.epoch.get(),
                event: event.as_str().into(),
                reason: say(reason),
                count: *count,
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::Command> for Command {
    type Error = BadMessage;
    fn try_from(command: wire::Command) -> Out<Self> {
        Ok(match present("command.kind", command.kind)? {
            Kind::Lead(c) => Command::Lead { node: c.node },
            Kind::ExpireSession(c) => {
                Command::ExpireSession { session: id("session", &c.session)?, decided_under: Leadership(c.leadership) }
            }
            Kind::EndCopied(c) => Command::EndCopied { session: id("session", &c.session)?, incarnation: c.incarnation },
            Kind::SettleTtl(c) => Command::SettleTtl {
                session: id("session", &c.session)?,
                incarnation: c.incarnation,
                decided_under: Leadership(c.leadership),
            },
            Kind::EndGrace(c) => Command::EndGrace {
                tree: id("tree", &c.tree)?,
                epoch: Epoch::from_raw(c.epoch),
                decided_under: Leadership(c.leadership),
            },
            Kind::Found(c) => {
                Command::Found { cluster: id("cluster", &c.cluster)?, ttl_min: ttl(c.ttl_min_ms), ttl_max: ttl(c.ttl_max_ms) }
            }
            Kind::RaiseTtl(c) => Command::RaiseTtl { ttl_min: ttl(c.ttl_min_ms) },
            Kind::OpenSession(c) => Command::OpenSession(c.try_into()?),
            Kind::CloseSession(c) => Command::CloseSession { session: id("session", &c.session)? },
            Kind::Acquire(c) => Command::Acquire(c.try_into()?),
            Kind::Cancel(c) => Command::Cancel { tree: id("tree", &c.tree)?, session: id("session", &c.session)? },
            Kind::Release(c) => Command::Release(c.try_into()?),
            Kind::GiveBack(c) => {
                Command::GiveBack { lease: lease(&c.tree, &c.session, c.epoch)?, reason: text("reason", c.reason)? }
            }
            Kind::Surrender(c) => Command::Surrender {
                lease: lease(&c.tree, &c.session, c.epoch)?,
                reason: text("reason", c.reason)?,
                files: few("files", c.files, FILES_MAX)?.into_iter().map(|f| path("files", f)).collect::<Out<_>>()?,
            },
            Kind::GateClosed(c) => Command::GateClosed(lease(&c.tree, &c.session, c.epoch)?),
            Kind::Rest(c) => Command::Rest { lease: lease(&c.tree, &c.session, c.epoch)?, number: c.number },
            Kind::Active(c) => {
                Command::Active { lease: lease(&c.tree, &c.session, c.epoch)?, number: c.number, marker: marker_lock(c.marker)? }
            }
            Kind::Witnessed(c) => Command::Witnessed {
                tree: id("tree", &c.tree)?,
                epoch: Epoch::from_raw(c.epoch),
                attempt: c.attempt,
                session: id("session", &c.session)?,
                marker: present("marker", marker_lock(c.marker)?)?,
            },
            Kind::Decline(c) => {
                Command::Decline { lease: lease(&c.tree, &c.session, c.epoch)?, for_ms: c.for_ms, note: text("note", c.note)? }
            }
            Kind::Break(c) => {
                Command::Break { tree: id("tree", &c.tree)?, epoch: Epoch::from_raw(c.epoch), reason: text("reason", c.reason)? }
            }
            Kind::FenceConfirm(c) => Command::FenceConfirm {
                tree: id("tree", &c.tree)?,
                epoch: Epoch::from_raw(c.epoch),
                reason: text("reason", c.reason)?,
            },
            Kind::FenceAttempt(c) => Command::FenceAttempt {
                attempt: attempt(c.attempt)?,
                verb: Verb::parse(&c.verb).ok_or_else(|| BadMessage::new("verb", "use one of fence, unfence"))?,
                agent: text("agent", c.agent)?,
                deadline_ms: c.deadline_ms,
                decided_under: Leadership(c.leadership),
            },
            Kind::FenceResult(c) => Command::FenceResult {
                attempt: attempt(c.attempt)?,
                outcome: outcome(&c.outcome)?,
                detail: text("detail", c.detail)?,
                decided_under: Leadership(c.leadership),
            },
            Kind::FenceLapsed(c) => {
                Command::FenceLapsed { attempt: attempt(c.attempt)?, decided_under: Leadership(c.leadership) }
            }
            Kind::FenceStands(c) => Command::FenceStands { attempt: attempt(c.attempt)? },
            Kind::Unfence(c) => Command::Unfence {
                tree: id("tree", &c.tree)?,
                side: id("side", &c.side)?,
                epoch: Epoch::from_raw(c.epoch),
                reason: text("reason", c.reason)?,
                by_hand: c.by_hand,
            },
            Kind::AddTree(c) => Command::AddTree {
                name: id("name", &c.name)?,
                tree: id("tree", &c.tree)?,
                policy: pairs_from_wire(c.policy)?,
                root: c.root.map(TryInto::try_into).transpose()?,
            },
            Kind::SetPolicy(c) => Command::SetPolicy { tree: id("tree", &c.tree)?, policy: pairs_from_wire(c.policy)? },
            Kind::AddRoot(c) => Command::AddRoot { tree: id("tree", &c.tree)?, root: present("root", c.root)?.try_into()? },
            Kind::FenceTest(c) => Command::FenceTest { tree: id("tree", &c.tree)?, side: id("side", &c.side)? },
            Kind::FenceTested(c) => Command::FenceTested {
                tree: id("tree", &c.tree)?,
                number: c.number,
                outcome: outcome(&c.outcome)?,
                detail: text("detail", c.detail)?,
                decided_under: Leadership(c.leadership),
            },
            Kind::SetRoot(c) => Command::SetRoot {
                tree: id("tree", &c.tree)?,
                root: id("root", &c.root)?,
                epoch: Epoch::from_raw(c.epoch),
                state: root_state("state", &c.state)?,
                reason: text("reason", c.reason)?,
            },
            Kind::RemoveRoot(c) => {
                Command::RemoveRoot { tree: id("tree", &c.tree)?, root: id("root", &c.root)?, reason: text("reason", c.reason)? }
            }
            Kind::Retire(c) => {
                Command::Retire { tree: id("tree", &c.tree)?, epoch: Epoch::from_raw(c.epoch), reason: text("reason", c.reason)? }
            }
            Kind::RemoveTree(c) => Command::RemoveTree { tree: id("tree", &c.tree)?, reason: text("reason", c.reason)? },
            Kind::Takeover(c) => Command::Takeover {
                name: id("name", &c.name)?,
                tree: id("tree", &c.tree)?,
                root: present("root", c.root)?.try_into()?,
                reason: text("reason", c.reason)?,
                from_cluster: text("from_cluster", c.from_cluster)?,
                above: Epoch::from_raw(c.above_epoch),
            },
            Kind::RestorePiece(c) if c.text.len() > PIECE_MAX => {
                return Err(BadMessage::new(
                    "text",
                    format!("a piece has {} bytes; at most {PIECE_MAX} are taken", c.text.len()),
                ));
            }
            Kind::RestorePiece(c) => {
                Command::RestorePiece(RestorePiece { id: id("id", &c.id)?, index: c.index, count: c.count, text: c.text })
            }
            Kind::EndRestore(c) => {
                Command::EndRestore { id: id("id", &c.id)?, next: c.next, decided_under: Leadership(c.leadership) }
            }
            Kind::ForgetSide(c) => Command::ForgetSide { side: id("side", &c.side)?, reason: text("reason", c.reason)? },
            Kind::RaiseEpoch(c) => Command::RaiseEpoch {
                tree: id("tree", &c.tree)?,
                above: Epoch::from_raw(c.above_epoch),
                reason: text("reason", c.reason)?,
            },
            Kind::Obeys(c) => {
                Command::Obeys { tree: id("tree", &c.tree)?, session: id("session", &c.session)?, mode_no: c.mode_no }
            }
            Kind::Report(c) => Command::Report {
                lease: lease(&c.tree, &c.session, c.epoch)?,
                event: event_kind("event", &c.event)?,
                reason: text("reason", c.reason)?,
                count: c.count,
            },
        })
    }
}

impl From<&OpenSession> for wire::OpenSession {
    fn from(c: &OpenSession) -> Self {
        Self {
            side: c.side.to_string(),
            host: say(&c.host),
            ttl_ms: c.ttl.as_millis(),
            new_session: c.new_session.to_string(),
            new_secret_digest: c.new_secret_digest.clone(),
            resume: c.resume.as_ref().map(|r| wire::Resume { session: r.session.to_string(), secret: r.secret.clone() }),
            boot: say(&c.boot),
            machine: say(&c.machine),
        }
    }
}

impl TryFrom<wire::OpenSession> for OpenSession {
    type Error = BadMessage;
    fn try_from(c: wire::OpenSession) -> Out<Self> {
        if c.new_secret_digest.len() != DIGEST_LEN {
            return Err(BadMessage::new("new_secret_digest", "it must be a SHA-256 digest, 32 bytes"));
        }
        let resume = match c.resume {
            None => None,
            Some(r) if r.secret.len() > SECRET_MAX => {
                return Err(BadMessage::new("resume.secret", format!("it is longer than {SECRET_MAX} bytes")));
            }
            Some(r) => Some(Resume { session: id("resume.session", &r.session)?, secret: r.secret }),
        };
        Ok(Self {
            side: id("side", &c.side)?,
            host: text("host", c.host)?,
            ttl: ttl(c.ttl_ms),
            new_session: id("new_session", &c.new_session)?,
            new_secret_digest: c.new_secret_digest,
            resume,
            boot: text("boot", c.boot)?,
            machine: text("machine", c.machine)?,
        })
    }
}

impl From<&Acquire> for wire::Acquire {
    fn from(c: &Acquire) -> Self {
        Self {
            tree: c.tree.to_string(),
            session: c.session.to_string(),
            ask: c.ask,
            first_write: c.first_write,
            no_wait: c.no_wait,
            note: say(&c.note),
            place: c.place.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<wire::Acquire> for Acquire {
    type Error = BadMessage;
    fn try_from(c: wire::Acquire) -> Out<Self> {
        Ok(Self {
            tree: id("tree", &c.tree)?,
            session: id("session", &c.session)?,
            ask: c.ask,
            first_write: c.first_write,
            no_wait: c.no_wait,
            note: text("note", c.note)?,
            place: c.place.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&Release> for wire::Release {
    fn from(c: &Release) -> Self {
        Self {
            tree: c.lease.tree.to_string(),
            session: c.lease.session.to_string(),
            epoch: c.lease.epoch.get(),
            files: c.files,
            bytes: c.bytes,
            late_refused: c.late_refused,
            to: or_empty(c.to.as_ref()),
            note: say(&c.note),
        }
    }
}

impl TryFrom<wire::Release> for Release {
    type Error = BadMessage;
    fn try_from(c: wire::Release) -> Out<Self> {
        Ok(Self {
            lease: lease(&c.tree, &c.session, c.epoch)?,
            files: c.files,
            bytes: c.bytes,
            late_refused: c.late_refused,
            to: optional_id("to", &c.to)?,
            note: text("note", c.note)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TEXT_MAX, arbitrary};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        #[test]
        fn a_command_comes_back_as_it_went(command in arbitrary::command()) {
            prop_assert_eq!(Command::try_from(wire::Command::from(&command)).unwrap(), command);
        }
    }

    fn refused(kind: Kind) -> &'static str {
        Command::try_from(wire::Command { kind: Some(kind) }).unwrap_err().field
    }

    #[test]
    fn a_field_that_is_wrong_is_named() {
        let tree = crate::id::TreeId::random().to_string();
        assert_eq!(Command::try_from(wire::Command { kind: None }).unwrap_err().field, "command.kind");
        assert_eq!(refused(Kind::Cancel(wire::Cancel { tree: "dev".into(), session: String::new() })), "tree");
        assert_eq!(refused(Kind::Cancel(wire::Cancel { tree: tree.clone(), session: String::new() })), "session");
        assert_eq!(refused(Kind::AddRoot(wire::AddRoot { tree: tree.clone(), root: None })), "root");
        let reason = "x".repeat(TEXT_MAX + 1);
        assert_eq!(refused(Kind::Break(wire::Break { tree, epoch: 1, reason })), "reason");
    }

    #[test]
    fn a_lock_of_a_kind_that_is_not_known_is_no_witness() {
        let (tree, session) = (crate::id::TreeId::random().to_string(), crate::id::SessionId::random().to_string());
        let lock = Some(wire::MarkerLock { kind: "nfs9".into(), place: Some(wire::Place::default()), inode: 1 });
        let active = wire::Active { tree: tree.clone(), session: session.clone(), epoch: 1, number: 1, marker: lock.clone() };
        let active = Command::try_from(wire::Command { kind: Some(Kind::Active(active)) }).unwrap();
        assert!(matches!(active, Command::Active { marker: None, .. }));
        assert_eq!(refused(Kind::Witnessed(wire::Witnessed { tree, epoch: 1, attempt: 1, session, marker: lock })), "marker");
    }

    #[test]
    fn a_secret_that_is_no_digest_is_refused() {
        let open = wire::OpenSession {
            side: "pod".into(),
            new_session: crate::id::SessionId::random().to_string(),
            new_secret_digest: vec![1; 16],
            ..Default::default()
        };
        assert_eq!(refused(Kind::OpenSession(open)), "new_secret_digest");
    }
}

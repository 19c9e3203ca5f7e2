//! Strategies that make any word, for the round-trip tests. Texts stay within their limits: cutting has tests of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::collection::{btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;

use crate::command::*;
use crate::epoch::{Epoch, RunStart};
use crate::id::*;
use crate::policy::*;
use crate::refusal::{Code, Refusal};
use crate::time::{Ttl, WallTime};
use crate::tree::*;

fn uuid_text() -> impl Strategy<Value = String> {
    any::<u128>().prop_map(|n| uuid::Uuid::from_u128(n).hyphenated().to_string())
}

macro_rules! ids {
    ($($name:ident: $kind:ty),*) => {
        $(fn $name() -> impl Strategy<Value = $kind> {
            uuid_text().prop_map(|s| s.parse().unwrap())
        })*
    };
}
ids!(tree_id: TreeId, root_id: RootId, session_id: SessionId, cluster_id: ClusterId, request_key: RequestKey);

fn name() -> impl Strategy<Value = String> {
    vec(any::<proptest::sample::Index>(), 1..20).prop_map(|picks| {
        let letters = b"abcXYZ019";
        picks.iter().map(|i| letters[i.index(letters.len())] as char).collect()
    })
}
fn tree_name() -> impl Strategy<Value = TreeName> {
    name().prop_map(|s| s.parse().unwrap())
}
fn side() -> impl Strategy<Value = SideName> {
    name().prop_map(|s| s.parse().unwrap())
}
fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..20).prop_map(|chars| chars.into_iter().collect())
}
fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch::from_raw)
}
fn ttl() -> impl Strategy<Value = Ttl> {
    (1..10_000_000u64).prop_map(|ms| Ttl::new(Duration::from_millis(ms)))
}
fn wall() -> impl Strategy<Value = WallTime> {
    (0..4_000_000_000_000i64).prop_map(|ms| WallTime(jiff::Timestamp::from_millisecond(ms).unwrap()))
}
fn end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::None), Just(End::Clean), Just(End::Unclean)]
}
fn event_kind() -> impl Strategy<Value = EventKind> {
    proptest::sample::select(EventKind::ALL.to_vec())
}
fn place() -> impl Strategy<Value = Place> {
    (text(), any::<u64>()).prop_map(|(boot, superblock)| Place { boot, superblock })
}

fn marker_lock() -> impl Strategy<Value = MarkerLock> {
    (place(), any::<u64>()).prop_map(|(place, inode)| MarkerLock { kind: LockKind::Local, place, inode })
}

pub(super) fn root() -> impl Strategy<Value = Root> {
    (root_id(), text(), any::<bool>()).prop_map(|(id, path, live)| Root {
        id,
        path,
        state: if live { RootState::Live } else { RootState::Sealed },
    })
}
pub(super) fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
    vec((text(), text()), 0..5)
}
pub(super) fn policy() -> impl Strategy<Value = Policy> {
    let mode = prop_oneof![Just(Mode::Off), Just(Mode::Observe), Just(Mode::Enforce)];
    let fence = prop_oneof![Just(Fence::Manual), Just(Fence::None), name().prop_map(Fence::Exec)];
    // A side called `any` alone would read as everybody.
    let takeover = prop_oneof![
        Just(Takeover::Any),
        btree_set(side(), 1..4)
            .prop_map(Takeover::Sides)
            .prop_filter("not `any`", |t| { *t != Takeover::Sides(BTreeSet::from(["any".parse().unwrap()])) })
    ];
    let checks = btree_set(prop_oneof![Just(Check::QuickCheck), Just(Check::Fsck)], 0..3);
    let durations = vec((0..86_400_000u64).prop_map(Duration::from_millis), 7);
    (mode, fence, takeover, checks, durations, vec(name(), 0..3), any::<[bool; 3]>()).prop_map(
        |(mode, fence, takeover, checks, d, sealed_read, [acquire, refuse, manual])| Policy {
            mode,
            first_write: if acquire { FirstWrite::Acquire } else { FirstWrite::Refuse },
            idle: d[0],
            quiet: d[1],
            handoff_wait: d[2],
            on_close: if refuse { OnClose::Refuse } else { OnClose::Wait },
            grace: d[3],
            fence,
            unfence: if manual { Unfence::Manual } else { Unfence::Restart },
            dirty_max: d[4],
            flush_limit: d[5],
            min_hold: d[6],
            takeover,
            sealed_read,
            checks,
        },
    )
}

fn holder() -> impl Strategy<Value = Holder> {
    (side(), text(), session_id(), epoch(), wall(), text()).prop_map(|(side, host, session, epoch, since, note)| Holder {
        side,
        host,
        session,
        epoch,
        since,
        note,
    })
}
fn waiter() -> impl Strategy<Value = Waiter> {
    (side(), text(), session_id(), wall(), any::<bool>(), any::<bool>(), text()).prop_map(
        |(side, host, session, since, asked, first_write, note)| Waiter { side, host, session, since, asked, first_write, note },
    )
}
pub(super) fn grant() -> impl Strategy<Value = Grant> {
    (tree_id(), epoch(), epoch(), of(root_id()), end()).prop_map(|(tree, epoch, start, root, last_end)| Grant {
        tree,
        epoch,
        run_start: RunStart(start),
        root,
        last_end,
    })
}

pub(super) fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(Answer::Done),
        text().prop_map(|why| Answer::Ignored { why }),
        (proptest::sample::select(Code::ALL.to_vec()), text(), of(holder()))
            .prop_map(|(code, message, holder)| Answer::Refused(Refusal { code, message, holder })),
        (session_id(), any::<u64>(), ttl(), any::<bool>()).prop_map(|(session, incarnation, ttl, resumed)| Answer::Opened {
            session,
            incarnation,
            ttl,
            resumed
        }),
        grant().prop_map(Answer::Granted),
        (any::<u32>(), of(holder())).prop_map(|(place, holder)| Answer::Queued { place, holder }),
        (tree_id(), of(root_id())).prop_map(|(tree, root)| Answer::TreeAdded { tree, root }),
    ]
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let about = (any::<u64>(), wall(), tree_id(), tree_name(), event_kind(), of(side()), of(session_id()));
    let more = (epoch(), epoch(), text(), text(), end(), any::<u64>(), any::<u64>(), any::<u64>());
    (about, more).prop_map(
        |((revision, at, tree, name, kind, side, session), (epoch, start, actor, reason, end, files, bytes, count))| Event {
            revision,
            at,
            tree,
            name,
            kind,
            side,
            session,
            epoch,
            run_start: RunStart(start),
            actor,
            reason,
            end,
            files,
            bytes,
            count,
        },
    )
}

fn lease() -> impl Strategy<Value = LeaseRef> {
    (tree_id(), session_id(), epoch()).prop_map(|(tree, session, epoch)| LeaseRef { tree, session, epoch })
}
fn attempt() -> impl Strategy<Value = AttemptRef> {
    (tree_id(), side(), epoch(), any::<u32>()).prop_map(|(tree, side, epoch, number)| AttemptRef { tree, side, epoch, number })
}
fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![Just(Outcome::Succeeded), Just(Outcome::Untouched), Just(Outcome::Failed)]
}
fn fenced_side() -> impl Strategy<Value = FencedSide> {
    (side(), epoch(), name(), any::<bool>(), any::<bool>()).prop_map(|(side, epoch, agent, acting, unfencing)| FencedSide {
        side,
        epoch,
        agent,
        acting,
        unfencing,
    })
}
fn open_session() -> impl Strategy<Value = OpenSession> {
    let resume = (session_id(), vec(any::<u8>(), 0..64)).prop_map(|(session, secret)| Resume { session, secret });
    (side(), text(), ttl(), session_id(), vec(any::<u8>(), 32), of(resume), text(), text()).prop_map(
        |(side, host, ttl, new_session, new_secret_digest, resume, boot, machine)| OpenSession {
            side,
            host,
            ttl,
            new_session,
            new_secret_digest,
            resume,
            boot,
            machine,
        },
    )
}
fn acquire() -> impl Strategy<Value = Acquire> {
    (tree_id(), session_id(), any::<[bool; 3]>(), text(), of(place())).prop_map(
        |(tree, session, [ask, first_write, no_wait], note, place)| Acquire {
            tree,
            session,
            ask,
            first_write,
            no_wait,
            note,
            place,
        },
    )
}
fn release() -> impl Strategy<Value = Release> {
    (lease(), any::<[u64; 3]>(), of(side()), text()).prop_map(|(lease, [files, bytes, late_refused], to, note)| Release {
        lease,
        files,
        bytes,
        late_refused,
        to,
        note,
    })
}

pub(super) fn command() -> impl Strategy<Value = Command> {
    let leadership = || any::<u64>().prop_map(Leadership);
    prop_oneof![
        any::<u64>().prop_map(|node| Command::Lead { node }),
        (session_id(), leadership()).prop_map(|(session, decided_under)| Command::ExpireSession { session, decided_under }),
        (session_id(), any::<u64>()).prop_map(|(session, incarnation)| Command::EndCopied { session, incarnation }),
        (session_id(), any::<u64>(), leadership()).prop_map(|(session, incarnation, decided_under)| Command::SettleTtl {
            session,
            incarnation,
            decided_under
        }),
        (tree_id(), epoch(), leadership()).prop_map(|(tree, epoch, decided_under)| Command::EndGrace {
            tree,
            epoch,
            decided_under
        }),
        (cluster_id(), ttl(), ttl()).prop_map(|(cluster, ttl_min, ttl_max)| Command::Found { cluster, ttl_min, ttl_max }),
        ttl().prop_map(|ttl_min| Command::RaiseTtl { ttl_min }),
        open_session().prop_map(Command::OpenSession),
        session_id().prop_map(|session| Command::CloseSession { session }),
        acquire().prop_map(Command::Acquire),
        (tree_id(), session_id()).prop_map(|(tree, session)| Command::Cancel { tree, session }),
        release().prop_map(Command::Release),
        (lease(), text()).prop_map(|(lease, reason)| Command::GiveBack { lease, reason }),
        (lease(), text(), vec(text(), 0..4)).prop_map(|(lease, reason, files)| Command::Surrender { lease, reason, files }),
        lease().prop_map(Command::GateClosed),
        (lease(), any::<u64>()).prop_map(|(lease, number)| Command::Rest { lease, number }),
        (lease(), any::<u64>(), of(marker_lock())).prop_map(|(lease, number, marker)| Command::Active { lease, number, marker }),
        (tree_id(), epoch(), any::<u32>(), session_id(), marker_lock())
            .prop_map(|(tree, epoch, attempt, session, marker)| { Command::Witnessed { tree, epoch, attempt, session, marker } }),
        (lease(), any::<u64>(), text()).prop_map(|(lease, for_ms, note)| Command::Decline { lease, for_ms, note }),
        (tree_id(), epoch(), text()).prop_map(|(tree, epoch, reason)| Command::Break { tree, epoch, reason }),
        (tree_id(), epoch(), text()).prop_map(|(tree, epoch, reason)| Command::FenceConfirm { tree, epoch, reason }),
        (attempt(), any::<bool>(), name(), any::<u64>(), leadership()).prop_map(
            |(attempt, fence, agent, deadline_ms, decided_under)| Command::FenceAttempt {
                attempt,
                verb: if fence { Verb::Fence } else { Verb::Unfence },
                agent,
                deadline_ms,
                decided_under
            }
        ),
        (attempt(), outcome(), text(), leadership()).prop_map(|(attempt, outcome, detail, decided_under)| Command::FenceResult {
            attempt,
            outcome,
            detail,
            decided_under
        }),
        (attempt(), leadership()).prop_map(|(attempt, decided_under)| Command::FenceLapsed { attempt, decided_under }),
        attempt().prop_map(|attempt| Command::FenceStands { attempt }),
        (tree_id(), side(), epoch(), text(), any::<bool>()).prop_map(|(tree, side, epoch, reason, by_hand)| Command::Unfence {
            tree,
            side,
            epoch,
            reason,
            by_hand
        }),
        (tree_name(), tree_id(), pairs(), of(root())).prop_map(|(name, tree, policy, root)| Command::AddTree {
            name,
            tree,
            policy,
            root
        }),
        (tree_id(), pairs()).prop_map(|(tree, policy)| Command::SetPolicy { tree, policy }),
        (tree_id(), root()).prop_map(|(tree, root)| Command::AddRoot { tree, root }),
        (tree_id(), root_id(), epoch(), any::<bool>(), text()).prop_map(|(tree, root, epoch, live, reason)| Command::SetRoot {
            tree,
            root,
            epoch,
            state: if live { RootState::Live } else { RootState::Sealed },
            reason
        }),
        (tree_id(), side()).prop_map(|(tree, side)| Command::FenceTest { tree, side }),
        (tree_id(), any::<u64>(), outcome(), text(), leadership()).prop_map(|(tree, number, outcome, detail, decided_under)| {
            Command::FenceTested { tree, number, outcome, detail, decided_under }
        }),
        (tree_id(), root_id(), text()).prop_map(|(tree, root, reason)| Command::RemoveRoot { tree, root, reason }),
        (tree_id(), epoch(), text()).prop_map(|(tree, epoch, reason)| Command::Retire { tree, epoch, reason }),
        (tree_id(), text()).prop_map(|(tree, reason)| Command::RemoveTree { tree, reason }),
        (tree_name(), tree_id(), root(), text(), text(), epoch()).prop_map(|(name, tree, root, reason, from_cluster, above)| {
            Command::Takeover { name, tree, root, reason, from_cluster, above }
        }),
        (request_key(), any::<u32>(), any::<u32>(), text())
            .prop_map(|(id, index, count, text)| Command::RestorePiece(RestorePiece { id, index, count, text })),
        (request_key(), any::<u32>(), leadership()).prop_map(|(id, next, decided_under)| Command::EndRestore {
            id,
            next,
            decided_under
        }),
        (side(), text()).prop_map(|(side, reason)| Command::ForgetSide { side, reason }),
        (tree_id(), epoch(), text()).prop_map(|(tree, above, reason)| Command::RaiseEpoch { tree, above, reason }),
        (tree_id(), session_id(), any::<u64>()).prop_map(|(tree, session, mode_no)| Command::Obeys { tree, session, mode_no }),
        (lease(), event_kind(), text(), any::<u64>()).prop_map(|(lease, event, reason, count)| Command::Report {
            lease,
            event,
            reason,
            count
        }),
    ]
}

pub(super) fn proposal() -> impl Strategy<Value = Proposal> {
    (request_key(), text(), wall(), command()).prop_map(|(request_key, actor, at, command)| Proposal {
        request_key,
        actor,
        at,
        command,
    })
}

pub(super) fn tree_status() -> impl Strategy<Value = TreeStatus> {
    let states = vec![StateName::Free, StateName::Held, StateName::Cooling, StateName::Fencing, StateName::Retired];
    let what = (tree_id(), tree_name(), policy(), vec(root(), 0..3), proptest::sample::select(states), of(holder()));
    let run = (any::<bool>(), epoch(), epoch(), of(side()), end(), vec(waiter(), 0..3), any::<u32>());
    let remaining = any::<u32>().prop_map(|ms| Duration::from_millis(ms.into()));
    let ended = (1..u64::MAX).prop_map(Epoch::from_raw);
    let rest = (text(), of(ttl()), of(remaining), of(ended), of(side()), text(), of(marker_lock()), vec(fenced_side(), 0..3));
    let guard = (side(), any::<bool>()).prop_map(|(side, obeys)| GuardOf { side, obeys });
    let guards = (any::<u64>(), vec(guard, 0..3));
    (what, run, rest, guards).prop_map(
        |(
            (id, name, policy, roots, state, holder),
            (at_rest, epoch, start, run_side, last_end, waiters, attempt),
            (why, ttl, remaining, ended_epoch, ended_side, declined, witness, fenced),
            (mode_no, guards),
        )| TreeStatus {
            id,
            name,
            policy,
            roots,
            state,
            holder,
            at_rest,
            epoch,
            run_start: RunStart(start),
            run_side,
            last_end,
            waiters,
            attempt,
            why,
            ttl,
            remaining,
            ended_epoch,
            ended_side,
            declined,
            witness,
            fenced,
            mode_no,
            guards,
        },
    )
}

pub(super) fn cluster_status() -> impl Strategy<Value = ClusterStatus> {
    let session = (session_id(), side(), text(), ttl(), wall()).prop_map(|(session, side, host, ttl, since)| SessionStatus {
        session,
        side,
        host,
        ttl,
        since,
    });
    let role = proptest::sample::select(NodeRole::ALL.to_vec());
    let member = (1..u64::MAX, text(), role, of(any::<bool>()), of(any::<u64>()))
        .prop_map(|(id, addr, role, reached, behind)| NodeStatus { id, addr, role, reached, behind });
    let age = of((0..u64::MAX).prop_map(Duration::from_millis));
    let lists = (vec(tree_status(), 0..3), vec(session, 0..3), vec(member, 0..3), vec(cluster_id(), 0..3), age);
    let numbers = (any::<u64>(), of(1..u64::MAX), any::<u32>());
    (cluster_id(), numbers, any::<[bool; 3]>(), lists, ttl(), ttl()).prop_map(
        |(cluster, (revision, leader, nodes), [quorum, secure, joint], lists, ttl_min, ttl_max)| {
            let (trees, sessions, members, predecessors, age) = lists;
            ClusterStatus {
                members,
                joint,
                age,
                cluster,
                revision,
                leader,
                nodes,
                quorum,
                secure,
                trees,
                sessions,
                ttl_min,
                ttl_max,
                predecessors,
            }
        },
    )
}

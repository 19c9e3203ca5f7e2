//! What a grant, a deadline, another side's turn and a waiter do to one tree, as examples.

use std::time::Duration;

use treelease_client::words::command::{Answer, Grant};
use treelease_client::words::epoch::{Epoch, RunStart};
use treelease_client::words::id::{HoldId, SessionId, SideName, TreeId};
use treelease_client::words::time::{BootTime, WallTime};
use treelease_client::words::tree::{End, GuardOf, Holder, StateName, TreeStatus, Waiter};

use super::*;

mod first_writes;
mod giving_way;
mod locks;
mod modes;
mod old_sessions;
mod resumed;
mod silence;
mod unmounted;

fn at(ms: u64) -> BootTime {
    BootTime { elapsed: Duration::from_millis(ms), suspended: Duration::ZERO }
}

fn name(s: &str) -> SideName {
    s.parse().unwrap()
}

struct World {
    tree: TreeSide,
    me: SessionId,
    pod: SessionId,
}

impl World {
    fn new() -> Self {
        let mut tree = TreeSide::new(TreeId::random(), "dev".parse().unwrap(), name("workstation"));
        tree.mounted = true;
        Self { tree, me: SessionId::random(), pod: SessionId::random() }
    }

    fn grant(&self, epoch: u64, run: u64) -> Grant {
        Grant {
            tree: self.tree.id.clone(),
            epoch: Epoch::from_raw(epoch),
            run_start: RunStart(Epoch::from_raw(run)),
            root: None,
            last_end: End::Clean,
        }
    }

    fn status(&self, epoch: u64, holder: Option<&str>, waiters: &[(&str, bool)]) -> TreeStatus {
        let session = |side: &str| if side == "pod" { self.pod.clone() } else { self.me.clone() };
        TreeStatus {
            id: self.tree.id.clone(),
            name: "dev".parse().unwrap(),
            policy: Policy::default(),
            roots: vec![],
            state: if holder.is_some() { StateName::Held } else { StateName::Free },
            holder: holder.map(|side| Holder {
                side: name(side),
                host: "h".into(),
                session: session(side),
                epoch: Epoch::from_raw(epoch),
                since: WallTime::UNKNOWN,
                note: String::new(),
            }),
            at_rest: false,
            epoch: Epoch::from_raw(epoch),
            run_start: RunStart(Epoch::from_raw(epoch)),
            run_side: holder.map(name),
            last_end: End::Clean,
            waiters: waiters
                .iter()
                .map(|(side, asked)| Waiter {
                    side: name(side),
                    host: "h".into(),
                    session: session(side),
                    since: WallTime::UNKNOWN,
                    asked: *asked,
                    first_write: false,
                    note: String::new(),
                })
                .collect(),
            attempt: 0,
            why: String::new(),
            ttl: None,
            remaining: None,
            ended_epoch: None,
            ended_side: None,
            declined: String::new(),
            witness: None,
            fenced: vec![],
            mode_no: 0,
            guards: vec![GuardOf { side: self.tree.me.clone(), obeys: true }],
        }
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.tree.poll_effect()).filter(|e| *e != Effect::Publish).collect()
    }

    fn hold(&mut self, kind: HoldKind, now: BootTime) -> HoldId {
        let id = HoldId::random();
        let hold = Hold {
            id: id.clone(),
            kind,
            command: "cmd".into(),
            pid: 1,
            tty: String::new(),
            note: String::new(),
            since: WallTime::UNKNOWN,
            state: HoldState::Pending { until: now.after(Duration::from_secs(60)) },
            ask: false,
            no_wait: false,
            until: None,
        };
        self.tree.handle_hold(hold, now);
        id
    }

    /// Through all stages of opening under this epoch, with the right to write until `until`.
    fn open(&mut self, epoch: u64, run: u64, until: u64, now: BootTime) {
        let grant = self.grant(epoch, run);
        let e = grant.epoch;
        self.tree.handle_grant(grant, now);
        self.tree.handle_right(Some(at(until)), Some(true), now);
        self.tree.handle_opened(e, Ok(()), now);
        self.tree.handle_carried_out(e, Ok(()), now);
        assert!(self.tree.writes(now), "{:?}", self.tree.phase);
    }
}

#[test]
fn a_grant_alone_opens_nothing() {
    let mut w = World::new();
    w.hold(HoldKind::Run, at(0));
    w.effects();
    let grant = w.grant(1, 1);
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Granted(grant)), at(1));
    assert_eq!(w.effects(), vec![Effect::RenewNow]);
    assert_eq!(w.tree.standing(true).right, Right::Read);
    // Listed by an older renewal's answer, without a right: still nothing.
    w.tree.handle_right(None, Some(true), at(2));
    assert_eq!(w.tree.standing(true).right, Right::Read);
    w.tree.handle_right(Some(at(5000)), Some(true), at(3));
    assert!(matches!(w.effects()[..], [Effect::Open(_)]));
    assert_eq!(w.tree.standing(true).right, Right::Read, "the marker is not checked yet");
}

#[test]
fn a_hold_is_granted_only_when_the_gate_is_open() {
    let mut w = World::new();
    let id = w.hold(HoldKind::Run, at(0));
    let granted = Effect::HoldGranted(id);
    let grant = w.grant(1, 1);
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Granted(grant)), at(1));
    w.tree.handle_right(Some(at(5000)), Some(true), at(2));
    w.tree.handle_opened(Epoch::from_raw(1), Ok(()), at(3));
    assert!(!w.effects().contains(&granted));
    w.tree.handle_carried_out(Epoch::from_raw(1), Ok(()), at(4));
    assert!(w.effects().contains(&granted));
}

#[test]
fn at_the_deadline_commands_lose_the_lease_and_the_gate_says_read() {
    let mut w = World::new();
    let id = w.hold(HoldKind::Run, at(0));
    w.open(1, 1, 1000, at(10));
    w.effects();
    w.tree.handle_timeout(at(1000));
    assert!(!w.tree.writes(at(1000)));
    let effects = w.effects();
    assert!(effects.contains(&Effect::FlushLapsed), "{effects:?}");
    assert!(effects.iter().any(|e| matches!(e, Effect::HoldLost(lost, _) if *lost == id)), "{effects:?}");
    // The server is back and nobody else had a turn: the same epoch goes on.
    w.tree.handle_right(Some(at(9000)), Some(true), at(2000));
    assert!(w.tree.writes(at(2000)));
}

#[test]
fn a_pair_that_is_listed_no_more_shuts_the_gate_for_good() {
    let mut w = World::new();
    w.open(1, 1, 9000, at(10));
    w.effects();
    w.tree.handle_right(None, Some(false), at(20));
    assert!(w.effects().contains(&Effect::SayGateClosed { epoch: Epoch::from_raw(1) }));
    let grant = w.grant(1, 1);
    w.tree.handle_grant(grant, at(30));
    assert!(matches!(w.tree.phase, Phase::Reader), "the same epoch never opens again");
}

#[test]
fn a_table_that_says_the_lease_is_over_shuts_the_gate_at_once() {
    let mut w = World::new();
    let me = w.me.clone();
    w.open(3, 3, 9000, at(10));
    w.effects();
    // Read before the grant: says nothing about it.
    let old = w.status(2, None, &[]);
    w.tree.handle_table(old, Some(&me), at(20));
    assert!(w.tree.writes(at(20)));
    let broken = w.status(3, None, &[]);
    w.tree.handle_table(broken, Some(&me), at(30));
    assert!(!w.tree.writes(at(30)));
    assert!(w.effects().contains(&Effect::SayGateClosed { epoch: Epoch::from_raw(3) }));
}

#[test]
fn another_sides_grant_makes_old_handles_stale_and_our_return_keeps_them_so() {
    let mut w = World::new();
    w.open(1, 1, 9000, at(10));
    assert_eq!(w.tree.stale_below, Epoch::from_raw(1));
    w.tree.begin_end(EndRequest::Release { now: true }, at(20));
    w.tree.handle_session_lost("gone", at(30));
    let status = w.status(2, Some("pod"), &[]);
    let me = w.me.clone();
    w.tree.handle_table(status, Some(&me), at(40));
    assert_eq!(w.tree.stale_below, Epoch::from_raw(2));
    w.open(3, 3, 9000, at(50));
    assert_eq!(w.tree.stale_below, Epoch::from_raw(3));
}

#[test]
fn coming_back_with_the_old_run_start_keeps_handles_alive() {
    let mut w = World::new();
    w.open(5, 5, 9000, at(10));
    w.tree.handle_session_lost("expired", at(20));
    w.open(6, 5, 9000, at(30));
    assert_eq!(w.tree.stale_below, Epoch::from_raw(5));
}

#[test]
fn who_asks_is_given_way_after_min_hold_and_who_only_waits_after_idle() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    let me = w.me.clone();
    let waits = w.status(1, Some("workstation"), &[("pod", false)]);
    w.tree.handle_table(waits, Some(&me), at(100));
    w.tree.handle_timeout(at(9_999));
    assert!(w.tree.is_open());
    w.tree.handle_timeout(at(10_000));
    assert!(w.tree.is_ending(), "idle for 10 s");

    let mut w = World::new();
    let me = w.me.clone();
    w.open(1, 1, 90_000, at(0));
    let asks = w.status(1, Some("workstation"), &[("pod", true)]);
    w.tree.handle_table(asks, Some(&me), at(100));
    w.tree.handle_timeout(at(1_999));
    assert!(w.tree.is_open(), "a fresh grant is kept for min_hold");
    w.tree.handle_timeout(at(2_000));
    assert!(w.tree.is_ending());
}

#[test]
fn a_command_under_the_lease_keeps_it_from_going_idle() {
    let mut w = World::new();
    let me = w.me.clone();
    let id = w.hold(HoldKind::Run, at(0));
    w.open(1, 1, 90_000, at(0));
    let waits = w.status(1, Some("workstation"), &[("pod", false)]);
    w.tree.handle_table(waits, Some(&me), at(100));
    w.tree.handle_timeout(at(60_000));
    assert!(w.tree.is_open());
    w.tree.handle_hold_gone(&id, at(60_001));
    w.tree.handle_timeout(at(60_002));
    assert!(w.tree.is_ending());
}

#[test]
fn a_grant_whose_hold_has_gone_is_given_back_at_once() {
    let mut w = World::new();
    let me = w.me.clone();
    let busy = w.status(1, Some("pod"), &[]);
    w.tree.handle_table(busy, Some(&me), at(0));
    let id = w.hold(HoldKind::Run, at(0));
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Queued { place: 1, holder: None }), at(1));
    w.tree.handle_hold_gone(&id, at(2));
    assert!(w.effects().contains(&Effect::Cancel));
    let grant = w.grant(2, 2);
    w.tree.handle_grant(grant, at(3));
    assert!(matches!(w.effects()[..], [Effect::RefuseWaiters, Effect::GiveBack { .. }]));
    assert!(matches!(w.tree.phase, Phase::Reader));
}

#[test]
fn a_first_write_takes_its_place_once_and_never_asks_a_busy_holder() {
    let mut w = World::new();
    let me = w.me.clone();
    let busy = w.status(1, Some("pod"), &[]);
    w.tree.handle_table(busy, Some(&me), at(0));
    w.effects();
    w.tree.handle_first_write(at(10));
    assert!(matches!(w.effects()[..], [Effect::Acquire { ask: false, first_write: true, .. }]), "it never asks a busy holder");
    w.tree.handle_first_write(at(11));
    assert_eq!(w.effects(), vec![], "many waiting operations cause one request");
}

#[test]
fn after_a_release_was_sent_the_gate_stays_shut_whatever_the_answer() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.effects();
    w.tree.begin_end(EndRequest::Release { now: true }, at(3_000));
    let mut now = 3_000;
    let mut sent = false;
    for _ in 0..20 {
        now += 1;
        let effects = w.effects();
        if effects.iter().any(|e| matches!(e, Effect::Step(crate::handoff::Step::Release { .. }))) {
            sent = true;
            break;
        }
        for effect in effects {
            let Effect::Step(step) = effect else { continue };
            match step {
                crate::handoff::Step::PushMapped | crate::handoff::Step::PushAgain => {
                    w.tree.feed_ending(w.tree.end_no(), |h, n| h.handle_pushed(n), at(now));
                }
                crate::handoff::Step::CloseStageTwo(_) => {
                    w.tree.feed_ending(w.tree.end_no(), |h, n| h.handle_drained(true, n), at(now))
                }
                crate::handoff::Step::Flush => {
                    w.tree.feed_ending(w.tree.end_no(), |h, n| h.handle_flushed(Ok((1, 2)), n), at(now))
                }
                _ => {}
            }
        }
    }
    assert!(sent);
    assert_eq!(w.tree.standing(true).right, Right::Read);
    w.tree.handle_end_answer(w.tree.end_no(), Err("nobody knows".into()), at(now));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(now + 1));
    assert_eq!(w.tree.standing(true).right, Right::Read);
    let grant = w.grant(1, 1);
    w.tree.handle_grant(grant, at(now + 2));
    assert_eq!(w.tree.standing(true).right, Right::Read);
}

/// A World whose tree has been quiet for long enough, up to `rest` having been sent with this number.
fn resting() -> (World, u64) {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.effects();
    w.tree.handle_timeout(at(1_000));
    assert_eq!(w.effects(), vec![Effect::Settle(1)]);
    w.tree.handle_settled(1, Ok(()), at(1_010));
    let effects = w.effects();
    let [Effect::TellRest { at_rest: true, number }] = effects[..] else { panic!("{effects:?}") };
    (w, number)
}

fn resting_right(w: &World) -> bool {
    matches!(w.tree.standing(true).right, Right::Resting { .. })
}

#[test]
fn rest_is_said_only_after_the_gate_was_shut_and_the_storage_confirmed() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.effects();
    w.tree.note_mutation(Some(at(500)));
    w.tree.handle_timeout(at(1_499));
    assert_eq!(w.effects(), vec![], "one second after the last mutation");
    w.tree.handle_timeout(at(1_500));
    assert_eq!(w.effects(), vec![Effect::Settle(1)]);
    assert!(resting_right(&w), "a new active is demanded of every operation before anything is sent");
}

#[test]
fn what_a_later_run_of_a_session_says_is_above_what_an_earlier_one_said_though_that_had_had_another_session_before() {
    let said = |w: &mut World| {
        w.tree.tell(false);
        let effects = w.effects();
        let [Effect::TellRest { number, .. }] = effects[..] else { panic!("{effects:?}") };
        number
    };
    let mut first = World::new();
    // It resumes a session for the third time, finds it ended, and opens another one.
    first.tree.set_incarnation(3);
    let old = said(&mut first);
    first.tree.set_incarnation(1);
    let new = said(&mut first);
    let mut next = World::new();
    next.tree.set_incarnation(2);
    assert!(said(&mut next) > new, "the server ignores a number that is not higher, and the gate never opens again");
    assert_ne!(old & u64::from(u32::MAX), new & u64::from(u32::MAX), "no late answer is taken for another one");
}

#[test]
fn a_write_before_rest_was_sent_goes_on_without_a_word() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.handle_timeout(at(1_000));
    w.effects();
    w.tree.handle_first_write(at(1_001));
    assert!(matches!(w.tree.standing(true).right, Right::Write { .. }));
    w.tree.handle_settled(1, Ok(()), at(1_002));
    assert_eq!(w.effects(), vec![], "a settling that was overtaken says nothing");
}

#[test]
fn only_an_acknowledged_active_with_a_higher_number_opens_the_gate_whatever_became_of_the_rest() {
    let (mut w, number) = resting();
    w.tree.handle_first_write(at(1_020));
    assert!(resting_right(&w));
    assert_eq!(w.effects(), vec![], "the rest is on its way: its active follows it");
    // Its answer was lost.
    let lost = Refusal::new(Code::OutcomeUnknown, "?");
    w.tree.handle_rest_answer(number, &Err(lost.clone()), at(1_030));
    let effects = w.effects();
    let [Effect::TellRest { at_rest: false, number: higher }] = effects[..] else { panic!("{effects:?}") };
    assert!(higher > number);
    // The active got no answer either: asked again, and shut until then.
    // An answer to the earlier word is no answer to this one.
    w.tree.handle_rest_answer(number, &Ok(Answer::Done), at(1_035));
    assert!(resting_right(&w));
    w.tree.handle_rest_answer(higher, &Err(lost), at(1_040));
    assert!(resting_right(&w));
    w.effects();
    w.tree.handle_timeout(at(1_400));
    assert!(matches!(w.effects()[..], [Effect::TellRest { at_rest: false, .. }]));
    w.tree.handle_rest_answer(higher + 1, &Ok(Answer::Done), at(1_410));
    assert!(matches!(w.tree.standing(true).right, Right::Write { .. }));
}

#[test]
fn a_resumed_lease_writes_only_after_an_active() {
    let mut w = World::new();
    w.tree.set_incarnation(2);
    let grant = w.grant(1, 1);
    w.tree.handle_resumed(grant, Past::Wrote, at(0));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(1));
    w.tree.handle_opened(Epoch::from_raw(1), Ok(()), at(2));
    w.tree.handle_carried_out(Epoch::from_raw(1), Ok(()), at(3));
    assert!(resting_right(&w), "nobody here knows what the server was told last");
    w.effects();
    w.tree.handle_first_write(at(4));
    assert!(matches!(w.effects()[..], [Effect::TellRest { at_rest: false, number }] if number > 2 << 32));
}

#[test]
fn a_tree_at_rest_is_woken_before_it_is_handed_over() {
    let (mut w, number) = resting();
    w.tree.handle_rest_answer(number, &Ok(Answer::Done), at(1_020));
    assert!(w.tree.is_at_rest());
    w.tree.begin_end(EndRequest::Release { now: true }, at(2_000));
    assert!(w.tree.is_ending());
    assert!(w.effects().iter().any(|e| matches!(e, Effect::TellRest { at_rest: false, .. })));
    w.tree.handle_rest_answer(number + 1, &Ok(Answer::Done), at(2_010));
    assert!(matches!(w.tree.phase, Phase::Ending { .. }));
}

#[test]
fn a_write_back_error_before_rest_ends_the_lease() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.handle_timeout(at(1_000));
    w.tree.handle_settled(1, Err(true), at(1_100));
    assert!(w.tree.is_ending());
}

/// All the way to the release, which is not answered. The release's request is seen.
fn until_release(w: &mut World, now: u64) {
    use crate::handoff::Step;
    for _ in 0..20 {
        let no = w.tree.end_no();
        for effect in w.effects() {
            let Effect::Step(step) = effect else { continue };
            match step {
                Step::LookForMoment => {
                    let moment = w.tree.moment(Vec::new());
                    w.tree.feed_ending(no, |h, n| h.handle_moment(moment, n), at(now));
                }
                Step::PushMapped | Step::PushAgain => w.tree.feed_ending(no, |h, n| h.handle_pushed(n), at(now)),
                Step::CloseStageTwo(_) => w.tree.feed_ending(no, |h, n| h.handle_drained(true, n), at(now)),
                Step::Flush => w.tree.feed_ending(no, |h, n| h.handle_flushed(Ok((1, 2)), n), at(now)),
                Step::Release { .. } => return,
                _ => {}
            }
        }
    }
    panic!("no release: {:?}", w.tree.phase);
}

#[test]
fn a_flush_of_an_earlier_end_says_nothing_about_a_later_lease() {
    use crate::handoff::Step;
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.begin_end(EndRequest::Release { now: true }, at(10));
    let old = w.tree.end_no();
    w.tree.handle_session_lost("expired", at(20));
    w.open(2, 1, 90_000, at(30));
    w.tree.begin_end(EndRequest::Release { now: true }, at(40));
    w.effects();
    let no = w.tree.end_no();
    for _ in 0..2 {
        w.tree.feed_ending(no, |h, n| h.handle_pushed(n), at(41));
    }
    w.effects();
    w.tree.feed_ending(old, |h, n| h.handle_drained(true, n), at(42));
    assert_eq!(w.effects(), vec![], "writes of this lease may be in flight");
    w.tree.feed_ending(no, |h, n| h.handle_drained(true, n), at(43));
    assert!(w.effects().contains(&Effect::Step(Step::Flush)));
    w.tree.feed_ending(old, |h, n| h.handle_flushed(Ok((1, 1)), n), at(44));
    assert!(!w.effects().iter().any(|e| matches!(e, Effect::Step(Step::Release { .. }))), "nothing of it is flushed");
}

#[test]
fn a_renewal_that_overtakes_the_releases_answer_does_not_make_the_end_unclean() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.begin_end(EndRequest::Release { now: true }, at(10));
    until_release(&mut w, 11);
    w.tree.handle_right(None, Some(false), at(12));
    assert!(w.tree.is_ending());
    w.tree.handle_end_answer(w.tree.end_no(), Ok(Answer::Done), at(13));
    let released = EndResult::Released { files: 1, bytes: 2, not_to: None };
    assert!(w.effects().contains(&Effect::EndResult(released)));
}

#[test]
fn a_release_of_a_lease_that_was_broken_is_not_called_clean() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.begin_end(EndRequest::Release { now: true }, at(10));
    until_release(&mut w, 11);
    w.tree.handle_end_answer(w.tree.end_no(), Ok(Answer::Ignored { why: "it was broken".into() }), at(13));
    assert!(w.effects().iter().any(|e| matches!(e, Effect::EndResult(EndResult::Surrendered(_)))));
}

#[test]
fn a_grant_that_was_given_back_is_given_back_until_the_server_knows() {
    let mut w = World::new();
    w.hold(HoldKind::Run, at(0));
    let grant = w.grant(1, 1);
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Granted(grant)), at(1));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(2));
    w.effects();
    w.tree.handle_opened(Epoch::from_raw(1), Err(Refusal::new(Code::Storage, "no")), at(3));
    let gives = |w: &mut World| w.effects().iter().any(|e| matches!(e, Effect::GiveBack { .. }));
    assert!(gives(&mut w));
    w.tree.handle_owed_answer(Epoch::from_raw(1), false, at(4));
    // A person who asks meanwhile waits: the server would answer with the lease that is to end.
    w.hold(HoldKind::Run, at(5));
    assert!(!w.effects().iter().any(|e| matches!(e, Effect::Acquire { .. })));
    let again = w.tree.next_deadline().unwrap();
    w.tree.handle_timeout(again);
    assert!(gives(&mut w));
    w.tree.handle_owed_answer(Epoch::from_raw(1), true, again);
    assert!(w.effects().iter().any(|e| matches!(e, Effect::Acquire { .. })));
}

#[test]
fn after_a_restart_an_epoch_whose_release_had_left_never_opens_and_is_released_again() {
    let mut w = World::new();
    let grant = w.grant(4, 4);
    w.tree.handle_resumed(grant.clone(), Past::Released, at(1));
    assert_eq!(w.effects(), vec![Effect::ReleaseAgain { epoch: Epoch::from_raw(4) }]);
    w.tree.handle_grant(grant, at(2));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(3));
    assert!(matches!(w.tree.phase, Phase::Reader));
    assert_eq!(w.tree.standing(true).right, Right::Read);
}

#[test]
fn a_mount_made_under_the_lease_is_not_written_through_before_its_marker_is_stamped() {
    let mut w = World::new();
    w.tree.mounted = false;
    w.open(1, 1, 90_000, at(0));
    w.effects();
    w.tree.handle_mounted(at(10));
    assert_eq!(w.tree.standing(true).right, Right::Read);
    assert_eq!(w.effects(), vec![Effect::RenewNow]);
    w.tree.handle_right(Some(at(90_000)), Some(true), at(11));
    assert!(matches!(w.effects()[..], [Effect::Open(_)]));
    // The same while it is being handed over: the mount stays shut.
    let mut w = World::new();
    w.tree.mounted = false;
    w.open(1, 1, 90_000, at(0));
    w.tree.begin_end(EndRequest::Asked, at(10));
    w.tree.handle_mounted(at(11));
    assert_eq!(w.tree.standing(true).right, Right::Read);
}

#[test]
fn i2_a_gate_that_was_open_and_does_not_open_again_is_no_give_back() {
    let mut w = World::new();
    w.tree.mounted = false;
    w.open(1, 1, 90_000, at(0));
    w.tree.handle_mounted(at(10));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(11));
    w.effects();
    w.tree.handle_opened(Epoch::from_raw(1), Err(Refusal::new(Code::Storage, "the marker is another tree's")), at(12));
    let effects = w.effects();
    assert!(effects.iter().any(|e| matches!(e, Effect::SurrenderUnopened { .. })), "{effects:?}");
    assert!(!effects.iter().any(|e| matches!(e, Effect::GiveBack { .. })), "{effects:?}");
}

#[test]
fn what_the_kernel_kept_where_nobody_was_refused_is_dropped_when_the_policy_begins_to_refuse() {
    let mut w = World::new();
    let me = w.me.clone();
    let observed = TreeStatus { policy: Policy { mode: Mode::Observe, ..Policy::default() }, ..w.status(0, None, &[]) };
    w.tree.handle_table(observed.clone(), Some(&me), at(1));
    w.tree.handle_table(observed, Some(&me), at(2));
    let serial = w.tree.standing(true).serial;
    w.effects();
    let enforced = w.status(0, None, &[]);
    w.tree.handle_table(enforced, Some(&me), at(3));
    assert!(w.effects().contains(&Effect::DropCaches));
    assert_ne!(w.tree.standing(true).serial, serial, "an answer of before is kept by nobody");
}

#[test]
fn nodes_of_an_earlier_run_are_replaced_only_where_anything_is_refused() {
    let replaces = |mode: Mode| {
        let mut w = World::new();
        let me = w.me.clone();
        let status = TreeStatus { policy: Policy { mode, ..Policy::default() }, ..w.status(0, None, &[]) };
        w.tree.handle_table(status, Some(&me), at(0));
        w.open(3, 3, 90_000, at(1));
        w.effects().contains(&Effect::ReplaceNodes)
    };
    assert_eq!([Mode::Enforce, Mode::Observe, Mode::Off].map(replaces), [true, false, false]);
}

#[test]
fn a_tree_that_is_this_sides_own_at_the_servers_and_whose_grant_is_on_its_way_is_no_other_sides() {
    let mut w = World::new();
    let reach = |w: &mut World, status: TreeStatus, now| {
        w.tree.handle_table(status, Some(&w.me.clone()), at(now));
        w.tree.standing(true).free
    };
    let (free, own, others) = (w.status(0, None, &[]), w.status(1, Some("workstation"), &[]), w.status(2, Some("pod"), &[]));
    assert!(reach(&mut w, free, 1));
    assert!(reach(&mut w, own, 2));
    assert!(!reach(&mut w, others, 3));
}

#[test]
fn what_was_held_when_the_session_ended_is_asked_for_in_the_next_one() {
    let mut w = World::new();
    let person = w.hold(HoldKind::Acquire, at(0));
    w.open(1, 1, 90_000, at(0));
    w.tree.handle_session_lost("expired", at(100));
    assert!(w.effects().contains(&Effect::DropCaches), "the lease is gone for good: pages of files with writers too");
    // There is no session yet: this try fails, and must not be the last.
    w.tree.handle_timeout(at(101));
    w.effects();
    w.tree.handle_acquire_answer(w.tree.session_no(), Err(Refusal::new(Code::Unreachable, "no session")), at(102));
    w.tree.handle_session_opened(at(200));
    assert!(w.effects().iter().any(|e| matches!(e, Effect::Acquire { .. })));
    w.open(2, 1, 90_000, at(210));
    assert!(w.effects().contains(&Effect::HoldGranted(person)));
}

#[test]
fn a_session_that_ends_without_holds_comes_back_for_its_tree() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.handle_session_lost("expired", at(100));
    w.effects();
    w.tree.handle_timeout(at(101));
    assert_eq!(w.effects(), vec![], "not before there is a session");
    w.tree.handle_session_opened(at(200));
    assert!(matches!(w.effects()[..], [Effect::Acquire { ask: false, first_write: true, .. }]));
}

#[test]
fn commands_lose_the_lease_at_the_deadline_also_while_a_good_moment_is_waited_for() {
    let mut w = World::new();
    let id = w.hold(HoldKind::Run, at(0));
    w.open(1, 1, 1_000, at(10));
    w.tree.begin_end(EndRequest::Asked, at(20));
    w.effects();
    assert!(w.tree.next_deadline().unwrap() <= at(1_000));
    w.tree.handle_timeout(at(1_000));
    let effects = w.effects();
    assert!(
        effects.contains(&Effect::FlushLapsed) && effects.iter().any(|e| matches!(e, Effect::HoldLost(lost, _) if *lost == id))
    );
}

#[test]
fn a_daemon_that_ends_takes_nothing_any_more_and_hands_over_what_comes() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.begin_end(EndRequest::Asked, at(10));
    w.effects();
    w.tree.handle_down(at(20));
    until_release(&mut w, 21);
    w.tree.handle_first_write(at(22));
    w.tree.handle_end_answer(w.tree.end_no(), Ok(Answer::Done), at(23));
    w.tree.handle_first_write(at(24));
    assert!(!w.effects().iter().any(|e| matches!(e, Effect::Acquire { .. })));
    assert!(w.tree.is_quiet() && !w.tree.standing(true).may_wait);
    let grant = w.grant(2, 2);
    w.tree.handle_grant(grant, at(30));
    assert!(w.effects().iter().any(|e| matches!(e, Effect::GiveBack { .. })) && !w.tree.is_quiet());
    w.tree.handle_owed_answer(Epoch::from_raw(2), true, at(31));
    assert!(w.tree.is_quiet());
}

#[test]
fn a_handoff_to_a_side_that_once_left_the_queue_is_taken() {
    let mut w = World::new();
    let me = w.me.clone();
    let busy = w.status(1, Some("pod"), &[]);
    w.tree.handle_table(busy, Some(&me), at(0));
    let id = w.hold(HoldKind::Run, at(0));
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Queued { place: 1, holder: None }), at(1));
    w.tree.handle_hold_gone(&id, at(2));
    w.tree.handle_cancelled();
    w.effects();
    let grant = w.grant(2, 2);
    w.tree.handle_grant(grant, at(1_000));
    assert_eq!(w.effects(), vec![Effect::RenewNow]);
}

#[test]
fn a_flush_of_an_earlier_try_to_rest_says_nothing_about_what_was_written_since() {
    let mut w = World::new();
    w.open(1, 1, 90_000, at(0));
    w.tree.handle_timeout(at(1_000));
    w.tree.handle_first_write(at(1_001));
    w.tree.note_mutation(Some(at(1_002)));
    w.tree.handle_timeout(at(2_002));
    w.effects();
    // The first try's flush comes back late: it ran before that write.
    w.tree.handle_settled(1, Ok(()), at(2_003));
    assert_eq!(w.effects(), vec![]);
    w.tree.handle_settled(2, Ok(()), at(2_004));
    assert!(matches!(w.effects()[..], [Effect::TellRest { at_rest: true, .. }]));
}

#[test]
fn a_gate_that_opens_once_more_under_an_epoch_at_rest_demands_an_active() {
    let (mut w, number) = resting();
    w.tree.handle_rest_answer(number, &Ok(Answer::Done), at(1_020));
    // Its mount was taken away from outside and made anew.
    w.tree.handle_mounted(at(2_000));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(2_001));
    w.tree.handle_opened(Epoch::from_raw(1), Ok(()), at(2_002));
    w.tree.handle_carried_out(Epoch::from_raw(1), Ok(()), at(2_003));
    assert!(resting_right(&w), "the server believes that it is at rest");
}

#[test]
fn with_the_server_away_and_a_write_refused_at_the_deadline_nothing_is_due_all_the_time() {
    let (mut w, number) = resting();
    let away = || Err(Refusal::new(Code::Unreachable, "away"));
    w.tree.handle_first_write(at(1_020));
    w.tree.handle_rest_answer(number, &away(), at(1_030));
    w.tree.handle_rest_answer(number + 1, &away(), at(1_040));
    w.tree.handle_right(None, Some(true), at(80_000));
    w.tree.handle_timeout(at(80_000));
    assert!(w.tree.next_deadline().is_none_or(|due| due > at(80_000)), "a loop that never sleeps");
}

#[test]
fn a_rest_of_an_earlier_epoch_does_not_hold_up_the_end_of_a_grant_whose_caches_were_not_dropped() {
    let (mut w, number) = resting();
    // Broken, while the answer to `rest` was on its way.
    w.tree.handle_right(None, Some(false), at(1_020));
    w.tree.handle_rest_answer(number, &Ok(Answer::Done), at(1_030));
    w.hold(HoldKind::Acquire, at(1_040));
    let grant = w.grant(2, 2);
    w.tree.handle_grant(grant, at(2_000));
    w.tree.handle_right(Some(at(90_000)), Some(true), at(2_001));
    w.tree.handle_opened(Epoch::from_raw(2), Ok(()), at(2_002));
    w.effects();
    w.tree.handle_carried_out(Epoch::from_raw(2), Err("the caches were not dropped in time".into()), at(2_003));
    let effects = w.effects();
    assert!(effects.iter().any(|e| matches!(e, Effect::Step(_))), "nobody could ever have the tree again: {effects:?}");
}

#[test]
fn a_place_in_the_queue_that_a_late_cancel_took_away_is_asked_for_anew() {
    let mut w = World::new();
    w.hold(HoldKind::Acquire, at(0));
    w.tree.handle_acquire_answer(w.tree.session_no(), Ok(Answer::Queued { place: 1, holder: None }), at(10));
    w.effects();
    let (me, waiting) = (w.me.clone(), w.status(7, Some("pod"), &[("workstation", false)]));
    w.tree.handle_table(waiting, Some(&me), at(20));
    assert!(!w.effects().iter().any(|e| matches!(e, Effect::Acquire { .. })), "it stands there");
    let gone = w.status(7, Some("pod"), &[]);
    w.tree.handle_table(gone, Some(&me), at(30));
    assert!(w.effects().iter().any(|e| matches!(e, Effect::Acquire { .. })), "nobody would ever ask again: {:?}", w.tree.line);
}

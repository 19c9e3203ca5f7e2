//! The history tells every end and why: one row for each way in which a lease, or the wait after one, can end.

use super::*;

/// What brings an end about.
type Way = fn(&mut World, &LeaseRef);

/// An end's name, its way, the events that tell it, whether it was clean, and words that a person needs.
type Row = (&'static str, Way, &'static [EventKind], End, &'static [&'static str]);

const ENDS: &[Row] = &[
    ("released", |w, l| drop(w.release(l)), &[EventKind::Released], End::Clean, &[]),
    (
        "released with a note",
        |w, l| drop(w.run(Command::Release(Release { note: "for the night".into(), ..release_of(l) }))),
        &[EventKind::Released],
        End::Clean,
        &["for the night"],
    ),
    (
        "handed over",
        |w, l| {
            w.open("b", 2);
            w.run(Command::Release(Release { to: Some(side("b")), ..release_of(l) }));
        },
        &[EventKind::Released, EventKind::Handoff, EventKind::Granted],
        End::Clean,
        &["to b", "handed over by a"],
    ),
    (
        "given back",
        |w, l| drop(w.run(Command::GiveBack { lease: l.clone(), reason: "the marker is missing".into() })),
        &[EventKind::Released],
        End::Clean,
        &["given back", "the marker is missing"],
    ),
    (
        "given back after a way back",
        |w, l| {
            w.expire(&l.session.clone());
            w.open("a", 9);
            let place = kernel(l.session.as_str());
            w.run(Command::Acquire(Acquire { place, ..acquire_of(&tree_id(1), &session_id(9)) }));
            let lease = LeaseRef { session: session_id(9), epoch: l.epoch.next(), ..l.clone() };
            w.run(Command::GiveBack { lease, reason: "the storage hangs".into() });
        },
        &[EventKind::Released, EventKind::Cooling],
        End::Unclean,
        &["the storage hangs", "came back after an expiry"],
    ),
    (
        "surrendered",
        |w, l| {
            let files = vec!["notes.db".into()];
            w.run(Command::Surrender { lease: l.clone(), reason: "the flush failed".into(), files });
        },
        &[EventKind::Surrendered, EventKind::Cooling],
        End::Unclean,
        &["the flush failed", "may be lost: notes.db", "waits for grace"],
    ),
    (
        "expired while active",
        |w, l| drop(w.expire(&l.session.clone())),
        &[EventKind::Expired, EventKind::Cooling],
        End::Unclean,
        &["no renewal for a full TTL", "active", "waits for grace"],
    ),
    (
        "expired at rest",
        |w, l| {
            w.run(Command::Rest { lease: l.clone(), number: 1 });
            w.expire(&l.session.clone());
        },
        &[EventKind::Expired, EventKind::Cooling],
        End::Unclean,
        &["no renewal for a full TTL", "at rest"],
    ),
    (
        "broken",
        |w, l| drop(w.run(Command::Break { tree: l.tree.clone(), epoch: l.epoch, reason: "the laptop is at sea".into() })),
        &[EventKind::Broken, EventKind::Cooling],
        End::Unclean,
        &["the laptop is at sea", "waits for a full TTL and grace"],
    ),
    (
        "copied",
        |w, l| drop(w.run(Command::EndCopied { session: l.session.clone(), incarnation: 1 })),
        &[EventKind::Copied, EventKind::Cooling],
        End::Unclean,
        &["two machines", "a cloned or restored machine", "waits for a full TTL and grace"],
    ),
];

#[test]
fn every_end_of_a_lease_is_in_the_history_with_a_reason() {
    for (name, way, kinds, end, words) in ENDS {
        let mut world = World::new();
        let a = world.open("a", 1);
        let lease = world.granted(&a);
        way(&mut world, &lease);
        assert_eq!(world.kinds(), *kinds, "{name}");
        let history = world.state.history(&tree_id(1), kinds.len());
        assert_eq!(history, world.events, "{name}: what watchers hear is what the history keeps");
        let first = &history[0];
        assert_eq!((first.end, first.side.as_ref()), (*end, Some(&side("a"))), "{name}");
        assert_eq!(first.actor, "test", "{name}: who asked for it");
        let text: Vec<&str> = history.iter().map(|e| e.reason.as_str()).collect();
        for word in *words {
            assert!(text.iter().any(|reason| reason.contains(word)), "{name}: no word of `{word}` in {text:?}");
        }
        let silent = history.iter().find(|e| *end == End::Unclean && e.reason.is_empty());
        assert!(silent.is_none(), "{name}: an unclean end without a reason: {silent:?}");
    }
}

#[test]
fn every_end_of_a_wait_is_in_the_history_with_a_reason() {
    type Ends = &'static [(&'static str, &'static str, bool, fn(&mut World), EventKind, &'static str)];
    let waits: Ends = &[
        ("fence=none", "none", true, |w| drop(w.end_grace(1)), EventKind::Freed, "may still arrive"),
        ("at rest", "manual", false, |w| drop(w.end_grace(1)), EventKind::Freed, "nothing was left behind"),
        (
            "grace over",
            "manual",
            true,
            |w| drop(w.end_grace(1)),
            EventKind::Fencing,
            "needs `treelease fence confirm dev --epoch 1",
        ),
        ("vouched while cooling", "manual", true, |w| drop(w.confirm(1)), EventKind::Fenced, "vouched: unplugged"),
        (
            "vouched while fencing",
            "manual",
            true,
            |w| {
                w.end_grace(1);
                w.confirm(1);
            },
            EventKind::Fenced,
            "vouched: unplugged",
        ),
    ];
    for (name, fence, active, way, kind, word) in waits {
        let mut world = World::new();
        world.set("fence", fence);
        let a = world.open("a", 1);
        let lease = world.granted(&a);
        if !active {
            world.run(Command::Rest { lease, number: 1 });
        }
        world.expire(&a);
        way(&mut world);
        let told = world.state.history(&tree_id(1), 1).remove(0);
        assert_eq!(told.kind, *kind, "{name}");
        assert!(told.reason.contains(word), "{name}: {}", told.reason);
        assert_eq!(told.epoch.get(), 1, "{name}");
    }
}

#[test]
fn the_end_of_a_place_in_the_queue_is_told_with_its_reason() {
    type Leaves = fn(&mut World, SessionId);
    let ends: [(Leaves, &str); 4] = [
        (|w, b| drop(w.run(Command::Cancel { tree: tree_id(1), session: b })), ""),
        (|w, b| drop(w.run(Command::CloseSession { session: b })), "its session was closed"),
        (|w, b| drop(w.expire(&b)), "its session expired"),
        (|w, b| drop(w.run(Command::EndCopied { session: b, incarnation: 1 })), "two machines renewed its session"),
    ];
    for (way, reason) in ends {
        let mut world = World::new();
        let (a, b) = (world.open("a", 1), world.open("b", 2));
        world.granted(&a);
        world.queued(&b);
        way(&mut world, b);
        assert_eq!(world.kinds(), [EventKind::Cancelled]);
        assert_eq!((world.events[0].reason.as_str(), world.events[0].side.as_ref()), (reason, Some(&side("b"))));
    }
}

#[test]
fn a_resumed_session_ends_nothing_and_what_a_side_reports_is_kept() {
    let mut world = World::new();
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    let resume = Some(Resume { session: a.clone(), secret: b"a".to_vec() });
    world.run(Command::OpenSession(OpenSession { resume, ..open_of("a", session_id(2)) }));
    assert_eq!((world.kinds(), world.holder()), (Vec::new(), Some(a)));
    for kind in [EventKind::LateWrite, EventKind::Bypass, EventKind::RenewalLate, EventKind::ClockDisagrees] {
        let report = Command::Report { lease: lease.clone(), event: kind, reason: "because".into(), count: 2 };
        assert_eq!(world.run(report), Answer::Done);
        let told = world.state.history(&tree_id(1), 1).remove(0);
        assert_eq!((told.kind, told.reason.as_str(), told.count), (kind, "because", 2));
    }
    let lie = Command::Report { lease, event: EventKind::Copied, reason: String::new(), count: 0 };
    assert_eq!(code(world.run(lie)), Code::Usage);
}

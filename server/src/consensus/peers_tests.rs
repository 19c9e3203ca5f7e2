//! Which messages count, and which are nobody's.

use super::*;

const TOUCH: Duration = Duration::from_secs(3600);

pub(in crate::consensus) fn formation() -> Formation {
    let member = |id: NodeId| (id, Member { addr: format!("host:{id}"), disk: format!("disk-{id}") });
    Formation { cluster: ClusterId::random(), members: BTreeMap::from([member(1), member(2), member(3)]) }
}

pub(in crate::consensus) fn peers(node: NodeId, formation: Option<Formation>) -> Peers {
    Peers {
        node,
        disk: format!("disk-{node}"),
        known: RwLock::new(formation.as_ref().map(Known::new)),
        heard: Mutex::new(None),
        answered: Mutex::default(),
        out_of_touch: TOUCH,
        faults: Faults::default(),
        turned_away: Mutex::default(),
        turned_away_count: Counter::default(),
    }
}

#[test]
fn a_message_between_two_members_counts() {
    let formed = formation();
    let (one, two) = (peers(1, Some(formed.clone())), peers(2, Some(formed)));
    let stamp = one.stamp(2, "disk-2").unwrap();
    assert_eq!(two.check(Some(&stamp)), Ok(1));
    assert_eq!(two.check_answer(Some(&stamp), 1, "disk-1"), Ok(()));
    assert!(two.check_answer(Some(&stamp), 3, "disk-3").is_err());
    assert!(two.check_answer(Some(&stamp), 1, "wiped").is_err(), "the very member that was asked");
    assert_eq!(two.answered_within(TOUCH), BTreeSet::from([1]), "and only what counts is an answer");
}

#[test]
fn another_cluster_node_or_disk_counts_for_nothing() {
    let formed = formation();
    let (one, two) = (peers(1, Some(formed.clone())), peers(2, Some(formed)));
    let good = one.stamp(2, "disk-2").unwrap();
    let wrong = [
        wire::Stamp { cluster: ClusterId::random().to_string(), ..good.clone() },
        wire::Stamp { cluster: String::new(), ..good.clone() },
        wire::Stamp { to: 3, ..good.clone() },
        wire::Stamp { to_disk: "disk-3".into(), ..good.clone() },
        wire::Stamp { to_disk: String::new(), ..good.clone() },
        wire::Stamp { disk: "wiped".into(), ..good.clone() },
        wire::Stamp { disk: String::new(), ..good.clone() },
        wire::Stamp { node: 3, ..good.clone() },
        wire::Stamp { node: 4, ..good.clone() },
        wire::Stamp { node: 4, disk: String::new(), ..good },
    ];
    for stamp in wrong {
        assert!(two.check(Some(&stamp)).is_err(), "{stamp:?}");
    }
    assert!(two.check(None).is_err());
}

#[test]
fn a_node_of_another_build_is_a_stranger_and_is_told_what_to_do() {
    let formed = formation();
    let (one, two) = (peers(1, Some(formed.clone())), peers(2, Some(formed.clone())));
    let good = one.stamp(2, "disk-2").unwrap();
    assert_eq!(good.state_version, lease::VERSION);
    // A later build, and one of before there was such a number.
    for state_version in [lease::VERSION + 1, 0] {
        let stamp = wire::Stamp { state_version, ..good.clone() };
        let why = two.check(Some(&stamp)).unwrap_err();
        assert!(why.contains("node 1 is of another build than node 2") && why.contains("stop all of them"), "{why}");
        assert!(!why.contains("  "), "{why}");
        assert_eq!(two.check_answer(Some(&stamp), 1, "disk-1"), Err(why));
    }
    assert_eq!(two.answered_within(TOUCH), BTreeSet::new());
    // Two of the other build hear each other.
    let other = |node| Peers { faults: Faults::default().with(Fault::OtherBuild), ..peers(node, Some(formed.clone())) };
    let stamp = other(1).stamp(2, "disk-2").unwrap();
    assert_eq!(other(2).check(Some(&stamp)), Ok(1));
    assert!(two.check(Some(&stamp)).is_err());
}

#[test]
fn before_the_promise_nobody_may_speak() {
    let formed = formation();
    let (one, two) = (peers(1, Some(formed)), peers(2, None));
    assert!(two.check(Some(&one.stamp(2, "disk-2").unwrap())).is_err());
    assert_eq!(two.stamp(1, "disk-1"), None);
}

#[test]
fn the_members_of_now_count_and_those_that_were_removed_do_not() {
    let formed = formation();
    let (two, three) = (peers(2, Some(formed.clone())), peers(3, Some(formed.clone())));
    let mut members = formed.members.clone();
    members.remove(&3);
    members.insert(4, Member { addr: "host:4".into(), disk: "disk-4".into() });
    two.members_are(members.clone(), &BTreeSet::new());
    let from_three = three.stamp(2, "disk-2").unwrap();
    let why = two.check(Some(&from_three)).unwrap_err();
    assert!(why.contains("was removed"), "{why}");
    let four = peers(4, Some(Formation { members, ..formed }));
    assert_eq!(two.check(Some(&four.stamp(2, "disk-2").unwrap())), Ok(4));
}

#[test]
fn a_number_that_was_never_heard_of_is_believed_only_by_a_node_that_hears_no_leader() {
    let formed = formation();
    let three = peers(3, Some(formed.clone()));
    let members = BTreeMap::from([(7, Member { addr: "host:7".into(), disk: "disk-7".into() })]);
    let seven = peers(7, Some(Formation { members, ..formed }));
    let stamp = seven.stamp(3, "disk-3").unwrap();
    assert_eq!(three.check(Some(&stamp)), Ok(7), "everybody that it knows may have gone while it was away");
    three.heard(QuorumAge::Ago(Duration::ZERO));
    assert!(three.check(Some(&stamp)).is_err(), "its leader would have told it");
    three.members_are(formation().members, &BTreeSet::from([7]));
    let long_ago = Peers { out_of_touch: Duration::ZERO, ..three };
    assert!(long_ago.check(Some(&stamp)).unwrap_err().contains("was removed"));
}

#[test]
fn a_number_that_the_log_has_ever_named_is_not_believed_again() {
    let formed = formation();
    let three = peers(3, Some(formed.clone()));
    let members = BTreeMap::from([(7, Member { addr: "host:7".into(), disk: "disk-7".into() })]);
    let stamp = peers(7, Some(Formation { members, ..formed.clone() })).stamp(3, "disk-3").unwrap();
    assert_eq!(three.check(Some(&stamp)), Ok(7));
    // It came and went while nobody looked.
    three.were_used([1, 2, 3, 7]);
    three.members_are(formed.members, &BTreeSet::new());
    assert!(three.check(Some(&stamp)).unwrap_err().contains("was removed"));
}

/// This node led and was cut off: its log names node 7, and that was never agreed upon.
#[test]
fn i7_a_number_whose_adding_was_cut_off_from_the_log_is_like_one_that_was_never_heard_of() {
    let formed = formation();
    let three = peers(3, Some(formed.clone()));
    let from = |disk: &str| {
        let members = BTreeMap::from([(7, Member { addr: "host:7".into(), disk: disk.into() })]);
        let seven = Peers { disk: disk.into(), ..peers(7, Some(Formation { members, ..formed.clone() })) };
        seven.stamp(3, "disk-3").unwrap()
    };
    let mut with_seven = formed.members.clone();
    with_seven.insert(7, Member { addr: "host:7".into(), disk: "disk-7".into() });
    three.named_at(5, [1, 2, 3, 7]);
    three.members_are(with_seven.clone(), &BTreeSet::from([1, 2, 3]));
    assert_eq!(three.check(Some(&from("disk-7"))), Ok(7));
    assert_eq!(three.check(Some(&from("another"))), Ok(7), "the number may have been given anew since, and 7 leads");
    three.heard(QuorumAge::Ago(Duration::ZERO));
    assert!(three.check(Some(&from("another"))).is_err(), "its leader would have told it");
    let three = Peers { heard: Mutex::new(None), ..three };
    // Another leader cuts it off.
    three.members_are(formed.members.clone(), &BTreeSet::from([1, 2, 3]));
    assert!(three.check(Some(&from("disk-7"))).unwrap_err().contains("was removed"), "its log still names it");
    three.cut_off(5);
    assert_eq!(three.check(Some(&from("disk-7"))), Ok(7), "added again while this node was away, it may lead");

    // What was agreed upon stays so, whatever is cut off behind it and whatever is forgotten of the log.
    three.named_at(5, [1, 2, 3, 7]);
    three.named_at(8, [1, 2, 3]);
    three.settled(6);
    three.cut_off(6);
    assert!(three.check(Some(&from("disk-7"))).unwrap_err().contains("was removed"));
    three.members_are(with_seven, &BTreeSet::from([1, 2, 3]));
    assert!(three.check(Some(&from("another"))).unwrap_err().contains("wiped"), "and only its own directory counts");
}

#[test]
fn who_is_no_member_any_more_has_not_answered() {
    let formed = formation();
    let two = peers(2, Some(formed.clone()));
    let from = |id: NodeId| peers(id, Some(formed.clone())).stamp(2, "disk-2").unwrap();
    for id in [1, 3] {
        two.check_answer(Some(&from(id)), id, &format!("disk-{id}")).unwrap();
    }
    let mut members = formed.members.clone();
    members.remove(&3);
    two.members_are(members, &BTreeSet::new());
    assert_eq!(two.answered_within(TOUCH), BTreeSet::from([1]));
}

#[test]
fn what_a_leader_says_of_its_quorum_grows_older_with_its_silence() {
    let two = peers(2, Some(formation()));
    assert_eq!(two.quorum_age(), None);
    let said = Duration::from_millis(300);
    two.heard(QuorumAge::Ago(said));
    let first = two.quorum_age().unwrap();
    assert!(first >= said && two.quorum_age().unwrap() >= first);
    two.heard(QuorumAge::Never);
    assert_eq!(two.quorum_age(), None, "a leader without a quorum is no proof of one");
    two.heard(QuorumAge::Unsaid);
    assert!(two.quorum_age().is_some(), "an older version: its word is all there is");
}

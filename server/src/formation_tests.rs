//! Which answers make a cluster, and which never do.

use super::*;

fn identity(node: NodeId) -> (tempfile::TempDir, Identity) {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::open(dir.path(), node, &[]).unwrap();
    (dir, identity)
}

fn set() -> BTreeMap<NodeId, String> {
    (1..=3).map(|id| (id, format!("host:{id}"))).collect()
}

fn empty(node: NodeId) -> std::result::Result<Heard, String> {
    let disk = format!("disk-{node}");
    Ok(Heard { node, disk, set: set(), formation: None, begun: false, used: BTreeSet::new(), complete: false })
}

fn formation_of(identity: &Identity) -> Formation {
    let member = |id: NodeId| {
        let disk = if id == identity.node { identity.data_dir.clone() } else { format!("disk-{id}") };
        (id, Member { addr: format!("host:{id}"), disk })
    };
    Formation { cluster: ClusterId::random(), members: BTreeMap::from([member(1), member(2), member(3)]) }
}

#[test]
fn the_lowest_begins_when_all_are_empty_and_agree() {
    let (_dir, one) = identity(1);
    let heard = BTreeMap::from([(2, empty(2)), (3, empty(3))]);
    let Step::Form(members) = decide(&one, &set(), &heard) else { panic!("it begins") };
    assert_eq!(members[&1].disk, one.data_dir);
    assert_eq!(members[&3], Member { addr: "host:3".into(), disk: "disk-3".into() });
    let (_dir, two) = identity(2);
    let heard = BTreeMap::from([(1, empty(1)), (3, empty(3))]);
    assert!(matches!(decide(&two, &set(), &heard), Step::Wait(why) if why.contains("node 1 begins")));
}

#[test]
fn nobody_begins_while_one_is_silent_is_another_or_lists_others() {
    let (_dir, one) = identity(1);
    let with = |third| decide(&one, &set(), &BTreeMap::from([(2, empty(2)), (3, third)]));
    let other_set = Heard { set: BTreeMap::from([(3, "host:3".into())]), ..empty(3).unwrap() };
    let same_disk = Heard { disk: "disk-2".into(), ..empty(3).unwrap() };
    for third in [Err("refused".into()), empty(4), Ok(other_set), Ok(same_disk)] {
        assert!(matches!(with(third.clone()), Step::Wait(_)), "{third:?}");
    }
    assert!(matches!(decide(&one, &set(), &BTreeMap::from([(2, empty(2))])), Step::Wait(_)));
}

#[test]
fn an_empty_node_that_meets_a_cluster_is_refused_even_when_another_peer_is_silent() {
    let (_dir, one) = identity(1);
    let (_other, before) = identity(1);
    let met = Heard { formation: Some(formation_of(&before)), ..empty(2).unwrap() };
    let heard = BTreeMap::from([(2, Ok(met.clone())), (3, Err("silent".into()))]);
    assert!(matches!(decide(&one, &set(), &heard), Step::Refused(why) if why.contains("new node id")));
    let mut strangers = formation_of(&one);
    strangers.members.remove(&1);
    let met = Heard { formation: Some(strangers), ..met };
    assert!(matches!(decide(&one, &set(), &BTreeMap::from([(2, Ok(met)), (3, empty(3))])), Step::Refused(_)));
}

#[test]
fn a_node_waits_for_its_turn_in_a_formation_that_knows_its_disk() {
    let (_dir, three) = identity(3);
    let promised = Heard { formation: Some(formation_of(&three)), ..empty(2).unwrap() };
    assert!(matches!(decide(&three, &set(), &BTreeMap::from([(1, empty(1)), (2, Ok(promised))])), Step::Wait(_)));
}

#[test]
fn a_directory_promises_itself_once() {
    let (dir, mut two) = identity(2);
    let formation = formation_of(&two);
    assert_eq!(may_promise(&two, &set(), 1, &formation), Ok(()));
    assert!(may_promise(&two, &set(), 3, &formation).is_err(), "only the lowest asks");
    let fewer: BTreeMap<_, _> = set().into_iter().take(2).collect();
    assert!(may_promise(&two, &fewer, 1, &formation).is_err(), "it names another set");
    let mut wiped = formation.clone();
    wiped.members.get_mut(&2).unwrap().disk = "another".into();
    assert!(may_promise(&two, &set(), 1, &wiped).is_err(), "it names another directory");

    two.promise(dir.path(), formation.clone()).unwrap();
    assert_eq!(may_promise(&two, &set(), 1, &formation), Ok(()), "a promise is repeated");
    let another = Formation { cluster: ClusterId::random(), ..formation };
    assert!(may_promise(&two, &set(), 1, &another).is_err());
}

#[test]
fn a_cluster_of_its_own_promises_itself_to_nobody() {
    let (dir, mut two) = identity(2);
    two.initialize(dir.path()).unwrap();
    assert!(may_promise(&two, &set(), 1, &formation_of(&two)).is_err());
}

/// What a member of a running cluster of 1, 2 and 3 says.
fn running(formation: &Formation) -> std::result::Result<Heard, String> {
    let used = BTreeSet::from([1, 2, 3]).into_iter().chain(formation.members.keys().copied()).collect();
    Ok(Heard { formation: Some(formation.clone()), begun: true, used, complete: true, ..empty(2).unwrap() })
}

#[test]
fn i7_an_empty_node_joins_only_as_the_directory_that_the_members_have() {
    let (dir, mut four) = identity(4);
    let (_other, one) = identity(1);
    let mut formation = formation_of(&one);
    let listed: BTreeMap<NodeId, String> = set().into_iter().chain([(4, "host:4".into())]).collect();
    let decided = |identity: &Identity, formation: &Formation| {
        decide(
            identity,
            &listed,
            &BTreeMap::from([(1, Err("silent".into())), (2, running(formation)), (3, Err("silent".into()))]),
        )
    };
    // Not announced: it waits, and says what takes it in.
    let Step::Wait(why) = decided(&four, &formation) else { panic!() };
    assert!(why.contains("cluster add 4=host:4"), "{why}");
    // Announced, as this directory.
    formation.members.insert(4, Member { addr: "host:4".into(), disk: four.data_dir.clone() });
    assert_eq!(decided(&four, &formation), Step::Join(formation.clone()));
    // Wiped meanwhile, or removed: never under this number again.
    let (_wiped, again) = identity(4);
    assert!(matches!(decided(&again, &formation), Step::Refused(why) if why.contains("new node id")));
    formation.members.remove(&4);
    let mut gone = running(&formation).unwrap();
    gone.used.insert(4);
    assert!(matches!(decide(&again, &listed, &BTreeMap::from([(2, Ok(gone))])), Step::Refused(_)));

    four.join(dir.path(), formation).unwrap();
    let read = Identity::open(dir.path(), 4, &[]).unwrap();
    assert!(read.joined && read.formation.is_some() && !read.initialized, "and it remembers that it never begins a log");
}

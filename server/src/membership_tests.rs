//! Which step comes next, as a table; and that the steps lead to the end from wherever they were broken off.

use std::time::Duration;

use super::*;

fn member(id: NodeId) -> Member {
    Member { addr: format!("host:{id}"), disk: format!("disk-{id}") }
}

fn view(voters: &[NodeId], learners: &[NodeId]) -> View {
    let all: BTreeSet<NodeId> = voters.iter().chain(learners).copied().collect();
    View {
        own: 1,
        cluster: cluster(1),
        members: Members {
            configs: vec![voters.iter().copied().collect()],
            nodes: all.iter().map(|id| (*id, member(*id))).collect(),
        },
        used: all.clone(),
        live: all.clone(),
        behind: all.iter().map(|id| (*id, 0)).collect(),
        ttl_min: Ttl::DEFAULT,
        ttl_of_several: Ttl::DEFAULT,
    }
}

fn cluster(n: u64) -> ClusterId {
    format!("eee00000-0000-4000-8000-{n:012x}").parse().unwrap()
}

fn newcomer(node: NodeId) -> Newcomer {
    let set = [1, node].map(|id| (id, format!("host:{id}"))).into();
    Newcomer { node, disk: format!("disk-{node}"), cluster: None, set, complete: false }
}

fn joined(node: NodeId) -> Newcomer {
    Newcomer { cluster: Some(cluster(1)), complete: true, ..newcomer(node) }
}

fn add(node: NodeId) -> Change {
    Change::Add { node, addr: format!("host:{node}") }
}

fn remove_it(node: NodeId) -> Change {
    Change::Remove { node }
}

fn refused(step: Step, code: Code, words: &str) {
    let Step::Refuse(refusal) = &step else { panic!("{step:?}") };
    assert!(refusal.code == code && refusal.message.contains(words), "{refusal:?}");
}

fn nobody() -> Said {
    Err("nobody was asked".into())
}

#[test]
fn a_new_node_learns_then_votes() {
    assert_eq!(next(&view(&[1, 2, 3], &[]), &add(4), &Ok(newcomer(4))), Step::AddLearner(member(4)));
    let learns = view(&[1, 2, 3], &[4]);
    let wait = |view: &View, said: Newcomer| assert!(matches!(next(view, &add(4), &Ok(said)), Step::Wait(_)));
    wait(&learns, newcomer(4));
    wait(&View { behind: BTreeMap::from([(4, BEHIND_MAX + 1)]), ..learns.clone() }, joined(4));
    wait(&View { behind: BTreeMap::new(), ..learns.clone() }, joined(4));
    wait(&learns, Newcomer { complete: false, ..joined(4) });
    assert_eq!(next(&learns, &add(4), &Ok(joined(4))), Step::Promote);
    assert!(matches!(next(&view(&[1, 2, 3, 4], &[]), &add(4), &Ok(joined(4))), Step::Done(_)));
}

#[test]
fn who_does_not_answer_is_waited_for_with_the_line_that_starts_it() {
    let Step::Wait(why) = next(&view(&[1, 2, 3], &[]), &add(4), &Err("refused".into())) else { panic!() };
    assert!(why.contains("--node-id 4") && why.contains("--peer 1=host:1 --peer 2=host:2"), "{why}");
}

#[test]
fn i7_a_number_that_was_used_is_never_given_again() {
    let mut view = view(&[1, 2], &[]);
    view.used = BTreeSet::from([1, 2, 3]);
    refused(next(&view, &add(3), &Ok(newcomer(3))), Code::Config, "take 4");
    assert!(matches!(next(&view, &remove_it(3), &nobody()), Step::Done(_)), "to remove it again is done already");
    refused(next(&view, &remove_it(9), &nobody()), Code::NotFound, "cluster status");
}

#[test]
fn i7_a_directory_that_is_not_the_members_never_votes_under_its_number() {
    let learns = view(&[1, 2, 3], &[4]);
    let wiped = Newcomer { disk: "another".into(), ..newcomer(4) };
    refused(next(&learns, &add(4), &Ok(wiped.clone())), Code::Config, "under a new one");
    let elsewhere = Change::Add { node: 3, addr: "new:3".into() };
    let wiped = Newcomer { node: 3, set: BTreeMap::from([(3, "new:3".into())]), ..wiped };
    refused(next(&learns, &elsewhere, &Ok(wiped)), Code::Config, "under a new one");
}

#[test]
fn a_stranger_and_a_wrong_address_are_refused() {
    let three = view(&[1, 2, 3], &[]);
    let stranger = Newcomer { cluster: Some(cluster(2)), ..newcomer(4) };
    refused(next(&three, &add(4), &Ok(stranger)), Code::Config, "belongs to cluster");
    refused(next(&three, &add(4), &Ok(newcomer(5))), Code::Config, "is node 5");
    let taken = Change::Add { node: 4, addr: "host:2".into() };
    refused(next(&three, &taken, &Ok(newcomer(4))), Code::Config, "node 2 is at");
    let elsewhere = Newcomer { set: BTreeMap::from([(1, "other:1".into()), (4, "host:4".into())]), ..newcomer(4) };
    refused(next(&three, &add(4), &Ok(elsewhere)), Code::Config, "cluster add 1=other:1");
    let itself = Newcomer { set: BTreeMap::from([(4, "inside:4".into())]), ..newcomer(4) };
    refused(next(&three, &add(4), &Ok(itself)), Code::Config, "--advertise");
    let full: Vec<NodeId> = (1..=MEMBERS_MAX as u64).collect();
    refused(next(&view(&full, &[]), &add(99), &Ok(newcomer(99))), Code::Limit, "remove one first");
}

#[test]
fn a_member_is_moved_by_its_directory() {
    let elsewhere = Change::Add { node: 3, addr: "new:3".into() };
    let said = Newcomer { set: BTreeMap::from([(3, "new:3".into())]), ..joined(3) };
    let step = next(&view(&[1, 2, 3], &[]), &elsewhere, &Ok(said));
    assert_eq!(step, Step::Move(Member { addr: "new:3".into(), disk: "disk-3".into() }));
    // A single node of an early version, whose directory is not in the log.
    let mut early = view(&[1], &[]);
    early.members.nodes.insert(1, Member { addr: "host:0".into(), disk: String::new() });
    assert_eq!(next(&early, &add(1), &Ok(joined(1))), Step::Move(member(1)));
}

#[test]
fn i3_times_to_live_are_raised_before_a_second_node_votes() {
    let long = Ttl::new(Duration::from_secs(60));
    let learns = View { ttl_of_several: long, ..view(&[1], &[2]) };
    assert_eq!(next(&learns, &add(2), &Ok(joined(2))), Step::RaiseTtl(long));
    assert_eq!(next(&View { ttl_min: long, ..learns }, &add(2), &Ok(joined(2))), Step::Promote);
}

#[test]
fn no_step_leaves_voters_without_an_answering_majority() {
    let silent = |ids: &[NodeId]| {
        let mut three = view(&[1, 2, 3], &[4]);
        three.live.retain(|id| !ids.contains(id));
        three
    };
    refused(next(&silent(&[2]), &remove_it(3), &nobody()), Code::Unreachable, "only 1 answer (not 2)");
    assert_eq!(next(&silent(&[3]), &remove_it(3), &nobody()), Step::Drop, "the silent one itself can go");
    assert_eq!(next(&silent(&[3]), &add(4), &Ok(joined(4))), Step::Promote);
    refused(next(&view(&[1], &[]), &remove_it(1), &nobody()), Code::Config, "only one that votes");
    assert_eq!(next(&view(&[1, 2, 3], &[]), &remove_it(1), &nobody()), Step::HandOver, "the leader goes last of all");
    assert_eq!(next(&silent(&[2, 3]), &remove_it(4), &nobody()), Step::Drop, "who does not vote is no loss");
}

#[test]
fn what_was_left_half_done_is_finished_before_anything_else() {
    let mut half = view(&[1, 2, 3], &[]);
    half.members.configs.push(BTreeSet::from([1, 2]));
    for change in [remove_it(3), add(4), add(1)] {
        assert_eq!(next(&half, &change, &nobody()), Step::Finish);
    }
}

//! A backup in another cluster, and a tree lifted above what the storage has seen.

use treelease_proto::backup::{About, pieces, seal};

use super::super::restore::LIFT;
use super::*;

/// The file of this state.
fn backup_of(world: &World) -> String {
    let cluster = world.state.cluster().unwrap().clone();
    let about = About {
        cluster,
        revision: world.state.revision(),
        at: WallTime::UNKNOWN,
        trees: world.state.trees().count() as u64,
        history: None,
        version: "test".into(),
    };
    seal(&about, &serde_json::to_string(&world.state).unwrap())
}

/// Founded as another cluster, and empty.
pub(super) fn other_cluster(n: u64) -> World {
    let mut world = World::empty();
    let found = Command::Found { cluster: cluster_id(n), ttl_min: Ttl::MIN, ttl_max: Ttl::new(Duration::from_secs(30)) };
    assert_eq!(world.run(found), Answer::Done);
    assert_eq!(world.run(Command::Lead { node: NODE }), Answer::Done);
    world
}

pub(super) fn upload(world: &mut World, text: &str) -> Answer {
    let pieces = pieces(text);
    let count = pieces.len() as u32;
    let mut last = Answer::Done;
    for (index, piece) in pieces.into_iter().enumerate() {
        let piece = RestorePiece { id: key(7), index: index as u32, count, text: piece.to_owned() };
        last = world.run(Command::RestorePiece(piece));
    }
    last
}

/// The mode may have changed in the old cluster after the backup: what a side confirmed is no confirmation here.
#[test]
fn after_a_restore_every_side_confirms_enforce_anew() {
    let mut old = World::new();
    let side = old.open("workstation", 1);
    assert_eq!(old.run(Command::Obeys { tree: tree_id(1), session: side, mode_no: 0 }), Answer::Done);
    assert_eq!(old.status().not_enforced_by().count(), 0);
    let mut new = other_cluster(2);
    assert_eq!(upload(&mut new, &backup_of(&old)), Answer::Done);
    let missing: Vec<String> = new.status().not_enforced_by().map(ToString::to_string).collect();
    assert_eq!(missing, ["workstation"]);
}

#[test]
fn i2_after_a_restore_no_agent_is_run_against_the_side_of_before_since_others_may_have_held_it_since() {
    let mut old = World::new();
    assert_eq!(old.set("fence", "exec:nas"), Answer::Done);
    let holder = old.open("workstation", 1);
    old.granted(&holder);
    let text = backup_of(&old);
    let mut new = other_cluster(2);
    assert_eq!(upload(&mut new, &text), Answer::Done);
    let waiter = new.open("pod", 2);
    new.queued(&waiter);
    let epoch = new.status().epoch.get();
    new.end_grace(epoch);
    assert_eq!(new.stands(), StateName::Fencing);
    assert!(new.state.fences_due(new.leadership()).is_empty());
    assert!(new.status().why.contains("whom to fence is not known"), "{}", new.status().why);
    assert_eq!(new.confirm(epoch), Answer::Done);
    assert_eq!(new.holder(), Some(waiter));
}

#[test]
fn i1_after_a_restore_every_epoch_is_above_all_that_was_granted_and_the_waits_are_the_longest() {
    let mut old = World::new();
    let holder = old.open("workstation", 1);
    let lease = old.granted(&holder);
    old.release(&lease);
    let lease = old.granted(&holder);
    let text = backup_of(&old);
    // Since the backup.
    for _ in 0..5 {
        let current = LeaseRef { epoch: old.status().epoch, ..lease.clone() };
        old.release(&current);
        old.granted(&holder);
    }
    let granted = old.status().epoch;

    let mut new = other_cluster(2);
    assert_eq!(upload(&mut new, &text), Answer::Done);
    assert_eq!(new.kinds(), [EventKind::Restored, EventKind::Cooling]);
    let status = new.status();
    assert_eq!((status.state, status.epoch.get()), (StateName::Cooling, lease.epoch.get() + LIFT));
    assert_eq!(status.ended_side, Some(side("workstation")), "who had it, as far as is known");
    assert_eq!(new.length(), Duration::from_secs(60) + GRACE, "the largest TTL of either cluster");
    assert_eq!(new.state.cluster(), Some(&cluster_id(2)));
    assert_eq!(new.state.predecessors(), [cluster_id(1)]);
    assert!(new.state.sessions().next().is_none(), "no session lives");

    let waiter = new.open("pod", 2);
    assert_eq!(new.queued(&waiter), 1);
    let epoch = new.status().epoch.get();
    assert_eq!(new.end_grace(epoch), Answer::Done);
    assert_eq!(new.stands(), StateName::Fencing, "nobody knows what was unconfirmed");
    assert_eq!(new.confirm(epoch), Answer::Done);
    assert_eq!(new.holder(), Some(waiter));
    assert!(new.status().epoch > granted && new.status().run_start.0 == new.status().epoch);
}

#[test]
fn i2_the_old_holder_has_no_way_back_by_its_kernel() {
    let mut old = World::new();
    let holder = old.open("workstation", 1);
    old.granted(&holder);
    let text = backup_of(&old);
    let mut new = other_cluster(2);
    assert_eq!(upload(&mut new, &text), Answer::Done);
    let again = new.open("workstation", 1);
    assert_eq!(new.queued(&again), 1);
}

#[test]
fn the_history_goes_on_and_its_revisions_grow() {
    let mut old = World::new();
    let holder = old.open("workstation", 1);
    old.granted(&holder);
    let before = old.state.history(&tree_id(1), 0);
    let mut new = other_cluster(2);
    assert_eq!(upload(&mut new, &backup_of(&old)), Answer::Done);
    let after = new.state.history(&tree_id(1), 0);
    assert_eq!(after[..before.len()], before);
    assert!(after.windows(2).all(|pair| pair[0].revision < pair[1].revision));
    assert!(after.last().unwrap().reason.contains(cluster_id(1).as_str()));
}

#[test]
fn a_cluster_with_a_tree_takes_no_backup_and_neither_does_the_one_whose_it_is() {
    let text = backup_of(&World::new());
    let mut full = other_cluster(2);
    full.add_tree(9, "docs");
    assert_eq!(code(upload(&mut full, &text)), Code::CannotCreate);
    let mut same = other_cluster(1);
    assert_eq!(code(upload(&mut same, &text)), Code::Config);
}

#[test]
fn an_altered_a_cut_and_a_mixed_backup_change_nothing() {
    let mut old = World::new();
    for n in 2..400 {
        old.add_tree(n, &format!("tree-{n}"));
    }
    let text = backup_of(&old);
    assert!(pieces(&text).len() > 3);
    let mut new = other_cluster(2);
    assert_eq!(code(upload(&mut new, &text.replacen("tree-7", "tree-8", 1))), Code::Storage);
    assert_eq!(code(upload(&mut new, &text[..text.len() - 5])), Code::Storage);
    assert!(new.state.trees().next().is_none() && new.state.predecessors().is_empty());
    // A piece of another upload, or one left out.
    let piece = |id, index| {
        let text = pieces(&text)[index as usize].to_owned();
        Command::RestorePiece(RestorePiece { id: key(id), index, count: 9, text })
    };
    assert_eq!(new.run(piece(1, 0)), Answer::Done);
    assert_eq!(code(new.run(piece(2, 1))), Code::Busy);
    assert_eq!(code(new.run(piece(1, 2))), Code::Busy);
    assert_eq!(new.run(piece(1, 1)), Answer::Done);
    // And after all that, the whole one.
    assert_eq!(upload(&mut new, &text), Answer::Done);
    assert_eq!(new.state.trees().count(), old.state.trees().count());
}

#[test]
fn a_restore_that_was_left_is_forgotten_with_all_that_came_of_it() {
    let mut new = other_cluster(2);
    let before = new.state.clone();
    let piece = |index| Command::RestorePiece(RestorePiece { id: key(1), index, count: 3, text: "x".repeat(1 << 15) });
    let end = |world: &World, next| Command::EndRestore { id: key(1), next, decided_under: world.leadership() };
    assert_eq!(new.run(piece(0)), Answer::Done);
    let early = Command::EndRestore { id: key(1), next: 1, decided_under: Leadership(0) };
    assert!(ignored(&new.run(early)), "it was decided under another leadership");
    assert_eq!(new.run(piece(1)), Answer::Done);
    let late = end(&new, 1);
    assert!(ignored(&new.run(late)), "the piece came after all");
    let now = end(&new, 2);
    assert_eq!(new.run(now), Answer::Done);
    assert_eq!(new.state.restoring(), None);
    let size = |state: &State| serde_json::to_string(state).unwrap().len();
    assert!(size(&new.state) < size(&before) + (1 << 15), "no piece of it is in a snapshot");
    assert_eq!(code(new.run(piece(2))), Code::Busy);
}

#[test]
fn remembered_kernels_of_both_clusters_have_one_limit() {
    let copies = |world: &mut World, kind: &str| {
        for n in 0..crate::lease::COPIED_MAX as u64 {
            let open = OpenSession { boot: format!("{kind}-{n}"), ..open_of("a", session_id(100 + n)) };
            world.run(Command::OpenSession(open));
            assert_eq!(world.run(Command::EndCopied { session: session_id(100 + n), incarnation: 1 }), Answer::Done);
        }
    };
    let (mut old, mut new) = (World::new(), other_cluster(2));
    copies(&mut old, "old");
    copies(&mut new, "new");
    assert_eq!(upload(&mut new, &backup_of(&old)), Answer::Done);
    assert_eq!(new.state.copied_boots.len(), crate::lease::COPIED_MAX);
    copies(&mut new, "later");
    assert_eq!(new.state.copied_boots.len(), crate::lease::COPIED_MAX);
}

#[test]
fn a_restored_cluster_can_be_restored_again_and_names_all_that_came_before() {
    let mut second = other_cluster(2);
    assert_eq!(upload(&mut second, &backup_of(&World::new())), Answer::Done);
    let mut third = other_cluster(3);
    assert_eq!(upload(&mut third, &backup_of(&second)), Answer::Done);
    assert_eq!(third.state.predecessors(), [cluster_id(1), cluster_id(2)]);
    assert_eq!(third.status().epoch.get(), 2 * LIFT);
}

fn raise(above: u64) -> Command {
    Command::RaiseEpoch { tree: tree_id(1), above: Epoch::from_raw(above), reason: "an old disk".into() }
}

#[test]
fn i1_a_raised_tree_waits_as_after_a_restore_and_goes_on_above() {
    let mut world = World::new();
    let holder = world.open("workstation", 1);
    let lease = world.granted(&holder);
    assert_eq!(code(world.run(raise(40))), Code::Held);
    world.release(&lease);
    assert_eq!(code(world.run(raise(lease.epoch.get()))), Code::EpochMoved);
    assert_eq!(world.run(raise(40)), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Raised, EventKind::Cooling]);
    assert!(world.events[0].reason.contains("an old disk"));
    assert_eq!((world.stands(), world.length()), (StateName::Cooling, Duration::from_secs(60) + GRACE));
    assert_eq!(world.queued(&holder), 1);
    // Found to be still too low.
    assert_eq!(world.run(raise(50)), Answer::Done);
    assert!(ignored(&world.end_grace(40)));
    assert_eq!(world.end_grace(50), Answer::Done);
    assert_eq!(world.confirm(50), Answer::Done);
    assert_eq!((world.holder(), world.status().epoch.get()), (Some(holder), 51));
}

#[test]
fn a_number_that_no_counter_reaches_is_not_believed() {
    let mut world = World::new();
    assert_eq!(code(world.run(raise(u64::MAX))), Code::Config);
}

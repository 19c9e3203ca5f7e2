//! That this side obeys a changed mode is told once it is so.

use treelease_client::words::policy::Mode;
use treelease_client::words::tree::GuardOf;

use super::*;

fn status(w: &World, mode: Mode, mode_no: u64, obeys: Option<bool>) -> TreeStatus {
    let guards = obeys.map(|obeys| GuardOf { side: w.tree.me.clone(), obeys }).into_iter().collect();
    TreeStatus { policy: Policy { mode, ..Policy::default() }, mode_no, guards, ..w.status(0, None, &[]) }
}

fn told(w: &mut World, status: TreeStatus) -> Vec<Effect> {
    let me = w.me.clone();
    w.tree.handle_table(status, Some(&me), at(1));
    let mut effects: Vec<Effect> = std::iter::from_fn(|| w.tree.poll_effect()).collect();
    effects.retain(|effect| matches!(effect, Effect::Publish | Effect::SettleMode(_) | Effect::TellObeys(_)));
    effects
}

#[test]
fn a_mount_is_told_to_the_servers_in_every_mode_and_again_when_it_did_not_get_there() {
    let mut w = World::new();
    w.tree.mounted = true;
    let first = status(&w, Mode::Observe, 3, None);
    assert_eq!(told(&mut w, first.clone()).last(), Some(&Effect::TellObeys(3)));
    assert!(!told(&mut w, first.clone()).contains(&Effect::TellObeys(3)), "it is on its way");
    w.tree.handle_obeys_answer(3, false);
    assert!(told(&mut w, first).contains(&Effect::TellObeys(3)), "it was lost");
    w.tree.handle_obeys_answer(3, true);
    let known = status(&w, Mode::Observe, 3, Some(true));
    assert!(!told(&mut w, known).contains(&Effect::TellObeys(3)));
}

#[test]
fn that_enforce_is_obeyed_is_told_after_its_standing_and_after_what_observe_let_through_is_on_the_storage() {
    let mut w = World::new();
    w.tree.mounted = true;
    let observed = status(&w, Mode::Observe, 1, Some(true));
    told(&mut w, observed);
    let enforced = status(&w, Mode::Enforce, 2, Some(false));
    let effects = told(&mut w, enforced.clone());
    let settles = effects.iter().position(|e| *e == Effect::SettleMode(2)).expect("first what is in flight");
    assert!(effects[..settles].contains(&Effect::Publish), "{effects:?}");
    assert!(!effects.contains(&Effect::TellObeys(2)), "{effects:?}");
    w.tree.handle_mode_settled(2, false);
    assert_eq!(w.effects(), vec![], "the storage does not answer: nothing is told");
    assert!(told(&mut w, enforced.clone()).contains(&Effect::SettleMode(2)), "and it is tried again");
    w.tree.handle_mode_settled(1, true);
    assert_eq!(w.effects(), vec![], "an answer to an earlier change");
    w.tree.handle_mode_settled(2, true);
    assert_eq!(w.effects(), vec![Effect::TellObeys(2)]);
    w.tree.handle_obeys_answer(2, true);
    // Taken for good: the next change of anything else asks the storage nothing.
    assert!(!told(&mut w, enforced).contains(&Effect::SettleMode(2)));
}

#[test]
fn a_mode_that_changes_meanwhile_is_confirmed_for_itself() {
    let mut w = World::new();
    w.tree.mounted = true;
    let observed = status(&w, Mode::Observe, 1, None);
    assert!(told(&mut w, observed).contains(&Effect::TellObeys(1)));
    let enforced = status(&w, Mode::Enforce, 2, Some(false));
    assert!(told(&mut w, enforced).contains(&Effect::SettleMode(2)));
    w.tree.handle_obeys_answer(1, true);
    w.tree.handle_mode_settled(2, true);
    assert_eq!(w.effects(), vec![Effect::TellObeys(2)]);
}

#[test]
fn a_mount_that_began_under_observe_settles_before_it_confirms_though_no_table_was_read_in_between() {
    let mut w = World::new();
    w.tree.mounted = false;
    let observed = status(&w, Mode::Observe, 1, None);
    told(&mut w, observed);
    w.tree.handle_mounted(at(1));
    let enforced = status(&w, Mode::Enforce, 2, Some(false));
    let effects = told(&mut w, enforced);
    assert!(effects.contains(&Effect::SettleMode(2)) && !effects.contains(&Effect::TellObeys(2)), "{effects:?}");
}

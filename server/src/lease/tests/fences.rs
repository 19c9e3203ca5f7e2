//! Fence agents: an attempt counts once, under its number and its leadership; whom it has shut out gets nothing until he is let in.

use super::*;

const DEADLINE: u64 = 30_000;

/// `a` held it active and expired, its grace is over, `b` waits, and the policy names the agent `nas`.
fn fencing() -> (World, SessionId) {
    fencing_on("")
}

/// The same, `a` on that machine, in the boot `boot-a`; a restart of it is enough to be let in.
fn fencing_on(machine: &str) -> (World, SessionId) {
    let mut world = World::new();
    assert_eq!(world.set("fence", "exec:nas"), Answer::Done);
    assert_eq!(world.set("unfence", "restart"), Answer::Done);
    let a = boots(&mut world, 1, machine, "boot-a");
    let b = world.open("b", 2);
    world.granted(&a);
    world.queued(&b);
    world.expire(&a);
    world.end_grace(1);
    assert_eq!(world.stands(), StateName::Fencing);
    assert!(world.status().why.contains("agent `nas`"), "{}", world.status().why);
    (world, b)
}

/// `a` opens a session there.
fn boots(world: &mut World, session: u64, machine: &str, boot: &str) -> SessionId {
    let open = OpenSession { machine: machine.into(), boot: boot.into(), ..open_of("a", session_id(session)) };
    assert!(matches!(world.run(Command::OpenSession(open)), Answer::Opened { .. }));
    session_id(session)
}

/// `a`, on that machine, was fenced, and the tree is free again.
fn shut_out(machine: &str, policy: &str) -> World {
    let (mut world, b) = fencing_on(machine);
    assert_eq!(world.set("unfence", policy), Answer::Done);
    begin(&mut world, 1, Verb::Fence);
    assert_eq!(end(&mut world, 1, Outcome::Succeeded), Answer::Done);
    let lease = LeaseRef { tree: tree_id(1), session: b, epoch: Epoch::from_raw(2) };
    assert_eq!(world.release(&lease), Answer::Done);
    world
}

/// What `a` is told that does not wait.
fn turned_away(world: &mut World, a: &SessionId) -> String {
    refusal(world.run(Command::Acquire(Acquire { no_wait: true, ..acquire_of(&tree_id(1), a) }))).message
}

fn of(number: u32) -> AttemptRef {
    AttemptRef { tree: tree_id(1), side: side("a"), epoch: Epoch::from_raw(1), number }
}

fn begin(world: &mut World, number: u32, verb: Verb) -> Answer {
    let decided_under = world.leadership();
    let agent = "nas".to_owned();
    world.run(Command::FenceAttempt { attempt: of(number), verb, agent, deadline_ms: DEADLINE, decided_under })
}

fn end(world: &mut World, number: u32, outcome: Outcome) -> Answer {
    let decided_under = world.leadership();
    end_under(world, number, outcome, decided_under)
}

fn end_under(world: &mut World, number: u32, outcome: Outcome, decided_under: Leadership) -> Answer {
    world.run(Command::FenceResult { attempt: of(number), outcome, detail: "so it said".into(), decided_under })
}

fn stands(world: &mut World, number: u32) -> bool {
    let answer = world.run(Command::FenceStands { attempt: of(number) });
    assert!(answer == Answer::Done || ignored(&answer), "{answer:?}");
    answer == Answer::Done
}

fn lapse(world: &mut World, number: u32) -> Answer {
    let decided_under = world.leadership();
    world.run(Command::FenceLapsed { attempt: of(number), decided_under })
}

fn unfence(world: &mut World, by_hand: bool) -> Answer {
    let reason = "it was switched off and on".into();
    world.run(Command::Unfence { tree: tree_id(1), side: side("a"), epoch: Epoch::from_raw(1), reason, by_hand })
}

fn due(world: &World) -> Vec<(u32, Verb, u32)> {
    let due = world.state.fences_due(world.leadership());
    due.iter().map(|due| (due.attempt.number, due.verb, due.failures)).collect()
}

/// Another leader.
fn lead(world: &mut World) -> Leadership {
    let before = world.leadership();
    world.run(Command::Lead { node: NODE + 1 });
    before
}

#[test]
fn i2_an_agents_success_ends_the_fence_and_the_first_waiter_is_granted() {
    let (mut world, b) = fencing();
    assert_eq!(due(&world), [(1, Verb::Fence, 0)]);
    assert_eq!(world.state.fences_due(world.leadership())[0].host, "a-host");
    assert_eq!(begin(&mut world, 1, Verb::Fence), Answer::Done);
    assert_eq!(world.stands(), StateName::Fencing, "to have begun is not to have succeeded");
    assert_eq!(due(&world), [], "one at a time");
    assert_eq!(end(&mut world, 1, Outcome::Succeeded), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Fenced, EventKind::Granted]);
    assert!(world.events[0].reason.contains("so it said"), "{}", world.events[0].reason);
    assert_eq!((world.holder(), world.events[1].end), (Some(b), End::Unclean));
}

#[test]
fn i2_what_does_not_succeed_ends_nothing_and_is_tried_again_under_the_next_number() {
    let (mut world, _) = fencing();
    for (number, outcome) in [(1, Outcome::Failed), (2, Outcome::Untouched), (3, Outcome::Failed)] {
        assert_eq!(due(&world), [(number, Verb::Fence, number - 1)]);
        begin(&mut world, number, Verb::Fence);
        assert_eq!(world.status().attempt, number);
        assert_eq!(end(&mut world, number, outcome), Answer::Done);
        assert_eq!((world.kinds(), world.stands()), (vec![EventKind::Fencing], StateName::Fencing));
        assert!(ignored(&end(&mut world, number, Outcome::Succeeded)), "it has ended already");
    }
    begin(&mut world, 4, Verb::Fence);
    assert!(ignored(&end(&mut world, 3, Outcome::Succeeded)), "of an earlier attempt");
    assert_eq!(end(&mut world, 4, Outcome::Succeeded), Answer::Done);
    assert_eq!(world.stands(), StateName::Held);
}

#[test]
fn i2_an_attempt_that_is_not_due_does_not_begin() {
    let (mut world, b) = fencing();
    for number in [0, 2] {
        assert!(ignored(&begin(&mut world, number, Verb::Fence)), "{number}");
    }
    assert!(ignored(&begin(&mut world, 1, Verb::Unfence)));
    let decided_under = world.leadership();
    let other =
        Command::FenceAttempt { attempt: of(1), verb: Verb::Fence, agent: "other".into(), deadline_ms: DEADLINE, decided_under };
    assert!(ignored(&world.run(other)), "the policy names another agent");
    world.set("fence", "manual");
    assert!(due(&world).is_empty() && ignored(&begin(&mut world, 1, Verb::Fence)), "a person is to vouch");
    world.set("fence", "exec:nas");
    world.run(Command::Cancel { tree: tree_id(1), session: b });
    assert_eq!(due(&world), [], "whom nobody else waits for may come back by himself");
}

#[test]
fn i2_what_an_earlier_leaders_agent_says_changes_nothing_and_the_next_leader_does_it_anew() {
    let (mut world, b) = fencing();
    begin(&mut world, 1, Verb::Fence);
    assert!(stands(&mut world, 1));
    let before = lead(&mut world);
    assert!(!stands(&mut world, 1), "its result would not count any more, so it is to do nothing");
    assert!(ignored(&end_under(&mut world, 1, Outcome::Succeeded, before)));
    assert!(ignored(&end(&mut world, 1, Outcome::Succeeded)), "nor under the present leadership, which did not run it");
    assert_eq!(due(&world), [(2, Verb::Fence, 0)]);
    begin(&mut world, 2, Verb::Fence);
    assert!(stands(&mut world, 2) && !stands(&mut world, 1));
    assert!(ignored(&end_under(&mut world, 1, Outcome::Succeeded, before)));
    assert_eq!(world.stands(), StateName::Fencing);
    assert_eq!(end(&mut world, 2, Outcome::Succeeded), Answer::Done);
    assert_eq!(world.holder(), Some(b));
}

#[test]
fn an_attempt_stands_until_a_person_has_vouched() {
    let (mut world, b) = fencing();
    assert!(!stands(&mut world, 1), "it has not begun");
    begin(&mut world, 1, Verb::Fence);
    assert!(stands(&mut world, 1));
    world.confirm(1);
    assert_eq!(world.holder(), Some(b));
    assert!(!stands(&mut world, 1));
    // The agent did not ask, or too early: so be it, and it is not forgotten.
    assert_eq!(end(&mut world, 1, Outcome::Succeeded), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Fencing], "it vouches for nothing any more");
    assert_eq!(world.status().fenced.len(), 1);
}

#[test]
fn i2_a_side_gets_nothing_while_an_attempt_against_it_may_still_act() {
    let (mut world, b) = fencing();
    begin(&mut world, 1, Verb::Fence);
    let before = lead(&mut world);
    let a = world.open("a", 3);
    // On its own kernel it would be back at once.
    let place = kernel(session_id(1).as_str());
    let back = world.run(Command::Acquire(Acquire { place, no_wait: true, ..acquire_of(&tree_id(1), &a) }));
    assert_eq!(code(back), Code::Held);
    world.confirm(1);
    let lease = LeaseRef { tree: tree_id(1), session: b, epoch: Epoch::from_raw(2) };
    let to_a = Command::Release(Release { to: Some(side("a")), ..release_of(&lease) });
    assert_eq!(code(world.run(to_a)), Code::Busy);
    world.release(&lease);
    world.queued(&a);
    assert_eq!(world.stands(), StateName::Free, "it waits, and is passed over");
    assert_eq!(code(unfence(&mut world, true)), Code::Busy, "the agent could shut it out after that");
    // Nobody tells the end: its deadline has to pass, says the present leader.
    assert!(ignored(&world.run(Command::FenceLapsed { attempt: of(1), decided_under: before })));
    assert_eq!(lapse(&mut world, 1), Answer::Done);
    assert!(ignored(&lapse(&mut world, 1)));
    assert_eq!(world.stands(), StateName::Free, "what it has done is not known");
    assert_eq!(unfence(&mut world, true), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Unfenced, EventKind::Granted]);
    assert_eq!(world.holder(), Some(a));
}

#[test]
fn an_attempt_of_the_present_leader_does_not_lapse() {
    let (mut world, _) = fencing();
    begin(&mut world, 1, Verb::Fence);
    assert!(ignored(&lapse(&mut world, 1)), "it tells the end itself");
}

#[test]
fn i2_a_fenced_side_gets_nothing_until_its_agent_has_unfenced_it_and_that_waits_for_a_persons_word() {
    let (mut world, b) = fencing();
    begin(&mut world, 1, Verb::Fence);
    assert_eq!(code(unfence(&mut world, false)), Code::Busy, "first the fence has to end");
    end(&mut world, 1, Outcome::Succeeded);
    let shown = world.status().fenced.remove(0);
    assert_eq!((shown.side, shown.epoch.get(), shown.agent.as_str()), (side("a"), 1, "nas"));
    assert!(!shown.acting && !shown.unfencing);
    let a = world.open("a", 3);
    world.queued(&a);
    world.release(&LeaseRef { tree: tree_id(1), session: b, epoch: Epoch::from_raw(2) });
    assert_eq!((world.stands(), due(&world)), (StateName::Free, vec![]));
    let refused = refusal(world.run(Command::Acquire(Acquire { no_wait: true, ..acquire_of(&tree_id(1), &a) })));
    assert!(refused.message.contains("treelease fence unfence dev a"), "{refused}");

    assert_eq!(unfence(&mut world, false), Answer::Done);
    assert_eq!(due(&world), [(2, Verb::Unfence, 0)]);
    begin(&mut world, 2, Verb::Unfence);
    assert!(stands(&mut world, 2));
    end(&mut world, 2, Outcome::Failed);
    assert_eq!((world.stands(), due(&world)), (StateName::Free, vec![(3, Verb::Unfence, 1)]));
    begin(&mut world, 3, Verb::Unfence);
    assert_eq!(end(&mut world, 3, Outcome::Succeeded), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Unfenced, EventKind::Granted]);
    assert_eq!((world.holder(), world.status().fenced), (Some(a), vec![]));
}

#[test]
fn whom_an_agent_certainly_did_nothing_to_needs_nobody_to_let_him_in() {
    let (mut world, b) = fencing();
    begin(&mut world, 1, Verb::Fence);
    end(&mut world, 1, Outcome::Untouched);
    assert_eq!(world.status().fenced, []);
    let a = world.open("a", 3);
    world.queued(&a);
    world.confirm(1);
    world.release(&LeaseRef { tree: tree_id(1), session: b, epoch: Epoch::from_raw(2) });
    assert_eq!(world.holder(), Some(a));
    // A later lease is another story, with numbers of its own.
    world.expire(&session_id(3));
    let c = world.open("c", 4);
    world.queued(&c);
    world.end_grace(3);
    let next = world.state.fences_due(world.leadership()).remove(0);
    assert_eq!((next.attempt.epoch.get(), next.attempt.number, next.failures), (3, 1, 0));
}

#[test]
fn an_unfence_names_the_epoch_that_a_person_looked_at() {
    let (mut world, _) = fencing();
    assert_eq!(code(unfence(&mut world, false)), Code::NotFound, "it is not fenced yet");
    begin(&mut world, 1, Verb::Fence);
    end(&mut world, 1, Outcome::Succeeded);
    let epoch = Epoch::from_raw(2);
    let wrong = Command::Unfence { tree: tree_id(1), side: side("a"), epoch, reason: "x".into(), by_hand: true };
    assert_eq!(code(world.run(wrong)), Code::EpochMoved);
}

#[test]
fn whom_nobody_knows_is_not_fenced_by_an_agent() {
    let mut world = World::new();
    let takeover = Command::Takeover {
        name: "old".parse().unwrap(),
        tree: tree_id(2),
        root: root(2),
        reason: "the other server is gone".into(),
        from_cluster: cluster_id(9).to_string(),
        above: Epoch::from_raw(4),
    };
    world.run(takeover);
    world.run(Command::SetPolicy { tree: tree_id(2), policy: pairs(&[("fence", "exec:nas")]) });
    let b = world.open("b", 2);
    world.run(Command::Acquire(acquire_of(&tree_id(2), &b)));
    let decided_under = world.leadership();
    world.run(Command::EndGrace { tree: tree_id(2), epoch: Epoch::from_raw(4), decided_under });
    assert_eq!(due(&world), []);
    let why = world.state.tree_status(&tree_id(2)).unwrap().why;
    assert!(why.contains("whom to fence is not known"), "{why}");
}

#[test]
fn attempts_of_lost_leaders_are_counted_and_too_many_wait() {
    let (mut world, _) = fencing();
    for number in 1..=crate::lease::OPEN_MAX as u32 {
        assert_eq!(begin(&mut world, number, Verb::Fence), Answer::Done);
        lead(&mut world);
    }
    assert_eq!((due(&world), world.state.fences_open().len()), (vec![], crate::lease::OPEN_MAX));
    lapse(&mut world, 1);
    assert_eq!(due(&world), [(crate::lease::OPEN_MAX as u32 + 1, Verb::Fence, 0)]);
}

#[test]
fn the_end_of_an_agent_is_told_with_its_last_words() {
    let (mut world, _) = fencing();
    begin(&mut world, 1, Verb::Fence);
    assert!(world.events[0].reason.contains("the agent `nas` fences a, within 30s"), "{}", world.events[0].reason);
    end(&mut world, 1, Outcome::Failed);
    let told = &world.events[0];
    assert_eq!((told.kind, told.side.as_ref(), told.epoch.get()), (EventKind::Fencing, Some(&side("a")), 1));
    assert!(told.reason.contains("attempt 1: the agent `nas` failed") && told.reason.ends_with("so it said"), "{}", told.reason);
    let why = world.status().why;
    assert!(why.contains("failed") && why.contains("fence confirm dev --epoch 1"), "{why}");
}

#[test]
fn a_trial_changes_nothing_but_the_history_and_there_is_one_at_a_time() {
    let mut world = World::new();
    let test = |world: &mut World| world.run(Command::FenceTest { tree: tree_id(1), side: side("a") });
    assert!(refusal(test(&mut world)).message.contains("fence=manual"));
    world.set("fence", "exec:nas");
    assert_eq!(world.state.trials(), []);
    assert_eq!(test(&mut world), Answer::Done);
    assert_eq!(code(test(&mut world)), Code::Busy);
    let due = world.state.trials().remove(0);
    assert_eq!((due.agent.as_str(), &due.side, due.name.as_str()), ("nas", &side("a"), "dev"));
    let a = world.open("a", 1);
    let lease = world.granted(&a);
    let before = world.leadership();
    let end = |world: &mut World, number, decided_under| {
        let (outcome, detail) = (Outcome::Succeeded, "it answers".into());
        world.run(Command::FenceTested { tree: tree_id(1), number, outcome, detail, decided_under })
    };
    assert!(ignored(&end(&mut world, due.number + 1, before)));
    lead(&mut world);
    assert!(ignored(&end(&mut world, due.number, before)), "the next leader runs it again");
    let under = world.leadership();
    assert_eq!(end(&mut world, due.number, under), Answer::Done);
    assert!(world.events[0].reason.contains("test: the agent succeeded: it answers"));
    assert_eq!((world.state.trials(), world.status().fenced), (vec![], vec![]));
    assert_eq!(world.release(&lease), Answer::Done);
}

#[test]
fn i2_a_fenced_side_whose_machine_was_restarted_is_let_in_without_a_persons_word_and_no_other_one() {
    let (mut world, _) = fencing_on("m");
    begin(&mut world, 1, Verb::Fence);
    assert_eq!(end(&mut world, 1, Outcome::Succeeded), Answer::Done);
    // The kernel that wrote, another machine, one that is not known, and a kernel of which there is a copy.
    world.run(Command::OpenSession(OpenSession { boot: "copied".into(), ..open_of("c", session_id(3)) }));
    world.run(Command::EndCopied { session: session_id(3), incarnation: 1 });
    for (n, (machine, boot)) in
        [("m", "boot-a"), ("n", "later"), ("", "later"), ("m", ""), ("m", "copied")].into_iter().enumerate()
    {
        let session = boots(&mut world, 10 + n as u64, machine, boot);
        assert_eq!((world.kinds(), due(&world)), (vec![], vec![]), "{machine} {boot}");
        let refused = refusal(world.run(Command::Acquire(Acquire { no_wait: true, ..acquire_of(&tree_id(1), &session) })));
        assert_eq!(refused.code, Code::Held);
        world.run(Command::CloseSession { session });
    }
    let a = boots(&mut world, 20, "m", "later");
    assert_eq!(world.kinds(), [EventKind::Fencing]);
    assert!(world.events[0].reason.contains("its machine was restarted"), "{}", world.events[0].reason);
    assert_eq!(due(&world), [(2, Verb::Unfence, 0)]);
    assert_eq!(world.acquire(&a), Answer::Queued { place: 1, holder: world.status().holder }, "not before the agent has done it");
    begin(&mut world, 2, Verb::Unfence);
    // What has been shown stays shown, though its daemon goes.
    world.expire(&a);
    assert_eq!(end(&mut world, 2, Outcome::Failed), Answer::Done);
    assert_eq!(due(&world), [(3, Verb::Unfence, 1)]);
    begin(&mut world, 3, Verb::Unfence);
    assert_eq!(end(&mut world, 3, Outcome::Succeeded), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Unfenced]);
    assert!(world.status().fenced.is_empty());
}

#[test]
fn i2_where_the_policy_does_not_say_so_a_side_whose_machine_was_restarted_is_let_in_by_a_persons_word_only() {
    let mut world = shut_out("m", "manual");
    let a = boots(&mut world, 20, "m", "later");
    assert_eq!((world.kinds(), due(&world)), (vec![], vec![]));
    let said = turned_away(&mut world, &a);
    assert!(said.contains("it gets nothing until `treelease fence unfence dev a"), "{said}");
    world.expire(&a);
    boots(&mut world, 21, "m", "later still");
    assert_eq!((world.kinds(), due(&world)), (vec![], vec![]), "nor by another restart");
    let (tree, side, reason) = (tree_id(1), side("a"), "its host is off".to_owned());
    let vouched = Command::Unfence { tree, side, epoch: Epoch::from_raw(1), reason, by_hand: false };
    assert_eq!(world.run(vouched), Answer::Done);
    assert_eq!(due(&world), [(2, Verb::Unfence, 0)], "a person's word lets it in");
    // The owner's word does, for those that have shown it before too.
    let mut world = shut_out("m", "manual");
    boots(&mut world, 20, "m", "later");
    assert_eq!((world.set("unfence", "restart"), due(&world)), (Answer::Done, vec![(2, Verb::Unfence, 0)]));
    // Nobody's policy says so by itself.
    let world = World::new();
    assert_eq!(world.status().policy.get("unfence").as_deref(), Some("manual"));
}

#[test]
fn who_is_shut_out_is_told_of_the_way_back_by_a_restart_only_where_there_is_one() {
    for (policy, machine, by_restart) in [("restart", "m", true), ("restart", "", false), ("manual", "m", false)] {
        let mut world = shut_out(machine, policy);
        let a = boots(&mut world, 10, machine, "boot-a");
        let said = turned_away(&mut world, &a);
        assert!(said.contains("treelease fence unfence dev a"), "{said}");
        assert_eq!(said.contains("its machine is restarted"), by_restart, "{policy} {machine:?}: {said}");
    }
}

#[test]
fn i2_a_name_that_two_machines_have_at_the_same_time_shows_no_restart() {
    let (mut world, _) = fencing_on("m");
    begin(&mut world, 1, Verb::Fence);
    assert_eq!(end(&mut world, 1, Outcome::Succeeded), Answer::Done);
    let twin = OpenSession { machine: "m".into(), boot: "twin".into(), ..open_of("c", session_id(3)) };
    world.run(Command::OpenSession(twin));
    boots(&mut world, 10, "m", "later");
    assert_eq!((world.kinds(), due(&world)), (vec![], vec![]));
    world.run(Command::CloseSession { session: session_id(10) });
    world.run(Command::CloseSession { session: session_id(3) });
    boots(&mut world, 11, "m", "later");
    assert_eq!(world.kinds(), [EventKind::Fencing], "alone it does");
}

#[test]
fn i2_a_restart_before_the_fence_is_done_lets_in_after_it_and_is_no_fence() {
    let (mut world, b) = fencing_on("m");
    begin(&mut world, 1, Verb::Fence);
    boots(&mut world, 10, "m", "later");
    assert_eq!((world.kinds(), world.stands(), due(&world)), (vec![], StateName::Fencing, vec![]));
    assert_eq!(end(&mut world, 1, Outcome::Succeeded), Answer::Done);
    assert_eq!(world.kinds(), [EventKind::Fenced, EventKind::Granted, EventKind::Fencing]);
    assert_eq!((world.holder(), due(&world)), (Some(b), vec![(2, Verb::Unfence, 0)]));
}

#[test]
fn i2_a_restart_lets_nobody_in_while_an_earlier_leaders_fence_may_still_act() {
    let (mut world, _) = fencing_on("m");
    begin(&mut world, 1, Verb::Fence);
    lead(&mut world);
    begin(&mut world, 2, Verb::Fence);
    assert_eq!(end(&mut world, 2, Outcome::Succeeded), Answer::Done);
    boots(&mut world, 10, "m", "later");
    assert_eq!((world.kinds(), due(&world)), (vec![EventKind::Fencing], vec![]));
    assert!(ignored(&begin(&mut world, 3, Verb::Unfence)));
    assert_eq!(lapse(&mut world, 1), Answer::Done);
    assert_eq!(due(&world), [(3, Verb::Unfence, 0)]);
}

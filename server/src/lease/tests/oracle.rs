//! A second opinion on I1 and I2, written from the outside: it sees the commands, the answers and the read model, and keeps
//! book of who could still write. It shares no code and no state with the transitions.
//!
//! Its question at every grant is the one that a user would ask: *can anybody else's write still arrive now?* A write can
//! arrive while a gate may be open, while a gate may only just have shut (grace), and while pages may be unconfirmed.

use std::collections::BTreeMap;

use super::*;
use treelease_proto::policy::{Fence, Unfence};

/// Where somebody writes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writer {
    session: SessionId,
    side: SideName,
    place: Option<Place>,
    /// Machine and boot, if known.
    kernel: Option<(String, String)>,
}

/// What a lease that ended without its holder's word may still do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Danger {
    writer: Option<Writer>,
    gate_may_be_open: bool,
    grace_is_over: bool,
    pages_may_come: bool,
    /// Whoever gets this lock knows that no page comes any more.
    locked: Option<MarkerLock>,
    expired: bool,
    /// The least that must be waited for, by the TTL and the policy of its beginning.
    least: Duration,
}

/// The book of one tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Book {
    epoch: u64,
    run_start: u64,
    holder: Option<Writer>,
    at_rest: bool,
    /// The lock that the holder says to have until nothing of its writes can come any more.
    locked: Option<MarkerLock>,
    danger: Option<Danger>,
    /// The holder came back after an expiry: what it wrote before may be unconfirmed.
    unsettled: bool,
    /// Who wrote last, and whether that row of grants may go on.
    last: Option<(Writer, bool)>,
    /// From where each waiter said that it writes.
    wished: BTreeMap<SessionId, Option<Place>>,
    /// Whom agents have shut out, or may.
    shut: BTreeMap<SideName, Shut>,
}

/// What agents have done, or may still do, to a side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Shut {
    epoch: u64,
    /// Number, whether it shuts out (else it lets in), the leadership that ran it: as long as nobody has told the end.
    acting: Vec<(u32, bool, u64)>,
    last: u32,
    /// It may be shut out.
    done: bool,
    /// Somebody vouched that it may be let in, or its machine was seen in a later boot, where that is enough.
    wish: bool,
    /// Machine and boot of the lease that was fenced, if known.
    kernel: Option<(String, String)>,
}

/// The books of all trees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Oracle(BTreeMap<TreeId, Book>);

impl Oracle {
    /// Without the numbers that only grow, so that equal situations are equal (for the walk, which forgets them in a copy).
    pub(super) fn forget_numbers(&mut self, leadership: Leadership) {
        for book in self.0.values_mut() {
            for shut in book.shut.values_mut() {
                let last = std::mem::take(&mut shut.last);
                shut.epoch = u64::from(shut.epoch == book.epoch);
                for (number, _, under) in &mut shut.acting {
                    (*number, *under) = (u32::from(*number == last), u64::from(*under == leadership.0));
                }
            }
            book.run_start = 0;
            book.epoch = 0;
        }
    }

    /// What one command did; the complaint if it must not have.
    pub(super) fn watch(&mut self, before: &State, command: &Command, answer: &Answer, after: &State) -> Result<(), String> {
        for (id, _) in after.trees() {
            let now = after.tree_status(id).unwrap();
            let was = before.tree_status(id);
            let book = self.0.entry(id.clone()).or_insert_with(|| Book::begins(&now, command, after));
            book.command(id, command, answer, was.as_ref(), before)?;
            if now.policy.unfence == Unfence::Restart {
                book.see_restarts(after);
            }
            book.look(id, command, &now, after).map_err(|e| format!("{}: {e}; {command:?} -> {answer:?}", now.name))?;
        }
        Ok(())
    }
}

fn kernel_of(session: &crate::lease::Session) -> Option<(String, String)> {
    let known = !session.machine().is_empty() && !session.boot().is_empty();
    known.then(|| (session.machine().to_owned(), session.boot().to_owned()))
}

impl Danger {
    fn is_of(&self, side: &SideName) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.side == *side)
    }
}

impl Book {
    fn begins(now: &TreeStatus, command: &Command, state: &State) -> Self {
        let taken = matches!(command, Command::Takeover { .. });
        let danger = Danger {
            writer: None,
            gate_may_be_open: true,
            grace_is_over: false,
            pages_may_come: true,
            locked: None,
            expired: false,
            least: state.limits().1.get() + now.policy.grace,
        };
        Self { epoch: now.epoch.get(), run_start: now.run_start.0.get(), danger: taken.then_some(danger), ..Self::default() }
    }

    /// What an acknowledged command tells.
    fn command(
        &mut self,
        id: &TreeId,
        command: &Command,
        answer: &Answer,
        was: Option<&TreeStatus>,
        before: &State,
    ) -> Result<(), String> {
        let done = *answer == Answer::Done;
        let grace = was.map_or(GRACE, |was| was.policy.grace);
        match command {
            Command::Acquire(a) if a.tree == *id => match answer {
                Answer::Granted(_) if self.holder.as_ref().is_some_and(|h| h.session == a.session) => {
                    let holder = self.holder.as_mut().unwrap();
                    if a.place.is_some() && a.place != holder.place {
                        holder.place = None;
                        self.last = Some((holder.clone(), true));
                    }
                }
                Answer::Granted(_) | Answer::Queued { .. } => {
                    self.wished.insert(a.session.clone(), a.place.clone());
                }
                _ => {}
            },
            Command::Cancel { tree, session } if done && tree == id => {
                self.wished.remove(session);
            }
            Command::CloseSession { session } if done => {
                self.wished.remove(session);
            }
            // The gate never opened, but what was written before the expiry is as unconfirmed as it was, unless `rest` was said since.
            Command::GiveBack { lease, .. } if done && lease.tree == *id && self.unsettled => {
                self.must_hold(lease)?;
                // It never opened, so its lock never stood for those writes.
                self.locked = None;
                self.ends(false, true, !self.at_rest, grace);
            }
            Command::Release(Release { lease, .. }) | Command::GiveBack { lease, .. } if done && lease.tree == *id => {
                self.must_hold(lease)?;
                self.holder = None;
            }
            Command::Surrender { lease, .. } if done && lease.tree == *id => {
                self.must_hold(lease)?;
                self.ends(false, false, true, grace);
            }
            Command::Break { tree, .. } if done && tree == id => {
                let ttl = self.holder.as_ref().and_then(|h| before.session(&h.session)).ok_or("broken, and nobody had it")?.ttl();
                self.ends(true, false, !self.at_rest, ttl.get() + grace);
            }
            Command::ExpireSession { session, .. } if done => {
                self.wished.remove(session);
                if self.holder.as_ref().is_some_and(|h| h.session == *session) {
                    self.ends(false, true, !self.at_rest, grace);
                }
            }
            Command::EndCopied { session, .. } if done => {
                self.wished.remove(session);
                if self.holder.as_ref().is_some_and(|h| h.session == *session) {
                    let ttl = before.session(session).ok_or("copied, and it did not live")?.ttl();
                    self.ends(true, false, !self.at_rest, ttl.get() + grace);
                }
            }
            Command::GateClosed(lease) if done && lease.tree == *id => {
                let danger = self.danger.as_mut().ok_or("a gate closed that nobody waited for")?;
                if danger.writer.as_ref().is_none_or(|w| w.session != lease.session) {
                    return Err("somebody else's gate".into());
                }
                danger.gate_may_be_open = false;
                danger.least = grace;
            }
            Command::EndGrace { tree, .. } if done && tree == id => {
                let danger = self.danger.as_mut().ok_or("a grace ended where none was")?;
                let was = was.ok_or("a tree that was not there")?;
                let length = before.coolings().find(|(t, ..)| t == id).map(|(.., length)| length).unwrap_or_default();
                if length < danger.least {
                    return Err(format!("I2: waited {length:?}, less than {:?}", danger.least));
                }
                danger.gate_may_be_open = false;
                danger.grace_is_over = true;
                if was.policy.fence == Fence::None {
                    danger.pages_may_come = false;
                }
            }
            // Somebody vouched.
            Command::FenceConfirm { tree, .. } if done && tree == id => self.danger = None,
            Command::Rest { lease, .. } if done && lease.tree == *id => {
                self.must_hold(lease)?;
                self.at_rest = true;
            }
            Command::Active { lease, marker, .. } if done && lease.tree == *id => {
                self.must_hold(lease)?;
                self.at_rest = false;
                self.locked.clone_from(marker);
            }
            Command::Witnessed { tree, session, marker, .. } if done && tree == id => {
                let danger = self.danger.as_mut().ok_or("a witness where nothing was to be feared")?;
                if danger.locked.as_ref() != Some(marker) {
                    return Err(format!("I2: a witness of a lock that nobody said to have: {:?}", danger.locked));
                }
                if !self.wished.contains_key(session) {
                    return Err("a witness that does not wait".into());
                }
                danger.pages_may_come = false;
            }
            // Whose files they were meanwhile is not known.
            Command::SetRoot { tree, state, .. } if done && tree == id => {
                let changes = was.is_some_and(|was| was.roots.iter().any(|root| root.state != *state));
                if let (true, Some((_, goes_on))) = (changes, &mut self.last) {
                    *goes_on = false;
                }
            }
            Command::FenceAttempt { attempt, verb, decided_under, .. } if done && attempt.tree == *id => {
                self.attempt_begins(attempt, *verb, decided_under.0, before)?;
            }
            Command::FenceResult { attempt, outcome, decided_under, .. } if done && attempt.tree == *id => {
                let current = before.leadership().is_some_and(|(current, _)| current == *decided_under);
                let shut = self.shut.get_mut(&attempt.side).ok_or("the end of an attempt that was none")?;
                let this = shut.acting.iter().position(|(n, _, by)| *n == attempt.number && *by == decided_under.0);
                let (Some(at), true) = (this, current && shut.epoch == attempt.epoch.get()) else {
                    return Err(format!("I2: the end of another attempt counted: {shut:?}"));
                };
                let (number, shuts, _) = shut.acting.remove(at);
                match (shuts, outcome) {
                    (true, Outcome::Untouched) => {}
                    (true, Outcome::Failed) => shut.done = true,
                    (true, Outcome::Succeeded) => {
                        shut.done = true;
                        let stands = number == shut.last && shut.epoch == self.epoch;
                        if let Some(danger) = self.danger.as_mut().filter(|d| stands && d.is_of(&attempt.side)) {
                            danger.pages_may_come = false;
                        }
                    }
                    (false, Outcome::Succeeded) => drop(self.shut.remove(&attempt.side)),
                    (false, _) => {}
                }
            }
            Command::FenceLapsed { attempt, decided_under } if done && attempt.tree == *id => {
                let shut = self.shut.get_mut(&attempt.side).ok_or("an attempt lapsed that was none")?;
                let this = shut.acting.iter().position(|(n, _, by)| *n == attempt.number && *by != decided_under.0);
                let (_, shuts, _) = shut.acting.remove(this.ok_or("an attempt lapsed that was none, or its leader's own")?);
                shut.done |= shuts;
            }
            Command::Unfence { tree, side, by_hand, .. } if done && tree == id => {
                let shut = self.shut.get_mut(side).ok_or("somebody is let in who was not shut out")?;
                shut.wish = true;
                if *by_hand && !shut.acting.is_empty() {
                    return Err("it may be shut out yet after it was let in".into());
                }
                if *by_hand {
                    self.shut.remove(side);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn attempt_begins(&mut self, attempt: &AttemptRef, verb: Verb, by: u64, before: &State) -> Result<(), String> {
        if before.leadership().is_none_or(|(current, _)| current.0 != by) {
            return Err("an attempt of who does not lead".into());
        }
        let shuts = verb == Verb::Fence;
        if shuts {
            let feared = self.danger.as_ref().is_some_and(|d| d.is_of(&attempt.side) && d.grace_is_over && d.pages_may_come);
            let side_of = |session: &SessionId| before.session(session).map(|s| s.side().clone());
            let wanted = self.wished.keys().any(|session| side_of(session).is_some_and(|side| side != attempt.side));
            if !feared || !wanted || attempt.epoch.get() != self.epoch {
                return Err(format!("{} is shut out for nothing", attempt.side));
            }
        }
        let writer = self.danger.as_ref().filter(|d| d.is_of(&attempt.side)).and_then(|d| d.writer.as_ref());
        let kernel = writer.and_then(|writer| writer.kernel.clone());
        let new = Shut { epoch: attempt.epoch.get(), kernel, ..Shut::default() };
        let shut = self.shut.entry(attempt.side.clone()).or_insert_with(|| new.clone());
        if shuts && shut.epoch != new.epoch && !shut.done && shut.acting.is_empty() {
            *shut = new;
        }
        let twice = if shuts { shut.acting.iter().any(|(.., under)| *under == by) } else { !shut.acting.is_empty() };
        if twice || attempt.number <= shut.last || shut.epoch != attempt.epoch.get() || !(shuts || shut.wish) {
            return Err(format!("an attempt that must not begin: {shut:?}"));
        }
        shut.last = attempt.number;
        shut.acting.push((attempt.number, shuts, by));
        Ok(())
    }

    /// A later boot of the same machine: the kernel that wrote has ended.
    fn see_restarts(&mut self, after: &State) {
        for (side, shut) in &mut self.shut {
            let Some((machine, boot)) = &shut.kernel else { continue };
            let now = after.sessions().find(|(_, session)| session.side() == side).and_then(|(_, session)| kernel_of(session));
            shut.wish |= now.is_some_and(|(now_machine, now_boot)| now_machine == *machine && now_boot != *boot);
        }
    }

    fn must_hold(&self, lease: &LeaseRef) -> Result<(), String> {
        let holds = self.holder.as_ref().is_some_and(|h| h.session == lease.session) && self.epoch == lease.epoch.get();
        if holds { Ok(()) } else { Err("a word about a lease that is not current was taken".into()) }
    }

    fn ends(&mut self, gate_may_be_open: bool, expired: bool, pages_may_come: bool, least: Duration) {
        let writer = self.holder.take();
        if !expired && let Some((_, goes_on)) = &mut self.last {
            *goes_on = false;
        }
        let locked = self.locked.take();
        self.danger = Some(Danger { writer, gate_may_be_open, grace_is_over: false, pages_may_come, locked, expired, least });
    }

    /// Compares the read model with the book, and judges a grant.
    fn look(&mut self, id: &TreeId, command: &Command, now: &TreeStatus, after: &State) -> Result<(), String> {
        let epoch = now.epoch.get();
        let new = self.is_new(now);
        if !new {
            if now.holder.is_none() != self.holder.is_none() {
                return Err(format!("the holder is {:?}, the book says {:?}", now.holder, self.holder));
            }
            if epoch != self.epoch || now.run_start.0.get() != self.run_start {
                return Err("an epoch or a run start moved without a grant".into());
            }
            return Ok(());
        }
        let holder = now.holder.as_ref().unwrap();
        if self.holder.is_some() {
            return Err(format!("I1: granted to {} while {:?} has it", holder.side, self.holder));
        }
        if epoch != self.epoch + 1 {
            return Err(format!("I1: epoch {} after {}", epoch, self.epoch));
        }
        let place = self.wished.remove(&holder.session).flatten();
        let kernel = after.session(&holder.session).and_then(kernel_of);
        let writer = Writer { session: holder.session.clone(), side: holder.side.clone(), place, kernel };
        let same = |old: &Writer| old.side == writer.side && old.place.is_some() && old.place == writer.place;
        if let Some(shut) = self.shut.get(&writer.side).filter(|shut| shut.done || !shut.acting.is_empty()) {
            return Err(format!("I2: granted to {} that is fenced: {shut:?}", writer.side));
        }
        if !now.roots.is_empty() && now.roots.iter().all(|root| root.state != RootState::Live) {
            return Err(format!("I8: granted to {} with nowhere to write", writer.side));
        }
        self.unsettled = false;
        if let Some(danger) = self.danger.take() {
            let nothing_comes = !danger.gate_may_be_open && danger.grace_is_over && !danger.pages_may_come;
            let own_return = danger.expired
                && danger.writer.as_ref().is_some_and(same)
                && matches!(command, Command::Acquire(a) if a.tree == *id && a.session == writer.session);
            if !nothing_comes && !own_return {
                return Err(format!("I2: granted to {} while {danger:?}", writer.side));
            }
            self.unsettled = !nothing_comes;
        }
        let start = now.run_start.0.get();
        let goes_on = self.last.as_ref().is_some_and(|(old, open)| *open && same(old));
        if start != epoch && !(goes_on && start == self.run_start) {
            return Err(format!("I6: run start {start} kept after {:?}", self.last));
        }
        (self.epoch, self.run_start, self.at_rest, self.locked) = (epoch, start, false, None);
        self.last = Some((writer.clone(), true));
        self.holder = Some(writer);
        Ok(())
    }

    fn is_new(&self, now: &TreeStatus) -> bool {
        match (&now.holder, &self.holder) {
            (Some(now), Some(book)) => now.session != book.session || now.epoch.get() != self.epoch,
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}

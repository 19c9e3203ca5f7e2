//! The events of one tree, small: some twenty bytes for one, where an [`Event`] takes three hundred.
//!
//! Numbers are as long as they need; names of sides, sessions and people are kept once for the tree, and shared with other trees'
//! ([`Texts`]). Memory only: what goes to disk are events.
//!
//! Promises: what is read is what was put in, to the millisecond; equality and hash are those of the events. It decides nothing.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use treelease_proto::command::{Event, EventKind};
use treelease_proto::epoch::{Epoch, RunStart};
use treelease_proto::id::{TreeId, TreeName};
use treelease_proto::time::WallTime;
use treelease_proto::tree::End;

/// Most texts that are shared among trees: sides, sessions and people of a busy server. Beyond that sharing begins anew.
const TEXTS_MAX: usize = 4_096;
/// The first bytes of a ring are allocated for the event alone: most trees of a large server have few.
const SHORT: usize = 256;

/// Texts that many trees' events name.
#[derive(Debug, Default)]
pub(super) struct Texts(BTreeSet<Arc<str>>);

impl Texts {
    fn one(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        if self.0.len() >= TEXTS_MAX {
            self.0.clear();
        }
        let new: Arc<str> = text.into();
        self.0.insert(new.clone());
        new
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Ring {
    /// The tree's; an event that has another one says so.
    name: Option<TreeName>,
    /// What events name by number, and how many do; where none does, the place is free.
    texts: Vec<(Arc<str>, u32)>,
    bytes: Vec<u8>,
    len: usize,
}

/// One event as it lies here.
#[derive(PartialEq, Eq, Hash)]
struct Told<'a> {
    kind: EventKind,
    end: End,
    revision: u64,
    at: i64,
    epoch: u64,
    run_start: u64,
    name: Option<&'a str>,
    side: Option<&'a str>,
    session: Option<&'a str>,
    actor: Option<&'a str>,
    reason: &'a str,
    counts: [u64; 3],
}

const SIDE: u8 = 1;
const SESSION: u8 = 1 << 1;
const ACTOR: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const REASON: u8 = 1 << 4;
const COUNTS: u8 = 1 << 5;
/// The bits above say how a lease ended.
const END: u8 = 6;
const ENDS: [End; 3] = [End::None, End::Clean, End::Unclean];

impl Ring {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts the newest in.
    pub(super) fn push(&mut self, event: &Event, shared: &mut Texts) {
        let ours = self.name.get_or_insert_with(|| event.name.clone()) == &event.name;
        let named = [
            (SIDE, event.side.as_ref().map(|side| side.as_str())),
            (SESSION, event.session.as_ref().map(|session| session.as_str())),
            (ACTOR, Some(event.actor.as_str()).filter(|actor| !actor.is_empty())),
            (NAME, Some(event.name.as_str()).filter(|_| !ours)),
        ];
        let counts = [event.files, event.bytes, event.count];
        let mut flags = place_of(&ENDS, &event.end) << END;
        flags |= if event.reason.is_empty() { 0 } else { REASON };
        flags |= if counts == [0; 3] { 0 } else { COUNTS };
        flags |= named.iter().filter(|(_, text)| text.is_some()).map(|(flag, _)| flag).sum::<u8>();
        let mut new = vec![place_of(&EventKind::ALL, &event.kind), flags];
        let at = event.at.0.as_millisecond();
        // Zigzag: before 1970 is possible, and as short.
        let numbers = [event.revision, ((at << 1) ^ (at >> 63)) as u64, event.epoch.get(), event.run_start.0.get()];
        numbers.iter().for_each(|number| put(&mut new, *number));
        for (_, text) in named {
            if let Some(text) = text {
                put(&mut new, self.number_of(text, shared) as u64);
            }
        }
        if !event.reason.is_empty() {
            put(&mut new, event.reason.len() as u64);
            new.extend_from_slice(event.reason.as_bytes());
        }
        if counts != [0; 3] {
            counts.iter().for_each(|count| put(&mut new, *count));
        }
        if self.bytes.len() < SHORT {
            self.bytes.reserve_exact(new.len());
        }
        self.bytes.extend_from_slice(&new);
        self.len += 1;
    }

    fn number_of(&mut self, text: &str, shared: &mut Texts) -> usize {
        if let Some(at) = self.texts.iter().position(|(known, used)| *used > 0 && **known == *text) {
            self.texts[at].1 += 1;
            return at;
        }
        let new = (shared.one(text), 1);
        match self.texts.iter().position(|(_, used)| *used == 0) {
            Some(free) => {
                self.texts[free] = new;
                free
            }
            None => {
                self.texts.reserve_exact(1);
                self.texts.push(new);
                self.texts.len() - 1
            }
        }
    }

    /// Forgets the oldest.
    pub(super) fn pop(&mut self) {
        self.forget(1);
    }

    /// Forgets so many of the oldest.
    pub(super) fn forget(&mut self, oldest: usize) {
        let oldest = oldest.min(self.len);
        let mut rest = self.bytes.as_slice();
        let mut used = Vec::new();
        for _ in 0..oldest {
            self.read(&mut rest, &mut |number| used.push(number));
        }
        let taken = self.bytes.len() - rest.len();
        used.into_iter().for_each(|number| self.texts[number].1 -= 1);
        self.bytes.drain(..taken);
        self.len -= oldest;
    }

    /// All of them, oldest first.
    pub(super) fn events<'a>(&'a self, tree: &'a TreeId) -> impl Iterator<Item = Event> + 'a {
        self.told().map(move |told| told.event(tree, self.name.as_ref()))
    }

    /// The newest of them, newest last.
    pub(super) fn newest(&self, tree: &TreeId, wanted: usize) -> Vec<Event> {
        let told = self.told().skip(self.len.saturating_sub(wanted));
        told.map(|told| told.event(tree, self.name.as_ref())).collect()
    }

    /// After it was read from a snapshot: what it names is what others name.
    pub(super) fn share(&mut self, name: Option<&TreeName>, shared: &mut Texts) {
        if let Some(name) = name.filter(|name| self.name.as_ref() == Some(*name)) {
            self.name = Some(name.clone());
        }
        self.texts.iter_mut().for_each(|(text, _)| *text = shared.one(text));
    }

    fn told(&self) -> impl Iterator<Item = Told<'_>> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || (!rest.is_empty()).then(|| self.read(&mut rest, &mut |_| {})))
    }

    /// Reads one, and says which texts it names.
    fn read<'a>(&'a self, rest: &mut &'a [u8], named: &mut dyn FnMut(usize)) -> Told<'a> {
        let (kind, flags) = (EventKind::ALL[rest[0] as usize], rest[1]);
        *rest = &rest[2..];
        let [revision, at, epoch, run_start] = std::array::from_fn(|_| take(rest));
        let [side, session, actor, other] = [SIDE, SESSION, ACTOR, NAME].map(|flag| {
            (flags & flag != 0).then(|| {
                let number = take(rest) as usize;
                named(number);
                &*self.texts[number].0
            })
        });
        let mut reason = "";
        if flags & REASON != 0 {
            let len = take(rest) as usize;
            let (text, after) = rest.split_at(len);
            reason = std::str::from_utf8(text).expect("it was text");
            *rest = after;
        }
        let counts = if flags & COUNTS == 0 { [0; 3] } else { std::array::from_fn(|_| take(rest)) };
        let at = (at >> 1) as i64 ^ -((at & 1) as i64);
        let end = ENDS[usize::from(flags >> END)];
        let name = other.or(self.name.as_ref().map(TreeName::as_str));
        Told { kind, end, revision, at, epoch, run_start, name, side, session, actor, reason, counts }
    }
}

impl Told<'_> {
    fn event(&self, tree: &TreeId, ours: Option<&TreeName>) -> Event {
        let ours = ours.filter(|ours| self.name == Some(ours.as_str()));
        let name = ours.cloned().or_else(|| self.name?.parse().ok()).expect("it was a tree's name");
        let [files, bytes, count] = self.counts;
        Event {
            revision: self.revision,
            at: WallTime::from_millis(self.at),
            tree: tree.clone(),
            name,
            kind: self.kind,
            side: self.side.map(|side| side.parse().expect("it was a side's name")),
            session: self.session.map(|session| session.parse().expect("it was a session's id")),
            epoch: Epoch::from_raw(self.epoch),
            run_start: RunStart(Epoch::from_raw(self.run_start)),
            actor: self.actor.unwrap_or_default().to_owned(),
            reason: self.reason.to_owned(),
            end: self.end,
            files,
            bytes,
            count,
        }
    }
}

impl PartialEq for Ring {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.told().eq(other.told())
    }
}

impl Eq for Ring {}

impl Hash for Ring {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.len.hash(state);
        self.told().for_each(|told| told.hash(state));
    }
}

fn place_of<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter().position(|other| other == one).expect("all of them are there") as u8
}

/// Seven bits a byte, the lowest first; the highest bit says that more come.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(rest: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = rest[0];
        *rest = &rest[1..];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return number;
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use treelease_proto::id::SessionId;

    use super::*;

    fn event(n: u64, texts: (u8, u8, u8), name: bool, reason: String, counts: [u64; 3], tree: &TreeId) -> Event {
        let some = |which: u8| (which > 0).then_some(which);
        let session = |which: u8| format!("00000000-0000-4000-8000-{which:012}").parse::<SessionId>().unwrap();
        Event {
            revision: n,
            at: WallTime::from_millis(n as i64 - 500),
            tree: tree.clone(),
            name: if name { "dev" } else { "other" }.parse().unwrap(),
            kind: EventKind::ALL[n as usize % EventKind::ALL.len()],
            side: some(texts.0).map(|which| format!("side-{which}").parse().unwrap()),
            session: some(texts.1).map(session),
            epoch: Epoch::from_raw(n.wrapping_mul(n)),
            run_start: RunStart(Epoch::from_raw(n / 2)),
            actor: some(texts.2).map(|which| format!("somebody {which}")).unwrap_or_default(),
            reason,
            end: ENDS[n as usize % 3],
            files: counts[0],
            bytes: counts[1],
            count: counts[2],
        }
    }

    proptest! {
        #[test]
        fn what_comes_out_is_what_went_in_and_the_oldest_goes_first(
            all in proptest::collection::vec(
                (any::<u32>(), (0u8..9, 0u8..40, 0u8..4), any::<bool>(), ".{0,40}", any::<[u64; 3]>(), any::<bool>()), 0..80,
            ),
            most in 1usize..30,
        ) {
            let tree: TreeId = "00000000-0000-4000-8000-000000000000".parse().unwrap();
            let (mut ring, mut shared, mut oracle) = (Ring::default(), Texts::default(), VecDeque::new());
            for (n, texts, name, reason, counts, none) in all {
                let one = event(n.into(), texts, name, reason, if none { [0; 3] } else { counts }, &tree);
                while oracle.len() >= most {
                    ring.pop();
                    oracle.pop_front();
                }
                ring.push(&one, &mut shared);
                oracle.push_back(one);
                prop_assert_eq!(ring.len(), oracle.len());
            }
            prop_assert_eq!(ring.events(&tree).collect::<VecDeque<_>>(), oracle.clone());
            let newest = oracle.iter().skip(oracle.len().saturating_sub(3)).cloned().collect::<Vec<_>>();
            prop_assert_eq!(ring.newest(&tree, 3), newest);
            // Of texts that no event names any more none is kept beyond what the ring can hold.
            prop_assert!(ring.texts.len() <= 4 * most);
            let mut again = Ring::default();
            oracle.iter().for_each(|event| again.push(event, &mut Texts::default()));
            prop_assert!(again == ring, "whatever was there before");
            again.forget(3);
            prop_assert_eq!(again.events(&tree).collect::<Vec<_>>(), oracle.iter().skip(3).cloned().collect::<Vec<_>>());
            oracle.pop_back();
            let mut fewer = Ring::default();
            oracle.iter().for_each(|event| fewer.push(event, &mut Texts::default()));
            prop_assert!(ring.len() == 0 || fewer != ring);
        }
    }
}

//! What a cluster makes of another one's backup, and a tree lifted above what the storage has seen.
//!
//! It promises that only a cluster that has no tree, and never had one, takes a backup, whole and unaltered or not at all; that
//! afterwards every epoch and run start is above all that the old cluster can have granted since (I1); that no session of it
//! lives, and every tree is waited out for the largest TTL that either cluster takes, plus grace, and then fenced (I2): who
//! held it after the backup was made is unknown. The new cluster has its own id and names its predecessors (I8). A backup whose
//! pieces stop coming is forgotten when the leader's timers say so. It does not know files: pieces of text come in order.

use serde::{Deserialize, Serialize};
use treelease_proto::backup::{self, BACKUP_MAX};
use treelease_proto::command::{Answer, Event, EventKind, Leadership, RestorePiece};
use treelease_proto::epoch::Epoch;
use treelease_proto::id::{ClusterId, RequestKey, SideName, TreeId};
use treelease_proto::refusal::{Code, Refusal};
use treelease_proto::time::Ttl;

use super::history::Context;
use super::queue::Queue;
use super::registry::EPOCH_BELIEVED;
use super::tree::{Ended, How};
use super::{State, Tree, TreeState, ignore, invariant, no_such_tree, refuse};

/// By how much a restore lifts every epoch: a thousand grants a second would need eleven days to get there, and people can
/// still read the number.
pub const LIFT: u64 = 1_000_000_000;
/// No cluster has had more events: a million a second would need longer than people have counted years.
const REVISION_BELIEVED: u64 = 1 << 62;
/// Most pieces of one backup.
const PIECES_MAX: u32 = (4 * BACKUP_MAX / backup::PIECE_MAX) as u32;

/// A backup that comes in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Upload {
    id: RequestKey,
    count: u32,
    /// Pieces so far.
    next: u32,
    text: String,
}

impl State {
    /// The clusters whose backups this one has grown from, and theirs, oldest first.
    pub fn predecessors(&self) -> &[ClusterId] {
        &self.predecessors
    }

    /// The restore that is under way, and the piece that it waits for.
    pub fn restoring(&self) -> Option<(&RequestKey, u32)> {
        self.restoring.as_ref().map(|upload| (&upload.id, upload.next))
    }

    /// Its next piece did not come in time.
    pub(super) fn end_restore(&mut self, id: &RequestKey, next: u32, under: Leadership) -> Answer {
        if !self.leads(under) {
            return ignore("decided under another leadership");
        }
        if self.restoring() != Some((id, next)) {
            return ignore("that restore has gone on, or is over");
        }
        self.restoring = None;
        self.timed += 1;
        Answer::Done
    }

    /// One piece of a backup; the last one restores it.
    pub(super) fn restore_piece(&mut self, piece: &RestorePiece, context: &mut Context) -> Answer {
        if !self.trees.is_empty() || !self.tombstones.is_empty() {
            return refuse(
                Code::CannotCreate,
                format!("this cluster has {} trees: a backup is restored into a new and empty one only", self.trees.len()),
            );
        }
        if piece.count == 0 || piece.count > PIECES_MAX || piece.index >= piece.count {
            return refuse(Code::Usage, format!("piece {} of {} is no piece of a backup", piece.index, piece.count));
        }
        let goes_on = self
            .restoring
            .as_ref()
            .is_some_and(|upload| (&upload.id, upload.count, upload.next) == (&piece.id, piece.count, piece.index));
        if piece.index != 0 && !goes_on {
            return refuse(Code::Busy, "another restore has begun, or a piece was left out: begin this one anew");
        }
        let before = self.restoring.take();
        let (mut upload, other) = match before {
            Some(upload) if piece.index != 0 => (upload, None),
            other => (Upload { id: piece.id.clone(), count: piece.count, next: 0, text: String::new() }, other),
        };
        let len = upload.text.len();
        upload.text.push_str(&piece.text);
        let restored = if upload.text.len() > BACKUP_MAX {
            Err(Box::new(Refusal::new(Code::Limit, format!("a backup of more than {BACKUP_MAX} bytes is not taken"))))
        } else if piece.index + 1 == piece.count {
            self.restore(&upload.text, context)
        } else {
            upload.next += 1;
            self.restoring = Some(upload);
            self.timed += 1;
            return Answer::Done;
        };
        match restored {
            Ok(()) => {
                self.timed += 1;
                Answer::Done
            }
            Err(refusal) => {
                upload.text.truncate(len);
                self.restoring = if piece.index == 0 { other } else { Some(upload) };
                Answer::Refused(*refusal)
            }
        }
    }

    /// All of it, or nothing.
    fn restore(&mut self, text: &str, context: &mut Context) -> Result<(), Box<Refusal>> {
        let no = |code, why: String| Box::new(Refusal::new(code, why));
        let (about, state) = backup::open(text).map_err(|bad| no(Code::Storage, format!("the backup cannot be used: {bad}")))?;
        let mut old: State = serde_json::from_str(state)
            .map_err(|e| no(Code::Storage, format!("the backup's state cannot be read: {e}; use the version that wrote it")))?;
        old.was_read([]);
        // Whoever writes a digest below it can write anything above it.
        invariant::check(&old).map_err(|broken| no(Code::Storage, format!("the backup contradicts itself: {broken}")))?;
        let Some(from) = old.cluster.clone().filter(|cluster| *cluster == about.cluster) else {
            return Err(no(Code::Storage, "the backup does not say whose it is".into()));
        };
        if self.cluster.as_ref() == Some(&from) {
            return Err(no(Code::Config, format!("this is cluster {from}, whose backup it is: restore it into a new one")));
        }
        let too_high = old.trees.values().find(|tree| tree.last_epoch.get() > EPOCH_BELIEVED - LIFT);
        if let Some(tree) = too_high {
            return Err(no(Code::Config, format!("{} is at epoch {}, which cannot be lifted", tree.name, tree.last_epoch)));
        }
        if old.revision > REVISION_BELIEVED {
            return Err(no(Code::Config, format!("no cluster can have reached revision {}", old.revision)));
        }
        // Sessions that the old cluster opened later may have had the longest TTL that it took.
        let ttl = self.ttl_max.max(old.ttl_max);
        self.revision = self.revision.max(old.revision);
        self.predecessors = old.predecessors;
        self.predecessors.push(from.clone());
        old.copied_boots.into_iter().for_each(|boot| self.was_copied(boot));
        (self.names, self.roots, self.history) = (old.names, old.roots, old.history);
        // Ids that are never used again, and sides that a fence agent shut out, stay what they were.
        self.tombstones = old.tombstones;
        for (id, tree) in old.trees.iter() {
            let mut tree = tree.clone();
            // Whom a fence agent shut out stays out until somebody of now says otherwise; that cluster's leaderships are not ours.
            for fenced in tree.fenced.values_mut() {
                (fenced.unfence, fenced.failures) = (false, 0);
                fenced.open.iter_mut().for_each(|open| open.leadership = Leadership(0));
            }
            // Nobody of now has asked for it, and its number is of that cluster's log.
            tree.trial = None;
            // What sides confirmed was that cluster's mode, which may have changed there since: all confirm anew.
            tree.mode_no = tree.mode_no.saturating_add(1);
            let before = tree.last_epoch;
            let why = format!("restored from a backup of cluster {from} of {}: epochs go on above {}", about.at, lifted(before));
            self.lift(&mut tree, lifted(before), ttl, why, EventKind::Restored, context);
            self.trees.insert(id.clone(), tree);
            self.index_fences(id);
        }
        Ok(())
    }

    /// An operator has found greater epochs on the storage than this server knows: it is an older copy of what it was, and who
    /// holds the tree by what it has forgotten is unknown.
    pub(super) fn raise_epoch(&mut self, id: &TreeId, above: Epoch, reason: &str, context: &mut Context) -> Answer {
        let Some(mut tree) = self.trees.get(id).filter(|tree| tree.state != TreeState::Retired).cloned() else {
            return no_such_tree(id);
        };
        if above.get() > EPOCH_BELIEVED {
            return refuse(Code::Config, format!("no tree can have reached epoch {above}: look at the storage's stamps again"));
        }
        if above <= tree.last_epoch {
            let name = &tree.name;
            return refuse(
                Code::EpochMoved,
                format!("{name} is at epoch {} already, which is not below {above}", tree.last_epoch),
            );
        }
        if let Some(holder) = tree.holder() {
            let why = format!("{} is held by {}: have it released first", tree.name, holder.side);
            return Answer::Refused(Refusal::new(Code::Held, why).held_by(holder));
        }
        let why = format!("raised above epoch {above}: {reason}");
        self.lift(&mut tree, above, self.ttl_max, why, EventKind::Raised, context);
        self.trees.insert(id.clone(), tree);
        Answer::Done
    }

    /// Puts a tree's epoch up and lets it cool: its last holder is unknown, or at least what it did.
    fn lift(&mut self, tree: &mut Tree, to: Epoch, ttl: Ttl, why: String, kind: EventKind, context: &mut Context) {
        let side: Option<SideName> = tree.holder().map(|holder| holder.side).or_else(|| tree.ended()?.side.clone());
        let host = tree.holder().map(|holder| holder.host).or_else(|| Some(tree.ended()?.host.clone())).unwrap_or_default();
        tree.last_epoch = to;
        // The run of before is over: whoever is granted next begins one, above all that ever was.
        tree.run = None;
        tree.came_back = false;
        tree.declined.clear();
        if kind == EventKind::Restored {
            tree.queue = Queue::default();
        }
        if tree.state == TreeState::Retired {
            return;
        }
        context.happened(Event { reason: why.clone(), side: side.clone(), ..tree.event(kind, context) });
        let length = ttl.get().saturating_add(tree.policy.grace);
        let (session, place, marker, kernel) = (None, None, None, None);
        let ended = Ended { epoch: to, side, host, session, place, active: true, how: How::Restored, marker, kernel };
        let cooling = format!("waits for the largest TTL and grace: {why}");
        tree.cool(ended, length, cooling.clone());
        context.happened(Event { reason: cooling, ..tree.event(EventKind::Cooling, context) });
        self.now_cooling(&tree.id);
    }
}

/// Above every epoch that the old cluster can have granted since.
fn lifted(epoch: Epoch) -> Epoch {
    Epoch::from_raw(epoch.get() + LIFT)
}

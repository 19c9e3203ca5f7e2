//! Status: how everything stands, in one message or in as many as it takes.
//!
//! Promises: all pieces of an answer are of one state, the one after some whole entry. It is taken along in microseconds, however many
//! trees there are (the lease state shares what it has with a copy), and no command waits for a reader. What is too long for one
//! message is refused with a sentence, never cut. Who names trees is sent these alone. Whoever reads no piece for [`STALL_LIMIT`], and a
//! node that stops, ends the answer. It decides nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use treelease_proto::id::{TreeId, TreeName};
use treelease_proto::time::BootTime;
use treelease_proto::tree::{ClusterStatus, StateName, TreeStatus};
use treelease_proto::wire;

use super::{Api, Service};
use crate::lease::State;
use crate::limits::Seat;

/// Largest status in one message: what clients of the first version take.
const WHOLE_MAX: usize = 16 << 20;
/// About how long a piece is, if the caller does not want shorter ones: some hundred trees, made in a moment.
const PIECE: usize = 256 << 10;
/// What a list's entry takes beside its content.
const FRAMING: usize = 8;
/// Pieces that wait for the transport.
const WAITING_MAX: usize = 2;
/// How long a reader may take no piece.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// So many trees may be named in one request; who wants more is as well served with all.
const NAMED_MAX: usize = 1_024;
/// Readers at the same time: each keeps what has changed since it began.
const READERS_MAX: usize = 1_024;

type Piece = Result<wire::StatusPiece, Status>;

/// The stream of one status.
pub type Pieces = ReceiverStream<Piece>;

/// A state on its way to one who asked.
struct Told {
    api: Api,
    state: State,
    /// When it was taken along.
    now: BootTime,
    /// This node led then, and its timers say how long.
    leading: bool,
    head: wire::StatusAnswer,
    /// Only these trees are wanted.
    named: Option<BTreeSet<TreeName>>,
}

impl Service {
    /// In one message, if it fits.
    pub(super) fn whole_status(&self) -> Result<wire::StatusAnswer, Status> {
        self.told(None).whole(WHOLE_MAX)
    }

    /// In pieces.
    pub(super) fn status_pieces(&self, request: wire::StatusPiecesRequest) -> Result<Pieces, Status> {
        let named = named(&request.trees)?;
        let seat = self.statuses.take(READERS_MAX).ok_or_else(|| {
            Status::resource_exhausted(format!("{READERS_MAX} statuses are being read from this node; ask another node"))
        })?;
        let wanted = usize::try_from(request.bytes).unwrap_or(PIECE);
        let bytes = if wanted == 0 { PIECE } else { wanted.min(PIECE) };
        let (out, pieces) = mpsc::channel(WAITING_MAX);
        let feed = Feed { out, stall: STALL_LIMIT, _seat: seat };
        let (told, closing) = (self.told(named), self.api.closing.clone());
        tokio::spawn(async move { closing.run_until_cancelled(feed.run(told, bytes)).await });
        Ok(ReceiverStream::new(pieces))
    }

    fn told(&self, named: Option<BTreeSet<TreeName>>) -> Told {
        let standing = self.api.consensus.standing();
        let members = self.node_statuses(&standing);
        let (state, now, leading) = {
            let state = self.api.consensus.state();
            // With the state that is in force and no other: what was applied since the last tick is not armed yet.
            let mut timers = self.api.seat.timers();
            let now = self.api.clock.now();
            timers.follow(&state, now);
            (state.clone(), now, timers.leading().is_some())
        };
        let (ttl_min, ttl_max) = state.limits();
        let head = ClusterStatus {
            cluster: self.cluster().clone(),
            revision: state.revision(),
            leader: standing.leader,
            nodes: standing.nodes,
            quorum: standing.quorum,
            // TLS is not in this version: a side's name is only claimed, with a token too.
            secure: false,
            trees: Vec::new(),
            sessions: Vec::new(),
            ttl_min,
            ttl_max,
            predecessors: state.predecessors().to_vec(),
            members,
            joint: self.api.consensus.members().is_joint(),
            age: standing.age,
        };
        Told { api: self.api.clone(), state, now, leading, head: wire::StatusAnswer::from(&head), named }
    }
}

/// The trees that a request names; `None`: all are wanted.
fn named(trees: &[String]) -> Result<Option<BTreeSet<TreeName>>, Status> {
    if trees.len() > NAMED_MAX {
        return Err(Status::invalid_argument(format!(
            "a status of at most {NAMED_MAX} named trees can be asked for; ask for all"
        )));
    }
    let name = |text: &String| text.parse().map_err(|e| Status::invalid_argument(format!("trees: {e}")));
    let names = trees.iter().map(name).collect::<Result<BTreeSet<TreeName>, Status>>()?;
    Ok((!names.is_empty()).then_some(names))
}

impl Told {
    /// Every tree that is wanted, by name.
    fn trees(&self) -> impl Iterator<Item = wire::Tree> {
        let ids: Vec<TreeId> = match &self.named {
            Some(names) => names.iter().filter_map(|name| self.state.tree_named(name)).cloned().collect(),
            None => self.state.trees_by_name().cloned().collect(),
        };
        ids.into_iter().filter_map(|id| Some(wire::Tree::from(&self.timed(self.state.tree_status(&id)?))))
    }

    /// Every session, for who wants every tree.
    fn sessions(&self) -> impl Iterator<Item = wire::SessionInfo> {
        let all = self.named.is_none().then(|| self.state.session_statuses());
        all.into_iter().flatten().map(|session| wire::SessionInfo::from(&session))
    }

    /// How long until a session expires or a grace ends is known to the leader's timers only.
    fn timed(&self, mut tree: TreeStatus) -> TreeStatus {
        if self.leading {
            let timers = self.api.seat.timers();
            tree.remaining = match tree.state {
                StateName::Held => tree.holder.as_ref().and_then(|h| timers.session_remaining(&h.session, self.now)),
                StateName::Cooling => timers.cooling_remaining(&tree.id, self.now),
                _ => None,
            };
        }
        tree
    }

    fn whole(&self, most: usize) -> Result<wire::StatusAnswer, Status> {
        let mut answer = self.head.clone();
        let mut bytes = answer.encoded_len();
        answer.sessions.extend(self.sessions().inspect(|session| bytes += session.encoded_len() + FRAMING));
        for tree in self.trees() {
            bytes += tree.encoded_len() + FRAMING;
            if bytes > most {
                return Err(Status::resource_exhausted(format!(
                    "a status of {} trees is longer than one message of {most} bytes; ask for it in pieces (StatusInPieces), as \
                     newer versions of `treelease` do",
                    self.state.tree_count()
                )));
            }
            answer.trees.push(tree);
        }
        Ok(answer)
    }
}

/// The way to a reader.
struct Feed {
    out: mpsc::Sender<Piece>,
    stall: Duration,
    _seat: Seat,
}

/// Nobody reads any more.
struct Gone;

impl Feed {
    async fn run(&self, told: Told, most: usize) -> Result<(), Gone> {
        let mut part = told.head.clone();
        let mut bytes = part.encoded_len();
        for tree in told.trees() {
            let len = tree.encoded_len() + FRAMING;
            self.give_if_full(&mut part, &mut bytes, len, most).await?;
            part.trees.push(tree);
        }
        for session in told.sessions() {
            let len = session.encoded_len() + FRAMING;
            self.give_if_full(&mut part, &mut bytes, len, most).await?;
            part.sessions.push(session);
        }
        self.give(part, false).await
    }

    /// Makes room for one entry more.
    async fn give_if_full(&self, part: &mut wire::StatusAnswer, bytes: &mut usize, len: usize, most: usize) -> Result<(), Gone> {
        if *bytes > 0 && *bytes + len > most {
            self.give(std::mem::take(part), true).await?;
            *bytes = 0;
        }
        *bytes += len;
        Ok(())
    }

    async fn give(&self, part: wire::StatusAnswer, more: bool) -> Result<(), Gone> {
        let piece = Ok(wire::StatusPiece { part: Some(part), more });
        // Without its last piece an answer is none: whoever comes back to read sees that it has ended.
        timeout(self.stall, self.out.send(piece)).await.map_err(|_| Gone)?.map_err(|_| Gone)
    }
}

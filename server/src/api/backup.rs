//! Backup: the state as a file, in pieces.
//!
//! Promises: what is sent is the state after some whole entry, at least as new as everything that was acknowledged before the
//! call: the leader confirms its leadership with a quorum first (I5), and takes the state then. Whoever gets all pieces can
//! tell (their last line is a digest). One backup at a time is made on a node, because it takes memory; so a reader that does
//! not read, or a node that stops, ends it, and the reader is told why. One that would be larger than a backup may be has the newest
//! events of each tree only, as many as there is room for, and says so; a state that is larger without any is refused. It decides nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use treelease_proto::backup::{About, BACKUP_MAX, pieces, seal};
use treelease_proto::wire;

use super::Service;
use crate::consensus::confirm::Asks;
use crate::lease::State;

/// Pieces that wait for the transport.
const WAITING_MAX: usize = 16;
/// How long a reader may take none of them: it writes them to a file.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// What a backup has beside the state: it fits into this many times over.
const BESIDE: usize = 4 << 10;
/// How long a whole backup may take: the largest one at less than half a mebibyte a second.
const BACKUP_LIMIT: Duration = Duration::from_secs(600);

type Piece = Result<wire::BackupAnswer, Status>;

/// The stream of one backup.
pub type Backup = ReceiverStream<Piece>;

impl Service {
    pub(super) async fn start_backup(&self) -> Result<Backup, Status> {
        let permit = Arc::clone(&self.backups).try_acquire_owned();
        let permit =
            permit.map_err(|_| Status::resource_exhausted("another backup is being made here; try again when it is done"))?;
        // Not here, not now: another node is asked.
        self.api.consensus.confirm(Asks::AT_ONCE).await.map_err(|e| Status::unavailable(e.to_string()))?;
        let (state, at) = (self.api.consensus.state().clone(), self.api.clock.wall());
        let about = About {
            cluster: self.cluster().clone(),
            revision: state.revision(),
            at,
            trees: state.trees().count() as u64,
            history: None,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        // Its place stays taken while it is made, though its caller has gone: two at a time would take the memory of two.
        let made = tokio::task::spawn_blocking(move || (written(about, state, BACKUP_MAX - BESIDE), permit));
        let (text, permit) = match made.await {
            Ok((text, permit)) => (text?, permit),
            Err(e) => return Err(Status::internal(format!("the backup was not made: {e}"))),
        };
        let (out, stream) = mpsc::channel(WAITING_MAX);
        let feed = Feed { text, out, stall: STALL_LIMIT, whole: BACKUP_LIMIT };
        let closing = self.api.closing.clone();
        tokio::spawn(async move {
            feed.run(closing).await;
            drop(permit);
        });
        Ok(ReceiverStream::new(stream))
    }
}

/// The file; its state is no longer than that.
fn written(about: About, state: State, most: usize) -> Result<String, Status> {
    let cannot = |e| Status::internal(format!("the state cannot be written down: {e}"));
    if let Some(state) = json(&state, most).map_err(cannot)? {
        return Ok(seal(&about, &state));
    }
    let trees = about.trees;
    let Some(bare) = json(&state.clone().with_history(0), most).map_err(cannot)? else {
        return Err(Status::resource_exhausted(format!(
            "the state of {trees} trees has more than {most} bytes without any of their histories: that is more than a backup takes. \
             Nothing is lost: every node has all of it on its disk. Make policies shorter (`treelease tree set`), or retire trees that \
             nobody needs and remove them (`treelease tree retire`, `treelease tree rm`)"
        )));
    };
    let newest = state.history_within(most - bare.len()).map_err(cannot)?;
    drop(bare);
    let state = json(&state.with_history(newest), most).map_err(cannot)?;
    let state = state.ok_or_else(|| Status::internal("the backup is longer than was counted; please report this"))?;
    tracing::warn!(
        "a backup has the newest {newest} events of each tree only: with all of them it would be larger than one may be"
    );
    Ok(seal(&About { history: Some(newest as u64), ..about }, &state))
}

/// The state as JSON; none: it is longer than that.
fn json(state: &State, most: usize) -> serde_json::Result<Option<String>> {
    let mut text = Short { text: Vec::new(), most };
    match serde_json::to_writer(&mut text, state) {
        Ok(()) => Ok(Some(String::from_utf8(text.text).expect("JSON is text"))),
        Err(e) if e.io_error_kind() == Some(io::ErrorKind::FileTooLarge) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Text that does not get longer than that.
struct Short {
    text: Vec<u8>,
    most: usize,
}

impl io::Write for Short {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.text.len() + piece.len() > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(piece);
        Ok(piece.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A backup on its way to its reader.
struct Feed {
    text: String,
    out: mpsc::Sender<Piece>,
    stall: Duration,
    whole: Duration,
}

impl Feed {
    /// Until all is given to the transport, the reader has gone, a limit is reached, or the node stops.
    async fn run(self, closing: CancellationToken) {
        // A place for the last word, which there is also while everything before it waits.
        let Ok(last) = self.out.clone().reserve_owned().await else { return };
        let why = tokio::select! {
            given = timeout(self.whole, self.give()) => match given {
                Ok(Ok(())) => return,
                Ok(Err(why)) => why,
                Err(_) => Status::deadline_exceeded(format!(
                    "the backup was not taken within {} s; begin it anew, on a faster way", self.whole.as_secs()
                )),
            },
            () = closing.cancelled() => Status::unavailable("the node is stopping; ask another node"),
        };
        tracing::warn!("a backup was ended before its end: {}", why.message());
        last.send(Err(why));
    }

    async fn give(&self) -> Result<(), Status> {
        for piece in pieces(&self.text) {
            let piece = Ok(wire::BackupAnswer { text: piece.to_owned() });
            match timeout(self.stall, self.out.send(piece)).await {
                Ok(Ok(())) => {}
                // The reader has gone.
                Ok(Err(_)) => break,
                Err(_) => {
                    let why = format!("no piece of the backup was taken for {} s; begin it anew", self.stall.as_secs());
                    return Err(Status::deadline_exceeded(why));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use treelease_proto::backup::{PIECE_MAX, open};
    use treelease_proto::command::{Command, Proposal};
    use treelease_proto::id::{ClusterId, RequestKey, TreeId};
    use treelease_proto::time::{Ttl, WallTime};

    use super::*;
    use crate::lease::{Entry, MAX_TREES};

    /// So many trees, whose policy was changed so often.
    fn state(trees: usize, changes: usize) -> State {
        let (mut state, mut index) = (State::new(), 0);
        let mut apply = |command| {
            index += 1;
            let at = WallTime::from_millis(1_764_500_000_000 + index as i64);
            let proposal =
                Proposal { request_key: RequestKey::random(), actor: "side workstation (host a-host)".into(), at, command };
            state.apply(&Entry { index, proposal });
        };
        apply(Command::Found { cluster: ClusterId::random(), ttl_min: Ttl::MIN, ttl_max: Ttl::MAX });
        for n in 0..trees {
            let (name, tree) = (format!("many-{n:06}").parse().unwrap(), TreeId::random());
            apply(Command::AddTree { name, tree: tree.clone(), policy: Vec::new(), root: None });
            for change in 0..changes {
                let policy = vec![("grace".to_owned(), format!("{}s", 5 + change % 2))];
                apply(Command::SetPolicy { tree: tree.clone(), policy });
            }
        }
        state
    }

    fn about(state: &State) -> About {
        let (cluster, trees) = (ClusterId::random(), state.trees().count() as u64);
        About { cluster, revision: state.revision(), at: WallTime::UNKNOWN, trees, history: None, version: "test".into() }
    }

    #[test]
    fn a_backup_that_would_be_too_large_has_of_each_history_the_newest_for_which_there_is_room_and_says_so() {
        let state = state(20, 30);
        let whole = serde_json::to_string(&state).unwrap().len();
        let text = written(about(&state), state.clone(), whole).unwrap();
        assert!(open(&text).unwrap().0.history.is_none() && open(&text).unwrap().1.len() == whole, "all of it fits");
        for newest in [0, 1, 7, 30] {
            let fits = serde_json::to_string(&state.clone().with_history(newest)).unwrap().len();
            assert!(fits < whole);
            // A comma is counted for each tree's oldest event, too.
            let text = written(about(&state), state.clone(), fits + 20).unwrap();
            let (about, kept) = open(&text).unwrap();
            assert_eq!((about.history, kept.len()), (Some(newest as u64), fits));
            let kept: State = serde_json::from_str(kept).unwrap();
            for (tree, _) in state.trees() {
                let all = state.history(tree, 0);
                assert_eq!(kept.history(tree, 0), all[all.len() - newest..], "the newest");
            }
            assert!(kept.trees().eq(state.trees()), "and everything else");
        }
        let least = serde_json::to_string(&state.clone().with_history(0)).unwrap().len();
        let refused = written(about(&state), state.clone(), least - 1).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("retire") && refused.message().contains("Nothing is lost"), "{refused:?}");
    }

    #[test]
    fn as_many_trees_as_a_server_takes_fit_into_a_backup_with_some_of_their_histories() {
        const FEW: usize = 500;
        let length = |trees, changes| serde_json::to_string(&state(trees, changes)).unwrap().len();
        // Beyond the answers for retries, of which there is a fixed number.
        let (few, more, told) = (length(5_000, 0), length(5_000 + FEW, 0), length(5_000, 1));
        let (tree, event) = ((more - few) / FEW, (told - few) / 5_000);
        println!("{tree} bytes a tree, {event} an event");
        assert!(MAX_TREES * (tree + 2 * event) + few < BACKUP_MAX, "{tree} bytes a tree, {event} an event");
    }

    const LONG: Duration = Duration::from_secs(3600);

    /// More pieces than may wait, and how its feeding ends; the reader reads only afterwards.
    async fn unread(stall: Duration, whole: Duration, closing: CancellationToken) -> Vec<Piece> {
        let text = "x".repeat(PIECE_MAX * 4 * WAITING_MAX);
        let (out, mut stream) = mpsc::channel(WAITING_MAX);
        let ended = timeout(Duration::from_secs(60), Feed { text, out, stall, whole }.run(closing)).await;
        ended.expect("it ends by itself");
        let mut read = Vec::new();
        while let Some(piece) = stream.recv().await {
            read.push(piece);
        }
        read
    }

    fn last_word(read: &[Piece]) -> &Status {
        assert!(read.len() <= WAITING_MAX, "no more waits than may");
        read.last().and_then(|last| last.as_ref().err()).expect("the reader is told")
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_ends_its_backup_and_is_told() {
        let read = unread(Duration::from_millis(50), LONG, CancellationToken::new()).await;
        assert!(last_word(&read).message().contains("no piece"), "{read:?}");
        let read = unread(LONG, Duration::from_millis(50), CancellationToken::new()).await;
        assert!(last_word(&read).message().contains("was not taken within"), "{read:?}");
    }

    #[tokio::test]
    async fn a_node_that_stops_waits_for_no_reader_of_a_backup() {
        let closing = CancellationToken::new();
        closing.cancel();
        let read = unread(LONG, LONG, closing).await;
        assert_eq!(last_word(&read).code(), tonic::Code::Unavailable);
    }

    #[tokio::test]
    async fn whoever_reads_gets_all_pieces_and_no_other_word() {
        let text = "x".repeat(PIECE_MAX * 4 * WAITING_MAX);
        let (out, mut stream) = mpsc::channel(WAITING_MAX);
        tokio::spawn(Feed { text: text.clone(), out, stall: LONG, whole: LONG }.run(CancellationToken::new()));
        let mut read = String::new();
        while let Some(piece) = stream.recv().await {
            read.push_str(&piece.unwrap().text);
        }
        assert_eq!(read, text);
    }
}

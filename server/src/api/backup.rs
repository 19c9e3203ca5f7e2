//! Backup: the state as a file, in pieces.
//!
//! Promises: what is sent is the state after some whole entry, at least as new as everything that was acknowledged before the
//! call: the leader confirms its leadership with a quorum first (I5), and takes the state then. Whoever gets all pieces can
//! tell (their last line is a digest). One backup at a time is made on a node, because it takes memory; so a reader that does
//! not read, or a node that stops, ends it, and the reader is told why. It decides nothing.

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

/// Pieces that wait for the transport.
const WAITING_MAX: usize = 16;
/// How long a reader may take none of them: it writes them to a file.
const STALL_LIMIT: Duration = Duration::from_secs(30);
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
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let made = tokio::task::spawn_blocking(move || serde_json::to_string(&state).map(|state| seal(&about, &state)));
        let text = match made.await {
            Ok(Ok(text)) => text,
            Ok(Err(e)) => return Err(Status::internal(format!("the state cannot be written down: {e}"))),
            Err(e) => return Err(Status::internal(format!("the backup was not made: {e}"))),
        };
        if text.len() > BACKUP_MAX {
            let len = text.len();
            return Err(Status::resource_exhausted(format!("the backup has {len} bytes, {BACKUP_MAX} are the most")));
        }
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
    use treelease_proto::backup::PIECE_MAX;

    use super::*;

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

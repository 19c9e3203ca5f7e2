//! Backup: the state as a file, in pieces.
//!
//! Promises: what is sent is the state after some whole entry, at least as new as everything that was acknowledged before the
//! call: the leader confirms its leadership with a quorum first (I5), and takes the state then. Whoever gets all pieces can
//! tell (their last line is a digest). One backup at a time is made on a node: it takes memory. It decides nothing.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use treelease_proto::backup::{About, BACKUP_MAX, pieces, seal};
use treelease_proto::wire;

use super::Service;

/// Pieces that wait for the transport.
const WAITING_MAX: usize = 16;

/// The stream of one backup.
pub type Backup = ReceiverStream<Result<wire::BackupAnswer, Status>>;

impl Service {
    pub(super) async fn start_backup(&self) -> Result<Backup, Status> {
        let permit = Arc::clone(&self.backups).try_acquire_owned();
        let permit =
            permit.map_err(|_| Status::resource_exhausted("another backup is being made here; try again when it is done"))?;
        // Not here, not now: another node is asked.
        self.api.consensus.confirm().await.map_err(|e| Status::unavailable(e.to_string()))?;
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
        tokio::spawn(async move {
            for piece in pieces(&text) {
                // The caller has gone.
                if out.send(Ok(wire::BackupAnswer { text: piece.to_owned() })).await.is_err() {
                    break;
                }
            }
            drop(permit);
        });
        Ok(ReceiverStream::new(stream))
    }
}

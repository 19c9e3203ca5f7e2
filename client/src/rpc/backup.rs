//! Backup and restore: a cluster's whole state, out of its leader and into a new cluster.

use super::{CallError, Failed, Servers, bad, classify};
use crate::words::backup::{About, BACKUP_MAX, open, pieces};
use crate::words::command::{Answer, Command, RestorePiece};
use crate::words::id::{ClusterId, RequestKey};
use crate::words::refusal::Refusal;
use crate::words::wire;

impl Servers {
    /// The state of the cluster, at least as new as everything that was acknowledged before: the file's text, checked, and
    /// what it says about itself.
    pub async fn backup(&self) -> Result<(About, String), CallError> {
        let mut stream = self
            .call(false, |mut target, _| {
                // No time limit in the request: it would end the stream.
                let mut request = tonic::Request::new(wire::BackupRequest {});
                target.authorise(&mut request);
                async move { target.client.backup(request).await }
            })
            .await?;
        let mut text = String::new();
        loop {
            // A server that falls silent is not waited for for ever.
            let piece = match tokio::time::timeout(self.timeout, stream.message()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => break,
                Ok(Err(status)) => match classify(&status) {
                    Failed::Refused(refusal) => return Err(CallError::Refused(refusal)),
                    Failed::NotSent(last) | Failed::Perhaps(last) => return Err(self.broke(last)),
                },
                Err(_) => return Err(self.broke("the backup stopped half-way".into())),
            };
            if text.len() + piece.text.len() > BACKUP_MAX {
                return Err(bad("text", format!("it is longer than {BACKUP_MAX} bytes")));
            }
            text.push_str(&piece.text);
        }
        let about = open(&text).map_err(|why| bad("text", why))?.0;
        Ok((about, text))
    }

    /// Restores a backup into this cluster, which must be `into` and must have no tree.
    pub async fn restore(&self, actor: &str, into: &ClusterId, text: &str) -> Result<Result<(), Refusal>, CallError> {
        let pieces = pieces(text);
        let (id, count) = (RequestKey::random(), pieces.len() as u32);
        for (index, piece) in pieces.into_iter().enumerate() {
            let piece = RestorePiece { id: id.clone(), index: index as u32, count, text: piece.to_owned() };
            let done = self.do_command(actor, Some(into), Command::RestorePiece(piece)).await?;
            if let Answer::Refused(refusal) = done.answer {
                return Ok(Err(refusal));
            }
        }
        Ok(Ok(()))
    }

    fn broke(&self, last: String) -> CallError {
        CallError::Unreachable { tried: self.endpoints(), waited: self.timeout, last }
    }
}

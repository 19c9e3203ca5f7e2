//! A snapshot on its way out to another node, or in from one: a file that is read or written piece by piece.
//!
//! Promises: offsets count from the content's begin, wherever that is in the file; in a real directory no task waits for the disk, in
//! a simulated world there is no thread. It does not know what is inside.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use super::snapshot::{BEGIN, Draft};

/// See the module.
#[derive(Debug)]
pub struct Passing {
    hand: Hand,
    /// Where it comes in.
    draft: Option<Draft>,
}

#[derive(Debug)]
enum Hand {
    Threads(tokio::fs::File),
    Here { file: File, at: io::Result<u64> },
}

impl Passing {
    /// One that goes out, with threads that wait for the disk.
    pub(super) fn with_threads(file: File) -> Self {
        Self { hand: Hand::Threads(file.into()), draft: None }
    }

    /// The same without.
    pub(super) fn without(file: File) -> Self {
        Self { hand: Hand::Here { file, at: Ok(BEGIN) }, draft: None }
    }

    /// It comes in, and into that draft.
    pub(super) fn into_draft(self, draft: Draft) -> Self {
        Self { draft: Some(draft), ..self }
    }

    /// When all pieces have gone through: its file, and where it has come in.
    pub async fn done(self) -> (File, Option<Draft>) {
        let file = match self.hand {
            Hand::Threads(file) => file.into_std().await,
            Hand::Here { file, .. } => file,
        };
        (file, self.draft)
    }
}

/// To the begin of the content.
pub fn rewind(file: &mut File) -> io::Result<()> {
    file.seek(SeekFrom::Start(BEGIN)).map(drop)
}

/// Of the file.
fn in_file(position: SeekFrom) -> SeekFrom {
    match position {
        SeekFrom::Start(offset) => SeekFrom::Start(offset.saturating_add(BEGIN)),
        relative => relative,
    }
}

impl AsyncRead for Passing {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.hand {
            Hand::Threads(file) => Pin::new(file).poll_read(cx, out),
            Hand::Here { file, .. } => Poll::Ready(file.read(out.initialize_unfilled()).map(|read| out.advance(read))),
        }
    }
}

impl AsyncWrite for Passing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, content: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.hand {
            Hand::Threads(file) => Pin::new(file).poll_write(cx, content),
            Hand::Here { file, .. } => Poll::Ready(file.write(content)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.hand {
            Hand::Threads(file) => Pin::new(file).poll_flush(cx),
            Hand::Here { .. } => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl AsyncSeek for Passing {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        match &mut self.hand {
            Hand::Threads(file) => Pin::new(file).start_seek(in_file(position)),
            Hand::Here { file, at } => {
                *at = file.seek(in_file(position));
                Ok(())
            }
        }
    }

    fn poll_complete(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let at = match &mut self.hand {
            Hand::Threads(file) => ready!(Pin::new(file).poll_complete(cx))?,
            Hand::Here { file, at } => match std::mem::replace(at, Ok(0)) {
                Ok(0) => file.stream_position()?,
                at => at?,
            },
        };
        Poll::Ready(Ok(at.saturating_sub(BEGIN)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

    use super::super::disk::Disk;
    use super::super::snapshot::SnapshotDir;
    use super::*;

    /// Whatever is in the hand, openraft sees the content alone.
    #[tokio::test]
    async fn pieces_that_come_in_at_their_offsets_go_out_again_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        for threads in [true, false] {
            let passing = |file| if threads { Passing::with_threads(file) } else { Passing::without(file) };
            let draft = snapshots.draft().unwrap();
            let mut coming = passing(draft.handle().unwrap()).into_draft(draft);
            coming.write_all(b"first ").await.unwrap();
            coming.write_all(b"wrong").await.unwrap();
            assert_eq!(coming.seek(SeekFrom::Start(6)).await.unwrap(), 6);
            coming.write_all(b"second").await.unwrap();
            coming.shutdown().await.unwrap();
            let (_, draft) = coming.done().await;
            snapshots.keep(draft.unwrap(), 1, if threads { "a" } else { "b" }).unwrap();
            let mut going = passing(snapshots.newest().unwrap().unwrap());
            assert_eq!(going.seek(SeekFrom::End(0)).await.unwrap(), 12);
            going.seek(SeekFrom::Start(6)).await.unwrap();
            let mut read = String::new();
            going.read_to_string(&mut read).await.unwrap();
            assert_eq!(read, "second");
            going.rewind().await.unwrap();
            read.clear();
            going.read_to_string(&mut read).await.unwrap();
            assert_eq!(read, "first second");
        }
    }

    #[tokio::test]
    async fn one_that_stops_coming_in_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        let mut coming = Disk::default().coming_in(&snapshots).unwrap();
        coming.write_all(b"half").await.unwrap();
        drop(coming);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

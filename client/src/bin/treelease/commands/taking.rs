//! Taking a hold, and the lease for it: what `run` and `acquire` share.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use treelease_client::error::Failure;
use treelease_client::local::LocalClient;
use treelease_client::local::wire::hold_answer::Kind;
use treelease_client::local::wire::{HeldNow, HoldRequest, Waiting as Told};
use treelease_client::words::id::{RequestKey, TreeName};
use treelease_client::words::refusal::Code;
use treelease_client::words::time::WallTime;

use crate::ctx::{Ctx, interrupted};
use crate::ui::{age, now};
use crate::waiting::Waiting;

/// The daemon keeps the wait's limit; if it has not answered so long after it, it is not going to.
const SILENCE: Duration = Duration::from_secs(15);

/// What comes after the hold was granted.
pub type After = BoxStream<'static, Result<Kind, Failure>>;

/// How a wait ended.
pub enum Taken {
    /// With a hold; it lives as long as the stream, if a command has it.
    Held(HeldNow, After),
    /// By a signal to us, with its number.
    Interrupted(i32),
}

/// A request for a hold, without what differs between `run` and `acquire`.
pub fn request(tree: &TreeName, kind: &str, limit: Duration, ask: bool) -> HoldRequest {
    HoldRequest {
        tree: tree.to_string(),
        kind: kind.into(),
        wait_ms: limit.as_millis() as u64,
        ask,
        note: String::new(),
        command: String::new(),
        pid: std::process::id(),
        tty: terminal(),
        for_ms: 0,
        request_key: RequestKey::random().to_string(),
    }
}

/// Takes it, with words for the person who waits.
pub async fn take(ctx: &Ctx, daemon: &mut LocalClient, tree: &TreeName, request: HoldRequest) -> Result<Taken, Failure> {
    let limit = Duration::from_millis(request.wait_ms);
    let mut waiting = Waiting::new(&ctx.ui, limit);
    let (silence, signal) = (tokio::time::sleep(limit + SILENCE), interrupted());
    tokio::pin!(silence, signal);
    let mut answers = daemon.hold(request).await?;
    loop {
        let answer = tokio::select! {
            answer = answers.next() => answer,
            () = tokio::time::sleep_until(waiting.next()) => {
                waiting.speak();
                continue;
            }
            number = &mut signal => {
                waiting.end("Interrupted");
                return Ok(Taken::Interrupted(number));
            }
            () = &mut silence => {
                waiting.end("");
                return Err(Failure::new(Code::Unreachable, format!("the daemon has not said what became of the wait for \"{tree}\""))
                    .hint("`treelease logs` shows what it does"));
            }
        };
        match answer {
            Some(Ok(Kind::Waiting(told))) => waiting.about(&words(tree, &told)),
            Some(Ok(Kind::Held(held))) => {
                waiting.end("Granted");
                return Ok(Taken::Held(held, answers));
            }
            Some(Ok(Kind::Refused(refusal))) => {
                waiting.end("");
                let failure = treelease_client::local::from_local(refusal);
                return Err(ctx.explain(tree, failure, daemon).await);
            }
            Some(Ok(Kind::Lost(lost))) => {
                waiting.end("");
                return Err(Failure::new(Code::Lost, format!("the lease on \"{tree}\" was lost at once: {}", lost.reason)));
            }
            Some(Err(failure)) => {
                waiting.end("");
                return Err(ctx.explain(tree, failure, daemon).await);
            }
            None => {
                waiting.end("");
                return Err(Failure::new(Code::Unreachable, format!("the daemon ended while waiting for \"{tree}\""))
                    .hint("`treelease up` starts it again; `treelease logs` shows why it ended"));
            }
        }
    }
}

/// The daemon's own words if it has any, else from the facts: who, since when, what for, the place in the queue.
fn words(tree: &TreeName, told: &Told) -> String {
    let place = if told.place > 1 { format!(", place {} in the queue", told.place) } else { String::new() };
    if told.holder_side.is_empty() {
        let said = if told.message.is_empty() { format!("\"{tree}\" is not granted yet") } else { told.message.clone() };
        return format!("{said}{place}");
    }
    let host = if told.holder_host.is_empty() { String::new() } else { format!(" (host {})", told.holder_host) };
    let note = if told.holder_note.is_empty() { String::new() } else { format!(", for: {}", told.holder_note) };
    let since = age(WallTime::parse(&told.holder_since), now());
    format!("\"{tree}\" is held by {}{host} for {since}{note}{place}", told.holder_side)
}

/// The terminal or tmux pane that this command runs in, for `holds`.
pub fn terminal() -> String {
    if let Some(pane) = std::env::var("TMUX_PANE").ok().filter(|p| !p.is_empty()) {
        return format!("tmux {pane}");
    }
    let name = nix::unistd::ttyname(std::io::stdin()).ok();
    name.map(|path| path.strip_prefix("/dev").unwrap_or(&path).display().to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_reads_who_holds_the_tree_and_the_place_in_the_queue() {
        let told = Told {
            place: 2,
            holder_side: "pod".into(),
            holder_host: "dev-0".into(),
            holder_note: "build".into(),
            ..Told::default()
        };
        let text = words(&"dev".parse().unwrap(), &told);
        assert!(text.starts_with("\"dev\" is held by pod (host dev-0) for"), "{text}");
        assert!(text.ends_with(", for: build, place 2 in the queue"), "{text}");
    }
}

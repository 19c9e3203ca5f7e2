//! Commands into log entries: many callers, one entry and one sync for all who come together.
//!
//! Promises: each caller gets the answer to its own command. A definite no ([`ProposeError::is_definite`]) comes only from
//! before anything was given to openraft; everything after that without an answer is [`ProposeError::OutcomeUnknown`], also
//! openraft's "forward to the leader" (an entry truncated here may live on elsewhere, STACK 1.6), and is asked again with the
//! same request key. Nobody waits longer than its limit. What the server itself decides has its own room in the queue, so
//! that a crowd of callers never holds up an expiry. It does not know what a command means.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use treelease_proto::command::{Answer, Proposal};

use super::codec;
use super::types::Batch;

/// Commands of callers on their way; more are turned away.
pub const PROPOSALS_MAX: usize = 1024;
/// Room in the queue for what the server itself decides.
const OWN_MAX: usize = 512;
/// Commands in one entry.
pub const BATCH_MAX: usize = 256;
/// Bytes of commands in one entry: a record must stay below the store's limit, with its framing.
pub const BATCH_BYTES_MAX: usize = 48 * 1024;
const _: () = assert!(BATCH_BYTES_MAX + 1024 <= crate::store::VALUE_MAX);
/// How long an entry waits for as many commands as the last one had: whoever was answered together asks again together.
const LINGER: Duration = Duration::from_millis(1);
/// Entries that are written beside one that is under way: while that is on its way through disks and network, the processors make the next.
const BESIDE_MAX: usize = 1;
/// Commands that are worth an entry beside another one. *Why not fewer:* each costs a sync of every disk and a message to every
/// follower; with 16 callers two entries of half the size were slower than one.
const ENOUGH_BESIDE: usize = 16;
/// An entry that is not applied by then has an unknown outcome; the next one goes on.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Why a command has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was not proposed: this node does not lead.
    #[error("{}", match leader {
        Some(node) => format!("this node does not lead; node {node} does"),
        None => "no node leads at the moment, an election takes a few seconds; ask again".to_owned(),
    })]
    NotLeading {
        /// Who does, if known.
        leader: Option<u64>,
    },
    /// It was not proposed: this node led last, and no quorum has answered it lately.
    #[error("no quorum of the nodes has answered lately; check that most of them run and reach each other, and ask again")]
    NoQuorum,
    /// It was not proposed: too many are on their way.
    #[error("more than {PROPOSALS_MAX} commands are on their way; try again later")]
    Overloaded,
    /// It was not proposed: it would not fit into an entry.
    #[error("the command takes {0} bytes, the limit is {BATCH_BYTES_MAX}; shorten its texts and lists")]
    TooLarge(usize),
    /// It was not proposed: the log could not give it back.
    #[error("the command cannot be logged: {0}")]
    Unreadable(String),
    /// It was not proposed: the node ends.
    #[error("the node is stopping")]
    Stopping,
    /// It may have happened, or may yet.
    #[error("the outcome is unknown: {0}; ask again with the same request key")]
    OutcomeUnknown(String),
}

impl ProposeError {
    /// Whether it certainly did not and will not happen.
    pub fn is_definite(&self) -> bool {
        !matches!(self, ProposeError::OutcomeUnknown(_))
    }
}

struct Ask {
    proposal: Proposal,
    len: usize,
    reply: oneshot::Sender<Result<Answer, ProposeError>>,
    /// Its place, until its entry has an outcome: a caller that does not look for its answer keeps none longer than that.
    _place: OwnedSemaphorePermit,
}

/// The way to the task that makes entries.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Ask>,
    callers: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

impl Proposer {
    /// Starts the task. `write` makes one entry and waits until it is applied here.
    pub fn start<W, F>(write: W) -> Self
    where
        W: Fn(Batch) -> F + Send + 'static,
        F: Future<Output = Result<Vec<Answer>, ProposeError>> + Send + 'static,
    {
        Self::with_limits(write, WRITE_LIMIT, LINGER)
    }

    fn with_limits<W, F>(write: W, limit: Duration, linger: Duration) -> Self
    where
        W: Fn(Batch) -> F + Send + 'static,
        F: Future<Output = Result<Vec<Answer>, ProposeError>> + Send + 'static,
    {
        let (queue, inbox) = mpsc::channel(PROPOSALS_MAX + OWN_MAX);
        tokio::spawn(run(inbox, write, limit, linger));
        Self { queue, callers: Arc::new(Semaphore::new(PROPOSALS_MAX)), own: Arc::new(Semaphore::new(OWN_MAX)) }
    }

    /// A caller's command.
    pub async fn propose(&self, proposal: Proposal, limit: Duration) -> Result<Answer, ProposeError> {
        let place = self.callers.clone().try_acquire_owned().map_err(|_| ProposeError::Overloaded)?;
        self.ask(proposal, limit, place).await
    }

    /// The server's own command; waits for room.
    pub async fn propose_own(&self, proposal: Proposal, limit: Duration) -> Result<Answer, ProposeError> {
        let until = Instant::now() + limit;
        // Who waited for a place in vain proposed nothing.
        let place = timeout_at(until, self.own.clone().acquire_owned()).await.map_err(|_| ProposeError::Overloaded)?;
        let place = place.map_err(|_| ProposeError::Stopping)?;
        self.ask(proposal, until.saturating_duration_since(Instant::now()), place).await
    }

    async fn ask(&self, proposal: Proposal, limit: Duration, place: OwnedSemaphorePermit) -> Result<Answer, ProposeError> {
        let (proposal, len) = codec::as_logged(&proposal).map_err(|e| ProposeError::Unreadable(e.to_string()))?;
        if len > BATCH_BYTES_MAX {
            return Err(ProposeError::TooLarge(len));
        }
        let (reply, answer) = oneshot::channel();
        let until = Instant::now() + limit;
        // There is a place in the queue for each permit.
        match timeout_at(until, self.queue.send(Ask { proposal, len, reply, _place: place })).await {
            Ok(sent) => sent.map_err(|_| ProposeError::Stopping)?,
            // It was not put into the queue, and never will be.
            Err(_) => return Err(ProposeError::Overloaded),
        }
        match timeout_at(until, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ProposeError::OutcomeUnknown("the node is stopping".into())),
            Err(_) => Err(ProposeError::OutcomeUnknown(format!("no answer within {} ms", limit.as_millis()))),
        }
    }
}

async fn run<W, F>(mut inbox: mpsc::Receiver<Ask>, write: W, limit: Duration, linger: Duration)
where
    W: Fn(Batch) -> F,
    F: Future<Output = Result<Vec<Answer>, ProposeError>> + Send + 'static,
{
    let (own_way, beside) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(BESIDE_MAX)));
    let mut carried = None;
    let mut last = 1;
    loop {
        let first = match carried.take() {
            Some(ask) => ask,
            None => match inbox.recv().await {
                Some(ask) => ask,
                None => return,
            },
        };
        let mut entry = Gathered::of(first);
        let room = loop {
            let (is_full, worth_it) = (carried.is_some() || entry.is_full(), entry.asks.len() >= ENOUGH_BESIDE);
            tokio::select! {
                biased;
                room = own_way.clone().acquire_owned() => break room,
                room = beside.clone().acquire_owned(), if worth_it || is_full => break room,
                Some(ask) = inbox.recv(), if !is_full => carried = entry.add(ask),
            }
        };
        if carried.is_none() {
            carried = entry.fill(&mut inbox, last, linger).await;
        }
        last = entry.asks.len();
        // Whoever has given up has been told that the outcome is unknown: not to propose it is one of the outcomes.
        let (proposals, waiting): (Vec<_>, Vec<_>) = entry
            .asks
            .into_iter()
            .filter(|ask| !ask.reply.is_closed())
            .map(|Ask { proposal, reply, _place, .. }| (proposal, (reply, _place)))
            .unzip();
        if proposals.is_empty() {
            continue;
        }
        let written = timeout(limit, write(Batch(proposals)));
        let mut entry = Box::pin(async move {
            let late = |_| Err(ProposeError::OutcomeUnknown(format!("not committed within {} ms", limit.as_millis())));
            let result = written.await.unwrap_or_else(late);
            let (replies, places): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
            answer_all(replies, result);
            drop((places, room));
        });
        // It is openraft's before the next one is made: they stand in the log in the order in which they were asked for.
        if futures::poll!(&mut entry).is_pending() {
            tokio::spawn(entry);
        }
    }
}

/// Commands that become one entry.
struct Gathered {
    asks: Vec<Ask>,
    bytes: usize,
}

impl Gathered {
    fn of(first: Ask) -> Self {
        Self { bytes: first.len, asks: vec![first] }
    }

    fn is_full(&self) -> bool {
        self.asks.len() >= BATCH_MAX
    }

    /// One more; or it is returned, since it does not fit.
    fn add(&mut self, ask: Ask) -> Option<Ask> {
        if self.bytes + ask.len > BATCH_BYTES_MAX {
            return Some(ask);
        }
        self.bytes += ask.len;
        self.asks.push(ask);
        None
    }

    /// Takes what is there, and waits up to `linger` until there are as many as `expected`: never for more than came the last time,
    /// since that wait would be longer than the write that it saves. Returns what does not fit.
    async fn fill(&mut self, inbox: &mut mpsc::Receiver<Ask>, expected: usize, linger: Duration) -> Option<Ask> {
        let until = Instant::now() + linger;
        while !self.is_full() {
            let next = match inbox.try_recv() {
                Ok(ask) => ask,
                Err(_) if self.asks.len() >= expected => break,
                Err(_) => match timeout_at(until, inbox.recv()).await {
                    Ok(Some(ask)) => ask,
                    _ => break,
                },
            };
            let carried = self.add(next);
            if carried.is_some() {
                return carried;
            }
        }
        None
    }
}

fn answer_all(replies: Vec<oneshot::Sender<Result<Answer, ProposeError>>>, result: Result<Vec<Answer>, ProposeError>) {
    // A reply that fails is to a caller that has gone.
    match result {
        Ok(answers) if answers.len() == replies.len() => {
            for (reply, answer) in replies.into_iter().zip(answers) {
                let _ = reply.send(Ok(answer));
            }
        }
        Ok(answers) => {
            tracing::error!(asked = replies.len(), answered = answers.len(), "an entry's answers do not match its commands");
            let error = ProposeError::OutcomeUnknown("the node lost track of its answers".into());
            replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
        }
        Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use treelease_proto::command::{Command, LeaseRef};
    use treelease_proto::epoch::Epoch;
    use treelease_proto::id::{RequestKey, SessionId, TreeId};
    use treelease_proto::time::WallTime;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn commands_that_come_together_share_an_entry_and_each_gets_its_own_answer() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let proposer = Proposer::start(move |batch: Batch| {
            seen.lock().unwrap().push(batch.0.len());
            async move {
                tokio::task::yield_now().await;
                Ok(batch.0.iter().map(|p| Answer::Ignored { why: p.actor.clone() }).collect())
            }
        });
        let asks = (0..600).map(|n| {
            let proposer = proposer.clone();
            tokio::spawn(async move { (n, proposer.propose(cancel(n.to_string()), LIMIT).await) })
        });
        for ask in asks.collect::<Vec<_>>() {
            let (n, answer) = ask.await.unwrap();
            assert_eq!(answer, Ok(Answer::Ignored { why: n.to_string() }));
        }
        let sizes = sizes.lock().unwrap();
        assert!(sizes.len() < 100, "{sizes:?}");
        assert!(sizes.iter().all(|n| *n <= BATCH_MAX), "{sizes:?}");
    }

    #[tokio::test]
    async fn an_entry_waits_for_as_many_as_came_the_last_time_and_for_no_more() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let write = move |batch: Batch| {
            seen.lock().unwrap().push(batch.0.len());
            async move { Ok(vec![Answer::Done; batch.0.len()]) }
        };
        // Whoever waits longer than needed, waits for ever.
        let proposer = Proposer::with_limits(write, LIMIT, 100 * LIMIT);
        let one = || proposer.propose(cancel(String::new()), LIMIT);
        assert_eq!(one().await, Ok(Answer::Done), "one alone waits for nobody");
        assert_eq!(tokio::join!(one(), one()), (Ok(Answer::Done), Ok(Answer::Done)));
        assert_eq!(tokio::join!(one(), one()), (Ok(Answer::Done), Ok(Answer::Done)), "nobody waits for a third");
        let later = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            one().await
        };
        assert_eq!(tokio::join!(one(), later), (Ok(Answer::Done), Ok(Answer::Done)));
        assert_eq!(*sizes.lock().unwrap(), [1, 2, 2, 2]);
    }

    #[tokio::test]
    async fn a_second_entry_goes_beside_one_that_is_under_way_if_enough_wait_for_it_and_no_third_does() {
        let (sizes, gate) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(0)));
        let (seen, opened) = (sizes.clone(), gate.clone());
        let proposer = Proposer::start(move |batch: Batch| {
            let (seen, gate) = (seen.clone(), gate.clone());
            async move {
                // Not where it is made, but where it begins.
                seen.lock().unwrap().push(batch.0.len());
                gate.acquire().await.unwrap().forget();
                Ok(vec![Answer::Done; batch.0.len()])
            }
        });
        let mut callers = Vec::new();
        let mut call = |many: usize| {
            for _ in 0..many {
                let proposer = proposer.clone();
                callers.push(tokio::spawn(async move { proposer.propose(cancel(String::new()), LIMIT).await }));
            }
        };
        // Whatever can go on has gone on: there is one thread, and nobody waits for time.
        let settled = async || {
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
        };
        call(1);
        settled().await;
        call(ENOUGH_BESIDE - 1);
        settled().await;
        assert_eq!(*sizes.lock().unwrap(), [1], "too few for an entry of their own");
        call(1);
        settled().await;
        assert_eq!(*sizes.lock().unwrap(), [1, ENOUGH_BESIDE]);
        call(3 * ENOUGH_BESIDE);
        settled().await;
        assert_eq!(*sizes.lock().unwrap(), [1, ENOUGH_BESIDE], "two are under way");
        opened.add_permits(1);
        settled().await;
        assert_eq!(*sizes.lock().unwrap(), [1, ENOUGH_BESIDE, 3 * ENOUGH_BESIDE]);
        opened.add_permits(2);
        for caller in callers {
            assert_eq!(caller.await.unwrap(), Ok(Answer::Done));
        }
    }

    #[tokio::test]
    async fn an_entry_stays_below_the_stores_limit() {
        let lens = Arc::new(Mutex::new(Vec::new()));
        let seen = lens.clone();
        let proposer = Proposer::start(move |batch: Batch| {
            seen.lock().unwrap().push(codec::batch_to_bytes(&batch).len());
            async move { Ok(vec![Answer::Done; batch.0.len()]) }
        });
        let asks = (0..50).map(|_| {
            let proposer = proposer.clone();
            tokio::spawn(async move { proposer.propose(surrender(10), LIMIT).await })
        });
        for ask in asks.collect::<Vec<_>>() {
            assert_eq!(ask.await.unwrap(), Ok(Answer::Done));
        }
        assert!(lens.lock().unwrap().iter().all(|len| *len <= BATCH_BYTES_MAX));
        let large = proposer.propose(surrender(50), LIMIT).await.unwrap_err();
        assert!(large.is_definite());
    }

    #[tokio::test]
    async fn a_write_without_an_end_is_an_unknown_outcome_and_the_next_one_goes_on() {
        let write = |batch: Batch| async move {
            match batch.0[0].actor.as_str() {
                "stuck" => std::future::pending().await,
                _ => Ok(vec![Answer::Done; batch.0.len()]),
            }
        };
        let proposer = Proposer::with_limits(write, Duration::from_millis(20), LINGER);
        let stuck = proposer.propose(cancel("stuck".into()), LIMIT).await.unwrap_err();
        assert!(!stuck.is_definite());
        assert_eq!(proposer.propose(cancel("next".into()), LIMIT).await, Ok(Answer::Done));
    }

    #[tokio::test]
    async fn a_caller_waits_no_longer_than_its_limit_though_the_queue_is_full_of_those_who_gave_up() {
        let proposer = Proposer::with_limits(|_: Batch| std::future::pending(), 10 * LIMIT, LINGER);
        let short = Duration::from_millis(1);
        for _ in 0..PROPOSALS_MAX + OWN_MAX + 2 * BATCH_MAX {
            proposer.propose(cancel(String::new()), short).await.unwrap_err();
        }
        let late = timeout(LIMIT, proposer.propose(cancel(String::new()), Duration::from_millis(50))).await;
        assert_eq!(late.expect("it ends by its own limit"), Err(ProposeError::Overloaded));
        let own = timeout(LIMIT, proposer.propose_own(cancel(String::new()), Duration::from_millis(50))).await;
        let own = own.expect("it ends by its own limit").unwrap_err();
        assert!(!own.is_definite(), "there was a place for it: {own}");
    }

    #[tokio::test]
    async fn callers_who_do_not_look_for_their_answers_keep_no_places() {
        let proposer = Proposer::start(async |batch: Batch| Ok(vec![Answer::Done; batch.0.len()]));
        let mut asleep: Vec<_> = (0..PROPOSALS_MAX).map(|_| Box::pin(proposer.propose(cancel(String::new()), LIMIT))).collect();
        for caller in &mut asleep {
            assert!(futures::poll!(caller).is_pending());
        }
        assert_eq!(proposer.propose(cancel(String::new()), LIMIT).await, Err(ProposeError::Overloaded), "they fill it");
        let served = async {
            while proposer.propose(cancel(String::new()), LIMIT).await != Ok(Answer::Done) {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, served).await.expect("there is room when they are answered, though none of them looks");
        drop(asleep);
    }

    #[tokio::test]
    async fn the_servers_own_command_waits_for_a_place_no_longer_than_its_limit() {
        let proposer = Proposer::with_limits(|_: Batch| std::future::pending(), 10 * LIMIT, LINGER);
        let stuck = || {
            let proposer = proposer.clone();
            tokio::spawn(async move { proposer.propose_own(cancel(String::new()), LIMIT).await })
        };
        let crowd: Vec<_> = (0..OWN_MAX).map(|_| stuck()).collect();
        while proposer.own.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let one_more = proposer.propose_own(cancel(String::new()), Duration::from_millis(50));
        assert_eq!(timeout(LIMIT, one_more).await.expect("it ends by its own limit"), Err(ProposeError::Overloaded));
        crowd.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn callers_beyond_the_limit_are_turned_away_and_the_servers_own_commands_are_not() {
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let proposer = Proposer::start(move |batch: Batch| {
            let gate = gate.clone();
            async move {
                let _open = gate.acquire().await;
                Ok(vec![Answer::Done; batch.0.len()])
            }
        });
        let call = |own: bool| {
            let proposer = proposer.clone();
            tokio::spawn(async move {
                let command = cancel(String::new());
                if own { proposer.propose_own(command, LIMIT).await } else { proposer.propose(command, LIMIT).await }
            })
        };
        let crowd: Vec<_> = (0..PROPOSALS_MAX).map(|_| call(false)).collect();
        tokio::task::yield_now().await;
        assert_eq!(call(false).await.unwrap(), Err(ProposeError::Overloaded));
        let own = call(true);
        opened.add_permits(1);
        assert_eq!(own.await.unwrap(), Ok(Answer::Done));
        for caller in crowd {
            assert_eq!(caller.await.unwrap(), Ok(Answer::Done));
        }
    }

    fn cancel(actor: String) -> Proposal {
        proposal(actor, Command::Cancel { tree: TreeId::random(), session: SessionId::random() })
    }

    /// So many thousand bytes.
    fn surrender(thousands: usize) -> Proposal {
        let lease = LeaseRef { tree: TreeId::random(), session: SessionId::random(), epoch: Epoch::ZERO };
        let files = vec!["x".repeat(1_000); thousands];
        proposal(String::new(), Command::Surrender { lease, reason: String::new(), files })
    }

    fn proposal(actor: String, command: Command) -> Proposal {
        Proposal { request_key: RequestKey::random(), actor, at: WallTime::UNKNOWN, command }
    }
}

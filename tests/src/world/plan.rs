//! What a run is about, drawn from its seed before anything happens; and the rules that can be left out of it on purpose.

use std::fmt;
use std::time::Duration;

use treelease_proto::policy::{Fence, Policy};
use treelease_proto::time::Ttl;

use super::rng::Rng;

/// A rule that is left out, so that it shows that the world notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// None: the product as it is.
    None,
    /// The right to write is counted from when the renewal's answer came, not from when it was sent (I4).
    DeadlineFromArrival,
    /// A side's clock stands still in suspend, and does not show it.
    MonotonicClock,
    /// A side's clock is slewed by NTP, 8.3 % slow.
    SlewedClock,
    /// A renewal extends what the side thinks it holds, whatever the answer lists (I4).
    ExtendsUnlisted,
    /// A new leader goes on with timers that heard of no renewal, and does not arm them anew (I3).
    TimersGoOn,
    /// An expiry that an old leader decided counts under the new one (I3, I5).
    ExpiryUnbound,
    /// A leader acknowledges renewals without asking a quorum (I5).
    AckUnconfirmed,
    /// The waits after an unclean end are skipped (I2).
    GraceSkipped,
    /// A lease is released while writes are on their way (I2).
    DrainSkipped,
    /// Files that were opened before another side's turn stay writable (I6).
    NothingStale,
}

impl Fault {
    /// Every rule that can be left out.
    pub const ALL: [Fault; 10] = [
        Fault::DeadlineFromArrival,
        Fault::MonotonicClock,
        Fault::SlewedClock,
        Fault::ExtendsUnlisted,
        Fault::TimersGoOn,
        Fault::ExpiryUnbound,
        Fault::AckUnconfirmed,
        Fault::GraceSkipped,
        Fault::DrainSkipped,
        Fault::NothingStale,
    ];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Fault::None => "none",
            Fault::DeadlineFromArrival => "deadline-from-arrival",
            Fault::MonotonicClock => "monotonic-clock",
            Fault::SlewedClock => "slewed-clock",
            Fault::ExtendsUnlisted => "extends-unlisted",
            Fault::TimersGoOn => "timers-go-on",
            Fault::ExpiryUnbound => "expiry-unbound",
            Fault::AckUnconfirmed => "ack-unconfirmed",
            Fault::GraceSkipped => "grace-skipped",
            Fault::DrainSkipped => "drain-skipped",
            Fault::NothingStale => "nothing-stale",
        }
    }

    /// The fault of that name.
    pub fn parse(name: &str) -> Result<Fault, String> {
        let all = || Fault::ALL.into_iter().chain([Fault::None]);
        all().find(|f| f.name() == name).ok_or_else(|| {
            format!("there is no fault `{name}`; there are {}", all().map(Fault::name).collect::<Vec<_>>().join(", "))
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How long virtual machines are paused in a way that no clock of theirs shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freezes {
    /// Never.
    None,
    /// At most for what margin and grace have room for.
    Short,
    /// For longer: then nobody can keep the old holder from writing until an answer uncovers it.
    Long,
}

impl Freezes {
    /// The kind of that name.
    pub fn parse(name: &str) -> Result<Freezes, String> {
        match name {
            "none" => Ok(Freezes::None),
            "short" => Ok(Freezes::Short),
            "long" => Ok(Freezes::Long),
            _ => Err(format!("there are no freezes `{name}`; there are none, short, long")),
        }
    }
}

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Everything arrives, soon.
    Calm,
    /// Everything arrives, some of it late by up to a TTL.
    Slow,
    /// Much is lost, some comes twice.
    Lossy,
}

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Everything else follows from it.
    pub seed: u64,
    /// The rule that is left out.
    pub fault: Fault,
    /// Invisible pauses of sides' machines; `None`: as the seed says, none or short ones.
    pub freezes: Option<Freezes>,
    /// Look at the gates alone, not at the rules on the way to them (I2, I3), nor at who gets the tree in the end.
    pub gates_only: bool,
    /// Keep a line for each event.
    pub trace: bool,
}

impl Options {
    /// The product as it is, without long freezes.
    pub const fn of(seed: u64) -> Self {
        Self { seed, fault: Fault::None, freezes: None, gates_only: false, trace: false }
    }
}

/// A run's parameters.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many sides compete.
    pub sides: usize,
    /// How many nodes serve them.
    pub nodes: usize,
    /// Of every session.
    pub ttl: Ttl,
    /// Of the one tree.
    pub policy: Policy,
    /// The network.
    pub weather: Weather,
    /// Invisible pauses.
    pub freezes: Freezes,
    /// Whether the sides hear of changes by answers and renewals alone: no events, no table.
    pub deaf: bool,
    /// How long faults happen; then everything heals.
    pub stormy: Duration,
    /// How many faults begin in that time.
    pub faults: usize,
}

impl Plan {
    /// Of these options.
    pub fn draw(options: &Options, rng: &mut Rng) -> Self {
        let ttl = match options.fault {
            // A short TTL's margin alone is more than 8.3 % of it: there the drift term proves nothing.
            Fault::SlewedClock => 30,
            _ => rng.pick(&[2, 4, 10, 30]),
        };
        let policy = Policy {
            idle: rng.ms(300, 2_000),
            quiet: rng.ms(0, 100),
            handoff_wait: rng.ms(500, 3_000),
            grace: Duration::from_millis(rng.pick(&[0, 20, 100, 1_000])),
            fence: if rng.chance(80) { Fence::None } else { Fence::Manual },
            flush_limit: Duration::from_secs(5),
            min_hold: rng.ms(0, 2_000),
            ..Policy::default()
        };
        let freezes = if rng.chance(25) { Freezes::Short } else { Freezes::None };
        Plan {
            sides: if rng.chance(70) { 2 } else { 3 },
            nodes: if rng.chance(80) { 3 } else { 1 },
            ttl: Ttl::new(Duration::from_secs(ttl)),
            policy,
            weather: rng.pick(&[Weather::Calm, Weather::Slow, Weather::Lossy]),
            freezes: options.freezes.unwrap_or(freezes),
            deaf: rng.chance(30),
            stormy: Duration::from_secs(10 + 6 * ttl),
            faults: 2 + rng.below(5),
        }
    }
}

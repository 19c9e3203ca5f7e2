//! What a run is about, drawn from its seed before anything happens; and the rules that can be left out of it on purpose.

use std::fmt;
use std::time::Duration;

use treelease_proto::policy::{Fence, Policy};
use treelease_proto::time::Ttl;
use treelease_server::consensus::Pace;
use treelease_server::fault::{self, Faults};

use crate::world::plan as cores;
use crate::world::rng::Rng;

/// Nodes of the cluster.
pub const NODES: usize = 3;

/// A rule that is left out, so that it shows that the world notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// None: the product as it is.
    None,
    /// A leader answers from what it knows, without asking a quorum (I5).
    LocalReads,
    /// A renewal extends what the side thinks it holds, whatever the answer lists (I4).
    ExtendsUnlisted,
    /// A new leader goes on with timers that heard of no renewal (I3).
    TimersGoOn,
    /// The right to write is counted from when the answer came (I4).
    DeadlineFromArrival,
    /// A leadership is known by its term, not by a number of its own.
    TermsForLeaderships,
    /// After a break the waits are skipped (I2).
    BreakWithoutWait,
    /// Another kernel of the same side is taken for the same one (I2).
    KernelsNotCompared,
    /// Log and vote are not synced (I7).
    NotSynced,
    /// A leader counts itself before its disk has an entry, and goes on in its term without it (I7).
    CountsUnwritten,
}

impl Fault {
    /// Every rule that can be left out.
    pub const ALL: [Fault; 9] = [
        Fault::LocalReads,
        Fault::ExtendsUnlisted,
        Fault::TimersGoOn,
        Fault::DeadlineFromArrival,
        Fault::TermsForLeaderships,
        Fault::BreakWithoutWait,
        Fault::KernelsNotCompared,
        Fault::NotSynced,
        Fault::CountsUnwritten,
    ];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Fault::None => "none",
            Fault::LocalReads => "local-reads",
            Fault::ExtendsUnlisted => "extends-unlisted",
            Fault::TimersGoOn => "timers-go-on",
            Fault::DeadlineFromArrival => "deadline-from-arrival",
            Fault::TermsForLeaderships => "terms-for-leaderships",
            Fault::BreakWithoutWait => "break-without-wait",
            Fault::KernelsNotCompared => "kernels-not-compared",
            Fault::NotSynced => "not-synced",
            Fault::CountsUnwritten => "counts-unwritten",
        }
    }

    /// The fault of that name.
    pub fn parse(name: &str) -> Result<Fault, String> {
        let all = || Fault::ALL.into_iter().chain([Fault::None]);
        all().find(|f| f.name() == name).ok_or_else(|| {
            format!("there is no fault `{name}`; there are {}", all().map(Fault::name).collect::<Vec<_>>().join(", "))
        })
    }

    /// The story in which this rule is needed: a control is about whether the world sees what comes of it, not about how often
    /// chance leads there.
    fn story(self) -> Option<Siege> {
        match self {
            Fault::None => None,
            Fault::LocalReads => Some(Siege::OldLeader),
            Fault::ExtendsUnlisted | Fault::BreakWithoutWait => Some(Siege::Break),
            Fault::TimersGoOn => Some(Siege::NewLeader),
            Fault::DeadlineFromArrival => Some(Siege::LateAnswers),
            Fault::TermsForLeaderships => Some(Siege::LeaderRestarts),
            Fault::CountsUnwritten => Some(Siege::LeaderAhead),
            Fault::KernelsNotCompared => Some(Siege::OtherKernel),
            Fault::NotSynced => Some(Siege::PowerCut),
        }
    }

    /// What the servers leave out.
    pub fn of_servers(self) -> Faults {
        let fault = match self {
            Fault::LocalReads => Some(fault::Fault::LocalReads),
            Fault::TimersGoOn => Some(fault::Fault::TimersGoOn),
            Fault::TermsForLeaderships => Some(fault::Fault::TermsForLeaderships),
            Fault::CountsUnwritten => Some(fault::Fault::CountsUnwritten),
            _ => None,
        };
        fault.into_iter().collect()
    }

    /// What a side leaves out.
    pub fn of_sides(self) -> cores::Fault {
        match self {
            Fault::DeadlineFromArrival => cores::Fault::DeadlineFromArrival,
            Fault::ExtendsUnlisted => cores::Fault::ExtendsUnlisted,
            _ => cores::Fault::None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What goes wrong when it matters most: somebody writes all the time, another side waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Siege {
    /// The holder hears nobody.
    Cut,
    /// Requests and answers of the holder take long, then it hears nobody.
    LateAnswers,
    /// The holder's machine sleeps.
    Sleep,
    /// The leader is killed just when the holder hears nobody.
    NewLeader,
    /// The leader is cut off from the nodes alone, and the lease is broken at the next one.
    OldLeader,
    /// The leader is killed and is back at once.
    LeaderRestarts,
    /// The leader's disk gets slow, the lease is broken, the leader loses its power and is back at once.
    LeaderAhead,
    /// The lease is broken, and the holder hears of nothing but its renewals' answers.
    Break,
    /// The holder's machine is lost, and its side starts on another one.
    OtherKernel,
    /// The power of all nodes fails.
    PowerCut,
}

impl Siege {
    const ALL: [Siege; 10] = [
        Siege::Cut,
        Siege::LateAnswers,
        Siege::Sleep,
        Siege::NewLeader,
        Siege::OldLeader,
        Siege::LeaderRestarts,
        Siege::LeaderAhead,
        Siege::Break,
        Siege::OtherKernel,
        Siege::PowerCut,
    ];
}

/// What the thread that plays a world hears of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Machine {
    /// Nothing.
    #[default]
    Silent,
    /// Nothing either; and it gives this process no processor for longer than a second, now and then.
    Stalls,
    /// Its chance, and its clocks: they leap by seconds, as that number says (control).
    Heard(u64),
}

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Everything else follows from it.
    pub seed: u64,
    /// The rule that is left out.
    pub fault: Fault,
    /// Keep a line for each event.
    pub trace: bool,
    /// What it hears of this machine.
    pub machine: Machine,
}

impl Options {
    /// The product as it is.
    pub const fn of(seed: u64) -> Self {
        Self { seed, fault: Fault::None, trace: false, machine: Machine::Silent }
    }
}

/// A run's parameters.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many sides compete for each tree.
    pub sides: usize,
    /// How many trees.
    pub trees: usize,
    /// What the sides' cores are given: TTL, policy, how long faults happen.
    pub side: cores::Plan,
    /// Of each node: a time-out of its own, so that nothing else need be drawn in an election.
    pub paces: Vec<Pace>,
    /// How long a message takes, in milliseconds.
    pub latency: (u64, u64),
    /// How many faults begin beside the siege.
    pub faults: usize,
    /// One siege, if any.
    pub siege: Option<Siege>,
}

impl Plan {
    /// Of these options.
    pub fn draw(options: &Options, rng: &mut Rng) -> Self {
        let siege = match options.fault.story() {
            None => rng.chance(75).then(|| rng.pick(&Siege::ALL)),
            story => story,
        };
        // A node that is patient believes for long that it leads.
        let patient = siege == Some(Siege::OldLeader) || rng.chance(15);
        let paces: Vec<Pace> = (0..NODES).map(|n| pace(patient && n == 0, rng)).collect();
        let least = paces.iter().map(|pace| pace.least_ttl(NODES).get()).max().unwrap_or_default();
        let ttl = Duration::from_secs(least.as_secs() + 1 + rng.below(2) as u64);
        let long_grace = siege == Some(Siege::OtherKernel);
        let policy = Policy {
            idle: rng.ms(300, 2_000),
            quiet: rng.ms(0, 100),
            handoff_wait: rng.ms(500, 3_000),
            grace: Duration::from_millis(if long_grace { 1_500 } else { rng.pick(&[0, 20, 100, 1_000]) }),
            fence: if rng.chance(85) { Fence::None } else { Fence::Manual },
            flush_limit: Duration::from_secs(5),
            min_hold: rng.ms(0, 1_500),
            ..Policy::default()
        };
        let sides = if rng.chance(70) { 2 } else { 3 };
        let side = cores::Plan {
            sides,
            nodes: NODES,
            ttl: Ttl::new(ttl),
            policy,
            weather: cores::Weather::Calm,
            freezes: if rng.chance(25) { cores::Freezes::Short } else { cores::Freezes::None },
            deaf: rng.chance(20),
            stormy: Duration::from_secs(6) + (ttl * 3).min(Duration::from_secs(24)),
            faults: 0,
        };
        let trees = if rng.chance(70) { 1 } else { 2 };
        Self { sides, trees, side, paces, latency: (1, rng.pick(&[4, 15, 40])), faults: 2 + rng.below(4), siege }
    }
}

fn pace(patient: bool, rng: &mut Rng) -> Pace {
    let election_min = if patient { rng.ms(1_800, 2_200) } else { rng.ms(250, 450) };
    Pace {
        heartbeat: Duration::from_millis(80),
        election_min,
        // openraft draws between the two: there is one millisecond to draw from.
        election_max: election_min + Duration::from_millis(1),
        snapshot_after: rng.pick(&[20, 60, 5_000]),
        log_kept: rng.pick(&[0, 10]),
        ..Pace::default()
    }
}

//! What will befall the hosts, from a seed. Pure.
//!
//! The same seed gives the same faults at the same times. Who leads when a fault comes, and how far each process has come, is not
//! in the seed: so a seed that failed is tried several times.

use super::random::Random;
use crate::ledger::Journal;

/// Nodes are hosts 0 to 2, sides 3 and 4.
pub const NODES: u64 = 3;
/// Hosts that may be cut off.
pub const HOSTS: u64 = 5;
/// When the last fault begins at the latest, in milliseconds from the start of the work.
const LAST: u64 = 12_000;

/// Which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// Whoever leads at that moment.
    Leader,
    /// The first one that does not.
    Follower,
}

/// What befalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of a side's daemon; `up` afterwards, if no command has started it before.
    KillDaemon(usize),
    /// SIGSTOP, then SIGCONT.
    StopDaemon(usize),
    /// kill -9 of the command that runs under the lease.
    KillCommand(usize),
    /// kill -9, then started again.
    KillNode(Node),
    /// kill -9 of the leader and one more.
    KillTwoNodes,
    /// SIGSTOP, then SIGCONT.
    StopNode(Node),
    /// The disk of a node is full; afterwards it has room again, and the node is started if it ended.
    FullDisk(Node),
    /// What the first host sends does not reach the second one.
    OneWay(usize, usize),
    /// Neither hears the other.
    Apart(usize, usize),
    /// Nobody hears this host, and it hears nobody.
    Alone(usize),
    /// This host hears nobody.
    Deaf(usize),
    /// Nobody hears this host.
    Mute(usize),
    /// As [`Fault::Alone`], for whoever leads.
    LeaderAlone,
}

/// A fault, from when and for how long, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timed {
    /// From the start of the work.
    pub at: u64,
    /// Then it is healed.
    pub lasts: u64,
    /// What.
    pub fault: Fault,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it came from.
    pub seed: u64,
    /// The tree's policy `fence`; `manual`: an operator confirms.
    pub manual_fence: bool,
    /// How the database keeps its transactions.
    pub journal: Journal,
    /// In the order of their beginning.
    pub faults: Vec<Timed>,
}

impl Plan {
    /// The one of that seed.
    pub fn from(seed: u64, journal: Journal) -> Plan {
        let mut random = Random::new(seed);
        let manual_fence = random.below(4) == 0;
        let mut faults: Vec<Timed> = (0..3 + random.below(4))
            .map(|_| Timed { at: random.below(LAST), lasts: 300 + random.below(9_000), fault: fault(&mut random) })
            .collect();
        faults.sort_by_key(|f| f.at);
        Plan { seed, manual_fence, journal, faults }
    }

    /// Whether a disk will be full.
    pub fn fills_a_disk(&self) -> bool {
        self.faults.iter().any(|f| matches!(f.fault, Fault::FullDisk(_)))
    }
}

fn fault(random: &mut Random) -> Fault {
    let node = random.one_of(&[Node::Leader, Node::Leader, Node::Follower]);
    let side = random.below(2) as usize;
    let from = random.below(HOSTS);
    let to = (from + 1 + random.below(HOSTS - 1)) % HOSTS;
    let (from, to) = (from as usize, to as usize);
    match random.below(16) {
        0 | 1 => Fault::KillDaemon(side),
        2 | 3 => Fault::StopDaemon(side),
        4 => Fault::KillCommand(side),
        5 => Fault::KillNode(node),
        6 => Fault::KillTwoNodes,
        7 => Fault::StopNode(node),
        8 => Fault::FullDisk(node),
        9 => Fault::OneWay(from, to),
        10 => Fault::Apart(from, to),
        11 => Fault::Alone(from),
        12 => Fault::Alone(NODES as usize + side),
        13 => Fault::Deaf(from),
        14 => Fault::Mute(from),
        _ => Fault::LeaderAlone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_and_all_kinds_of_faults_come() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let plan = Plan::from(seed, Journal::Delete);
            assert_eq!(plan.faults, Plan::from(seed, Journal::Delete).faults);
            assert!((3..=6).contains(&plan.faults.len()));
            for timed in &plan.faults {
                if let Fault::OneWay(a, b) | Fault::Apart(a, b) = timed.fault {
                    assert!(a != b && a < HOSTS as usize && b < HOSTS as usize);
                }
                kinds.insert(format!("{:?}", timed.fault).split('(').next().unwrap_or_default().to_owned());
            }
        }
        assert_eq!(kinds.len(), 13, "{kinds:?}");
    }
}

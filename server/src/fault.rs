//! Rules left out on purpose, so that it shows that tests would notice.
//!
//! Promises: a rule is left out only where a value of [`Faults`] says so that was passed down to it. A node that stands on this machine
//! takes it from its environment (`TREELEASE_TEST_FAULT=NAME,…`), which is read here and nowhere else; a simulated world gives its own.
//! *A release build leaves out none, whatever it is told:* [`Faults::has`] is `false` there before it looks, and the environment is not
//! read. Names of others are passed over: a guard knows some of its own, under the same variable, and starts a server.

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Leadership is never confirmed: what is read was true once (I5).
    LocalReads,
    /// A new leader goes on with timers that heard of no renewal, and does not arm them anew (I3).
    TimersGoOn,
    /// A leadership is known by its term, not by its entry's index.
    TermsForLeaderships,
    /// A leader counts itself before its disk has an entry, and goes on in its term when it comes back without it (I7).
    CountsUnwritten,
    /// A commit is answered although nothing has told the disk to keep it (I7).
    NoSync,
    /// Killed between the two steps of a change of voters.
    DieInJoint,
    /// A leader just ends.
    NoHandOver,
    /// A follower that hears a leader believes in a quorum.
    ContactIsQuorum,
    /// A node's message counts whatever directory it is from (I7).
    AnyDisk,
    /// Numbers of earlier nodes are forgotten (I7).
    ReuseIds,
    /// It knows no calls for renewals that stay open, as builds of before did not.
    OlderNode,
    /// As [`Fault::NoSync`], of the store behind the journal alone: the journal syncs (I7).
    NoStoreSync,
    /// No rule: it says that it makes something else of the log, as a later build may.
    OtherBuild,
    /// No rule: a journal so short that the store behind it gets its part often.
    SmallJournal,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 14] = [
        Fault::LocalReads,
        Fault::TimersGoOn,
        Fault::TermsForLeaderships,
        Fault::CountsUnwritten,
        Fault::NoSync,
        Fault::DieInJoint,
        Fault::NoHandOver,
        Fault::ContactIsQuorum,
        Fault::AnyDisk,
        Fault::ReuseIds,
        Fault::OlderNode,
        Fault::NoStoreSync,
        Fault::OtherBuild,
        Fault::SmallJournal,
    ];

    /// As the environment names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Fault::LocalReads => "local_reads",
            Fault::TimersGoOn => "timers_go_on",
            Fault::TermsForLeaderships => "terms_for_leaderships",
            Fault::CountsUnwritten => "counts_unwritten",
            Fault::NoSync => "no_sync",
            Fault::DieInJoint => "die_in_joint",
            Fault::NoHandOver => "no_hand_over",
            Fault::ContactIsQuorum => "contact_is_quorum",
            Fault::AnyDisk => "any_disk",
            Fault::ReuseIds => "reuse_ids",
            Fault::OlderNode => "older_node",
            Fault::NoStoreSync => "no_store_sync",
            Fault::OtherBuild => "other_build",
            Fault::SmallJournal => "small_journal",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// The rules that a node leaves out: none, unless a test says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults(u16);

impl Faults {
    /// As this process's environment names them.
    pub fn from_environment() -> Self {
        if !cfg!(debug_assertions) {
            return Self::default();
        }
        Self::named(&std::env::var("TREELEASE_TEST_FAULT").unwrap_or_default())
    }

    fn named(names: &str) -> Self {
        Fault::ALL.into_iter().filter(|fault| names.split(',').any(|name| name == fault.as_str())).collect()
    }

    /// The same, and this one too.
    pub const fn with(self, fault: Fault) -> Self {
        Self(self.0 | fault.bit())
    }

    /// Whether this rule is left out. Never in a release build.
    pub const fn has(self, fault: Fault) -> bool {
        cfg!(debug_assertions) && self.0 & fault.bit() != 0
    }
}

impl FromIterator<Fault> for Faults {
    fn from_iter<T: IntoIterator<Item = Fault>>(faults: T) -> Self {
        Self(faults.into_iter().fold(0, |bits, fault| bits | fault.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_a_name_of_its_own_and_names_of_others_are_passed_over() {
        for fault in Fault::ALL {
            let faults = Faults::named(&format!("no_lock,{},", fault.as_str()));
            assert_eq!(faults, Faults::from_iter([fault]));
            for other in Fault::ALL {
                assert_eq!(faults.has(other), other == fault && cfg!(debug_assertions), "{fault:?} {other:?}");
            }
        }
        assert_eq!(Faults::named("no_lock"), Faults::default());
        assert_eq!(Faults::named(""), Faults::default());
    }

    /// Run it with `cargo test --release` too: then there is nothing that can be left out.
    #[test]
    fn a_release_build_leaves_out_no_rule() {
        let all = Faults::from_iter(Fault::ALL);
        assert!(Fault::ALL.into_iter().all(|fault| all.has(fault) == cfg!(debug_assertions)));
    }
}

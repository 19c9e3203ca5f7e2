//! What a tree's owner has decided about it (CLI.md, "Policy keys"), checked once when it is made.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::SideName;
use crate::time::{format_duration, millis, parse_duration};

/// Whether the guard refuses, records or lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything goes through.
    Off,
    /// Everything goes through; what would have been refused is recorded.
    Observe,
    /// Who does not hold the lease is refused.
    Enforce,
}

/// What a first write on a free tree does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirstWrite {
    /// Takes the lease by itself.
    Acquire,
    /// Is refused.
    Refuse,
}

/// What a write meets while the gate closes for a handoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnClose {
    /// EROFS at once.
    Refuse,
    /// Waits until the handoff has succeeded (EROFS) or failed (goes on).
    Wait,
}

/// What must succeed after an unclean end of an active tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fence {
    /// A person vouches, with `treelease fence confirm`.
    Manual,
    /// Nothing: the grace alone is waited out, and the history names the risk.
    None,
    /// A command on the leader's node, by its name in the servers' configuration.
    Exec(String),
}

/// What lets a side in again that a fence agent has cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unfence {
    /// A person's word, with `treelease fence unfence`.
    Manual,
    /// A restart of its machine too, which its daemon tells. Only where no two machines have one `machine-id(5)` at a time.
    Restart,
}

/// Who may be granted after an unclean end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Takeover {
    /// Every side.
    Any,
    /// These sides only.
    Sides(BTreeSet<SideName>),
}

/// A check that the new holder runs after an unclean end, before its gate opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// `PRAGMA quick_check` of each SQLite database with leftovers.
    QuickCheck,
    /// `git fsck` of the repository.
    Fsck,
}

/// Every decision about one tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the keys' meanings stand in CLI.md, and in `KEYS`
pub struct Policy {
    pub mode: Mode,
    pub first_write: FirstWrite,
    #[serde(with = "millis")]
    pub idle: Duration,
    #[serde(with = "millis")]
    pub quiet: Duration,
    #[serde(with = "millis")]
    pub handoff_wait: Duration,
    pub on_close: OnClose,
    #[serde(with = "millis")]
    pub grace: Duration,
    pub fence: Fence,
    pub unfence: Unfence,
    #[serde(with = "millis")]
    pub dirty_max: Duration,
    #[serde(with = "millis")]
    pub flush_limit: Duration,
    #[serde(with = "millis")]
    pub min_hold: Duration,
    pub takeover: Takeover,
    pub sealed_read: Vec<String>,
    pub checks: BTreeSet<Check>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            first_write: FirstWrite::Acquire,
            idle: Duration::from_secs(10),
            quiet: Duration::from_millis(200),
            handoff_wait: Duration::from_secs(30),
            on_close: OnClose::Refuse,
            grace: Duration::from_secs(5),
            fence: Fence::Manual,
            unfence: Unfence::Manual,
            dirty_max: Duration::from_secs(1),
            flush_limit: Duration::from_secs(60),
            min_hold: Duration::from_secs(2),
            takeover: Takeover::Any,
            sealed_read: Vec::new(),
            checks: BTreeSet::from([Check::QuickCheck]),
        }
    }
}

/// Every key, in the order in which they are shown.
pub const KEYS: [&str; 15] = [
    "mode",
    "first_write",
    "idle",
    "quiet",
    "handoff_wait",
    "on_close",
    "grace",
    "fence",
    "unfence",
    "dirty_max",
    "flush_limit",
    "min_hold",
    "takeover",
    "sealed_read",
    "checks",
];

/// The longest that any policy may make somebody wait.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The shortest `dirty_max`: a storage that is asked to confirm more often does nothing else.
const SHORTEST_DIRTY_MAX: Duration = Duration::from_millis(100);

/// A policy key or value that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy `{key}={value}`: {why}")]
pub struct BadPolicy {
    /// The key as it came.
    pub key: String,
    /// The value as it came.
    pub value: String,
    /// What is wrong, and what would be right.
    pub why: String,
}

impl Policy {
    /// Sets one key. On an error the policy is as it was.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), BadPolicy> {
        let bad = |why: String| BadPolicy { key: key.into(), value: value.into(), why };
        let one_of = |choices: &str| bad(format!("use one of {choices}"));
        let duration = || {
            let d = parse_duration(value).map_err(&bad)?;
            if d > LONGEST { Err(bad("at most 24h".into())) } else { Ok(d) }
        };
        match key {
            "mode" => {
                self.mode = match value {
                    "off" => Mode::Off,
                    "observe" => Mode::Observe,
                    "enforce" => Mode::Enforce,
                    _ => return Err(one_of("off, observe, enforce")),
                }
            }
            "first_write" => {
                self.first_write = match value {
                    "acquire" => FirstWrite::Acquire,
                    "refuse" => FirstWrite::Refuse,
                    _ => return Err(one_of("acquire, refuse")),
                }
            }
            "on_close" => {
                self.on_close = match value {
                    "refuse" => OnClose::Refuse,
                    "wait" => OnClose::Wait,
                    _ => return Err(one_of("refuse, wait")),
                }
            }
            "fence" => {
                self.fence = match value {
                    "manual" => Fence::Manual,
                    "none" => Fence::None,
                    _ => match value.strip_prefix("exec:") {
                        Some(name) if !name.is_empty() => Fence::Exec(name.into()),
                        _ => return Err(one_of("manual, none, exec:NAME")),
                    },
                }
            }
            "unfence" => {
                self.unfence = match value {
                    "manual" => Unfence::Manual,
                    "restart" => Unfence::Restart,
                    _ => return Err(one_of("manual, restart")),
                }
            }
            "takeover" => {
                self.takeover = match value {
                    "any" => Takeover::Any,
                    "" => return Err(bad("name `any`, or sides separated by commas".into())),
                    _ => Takeover::Sides(
                        value.split(',').map(|s| s.trim().parse()).collect::<Result<_, _>>().map_err(|e| bad(format!("{e}")))?,
                    ),
                }
            }
            "checks" => {
                let mut checks = BTreeSet::new();
                for name in value.split(',').map(str::trim).filter(|n| !n.is_empty() && *n != "none") {
                    checks.insert(match name {
                        "quick_check" => Check::QuickCheck,
                        "fsck" => Check::Fsck,
                        _ => return Err(one_of("quick_check, fsck, none")),
                    });
                }
                self.checks = checks;
            }
            "sealed_read" => {
                self.sealed_read = value.split(',').map(str::trim).filter(|g| !g.is_empty()).map(str::to_owned).collect();
            }
            "idle" => self.idle = duration()?,
            "quiet" => self.quiet = duration()?,
            "handoff_wait" => self.handoff_wait = duration()?,
            "grace" => self.grace = duration()?,
            "dirty_max" => match duration()? {
                short if short < SHORTEST_DIRTY_MAX => return Err(bad("at least 100ms".into())),
                long => self.dirty_max = long,
            },
            "flush_limit" => self.flush_limit = duration()?,
            "min_hold" => self.min_hold = duration()?,
            _ => return Err(bad(format!("there is no such key; the keys are {}", KEYS.join(", ")))),
        }
        Ok(())
    }

    /// One key's value, in the form that [`Policy::set`] reads.
    pub fn get(&self, key: &str) -> Option<String> {
        Some(match key {
            "mode" => match self.mode {
                Mode::Off => "off",
                Mode::Observe => "observe",
                Mode::Enforce => "enforce",
            }
            .into(),
            "first_write" => match self.first_write {
                FirstWrite::Acquire => "acquire",
                FirstWrite::Refuse => "refuse",
            }
            .into(),
            "on_close" => match self.on_close {
                OnClose::Refuse => "refuse",
                OnClose::Wait => "wait",
            }
            .into(),
            "fence" => self.fence.to_string(),
            "unfence" => match self.unfence {
                Unfence::Manual => "manual",
                Unfence::Restart => "restart",
            }
            .into(),
            "takeover" => match &self.takeover {
                Takeover::Any => "any".into(),
                Takeover::Sides(sides) => sides.iter().map(SideName::as_str).collect::<Vec<_>>().join(","),
            },
            "checks" if self.checks.is_empty() => "none".into(),
            "checks" => {
                let name = |c: &Check| match c {
                    Check::QuickCheck => "quick_check",
                    Check::Fsck => "fsck",
                };
                self.checks.iter().map(name).collect::<Vec<_>>().join(",")
            }
            "sealed_read" => self.sealed_read.join(","),
            "idle" => format_duration(self.idle),
            "quiet" => format_duration(self.quiet),
            "handoff_wait" => format_duration(self.handoff_wait),
            "grace" => format_duration(self.grace),
            // An older state may have a shorter one: what is shown can be read again.
            "dirty_max" => format_duration(self.dirty_max.max(SHORTEST_DIRTY_MAX)),
            "flush_limit" => format_duration(self.flush_limit),
            "min_hold" => format_duration(self.min_hold),
            _ => return None,
        })
    }

    /// All keys with their values, in the order of [`KEYS`].
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        KEYS.iter().map(|key| (*key, self.get(key).expect("every key of KEYS has a value"))).collect()
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fence::Manual => f.write_str("manual"),
            Fence::None => f.write_str("none"),
            Fence::Exec(name) => write!(f, "exec:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_what_it_writes() {
        let mut policy = Policy::default();
        for (key, value) in Policy::default().pairs() {
            policy.set(key, &value).unwrap();
        }
        assert_eq!(policy, Policy::default());
        policy.set("fence", "exec:nas").unwrap();
        policy.set("unfence", "restart").unwrap();
        policy.set("takeover", "a,b").unwrap();
        policy.set("checks", "fsck,quick_check").unwrap();
        let mut again = Policy::default();
        for (key, value) in policy.pairs() {
            again.set(key, &value).unwrap();
        }
        assert_eq!(again, policy);
    }

    #[test]
    fn a_bad_value_changes_nothing_and_says_what_would_do() {
        let mut policy = Policy::default();
        for (key, value) in [
            ("mode", "x"),
            ("idle", "10"),
            ("nope", "1"),
            ("fence", "exec:"),
            ("unfence", "always"),
            ("takeover", ""),
            ("grace", "48h"),
            ("dirty_max", "0s"),
            ("dirty_max", "99ms"),
        ] {
            assert!(policy.set(key, value).is_err(), "{key}={value}");
        }
        assert_eq!(policy, Policy::default());
    }
}

//! Elapsed time and wall time, as types that cannot be mixed up.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment on one machine's elapsed-time clock, with how long the machine had been suspended by then (DESIGN 3, Clocks).
///
/// `elapsed` is `CLOCK_MONOTONIC_RAW + (CLOCK_BOOTTIME - CLOCK_MONOTONIC)` on a side, `CLOCK_MONOTONIC_RAW` on a server: no
/// origin in common with any other machine or boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BootTime {
    /// Since an origin of this boot.
    pub elapsed: Duration,
    /// `CLOCK_BOOTTIME - CLOCK_MONOTONIC`. Its *growth* closes a gate; its length is never trusted. Always 0 on a server.
    pub suspended: Duration,
}

impl BootTime {
    /// This moment plus `d`, under the same suspends.
    #[must_use]
    pub fn after(self, d: Duration) -> Self {
        Self { elapsed: self.elapsed.saturating_add(d), ..self }
    }
    /// Elapsed since `earlier`; zero if that is later.
    pub fn since(self, earlier: BootTime) -> Duration {
        self.elapsed.saturating_sub(earlier.elapsed)
    }
    /// Whether the machine was suspended between `earlier` and this moment.
    pub fn suspended_since(self, earlier: BootTime) -> bool {
        self.suspended > earlier.suspended + SUSPEND_NOISE
    }
}

/// The time between two readings of a clock looks like suspend; no real suspend is as short as this.
pub(crate) const SUSPEND_NOISE: Duration = Duration::from_millis(5);

/// Of a length of time in one word: the nanoseconds of its last second.
const NANO_BITS: u32 = 30;

/// A length of time in one word, for atomics; above five hundred years it is five hundred.
pub const fn to_word(d: Duration) -> u64 {
    let seconds = d.as_secs();
    let most = u64::MAX >> NANO_BITS;
    (if seconds < most { seconds } else { most }) << NANO_BITS | d.subsec_nanos() as u64
}

/// What [`to_word`] has made of it.
pub const fn from_word(word: u64) -> Duration {
    Duration::new(word >> NANO_BITS, (word & ((1 << NANO_BITS) - 1)) as u32)
}

/// How much two honest clocks may differ in rate, in parts of a thousand (I4: at least 1 %).
pub const DRIFT_PERMILLE: u32 = 10;

/// A session's time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ttl(#[serde(with = "millis")] Duration);

impl Ttl {
    /// What a side asks for when its configuration says nothing.
    pub const DEFAULT: Ttl = Ttl(Duration::from_secs(15));
    /// The shortest that any server takes (one node; more nodes need longer ones).
    pub const MIN: Ttl = Ttl(Duration::from_secs(2));
    /// The longest that any server takes: longer, and a sleeping holder keeps a tree for half a working day.
    pub const MAX: Ttl = Ttl(Duration::from_secs(3600));

    /// A time to live of this length. The limits are the server's to check.
    pub const fn new(d: Duration) -> Self {
        Self(d)
    }
    /// Its length.
    pub const fn get(self) -> Duration {
        self.0
    }
    /// In milliseconds, as the wire has it.
    pub fn as_millis(self) -> u64 {
        self.0.as_millis() as u64
    }
    /// Shortened by what two clocks may differ in rate (I4).
    pub fn shortened_by_drift(self) -> Duration {
        self.0 - self.0 * DRIFT_PERMILLE / 1000
    }
    /// What a side keeps back for itself before its right to write ends: `max(250 ms, min(1 s, TTL/10))`.
    pub fn margin(self) -> Duration {
        (self.0 / 10).min(Duration::from_secs(1)).max(LEAST_MARGIN)
    }
    /// How often a session is renewed.
    pub fn renewal_interval(self) -> Duration {
        self.0 / 5
    }
}

/// The least margin: room for the system calls that were admitted just before the deadline.
pub const LEAST_MARGIN: Duration = Duration::from_millis(250);
const _: () = assert!(LEAST_MARGIN.as_millis() * 8 <= Ttl::MIN.0.as_millis());

/// The wall clock, for people to read. Nothing compares two of them to decide anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub jiff::Timestamp);

impl WallTime {
    /// The epoch of UNIX: when nothing better is known.
    pub const UNKNOWN: WallTime = WallTime(jiff::Timestamp::UNIX_EPOCH);

    /// From RFC 3339; `UNKNOWN` when it is none.
    pub fn parse(s: &str) -> Self {
        s.parse().map(Self).unwrap_or(Self::UNKNOWN)
    }
    /// From milliseconds since the epoch of UNIX; `UNKNOWN` for a year that no calendar has.
    pub fn from_millis(ms: i64) -> Self {
        jiff::Timestamp::from_millisecond(ms).map(Self).unwrap_or(Self::UNKNOWN)
    }
}

impl fmt::Display for WallTime {
    /// RFC 3339 in UTC, to the millisecond.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

/// `500ms`, `15s`, `5m`, `2h`: durations as people type them (CLI.md).
pub fn parse_duration(s: &str) -> Result<Duration, String> {
    let bad = || format!("`{s}` is not a duration: write it like 500ms, 15s, 5m or 2h");
    let s_trim = s.trim();
    if s_trim == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = s_trim.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let n: u64 = s_trim[..digits].parse().map_err(|_| bad())?;
    let unit_ms: u64 = match &s_trim[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    n.checked_mul(unit_ms).filter(|ms| *ms <= 366 * 24 * 3_600_000).map(Duration::from_millis).ok_or_else(bad)
}

/// A duration in the form that [`parse_duration`] reads.
pub fn format_duration(d: Duration) -> String {
    let ms = d.as_millis();
    match ms {
        0 => "0s".into(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

/// Serde: a duration as whole milliseconds.
pub mod millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// As a number of milliseconds.
    pub fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(d.as_millis() as u64)
    }
    /// From a number of milliseconds.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_they_are_written() {
        for text in ["500ms", "15s", "5m", "2h", "0s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        for bad in ["", "5", "s", "-1s", "1d", "1.5s", "99999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_length_of_time_fits_in_a_word_and_longer_ones_keep_their_order() {
        for d in [Duration::ZERO, Duration::from_nanos(1), Duration::new(86_400 * 365 * 400, 999_999_999)] {
            assert_eq!(from_word(to_word(d)), d);
        }
        assert!(from_word(to_word(Duration::MAX)) > Duration::from_secs(86_400 * 365 * 500));
        assert!(to_word(Duration::from_secs(2)) > to_word(Duration::new(1, 999_999_999)));
    }

    #[test]
    fn the_margin_stays_within_its_bounds() {
        assert_eq!(Ttl::new(Duration::from_secs(2)).margin(), Duration::from_millis(250));
        assert_eq!(Ttl::DEFAULT.margin(), Duration::from_secs(1));
        assert_eq!(Ttl::new(Duration::from_secs(5)).margin(), Duration::from_millis(500));
    }
}

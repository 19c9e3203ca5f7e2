//! Medians, ratios within rounds, and numbers as people read them. Pure.

/// One value per round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a round's value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// From the values of all rounds.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Samples {
        Samples(values.into_iter().collect())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle one; of an even number the mean of both. NaN of none.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    /// The value below which so many per cent of all are.
    pub fn percentile(&self, per_cent: f64) -> f64 {
        let sorted = self.sorted();
        let at = (per_cent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(at.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// The lowest and the highest.
    pub fn ends(&self) -> (f64, f64) {
        let sorted = self.sorted();
        (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN))
    }

    /// Round by round, this by the other: what is compared ran within the same seconds.
    pub fn ratio(&self, to: &Samples) -> Samples {
        Samples(self.0.iter().zip(&to.0).map(|(a, b)| a / b).collect())
    }

    /// Every value turned into another one.
    pub fn map(&self, to: impl Fn(f64) -> f64) -> Samples {
        Samples(self.0.iter().copied().map(to).collect())
    }

    /// `median (lowest–highest)`.
    pub fn show(&self, unit: Unit) -> String {
        let (low, high) = self.ends();
        match self.len() {
            0 => "not measured".into(),
            1 => unit.show(self.median()),
            _ => format!("{} ({}–{})", unit.show(self.median()), unit.bare(low), unit.bare(high)),
        }
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds, shown as milliseconds.
    Time,
    /// Seconds, shown as microseconds.
    Micros,
    /// Events per second.
    PerSecond,
    /// Bytes per second, shown as megabytes.
    Megabytes,
    /// One by another.
    Ratio,
}

impl Unit {
    /// With its name.
    pub fn show(self, value: f64) -> String {
        let name = match self {
            Unit::Time => " ms",
            Unit::Micros => " µs",
            Unit::PerSecond => " /s",
            Unit::Megabytes => " MB/s",
            Unit::Ratio => "",
        };
        format!("{}{name}", self.bare(value))
    }

    fn bare(self, value: f64) -> String {
        match self {
            Unit::Time => three_digits(value * 1e3),
            Unit::Micros => three_digits(value * 1e6),
            Unit::Megabytes => three_digits(value / 1e6),
            Unit::PerSecond | Unit::Ratio => three_digits(value),
        }
    }
}

/// Three digits that mean something, and none that do not; thousands apart.
pub fn three_digits(value: f64) -> String {
    if !value.is_finite() {
        return "?".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    let size = |value: f64| value.abs().log10().floor() as i32;
    let unit = 10f64.powi(size(value) - 2);
    let rounded = (value / unit).round() * unit;
    // 9.996 has one digit before the point, and 10.0 two.
    match size(rounded) {
        size @ ..=1 => format!("{rounded:.*}", (2 - size).clamp(0, 6) as usize),
        _ => thousands(rounded.round() as u64),
    }
}

/// 73,914.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle_and_a_percentile_is_one_of_the_values() {
        assert_eq!(Samples::of([3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Samples::of([4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        let hundred = Samples::of((1..=100).map(f64::from));
        assert_eq!((hundred.percentile(50.0), hundred.percentile(99.0), hundred.percentile(100.0)), (50.0, 99.0, 100.0));
        assert!(Samples::default().median().is_nan() && Samples::default().percentile(99.0).is_nan());
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        let ours = Samples::of([2.0, 40.0, 6.0]);
        let bare = Samples::of([1.0, 10.0, 2.0]);
        assert_eq!(ours.ratio(&bare), Samples::of([2.0, 4.0, 3.0]));
        assert_eq!(ours.ratio(&bare).show(Unit::Ratio), "3.00 (2.00–4.00)");
    }

    #[test]
    fn numbers_have_three_digits_that_mean_something() {
        for (value, shown) in [(0.0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (9.996, "10.0"), (28.44, "28.4"), (137.6, "138")] {
            assert_eq!(three_digits(value), shown);
        }
        assert_eq!(three_digits(878_432.0), "878,000");
        assert_eq!(Samples::of([0.25]).show(Unit::Time), "250 ms");
        assert_eq!(Samples::of([374e6, 377e6, 370e6]).show(Unit::Megabytes), "374 MB/s (370–377)");
        assert_eq!(Samples::default().show(Unit::Time), "not measured");
    }
}

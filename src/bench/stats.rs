//! Medians, and how far to trust them.

use schemars::JsonSchema;
use serde::Serialize;

/// What a row of numbers comes to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Summary {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Lower end of the median's 95 % interval (percentile bootstrap).
    pub low: f64,
    /// Upper end of it.
    pub high: f64,
}

const RESAMPLES: u32 = 2000;

impl Summary {
    /// `None` for no numbers at all.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let mut medians = bootstrap(&sorted);
        medians.sort_by(f64::total_cmp);
        let tail = medians.len() / 40;
        Some(Self {
            median: median(&sorted),
            min,
            max,
            low: medians[tail],
            high: medians[medians.len() - 1 - tail],
        })
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

/// Medians of samples drawn with replacement; the same ones at every call.
fn bootstrap(numbers: &[f64]) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap_or_default() % below
    };
    (0..RESAMPLES)
        .map(|_| {
            let mut sample: Vec<f64> = numbers
                .iter()
                .map(|_| numbers[next(numbers.len())])
                .collect();
            sample.sort_by(f64::total_cmp);
            median(&sample)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn one_number_is_all_there_is() {
        let summary = Summary::of(&[1.5]).unwrap();
        for value in [
            summary.median,
            summary.min,
            summary.max,
            summary.low,
            summary.high,
        ] {
            assert!((value - 1.5).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn the_interval_lies_around_the_median() {
        let numbers: Vec<f64> = (0..31).map(f64::from).collect();
        let summary = Summary::of(&numbers).unwrap();
        assert!((summary.median - 15.0).abs() < f64::EPSILON);
        assert!(summary.min < summary.low && summary.low < summary.median);
        assert!(summary.median < summary.high && summary.high < summary.max);
        assert!((5.0..12.0).contains(&summary.low), "{summary:?}");
        assert!((18.0..25.0).contains(&summary.high), "{summary:?}");
    }

    #[test]
    fn an_outlier_does_not_move_the_median() {
        let summary = Summary::of(&[1.0, 1.1, 0.9, 50.0]).unwrap();
        assert!((summary.median - 1.05).abs() < 1e-9);
        assert!((summary.max - 50.0).abs() < f64::EPSILON);
    }
}

//! `>=0.9`: a comparison with a number, the same for every figure.

use std::fmt;
use std::str::FromStr;

/// Longest first: `>=` is not `>` and `=`.
const OPERATORS: [(&str, Operator); 7] = [
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    ("!=", Operator::Not),
    ("==", Operator::Is),
    (">", Operator::More),
    ("<", Operator::Less),
    ("=", Operator::Is),
];

const KIB: f64 = 1024.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    AtLeast,
    AtMost,
    Not,
    Is,
    More,
    Less,
}

/// An operator and a number of 0 or more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    operator: Operator,
    number: f64,
}

impl Comparison {
    /// Whether this value is as it should be.
    pub fn holds(self, value: f64) -> bool {
        // Counts are whole, and the one who writes '=0.5' means just that.
        #[expect(clippy::float_cmp)]
        match self.operator {
            Operator::AtLeast => value >= self.number,
            Operator::AtMost => value <= self.number,
            Operator::Not => value != self.number,
            Operator::Is => value == self.number,
            Operator::More => value > self.number,
            Operator::Less => value < self.number,
        }
    }
}

impl FromStr for Comparison {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not a comparison: an operator (>= > <= < = !=) and a number, like '>=0.9', '>=90%' or '>=1M'"
            )
        };
        let (operator, rest) = OPERATORS
            .iter()
            .find_map(|(sign, operator)| Some((*operator, text.trim().strip_prefix(sign)?)))
            .ok_or_else(bad)?;
        Ok(Self {
            operator,
            number: number(rest.trim()).ok_or_else(bad)?,
        })
    }
}

fn number(text: &str) -> Option<f64> {
    let (digits, exponent, factor) = match text.char_indices().next_back()? {
        (at, 'K' | 'k') => (&text[..at], 0, KIB),
        (at, 'M' | 'm') => (&text[..at], 0, KIB * KIB),
        (at, 'G' | 'g') => (&text[..at], 0, KIB * KIB * KIB),
        // By its decimal point: 99.9 / 100 is not 0.999.
        (at, '%') => (&text[..at], -2, 1.0),
        _ => (text, 0, 1.0),
    };
    // Neither "inf" nor "-1" nor "1e9".
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number: f64 = format!("{digits}e{exponent}")
        .parse()
        .ok()
        .filter(|_| plain)?;
    Some(number * factor)
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = OPERATORS
            .iter()
            .rfind(|(_, operator)| *operator == self.operator)
            .map_or("", |(sign, _)| sign);
        write!(f, "{sign}{}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn comparisons() {
        for (text, value, holds) in [
            (">=0.9", 0.9, true),
            (">=0.9", 0.89, false),
            (">=90%", 0.9, true),
            (">=99.9%", 0.999, true),
            ("<= 10%", 0.1, true),
            (">1K", 1024.0, false),
            (">=1M", 1_048_576.0, true),
            ("<1G", 1_073_741_824.0, false),
            ("=0", 0.0, true),
            ("==0", 1.0, false),
            ("!=0", 1.0, true),
            (" > 5 ", 6.0, true),
        ] {
            let comparison: Comparison = text.parse().expect(text);
            assert_eq!(comparison.holds(value), holds, "{text} {value}");
        }
    }

    #[test]
    fn what_is_no_comparison() {
        for bad in [
            "", "0.9", ">=", "=>1", ">=x", ">=-1", ">=1T", ">=1e9", ">=inf", ">=NaN", ">=%",
            ">=1.2.3", "~1", ">=1KB",
        ] {
            assert!(bad.parse::<Comparison>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in ".*") {
            let _ = text.parse::<Comparison>();
        }

        #[test]
        fn text_round_trips(number in 0_u32.., sign in prop::sample::select(vec![">=", "<", "="])) {
            let text = format!("{sign}{number}");
            prop_assert_eq!(text.parse::<Comparison>().expect("valid").to_string(), text);
        }
    }
}

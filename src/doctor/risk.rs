//! Risks that an administrator may accept by name.

use std::env;
use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

/// Environment variable with names of accepted risks, separated by commas.
pub const VARIABLE: &str = "SOCKACCEL_ALLOW";

/// Something that makes `enable` refuse unless it is allowed by name.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Risk {
    /// FIONREAD does not count what waits on an enrolled socket.
    Fionread,
    /// The kernel's version is one with memory errors in its socket maps.
    KnownBadKernel,
}

impl Risk {
    /// Name on the command line, in the environment and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fionread => "fionread",
            Self::KnownBadKernel => "known-bad-kernel",
        }
    }

    /// Bit in the `allow` field of an instance's configuration.
    pub fn bit(self) -> u32 {
        match self {
            Self::Fionread => 1,
            Self::KnownBadKernel => 2,
        }
    }

    /// The risks whose bits are set.
    pub fn from_bits(bits: u32) -> impl Iterator<Item = Self> {
        Self::value_variants()
            .iter()
            .copied()
            .filter(move |risk| bits & risk.bit() != 0)
    }

    /// The risks that [`VARIABLE`] accepts; none if it is not set.
    ///
    /// # Errors
    ///
    /// [`UnknownRisk`] for a name that is none: a misspelt one must not look
    /// as if it had been accepted.
    pub fn from_env() -> Result<Vec<Self>, UnknownRisk> {
        let value = env::var_os(VARIABLE).unwrap_or_default();
        Self::list(&value.to_string_lossy()).map_err(|unknown| UnknownRisk {
            place: VARIABLE,
            ..unknown
        })
    }

    /// Parses names separated by commas; empty ones and spaces do not matter.
    ///
    /// # Errors
    ///
    /// [`UnknownRisk`] for the first name that is none.
    pub fn list(names: &str) -> Result<Vec<Self>, UnknownRisk> {
        names
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::parse)
            .collect()
    }
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Risk {
    type Err = UnknownRisk;

    fn from_str(name: &str) -> Result<Self, UnknownRisk> {
        Self::value_variants()
            .iter()
            .copied()
            .find(|risk| risk.name() == name)
            .ok_or_else(|| UnknownRisk {
                place: "--allow",
                name: name.to_owned(),
            })
    }
}

/// A name that is not a [`Risk`]'s: a usage error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: no risk is called {name:?}; there are fionread and known-bad-kernel")]
pub struct UnknownRisk {
    /// Where the name was found.
    place: &'static str,
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line_and_of_json() {
        for risk in Risk::value_variants() {
            let value = risk.to_possible_value().expect("no variant is hidden");
            assert_eq!(value.get_name(), risk.name());
            assert_eq!(serde_json::to_value(risk).expect("serializes"), risk.name());
            assert_eq!(risk.name().parse(), Ok(*risk));
        }
    }

    #[test]
    fn lists() {
        use Risk::Fionread;
        use Risk::KnownBadKernel;
        let cases: [(&str, &[Risk]); 5] = [
            ("", &[]),
            (" , ", &[]),
            ("fionread", &[Fionread]),
            ("fionread,known-bad-kernel", &[Fionread, KnownBadKernel]),
            (" known-bad-kernel , fionread,", &[KnownBadKernel, Fionread]),
        ];
        for (names, expected) in cases {
            assert_eq!(Risk::list(names).as_deref(), Ok(expected), "{names:?}");
        }
    }

    #[test]
    fn an_unknown_name_is_named_with_those_there_are() {
        let error = Risk::list("fionread,fionred").expect_err("misspelt");
        assert_eq!(
            error.to_string(),
            "--allow: no risk is called \"fionred\"; there are fionread and known-bad-kernel"
        );
        for risk in Risk::value_variants() {
            assert!(error.to_string().contains(risk.name()));
        }
    }

    #[test]
    fn bits_are_distinct() {
        let all = Risk::value_variants().iter().fold(0, |bits, risk| {
            assert_eq!(bits & risk.bit(), 0);
            bits | risk.bit()
        });
        assert_eq!(all.count_ones() as usize, Risk::value_variants().len());
    }
}

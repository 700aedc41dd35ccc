//! Known bugs by kernel version: for what cannot be probed by behaviour.
//!
//! A version is a hint. Distributions carry fixes back under old numbers, and
//! some hide the number of the stable release that they are based on.

use std::fmt;
use std::io;

use nix::sys::utsname::uname;
use schemars::JsonSchema;
use serde::Serialize;
use serde::Serializer;

/// Version of mainline Linux or of a stable release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

const fn version(major: u32, minor: u32, patch: u32) -> Version {
    Version {
        major,
        minor,
        patch,
    }
}

/// What to do about a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Enable only if the administrator allows it by name.
    Refuse,
    /// Enable, and say so.
    Warn,
}

/// A bug that stable releases have fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Bug {
    /// What to do about it.
    pub severity: Severity,
    /// What goes wrong, after "this kernel".
    pub text: &'static str,
    /// Name to look it up by.
    pub reference: &'static str,
    /// First release without it in each stable series, ascending. Series
    /// between them never got the fix, those after the last have had it always.
    #[serde(rename = "fixed_in")]
    #[schemars(with = "Vec<String>")]
    pub fixed: &'static [Version],
}

/// The table of known bugs, worst first.
pub const BUGS: &[Bug] = &[
    Bug {
        severity: Severity::Refuse,
        text: "can use freed memory when an enrolled socket is replaced or closed",
        reference: "CVE-2024-56664",
        fixed: &[
            version(5, 15, 180),
            version(6, 1, 125),
            version(6, 6, 67),
            version(6, 12, 6),
        ],
    },
    Bug {
        severity: Severity::Warn,
        text: "can use freed memory when messages are corked",
        reference: "CVE-2026-68284",
        fixed: &[
            version(5, 15, 216),
            version(6, 1, 183),
            version(6, 6, 148),
            version(6, 12, 101),
            version(6, 18, 42),
            version(7, 1, 6),
        ],
    },
];

/// A kernel by its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// The stable release it is based on, as far as its names tell.
    #[schemars(with = "Option<String>")]
    pub version: Option<Version>,
    /// The names hide which stable release of the series it is based on.
    pub level_hidden: bool,
}

impl Kernel {
    /// The kernel that runs.
    ///
    /// # Errors
    ///
    /// Those of uname(2).
    pub fn running() -> io::Result<Self> {
        let names = uname()?;
        Ok(Self::parse(
            &names.release().to_string_lossy(),
            &names.version().to_string_lossy(),
        ))
    }

    /// Reads what `uname -r` and `uname -v` print.
    ///
    /// Debian's `6.1.0-28-amd64` is an ABI number; the stable release is in
    /// the other name, as `Debian 6.1.123-1`. Ubuntu's and Red Hat's
    /// `6.8.0-31-generic` has it in none of the two.
    pub fn parse(release: &str, build: &str) -> Self {
        let named = leading_version(release);
        let packaged = debian_version(build)
            .filter(|p| named.is_some_and(|n| (n.major, n.minor) == (p.major, p.minor)));
        let abi_number = named.is_some_and(|n| {
            n.patch == 0
                && release
                    .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                    .strip_prefix('-')
                    .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        });
        Self {
            release: release.to_owned(),
            version: packaged.or(named),
            level_hidden: packaged.is_none() && abi_number,
        }
    }

    /// The bugs of [`BUGS`] that this kernel has, by its version; all if it
    /// has no version.
    pub fn bugs(&self) -> impl Iterator<Item = &'static Bug> + use<> {
        let version = self.version;
        BUGS.iter()
            .filter(move |bug| version.is_none_or(|version| bug.is_in(version)))
    }
}

/// The version where it is known, else the release: what messages print.
impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) if !self.level_hidden => version.fmt(f),
            _ => f.write_str(&self.release),
        }
    }
}

impl Bug {
    /// Does this version have the bug?
    pub fn is_in(&self, version: Version) -> bool {
        let same_series = |fixed: &&Version| fixed.series() == version.series();
        match self.fixed.iter().find(same_series) {
            Some(fixed) => version < *fixed,
            None => self.fixed.last().is_some_and(|last| version < *last),
        }
    }

    /// The release to go to from this version: of its own series, else of the
    /// next that got the fix.
    pub fn fixed_for(&self, version: Version) -> Option<Version> {
        self.fixed.iter().copied().find(|fixed| version < *fixed)
    }
}

impl Version {
    fn series(self) -> (u32, u32) {
        (self.major, self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            patch,
        } = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// "6.1.123-1 ..." as 6.1.123; a missing third number is 0.
fn leading_version(text: &str) -> Option<Version> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let mut numbers = text[..end].split('.').map(str::parse);
    Some(version(
        numbers.next()?.ok()?,
        numbers.next()?.ok()?,
        numbers.next().unwrap_or(Ok(0)).ok()?,
    ))
}

/// "#1 SMP Debian 1:6.1.123-1 (2025-01-02)" as 6.1.123.
fn debian_version(build: &str) -> Option<Version> {
    let (_, package) = build.split_once("Debian ")?;
    let package = package.split_whitespace().next()?;
    let without_epoch = package.split_once(':').map_or(package, |(_, rest)| rest);
    leading_version(without_epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        let generic = "#31-Ubuntu SMP PREEMPT_DYNAMIC Sat Apr 20 00:40:06 UTC 2024";
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.123-1 (2025-01-02)";
        let epoch = "#1 SMP PREEMPT Debian 1:6.6.51-1+rpt3 (2024-10-08)";
        let cases = [
            // release, build, version, hidden, shown as
            ("6.18.44-fc-v470", "#1 SMP", "6.18.44", false, "6.18.44"),
            ("6.1.0-28-cloud-amd64", debian, "6.1.123", false, "6.1.123"),
            ("6.12.94+deb13-amd64", debian, "6.12.94", false, "6.12.94"),
            ("6.6.51+rpt-rpi-v8", epoch, "6.6.51", false, "6.6.51"),
            (
                "6.8.0-31-generic",
                generic,
                "6.8.0",
                true,
                "6.8.0-31-generic",
            ),
            (
                "5.14.0-427.el9.x86_64",
                "#1 SMP PREEMPT_DYNAMIC",
                "5.14.0",
                true,
                "5.14.0-427.el9.x86_64",
            ),
            (
                "5.15.167.4-microsoft-standard-WSL2",
                "#1 SMP",
                "5.15.167",
                false,
                "5.15.167",
            ),
            ("7.2-rc3", "#1 SMP", "7.2.0", false, "7.2.0"),
            ("6.13.0-rc1+", "#1 SMP", "6.13.0", false, "6.13.0"),
            ("6.17.0", "#1 SMP", "6.17.0", false, "6.17.0"),
        ];
        for (release, build, version, hidden, shown) in cases {
            let kernel = Kernel::parse(release, build);
            assert_eq!(
                kernel.version.map(|version| version.to_string()).as_deref(),
                Some(version),
                "{release}"
            );
            assert_eq!(kernel.level_hidden, hidden, "{release}");
            assert_eq!(kernel.to_string(), shown);
        }
    }

    #[test]
    fn no_version_has_every_bug() {
        for release in ["", "linux", "6", "6.x", "6..1", "99999999999.1.1"] {
            let kernel = Kernel::parse(release, "");
            assert_eq!(kernel.version, None, "{release:?}");
            assert_eq!(kernel.bugs().count(), BUGS.len());
            assert_eq!(kernel.to_string(), release);
        }
    }

    #[test]
    fn verdicts() {
        use Severity::Refuse;
        use Severity::Warn;
        let cases: [(&str, &[Severity]); 27] = [
            ("4.19.325", &[Refuse, Warn]),
            ("5.10.999", &[Refuse, Warn]),
            ("5.14.21", &[Refuse, Warn]),
            ("5.15.179", &[Refuse, Warn]),
            ("5.15.180", &[Warn]),
            ("5.15.215", &[Warn]),
            ("5.15.216", &[]),
            ("5.19.17", &[Refuse, Warn]),
            ("6.1.124", &[Refuse, Warn]),
            ("6.1.125", &[Warn]),
            ("6.1.183", &[]),
            ("6.6.66", &[Refuse, Warn]),
            ("6.6.67", &[Warn]),
            ("6.6.148", &[]),
            ("6.8.12", &[Refuse, Warn]),
            ("6.11.11", &[Refuse, Warn]),
            ("6.12.5", &[Refuse, Warn]),
            ("6.12.6", &[Warn]),
            ("6.12.101", &[]),
            ("6.13.0", &[Warn]),
            ("6.18.41", &[Warn]),
            ("6.18.42", &[]),
            ("6.18.44", &[]),
            ("6.19.9", &[Warn]),
            ("7.1.5", &[Warn]),
            ("7.1.6", &[]),
            ("7.2.0", &[]),
        ];
        for (release, expected) in cases {
            let found: Vec<Severity> = Kernel::parse(release, "")
                .bugs()
                .map(|bug| bug.severity)
                .collect();
            assert_eq!(found, expected, "{release}");
        }
    }

    #[test]
    fn the_release_to_go_to() {
        let cases = [
            ("5.10.1", Some("5.15.180")),
            ("6.1.90", Some("6.1.125")),
            ("6.8.12", Some("6.12.6")),
            ("6.12.6", None),
        ];
        for (release, expected) in cases {
            let from = leading_version(release).expect("version");
            let to = BUGS[0].fixed_for(from).map(|to| to.to_string());
            assert_eq!(to.as_deref(), expected, "{release}");
        }
    }

    #[test]
    fn fixes_are_ascending_one_a_series() {
        for bug in BUGS {
            assert!(
                bug.fixed
                    .windows(2)
                    .all(|pair| pair[0].series() < pair[1].series()),
                "{bug:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_name_parses(release in ".*", build in ".*") {
            Kernel::parse(&release, &build);
        }

        #[test]
        fn versions_round_trip(major: u32, minor: u32, patch: u32, suffix in "([-+ ].*)?") {
            let expected = version(major, minor, patch);
            prop_assert_eq!(leading_version(&format!("{expected}{suffix}")), Some(expected));
        }

        #[test]
        fn a_fixed_series_stays_fixed(patch in 0u32..300, later in 0u32..300) {
            for bug in BUGS {
                for fixed in bug.fixed {
                    let at = |patch| version(fixed.major, fixed.minor, patch);
                    prop_assert!(bug.is_in(at(patch)) || !bug.is_in(at(patch + later)));
                }
            }
        }
    }
}

//! What this machine can do, found out before anything is changed.
//!
//! `enable` makes the cheap probes ([`examine`]); `doctor` makes all of them
//! and looks at how accelerated connections behave, and at what surrounds them
//! ([`diagnose`]).

pub mod behaviour;
pub mod features;
pub mod finding;
pub mod fionread;
mod guard;
mod map;
pub mod privileges;
mod refusal;
mod risk;
pub mod surroundings;
pub mod versions;
mod wait;

use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use libbpf_rs::MapType;
use schemars::JsonSchema;
use serde::Serialize;

use features::Feature;
use features::State;
use finding::Finding;
use finding::Topic;
use finding::Verdict;
pub use fionread::Fionread;
use guard::Guard;
use guard::Stop;
pub use privileges::Denied;
pub use refusal::Refusal;
pub use refusal::WayOut;
pub use risk::Risk;
pub use risk::UnknownRisk;
pub use risk::VARIABLE;
use versions::Bug;
use versions::Kernel;
use versions::Severity;

use crate::state::Place;

/// Every probe's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Report {
    /// The kernel that runs.
    pub kernel: Kernel,
    /// Names of the capabilities that the process lacks.
    pub missing_capabilities: Vec<String>,
    /// What the kernel answered if it forbids BPF in spite of them.
    pub forbidden: Option<String>,
    /// What the programs need; empty where BPF cannot be used.
    pub features: Vec<Feature>,
    /// Whether the kernel hides its addresses, so that programs which wait in
    /// epoll(7) are taken for blocking readers.
    pub symbols_hidden: bool,
    /// Known bugs that the kernel has by its version.
    pub bugs: Vec<&'static Bug>,
    /// Whether FIONREAD can be relied on.
    pub fionread: Fionread,
    /// Risks that enabling takes here: the ones that had to be allowed.
    pub risks: Vec<Risk>,
    /// What the administrator should know, a sentence each; also of what was accepted.
    pub warnings: Vec<String>,
}

/// Makes every probe whose answer means something. Changes nothing; see
/// [`before_enable`] for the verdict.
pub fn examine() -> Report {
    let kernel = Kernel::running().unwrap_or_else(|_| Kernel::parse("unknown", ""));
    let symbols_hidden = privileges::symbols_are_hidden();
    let missing = privileges::missing(symbols_hidden);
    let mut report = Report {
        bugs: kernel.bugs().collect(),
        kernel,
        missing_capabilities: missing.iter().map(ToString::to_string).collect(),
        forbidden: None,
        features: Vec::new(),
        symbols_hidden,
        fionread: Fionread::NotProbed {
            reason: "BPF cannot be used".to_owned(),
        },
        risks: Vec::new(),
        warnings: Vec::new(),
    };
    if missing.is_empty() {
        report.forbidden = privileges::bpf_permitted(MapType::Sockhash).err();
    }
    if report.usable() {
        report.features = features::probe();
        report.fionread = fionread::probe();
    }
    report.risks = report.risks();
    report.warnings = report.warnings();
    report
}

/// Examines the machine for enabling on these cgroups, which only the way out
/// names, with these risks allowed.
///
/// # Errors
///
/// [`Refusal`], before anything was changed.
pub fn before_enable<P: AsRef<Path>>(cgroups: &[P], allowed: &[Risk]) -> Result<Report, Refusal> {
    let report = examine();
    match report.refusal(cgroups, allowed) {
        Some(refusal) => Err(refusal),
        None => Ok(report),
    }
}

/// The same for running this command in an instance of its own. FIONREAD is no
/// reason to refuse there: it concerns only what the command starts.
///
/// # Errors
///
/// [`Refusal`], before anything was changed.
pub fn before_run(command: &[OsString], allowed: &[Risk]) -> Result<Report, Refusal> {
    let report = examine();
    let all = [allowed, &[Risk::Fionread]].concat();
    match report.refusal_of(&WayOut::run(command, allowed), &all) {
        Some(refusal) => Err(refusal),
        None => Ok(report),
    }
}

/// All that `doctor` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Diagnosis {
    /// The worst of all results.
    pub result: Verdict,
    /// A row for each thing looked at.
    pub checks: Vec<Finding>,
    /// The probes of `enable`.
    #[serde(flatten)]
    pub report: Report,
}

/// Every topic that `doctor` has rows about, in its order.
pub fn topics() -> impl Iterator<Item = Topic> {
    let behaviour = behaviour::CHECKS.iter().map(|check| check.topic);
    surroundings::TOPICS.iter().copied().chain(behaviour)
}

/// Makes all probes and checks. The bpffs of `place` and the `cgroups` are only
/// looked at. All of it takes so much `time` at most, and then is cleaned up. For a
/// command that ends afterwards: it leaves the calling thread in a mount namespace
/// of its own.
///
/// # Errors
///
/// When a signal ends it, with everything cleaned up.
pub fn diagnose(
    place: &Place,
    cgroups: &[PathBuf],
    allowed: &[Risk],
    time: Duration,
) -> crate::error::Result<Diagnosis> {
    let stopped = |stop: Stop| crate::error::Error::Failed(format!("doctor: {stop}"));
    let guard = Guard::new(time).map_err(|e| stopped(e.into()))?;
    let report = examine();
    guard.check().map_err(stopped)?;
    let mut checks =
        surroundings::look(&guard, &report, cgroups, &place.bpffs, allowed).map_err(stopped)?;
    checks.extend(if report.usable() {
        behaviour::run(&guard, place, allowed).map_err(stopped)?
    } else {
        behaviour::none("BPF cannot be used")
    });
    let worst = |finding: &Finding| match finding.result {
        Verdict::Ok => 0,
        Verdict::NotChecked => 1,
        Verdict::Differs => 2,
        Verdict::Fails => 3,
    };
    let result = checks.iter().max_by_key(|finding| worst(finding));
    Ok(Diagnosis {
        result: result.map_or(Verdict::NotChecked, |finding| finding.result),
        checks,
        report,
    })
}

impl Diagnosis {
    /// Names of the checks that fail.
    pub fn failed(&self) -> Vec<&'static str> {
        self.checks
            .iter()
            .filter(|finding| finding.result == Verdict::Fails)
            .map(|finding| finding.check)
            .collect()
    }
}

impl Report {
    /// Why not to enable, the least curable reason first.
    pub fn refusal<P: AsRef<Path>>(&self, cgroups: &[P], allowed: &[Risk]) -> Option<Refusal> {
        self.refusal_of(&WayOut::new(cgroups, allowed), allowed)
    }

    fn refusal_of(&self, way_out: &WayOut, allowed: &[Risk]) -> Option<Refusal> {
        let way_out = || way_out.clone();
        if !self.missing_capabilities.is_empty() {
            return Some(Denied::Lacks(self.missing_capabilities.clone()).into());
        }
        if let Some(error) = &self.forbidden {
            return Some(Denied::Forbidden(error.clone()).into());
        }
        let missing: Vec<Feature> = self.features_that(|state| *state == State::Missing);
        if !missing.is_empty() {
            return Some(Refusal::Lacks {
                kernel: self.kernel.to_string(),
                missing,
            });
        }
        if let Some(bug) = self.worst_bug()
            && !allowed.contains(&Risk::KnownBadKernel)
        {
            return Some(Refusal::KnownBadKernel {
                kernel: self.kernel.clone(),
                bug,
                way_out: way_out(),
            });
        }
        if let Fionread::Wrong {
            reported,
            redirected,
            ..
        } = self.fionread
            && !allowed.contains(&Risk::Fionread)
        {
            return Some(Refusal::Fionread {
                kernel: self.kernel.to_string(),
                reported,
                redirected,
                way_out: way_out(),
            });
        }
        None
    }

    /// The warnings that say something to who has accepted these risks.
    pub fn news(&self, allowed: &[Risk]) -> impl Iterator<Item = &String> {
        let accepted = allowed.contains(&Risk::Fionread);
        let known = accepted.then(|| self.fionread.to_string());
        self.warnings
            .iter()
            .filter(move |warning| known.as_ref() != Some(*warning))
    }

    fn usable(&self) -> bool {
        self.missing_capabilities.is_empty() && self.forbidden.is_none()
    }

    fn risks(&self) -> Vec<Risk> {
        let bad_kernel = self.worst_bug().map(|_| Risk::KnownBadKernel);
        let fionread = matches!(self.fionread, Fionread::Wrong { .. }).then_some(Risk::Fionread);
        bad_kernel.into_iter().chain(fionread).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let kernel = &self.kernel;
        let bugs = self.bugs.iter().map(|bug| {
            let Bug {
                text, reference, ..
            } = bug;
            format!("by its version this kernel ({kernel}) {text} ({reference})")
        });
        let hidden = kernel.level_hidden.then(|| {
            format!(
                "the name of this kernel ({kernel}) does not tell which stable release it is \
                 based on: it may have fixes that its version has not"
            )
        });
        let unknown = self.features_that(|state| matches!(state, State::Unknown(_)));
        let symbols = self.symbols_hidden.then(|| {
            "the kernel shows no addresses (kernel.kptr_restrict): programs that wait in epoll are \
             taken for blocking readers, and are not accelerated; set it to 1 while enabling"
                .to_owned()
        });
        let fionread = (self.fionread != Fionread::Right).then(|| self.fionread.to_string());
        bugs.chain(hidden.filter(|_| !self.bugs.is_empty()))
            .chain(unknown.iter().map(ToString::to_string))
            .chain(symbols)
            .chain(fionread)
            .collect()
    }

    fn worst_bug(&self) -> Option<&'static Bug> {
        self.bugs
            .iter()
            .copied()
            .find(|bug| bug.severity == Severity::Refuse)
    }

    fn features_that(&self, holds: impl Fn(&State) -> bool) -> Vec<Feature> {
        self.features
            .iter()
            .filter(|feature| holds(&feature.state))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests;

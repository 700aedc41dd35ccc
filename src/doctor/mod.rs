//! What this machine can do, found out before anything is changed.

pub mod features;
pub mod fionread;
mod map;
pub mod privileges;
mod refusal;
mod risk;
pub mod versions;

use std::ffi::OsString;
use std::path::Path;

use serde::Serialize;

use features::Feature;
use features::State;
pub use fionread::Fionread;
pub use refusal::Refusal;
pub use refusal::WayOut;
pub use risk::Risk;
pub use risk::UnknownRisk;
pub use risk::VARIABLE;
use versions::Bug;
use versions::Kernel;
use versions::Severity;

/// Every probe's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The kernel that runs.
    pub kernel: Kernel,
    /// Names of the capabilities that the process lacks.
    pub missing_capabilities: Vec<String>,
    /// What the kernel answered if it forbids BPF in spite of them.
    pub forbidden: Option<String>,
    /// What the programs need; empty where BPF cannot be used.
    pub features: Vec<Feature>,
    /// Known bugs that the kernel has by its version.
    pub bugs: Vec<&'static Bug>,
    /// Whether FIONREAD can be relied on.
    pub fionread: Fionread,
    /// Risks that enabling takes here: the ones that had to be allowed.
    pub risks: Vec<Risk>,
    /// What the administrator should know, a sentence each.
    pub warnings: Vec<String>,
}

/// Makes every probe whose answer means something. Changes nothing; see
/// [`before_enable`] for the verdict.
pub fn examine() -> Report {
    let kernel = Kernel::running().unwrap_or_else(|_| Kernel::parse("unknown", ""));
    let missing = privileges::missing();
    let mut report = Report {
        bugs: kernel.bugs().collect(),
        kernel,
        missing_capabilities: missing.iter().map(ToString::to_string).collect(),
        forbidden: None,
        features: Vec::new(),
        fionread: Fionread::NotProbed {
            reason: "BPF cannot be used".to_owned(),
        },
        risks: Vec::new(),
        warnings: Vec::new(),
    };
    if missing.is_empty() {
        report.forbidden = privileges::bpf_permitted().err().map(|e| e.to_string());
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

impl Report {
    /// Why not to enable, the least curable reason first.
    pub fn refusal<P: AsRef<Path>>(&self, cgroups: &[P], allowed: &[Risk]) -> Option<Refusal> {
        self.refusal_of(&WayOut::new(cgroups, allowed), allowed)
    }

    fn refusal_of(&self, way_out: &WayOut, allowed: &[Risk]) -> Option<Refusal> {
        let way_out = || way_out.clone();
        if !self.missing_capabilities.is_empty() {
            return Some(Refusal::Privileges {
                missing: self.missing_capabilities.clone(),
                way_out: way_out(),
            });
        }
        if let Some(error) = &self.forbidden {
            return Some(Refusal::Forbidden {
                error: error.clone(),
                way_out: way_out(),
            });
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
        if let Fionread::Wrong { reported, .. } = self.fionread
            && !allowed.contains(&Risk::Fionread)
        {
            return Some(Refusal::Fionread {
                kernel: self.kernel.to_string(),
                reported,
                way_out: way_out(),
            });
        }
        None
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
        let fionread = (self.fionread != Fionread::Right).then(|| self.fionread.to_string());
        bugs.chain(hidden.filter(|_| !self.bugs.is_empty()))
            .chain(unknown.iter().map(ToString::to_string))
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

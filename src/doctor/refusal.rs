//! Why an instance is not enabled, and what the administrator can do.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;

use super::features::Feature;
use super::fionread;
use super::privileges::Denied;
use super::risk::Risk;
use super::versions::Bug;
use super::versions::Kernel;
use crate::remedy::quoted;
use crate::state::Place;

/// Everything was checked before anything was changed. The messages name the
/// object and the way out; the program's name goes in front of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The process may not use BPF.
    #[error("enable refused: {0}")]
    Denied(#[from] Denied),

    /// The kernel lacks something that cannot be done without.
    #[error(
        "enable refused: this kernel ({kernel}) lacks what the programs need:\n{list}  \
         Nothing was changed. Nothing overrides this; a kernel that has it is needed.",
        list = list(missing)
    )]
    Lacks {
        /// The kernel, as in messages.
        kernel: String,
        /// What is missing.
        missing: Vec<Feature>,
    },

    /// The kernel's version is known for memory errors.
    #[error(
        "enable refused: by its version this kernel ({kernel}) {text}\n  ({reference}, {fixed}). \
         It can crash.\n  \
         Nothing was changed. If your kernel has the fix all the same:  {command}",
        text = bug.text, reference = bug.reference, fixed = fixed(kernel, bug),
        command = way_out.allowing(Risk::KnownBadKernel)
    )]
    KnownBadKernel {
        /// The kernel.
        kernel: Kernel,
        /// What is wrong with it.
        bug: &'static Bug,
        /// What was asked for.
        way_out: WayOut,
    },

    /// FIONREAD lies about enrolled sockets.
    #[error(
        "enable refused: on this kernel ({kernel}) FIONREAD reports {reported} while {data} waits \
         on an enrolled socket\n  \
         ({reference}). Programs that rely on it can hang: \
         nginx >= 1.17.5, Java NIO, .NET.\n  \
         Nothing was changed. If none of them runs in {paths}:  {command}",
        data = if *redirected { "redirected data" } else { "data" },
        reference = fionread::reference(*redirected),
        paths = way_out.paths(), command = way_out.allowing(Risk::Fionread)
    )]
    Fionread {
        /// The kernel, as in messages.
        kernel: String,
        /// Bytes that FIONREAD reported while more waited.
        reported: usize,
        /// They were redirected, and have not come by TCP.
        redirected: bool,
        /// What was asked for.
        way_out: WayOut,
    },
}

impl Refusal {
    /// Exit status of the command: 6 when privileges are missing, else 3.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Denied(_) => 6,
            Self::Lacks { .. } | Self::KnownBadKernel { .. } | Self::Fionread { .. } => 3,
        }
    }

    /// The same about this instance.
    #[must_use]
    pub fn naming(mut self, place: &Place) -> Self {
        match &mut self {
            Self::KnownBadKernel { way_out, .. } | Self::Fionread { way_out, .. } => {
                way_out.instance = place.option().into();
            }
            Self::Denied(_) | Self::Lacks { .. } => {}
        }
        self
    }
}

/// The command that was given, to be given again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayOut {
    cgroups: Box<[PathBuf]>,
    /// Of `run`; empty for `enable`.
    program: Box<[OsString]>,
    allowed: Box<[Risk]>,
    /// Its option, or nothing.
    instance: Box<str>,
}

impl WayOut {
    pub(super) fn new<P: AsRef<Path>>(cgroups: &[P], allowed: &[Risk]) -> Self {
        Self {
            cgroups: cgroups.iter().map(|path| path.as_ref().into()).collect(),
            program: Box::default(),
            allowed: allowed.into(),
            instance: Box::default(),
        }
    }

    pub(super) fn run(program: &[OsString], allowed: &[Risk]) -> Self {
        Self {
            cgroups: Box::default(),
            program: program.into(),
            allowed: allowed.into(),
            instance: Box::default(),
        }
    }

    fn paths(&self) -> String {
        let paths: Vec<String> = self.cgroups.iter().map(|path| quoted(path)).collect();
        paths.join(" or ")
    }

    fn allowing(&self, risk: Risk) -> String {
        self.with(&[&self.allowed[..], &[risk]].concat())
    }

    fn with(&self, allowed: &[Risk]) -> String {
        let verb = if self.program.is_empty() {
            "enable"
        } else {
            "run"
        };
        let mut command = format!("sockaccel {verb}");
        for path in &*self.cgroups {
            let _ = write!(command, " --cgroup {}", quoted(path));
        }
        for risk in allowed {
            let _ = write!(command, " --allow {risk}");
        }
        command.push_str(&self.instance);
        if !self.program.is_empty() {
            command.push_str(" --");
        }
        for word in &*self.program {
            let _ = write!(command, " {}", quoted(Path::new(word)));
        }
        command
    }
}

fn list(missing: &[Feature]) -> String {
    missing.iter().fold(String::new(), |mut list, feature| {
        let _ = writeln!(list, "    {} ({})", feature.piece, feature.since);
        list
    })
}

fn fixed(kernel: &Kernel, bug: &Bug) -> String {
    match kernel.version.and_then(|version| bug.fixed_for(version)) {
        Some(version) => format!("fixed in {version}"),
        None => "fixed in later versions".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::features::Piece;
    use super::super::features::State;
    use super::super::versions::BUGS;
    use super::*;

    fn way_out(allowed: &[Risk]) -> WayOut {
        WayOut::new(&["/sys/fs/cgroup/web"], allowed)
    }

    #[test]
    fn fionread_has_the_documented_form() {
        let refusal = Refusal::Fionread {
            kernel: "6.18.44".to_owned(),
            reported: 0,
            redirected: false,
            way_out: WayOut::new(&["PATH"], &[]),
        };
        assert_eq!(
            format!("sockaccel: {refusal}\n"),
            "\
sockaccel: enable refused: on this kernel (6.18.44) FIONREAD reports 0 while data waits on an enrolled socket
  (bug 929e30f93125, fixed by 04af4efde58a). Programs that rely on it can hang: nginx >= 1.17.5, Java NIO, .NET.
  Nothing was changed. If none of them runs in PATH:  sockaccel enable --cgroup PATH --allow fionread
"
        );
        assert_eq!(refusal.exit_code(), 3);
        let place = Place::new("ci", Path::new("/sys/fs/bpf")).expect("a name");
        let named = refusal.naming(&place).to_string();
        assert!(named.ends_with("--allow fionread --instance ci"), "{named}");
    }

    #[test]
    fn the_way_out_of_run_is_run() {
        let words = ["sh", "-c", "a & b"].map(OsString::from);
        let way_out = WayOut::run(&words, &[Risk::Fionread]);
        assert_eq!(
            way_out.allowing(Risk::KnownBadKernel),
            "sockaccel run --allow fionread --allow known-bad-kernel -- sh -c 'a & b'"
        );
    }

    #[test]
    fn the_way_out_repeats_what_was_asked_for() {
        let cases: [(&[&str], &[Risk], &str, &str); 4] = [
            (
                &["/sys/fs/cgroup/web"],
                &[],
                "/sys/fs/cgroup/web",
                "sockaccel enable --cgroup /sys/fs/cgroup/web --allow fionread",
            ),
            (
                &["/a", "/b"],
                &[Risk::KnownBadKernel],
                "/a or /b",
                "sockaccel enable --cgroup /a --cgroup /b --allow known-bad-kernel --allow fionread",
            ),
            (
                &["/a b"],
                &[],
                "'/a b'",
                "sockaccel enable --cgroup '/a b' --allow fionread",
            ),
            (
                &["/it's"],
                &[],
                r"'/it'\''s'",
                r"sockaccel enable --cgroup '/it'\''s' --allow fionread",
            ),
        ];
        for (cgroups, allowed, paths, command) in cases {
            let way_out = WayOut::new(cgroups, allowed);
            assert_eq!(way_out.paths(), paths);
            assert_eq!(way_out.allowing(Risk::Fionread), command);
        }
    }

    #[test]
    fn the_other_forms() {
        let cases = [
            (
                Refusal::Lacks {
                    kernel: "5.4.0".to_owned(),
                    missing: vec![Feature {
                        piece: Piece::Iterator { name: "sockmap" },
                        since: "Linux 5.10",
                        state: State::Missing,
                    }],
                },
                3,
                "\
enable refused: this kernel (5.4.0) lacks what the programs need:
    BPF iter/sockmap programs (Linux 5.10)
  Nothing was changed. Nothing overrides this; a kernel that has it is needed.",
            ),
            (
                Refusal::KnownBadKernel {
                    kernel: Kernel::parse("6.8.0-31-generic", ""),
                    bug: &BUGS[0],
                    way_out: way_out(&[]),
                },
                3,
                "\
enable refused: by its version this kernel (6.8.0-31-generic) can use freed memory when an enrolled socket is replaced or closed
  (CVE-2024-56664, fixed in 6.12.6). It can crash.
  Nothing was changed. If your kernel has the fix all the same:  sockaccel enable --cgroup /sys/fs/cgroup/web --allow known-bad-kernel",
            ),
        ];
        for (refusal, exit_code, expected) in cases {
            assert_eq!(refusal.to_string(), expected);
            assert_eq!(refusal.exit_code(), exit_code);
        }
    }
}

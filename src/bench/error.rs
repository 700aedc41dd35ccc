//! What can go wrong, and the exit status that says so.

use std::io;

use nix::sys::signal::Signal;

use super::plan::Cell;
use crate::remedy::as_root;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error("bench: {0}: {1}")]
    Io(String, #[source] io::Error),
    /// libbpf refused something.
    #[error("bench: {0}: {1}")]
    Bpf(&'static str, #[source] libbpf_rs::Error),
    /// A measurement came to no figure: a program failed, or a byte was not the one sent.
    #[error("bench: {0}")]
    Sample(String),
    /// A command failed, with this exit status.
    #[error("bench: {text}")]
    Command {
        /// What it said.
        text: String,
        /// How it ended; none when by a signal.
        code: Option<i32>,
    },
    /// A program of another package is needed.
    #[error(
        "bench: {place} needs {program}, which is not installed\n  On Debian:  apt install {package}"
    )]
    Missing {
        /// Name of the program.
        program: &'static str,
        /// Its Debian package.
        package: &'static str,
        /// What needs it.
        place: &'static str,
    },
    /// There is nowhere to make cgroups.
    #[error("bench: no cgroup2 file system is mounted\n  To mount it:  mount -t cgroup2 none DIR")]
    NoCgroup2,
    /// Options that contradict each other.
    #[error("bench: {0}")]
    Usage(&'static str),
    /// The report could not be written.
    #[error("bench: cannot write {0}: {1}")]
    Write(String, #[source] io::Error),
    /// SIGINT, SIGTERM or SIGHUP.
    #[error("bench: interrupted by {0}")]
    Interrupted(Signal),
}

impl Error {
    pub(super) fn io(what: impl Into<String>, err: impl Into<io::Error>) -> Self {
        Self::Io(what.into(), err.into())
    }

    /// A cell whose connections had to be redirected and were not.
    pub(super) fn not_accelerated(cell: &Cell, share: f64) -> String {
        format!(
            "{cell}: only {:.1} % of the bytes with sockaccel were redirected: that figure is not \
             one of an accelerated connection",
            share * 100.0
        )
    }
}

impl From<Error> for crate::error::Error {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Usage(_) | Error::Command { code: Some(2), .. } => Self::Usage(text),
            Error::Io(_, source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::Privileges(format!(
                    "{text}\n  \
                     It takes CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYSLOG and CAP_DAC_OVERRIDE. As root:  {}",
                    as_root()
                ))
            }
            Error::Command { code: Some(3), .. } => Self::Refused(text),
            Error::Command { code: Some(6), .. } => Self::Privileges(text),
            _ => Self::Failed(text),
        }
    }
}

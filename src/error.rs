//! What can go wrong, and the exit status each failure has.

use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

/// A failure: the object, the operation, the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or a value on it makes no sense (exit status 2).
    #[error("{0}")]
    Usage(String),
    /// The kernel lacks or breaks something (exit status 3).
    #[error("{0}")]
    Refused(String),
    /// `enable` refused (exit status 3 or 6).
    #[error(transparent)]
    EnableRefused(#[from] crate::doctor::Refusal),
    /// The instance is not enabled (exit status 4).
    #[error("instance {instance} is not enabled\n  To enable it:  sockaccel enable --cgroup PATH{option}{}", enabled_line(.others))]
    NotEnabled {
        /// Name of the instance.
        instance: String,
        /// What names it on a command line, see [`crate::state::Place::option`].
        option: String,
        /// Those that are.
        others: Vec<String>,
    },
    /// The command has printed what it found, and that is a failure, of this
    /// exit status.
    #[error("{text}")]
    Found {
        /// The exit status.
        exit_code: u8,
        /// What failed, for people.
        text: String,
    },
    /// A drain ran out of time (exit status 7).
    #[error("{0}")]
    Draining(String),
    /// A privilege is missing (exit status 6).
    #[error("{0}")]
    Privileges(String),
    /// `run` itself failed, not its command (exit status 125, 126 or 127).
    #[error("{source}")]
    Run {
        /// The exit status.
        status: u8,
        /// Why.
        source: Box<Error>,
    },
    /// The object is not what the operation needs (exit status 1).
    #[error("{0}")]
    Failed(String),
    /// A system call failed (exit status 1, or 6 when it was denied).
    #[error("cannot {operation} {object}: {source}{}", hint_line(.hint, .source))]
    Os {
        /// What was tried, as a verb: "attach to".
        operation: &'static str,
        /// What it was tried on.
        object: String,
        /// What the kernel said.
        source: io::Error,
        /// The way out, or empty.
        hint: String,
    },
}

/// Every exit status and what it means.
pub const STATUSES: &[(u8, &str)] = &[
    (0, "Done, or it was so before."),
    (1, "Failed."),
    (2, "The command line, or the file of apply, makes no sense."),
    (
        3,
        "Refused: the kernel lacks or breaks something, or another version made the instance.",
    ),
    (4, "The instance is not enabled."),
    (5, "What assert was to find does not hold."),
    (6, "Privileges are missing."),
    (7, "A drain ran out of time; it goes on."),
    (125, "run itself failed, not its command."),
    (126, "The command of run could not be started."),
    (127, "The command of run was not found."),
];

/// What commands print with --json when they fail.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Failure<'a> {
    /// What went wrong.
    error: Message<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Message<'a> {
    /// The exit status of the command.
    exit_status: u8,
    /// The object, the operation, the way out.
    message: &'a str,
}

impl<'a> Failure<'a> {
    /// Of a command that ends with this status.
    pub fn new(exit_status: u8, message: &'a str) -> Self {
        Self {
            error: Message {
                exit_status,
                message,
            },
        }
    }
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The exit status of DESIGN's command line contract; see sockaccel(8).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
            Self::EnableRefused(refusal) => refusal.exit_code(),
            Self::NotEnabled { .. } => 4,
            Self::Found { exit_code, .. } => *exit_code,
            Self::Privileges(_) => 6,
            Self::Draining(_) => 7,
            Self::Run { status, .. } => *status,
            Self::Os { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 6,
            Self::Failed(_) | Self::Os { .. } => 1,
        }
    }

    /// Whether standard output has it already.
    pub fn is_printed(&self) -> bool {
        matches!(self, Self::Found { .. } | Self::Run { .. })
    }

    /// A failed system call on an object that has a name.
    pub fn os(operation: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self::Os {
            operation,
            object: object.into(),
            source,
            hint: String::new(),
        }
    }

    /// A failed system call on a file.
    pub fn path(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::os(operation, path.display().to_string(), source)
    }

    /// A failed call into libbpf.
    pub fn bpf(
        operation: &'static str,
        object: impl Into<String>,
        source: &libbpf_rs::Error,
    ) -> Self {
        Self::os(operation, object, io_error(source))
    }

    /// The same failure with a way out.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Os { hint, .. } = &mut self {
            *hint = text.into();
        }
        self
    }

    /// The file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Os { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<crate::doctor::Denied> for Error {
    fn from(denied: crate::doctor::Denied) -> Self {
        Self::Privileges(denied.to_string())
    }
}

impl From<crate::doctor::UnknownRisk> for Error {
    fn from(error: crate::doctor::UnknownRisk) -> Self {
        Self::Usage(error.to_string())
    }
}

fn hint_line(hint: &str, source: &io::Error) -> String {
    if source.kind() == io::ErrorKind::PermissionDenied {
        format!("\n  As root:  {}", crate::remedy::as_root())
    } else if hint.is_empty() {
        String::new()
    } else {
        format!("\n  {hint}")
    }
}

/// For who mistyped a name or forgot it: the instances that there are.
pub fn enabled_line(instances: &[String]) -> String {
    const NAMED: usize = 8;
    let named = &instances[..instances.len().min(NAMED)];
    match (named, instances.len() > NAMED) {
        ([], _) => String::new(),
        (_, more) => format!(
            "\n  Enabled are:  {}{}   (sockaccel status --all tells more)",
            named.join(", "),
            if more { ", ..." } else { "" }
        ),
    }
}

/// libbpf-rs keeps the kernel's errno only as a kind; this keeps what it says.
fn io_error(error: &libbpf_rs::Error) -> io::Error {
    let kind = match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
        libbpf_rs::ErrorKind::NotFound => io::ErrorKind::NotFound,
        libbpf_rs::ErrorKind::AlreadyExists => io::ErrorKind::AlreadyExists,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.to_string())
}

/// Names a path in errors of closures: `fs::read(p).map_err(on("read", &p))`.
pub fn on(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = PathBuf::from(path);
    move |source| Error::path(operation, &path, source)
}

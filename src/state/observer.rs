//! The splice observer: which of its two forms, and attaching it.

use std::path::Path;

use clap::ValueEnum;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Func;
use schemars::JsonSchema;
use serde::Serialize;

use crate::sys::probe;

/// How an instance learns which sockets programs splice(2) from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Observer {
    /// At the entry of the system call splice(2).
    Tracepoint,
    /// At the entry of the kernel's function that all splicing from TCP sockets
    /// goes through, that of `io_uring` as well.
    Fentry,
}

/// What `Observer::Fentry` is attached to.
const FUNCTION: &str = "tcp_splice_read";

impl Observer {
    /// The better form that this kernel allows: kernels that are locked down, or
    /// built without what it takes, refuse to have functions traced.
    pub fn choose() -> Self {
        let function = Btf::from_vmlinux().ok().and_then(|btf| {
            let function: Func<'_> = btf.type_by_name(FUNCTION)?;
            Some(u32::from(function.type_id()))
        });
        match function.map(probe::attach_to_entry) {
            Some(Ok(())) => Self::Fentry,
            _ => Self::Tracepoint,
        }
    }

    /// Name of its program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Tracepoint => "sa_splice",
            Self::Fentry => "sa_splice_read",
        }
    }

    /// The one whose program is pinned in the directory of an instance.
    pub fn of(dir: &Path) -> Option<Self> {
        [Self::Fentry, Self::Tracepoint]
            .into_iter()
            .find(|observer| dir.join(observer.program()).exists())
    }

    /// Where it is attached, for messages.
    pub const fn place(self) -> &'static str {
        match self {
            Self::Tracepoint => "tracepoint sys_enter_splice",
            Self::Fentry => "the kernel function tcp_splice_read",
        }
    }
}

//! What an instance is in the kernel: pins in bpffs, links to cgroups, a lock.

pub mod bpffs;
pub mod cgroup;
mod dir;
mod drain;
mod instance;
mod observer;
pub mod process;
mod repair;
pub mod sock_diag;
pub mod temporary;
pub mod tracefs;
mod upgrade;

pub use dir::{DEFAULT_INSTANCE, Lock, Place};
pub use drain::{Drained, Patience, disable};
pub use instance::{Attached, Change, Instance, Settings};
pub use observer::Observer;
pub use upgrade::{build, upgrade};

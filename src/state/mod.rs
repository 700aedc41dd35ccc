//! What an instance is in the kernel: pins in bpffs, links to cgroups, a lock.

mod adopt;
pub mod bpffs;
pub mod cgroup;
mod dir;
mod drain;
pub mod filters;
mod instance;
pub mod netns;
mod observer;
pub mod process;
mod repair;
mod setup;
pub mod sock_diag;
pub mod tables;
pub mod temporary;
pub mod tracefs;
mod upgrade;

#[cfg(fuzzing)]
pub use adopt::fuzz as fuzz_adopt;
pub use adopt::{Adopted, adopt};
pub use dir::{BPFFS_VARIABLE, DEFAULT_INSTANCE, Lock, Place, VARIABLE};
pub use drain::{Drained, Patience, Sockets, Was, disable};
pub use instance::{Attached, Change, Instance, Settings};
pub use observer::Observer;
pub use setup::{Difference, Setup};
pub use upgrade::{build, upgrade};

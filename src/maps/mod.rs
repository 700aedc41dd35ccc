//! Typed access to each map of an instance.

pub mod events;
pub mod layout;
pub mod sockets;
mod stats;
mod table;

pub use stats::Stats;
#[cfg(fuzzing)]
pub use stats::fuzz as fuzz_stats;
pub use table::{Plain, Table};

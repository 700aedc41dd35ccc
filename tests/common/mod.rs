//! What the root tests share: each submodule is one thing a test makes, and
//! takes away again when it is dropped, also by a panic.
//!
//! Run with `--test-threads=1`: a test moves its whole process between cgroups.

// Each test file is a crate of its own and uses its own part of this.
#![allow(dead_code)]

pub mod adopt;
pub mod books;
pub mod bpffs;
pub mod cgroup;
pub mod deadline;
pub mod forge;
pub mod helper;
pub mod hidden;
pub mod instance;
pub mod layout;
pub mod netns;
pub mod option;
pub mod other_program;
pub mod pair;
pub mod pattern;
pub mod plain;
pub mod privileges;
pub mod process;
pub mod raw;
pub mod repair;
pub mod rng;
pub mod shortage;
pub mod stream;
pub mod tagged;
pub mod throttle;
pub mod traffic;
pub mod warm;

/// No skips: a run that could not test anything must not look like a success.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test needs root: it attaches BPF programs and makes cgroups"
    );
}

/// `name-pid-n`, different for every call on this machine.
pub fn unique(name: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{n}", std::process::id())
}

//! tracefs, which tells libbpf the number of a tracepoint.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::error::{Error, Result};

const DIR: &str = "/sys/kernel/tracing";

/// Whether tracefs is mounted where libbpf looks for it.
pub fn is_visible() -> bool {
    Path::new(DIR).join("events").exists() || Path::new("/sys/kernel/debug/tracing/events").exists()
}

/// Makes tracefs visible to this process. Where it is not mounted it is mounted
/// in a mount namespace of our own: nobody else sees a change, and it goes with
/// the process.
pub fn ensure() -> Result<()> {
    if is_visible() {
        return Ok(());
    }
    let none = None::<&str>;
    let private = |at: &str| mount(none, at, none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
    unshare(CloneFlags::CLONE_NEWNS)
        // The root of a chroot may be no mount; what DIR is on is one.
        .and_then(|()| private("/").or_else(|_| private("/sys")))
        .and_then(|()| {
            mount(
                Some("tracefs"),
                DIR,
                Some("tracefs"),
                MsFlags::empty(),
                none,
            )
        })
        .map_err(|e| {
            Error::os("mount tracefs on", DIR, e.into())
                .hint("Mount it outside:  mount -t tracefs tracefs /sys/kernel/tracing")
        })
}

//! Doing something in another network namespace.

use std::fs::File;
use std::io;
use std::panic::resume_unwind;
use std::thread;

use nix::sched::{CloneFlags, setns};

/// Runs the closure in the namespace, on a thread of its own: it alone changes over.
pub fn within<T: Send>(netns: &File, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                body()
            })
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    })
}

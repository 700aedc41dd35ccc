//! The program as root with fewer capabilities.

use std::ffi::OsStr;
use std::thread;

use caps::CapSet;
use caps::Capability;

use super::instance::Ran;
use super::instance::sockaccel;

/// Runs the binary as uid 0 with exactly these capabilities.
pub fn sockaccel_with<S: AsRef<OsStr> + Sync>(held: &[Capability], args: &[S]) -> Ran {
    // The bounding set is the thread's: what it starts has no others.
    let body = || {
        let all = caps::read(None, CapSet::Bounding).expect("the bounding set");
        for capability in all.iter().filter(|c| !held.contains(c)) {
            caps::drop(None, CapSet::Bounding, *capability).expect("drop");
        }
        caps::clear(None, CapSet::Inheritable).expect("clear");
        sockaccel(args)
    };
    thread::scope(|scope| {
        scope
            .spawn(body)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

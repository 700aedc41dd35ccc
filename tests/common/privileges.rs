//! The program as root with fewer capabilities.

use std::ffi::OsStr;
use std::process::Command;
use std::thread;

use caps::CapSet;
use caps::Capability;

use super::instance::Ran;

/// Runs the binary as uid 0 with exactly these capabilities.
pub fn sockaccel_with<S: AsRef<OsStr> + Sync>(held: &[Capability], args: &[S]) -> Ran {
    with_only(held, || {
        let output = Command::new(env!("CARGO_BIN_EXE_sockaccel"))
            .args(args)
            .env_remove("SOCKACCEL_ALLOW")
            .output()
            .expect("run sockaccel");
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    })
}

/// Runs the closure on a thread whose bounding set is these capabilities: what
/// it starts has no others. The thread ends with it.
pub fn with_only<T: Send>(held: &[Capability], body: impl FnOnce() -> T + Send) -> T {
    let body = || {
        let all = caps::read(None, CapSet::Bounding).expect("the bounding set");
        for capability in all.iter().filter(|c| !held.contains(c)) {
            caps::drop(None, CapSet::Bounding, *capability).expect("drop");
        }
        caps::clear(None, CapSet::Inheritable).expect("clear");
        body()
    };
    thread::scope(|scope| {
        scope
            .spawn(body)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

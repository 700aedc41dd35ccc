//! Programs nobody here wrote: the short form of `scripts/conformance.sh`, which
//! is `CPython`'s tests of sockets and large bodies through haproxy. The long form
//! is for releases; `docs/conformance.md` says what it found.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use common::deadline::Deadline;

/// The script, which takes away everything it made when it is told to end.
struct Script(std::process::Child);

impl Drop for Script {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

#[test]
fn others_programs_see_no_difference() {
    common::require_root();
    let output = tempfile::NamedTempFile::new().expect("a temporary file");
    // One file position for both streams.
    let writer = || Stdio::from(output.as_file().try_clone().expect("dup"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/conformance.sh");
    let mut script = Script(
        Command::new(script)
            .args(["--short", "--time", "240"])
            .env("SOCKACCEL", env!("CARGO_BIN_EXE_sockaccel"))
            .stdin(Stdio::null())
            .stdout(writer())
            .stderr(writer())
            .spawn()
            .expect("starting scripts/conformance.sh"),
    );
    let deadline = Deadline::seconds(1200);
    let mut status = None;
    deadline.until("scripts/conformance.sh --short", || {
        status = script.0.try_wait().expect("wait");
        status.is_some()
    });
    assert!(
        status.is_some_and(|status| status.success()),
        "{}",
        fs::read_to_string(output.path()).unwrap_or_default()
    );
}

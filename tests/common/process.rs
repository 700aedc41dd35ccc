//! Programs that run beside the test.

use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::deadline::Deadline;

/// A child, killed and waited for on drop.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("start {}: {e}", command.get_program().display()));
        Self(child)
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id().cast_signed()), signal).expect("a signal");
    }

    /// Waits for its end.
    pub fn ended(&mut self, deadline: Deadline) -> ExitStatus {
        let mut status = None;
        deadline.until("the end of a program", || {
            status = self.0.try_wait().expect("waitpid");
            status.is_some()
        });
        status.expect("ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! Processes of their own: relays, forked senders, whatever must not be the
//! test itself.
//!
//! The test binary runs itself again with the name of one ignored test, which
//! every file with helpers has:
//!
//! ```ignore
//! #[test]
//! #[ignore = "the body of the helper processes"]
//! fn helper_process() {
//!     helper::main(&[("relay", relay)]);
//! }
//! ```
//!
//! That test does nothing unless a `Helper` started it. Test and helper talk
//! over a socket pair that is the helper's stdin, a line each.

use std::env;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::deadline::Deadline;
use super::process::Process;

/// Names the role to the helper.
pub const ROLE: &str = "SOCKACCEL_TEST_HELPER";

/// What makes the test binary a helper.
pub const ARGUMENTS: [&str; 4] = ["helper_process", "--exact", "--ignored", "--nocapture"];

/// One end of the line-by-line talk.
#[derive(Debug)]
pub struct Channel(BufReader<UnixStream>);

impl Channel {
    fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    pub fn say(&mut self, line: &str) {
        self.0
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .unwrap_or_else(|e| panic!("helper channel, saying {line}: {e}"));
    }

    /// The next line; None when the other end is gone.
    pub fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(e) => panic!("helper channel: {e}"),
        }
    }
}

/// A running helper; killed on drop.
#[derive(Debug)]
pub struct Helper {
    process: Process,
    channel: Channel,
}

impl Helper {
    /// Starts the helper in this process's cgroup and the calling thread's
    /// network namespace.
    pub fn start(role: &str) -> Self {
        let exe = env::current_exe().expect("the test binary");
        Self::spawn(Command::new(exe), role)
    }

    /// Starts the helper as what this command runs: its last arguments. It is the
    /// command that is killed on drop; the helper ends with the channel.
    pub fn start_under(mut command: Command, role: &str) -> Self {
        command.arg(env::current_exe().expect("the test binary"));
        Self::spawn(command, role)
    }

    fn spawn(mut command: Command, role: &str) -> Self {
        let (own, theirs) = UnixStream::pair().expect("socketpair");
        own.set_read_timeout(Some(Duration::from_secs(300)))
            .expect("SO_RCVTIMEO");
        let process = Process::start(
            command
                .args(ARGUMENTS)
                .env(ROLE, role)
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::null()),
        );
        Self {
            process,
            channel: Channel::new(own),
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub fn say(&mut self, line: &str) {
        self.channel.say(line);
    }

    /// Waits for the end of what was started: its exit status, or minus the signal.
    pub fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.process.ended(Deadline::seconds(60));
        let signal = || status.signal().map(|n| -n);
        status.code().or_else(signal).expect("ended")
    }

    /// The helper's next line; its end fails the test.
    pub fn hear(&mut self) -> String {
        self.channel.hear().expect("the helper ended")
    }
}

/// The role a helper plays: it ends when the channel does.
pub type Role = fn(&mut Channel);

/// Plays the role this process was started for, if any.
pub fn main(roles: &[(&str, Role)]) {
    let Ok(wanted) = env::var(ROLE) else {
        return;
    };
    let role = roles
        .iter()
        .find(|(name, _)| *name == wanted)
        .unwrap_or_else(|| panic!("no helper role {wanted}"))
        .1;
    let stdin = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("the channel");
    role(&mut Channel::new(stdin.into()));
}

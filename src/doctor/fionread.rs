//! Does FIONREAD count what waits on an enrolled socket?
//!
//! Since 929e30f93125 it counts only redirected bytes, until 04af4efde58a also
//! what came by TCP. Both went into several stable series, so the kernel is
//! asked, on a connection of our own: in this network namespace, or, where the
//! loopback interface is down or filtered, in a new one.

use std::fmt;
use std::io;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::thread;

use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use nix::poll::PollFlags;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use schemars::JsonSchema;
use serde::Serialize;

use super::map;
use super::wait::PATIENCE;
use super::wait::wait_for;
use crate::sys;

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Fionread {
    /// It says how many bytes wait.
    Right,
    /// It does not.
    Wrong {
        /// Bytes that wait.
        waiting: usize,
        /// Bytes that FIONREAD says.
        reported: usize,
    },
    /// There was no way to try.
    NotProbed {
        /// Why not.
        reason: String,
    },
}

const BYTES: &[u8] = b"FIONREAD";

/// Tries it. Takes milliseconds, and at most some seconds where packets are
/// dropped; leaves nothing behind.
pub fn probe() -> Fionread {
    let here = match ask() {
        Ok(found) => return found,
        Err(error) => error,
    };
    match in_new_namespace() {
        Ok(found) => found,
        Err(elsewhere) => Fionread::NotProbed {
            reason: format!("{here}; in a network namespace of its own: {elsewhere}"),
        },
    }
}

fn in_new_namespace() -> io::Result<Fionread> {
    // Only that thread changes over, and the namespace ends with it.
    let there = thread::Builder::new().spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        sys::probe::raise_loopback()?;
        ask()
    })?;
    there
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the probing thread panicked")))
}

fn ask() -> io::Result<Fionread> {
    let (mut sender, receiver) = pair()?;
    // Dropped before the sockets: the receiver is closed as plain TCP.
    let _enrolled = enrol(&receiver)?;
    sender.write_all(BYTES)?;
    wait_for(&receiver, PollFlags::POLLIN)?;
    let reported = sys::probe::unread(&receiver)?;
    if sys::probe::received_by_tcp(&receiver)? != BYTES.len() as u64 {
        return Err(io::Error::other(
            "another sockmap program redirects the probe's bytes",
        ));
    }
    Ok(judge(BYTES.len(), reported))
}

fn judge(waiting: usize, reported: usize) -> Fionread {
    if reported == waiting {
        Fionread::Right
    } else {
        Fionread::Wrong { waiting, reported }
    }
}

/// Both ends of a new connection over loopback.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    sender.set_nodelay(true)?;
    wait_for(&listener, PollFlags::POLLIN)?;
    let (receiver, from) = listener.accept()?;
    if from != sender.local_addr()? {
        return Err(io::Error::other("a stranger connected to the probe"));
    }
    Ok((sender, receiver))
}

/// Puts the socket into a new SOCKHASH that has no program.
fn enrol(socket: impl AsFd) -> io::Result<MapHandle> {
    let sockets = map::create(MapType::Sockhash).map_err(io::Error::other)?;
    let fd = u64::try_from(socket.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    sockets
        .update(&0_u64.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
        .map_err(io::Error::other)?;
    Ok(sockets)
}

impl fmt::Display for Fionread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => f.write_str("FIONREAD counts what waits on an enrolled socket"),
            Self::Wrong { waiting, reported } => write!(
                f,
                "FIONREAD reports {reported} while {waiting} bytes wait on an enrolled socket \
                 (bug 929e30f93125, fixed by 04af4efde58a)"
            ),
            Self::NotProbed { reason } => write!(
                f,
                "whether FIONREAD counts what waits on an enrolled socket could not be probed: \
                 {reason}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_count_is_right() {
        assert_eq!(judge(8, 8), Fionread::Right);
        for reported in [0, 7, 9] {
            let wrong = Fionread::Wrong {
                waiting: 8,
                reported,
            };
            assert_eq!(judge(8, reported), wrong);
        }
    }

    #[test]
    fn json() {
        let cases = [
            (Fionread::Right, r#"{"result":"right"}"#),
            (
                judge(8, 0),
                r#"{"result":"wrong","waiting":8,"reported":0}"#,
            ),
            (
                Fionread::NotProbed {
                    reason: "why".to_owned(),
                },
                r#"{"result":"not_probed","reason":"why"}"#,
            ),
        ];
        for (found, expected) in cases {
            assert_eq!(serde_json::to_string(&found).expect("serializes"), expected);
        }
    }
}

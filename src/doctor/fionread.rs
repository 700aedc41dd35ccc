//! Does FIONREAD count what waits on an enrolled socket?
//!
//! Before 929e30f93125 it counts only what came by TCP, then only redirected
//! bytes, and since 04af4efde58a both. The two went into several stable series, so
//! the kernel is asked, on a connection of our own: in this network namespace, or,
//! where the loopback interface is down or filtered, in a new one.

use std::fmt;
use std::io;
use std::io::Write;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::thread;

use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;
use nix::poll::PollFlags;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::getsockname;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;
use schemars::JsonSchema;
use serde::Serialize;

use super::map;
use super::wait::connect;
use super::wait::wait_for;
use crate::sys;
use crate::sys::textbook::TextbookSkelBuilder;

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
        /// They were redirected, and have not come by TCP.
        #[serde(skip)]
        redirected: bool,
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
    match of_tcp()? {
        Fionread::Right => of_redirected(),
        wrong => Ok(wrong),
    }
}

fn of_tcp() -> io::Result<Fionread> {
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
    Ok(judge(BYTES.len(), reported, false))
}

/// Does it count what is redirected? By the textbook program, with the two sockets
/// in its map.
///
/// # Errors
///
/// What kept it from being tried.
pub fn of_redirected() -> io::Result<Fionread> {
    let (mut sender, receiver) = pair()?;
    let mut storage = MaybeUninit::uninit();
    let mut open = TextbookSkelBuilder::default()
        .open(&mut storage)
        .map_err(io::Error::other)?;
    open.progs.tb_sockops.set_autoload(false);
    let skeleton = open.load().map_err(io::Error::other)?;
    let sockets = &skeleton.maps.tb_sockhash;
    // Until the map goes.
    skeleton
        .progs
        .tb_skmsg
        .attach_sockmap(sockets.as_fd().as_raw_fd())
        .map_err(io::Error::other)?;
    for socket in [&sender, &receiver] {
        sockets
            .update(
                &key(socket)?,
                &socket.as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .map_err(io::Error::other)?;
    }
    sender.write_all(BYTES)?;
    wait_for(&receiver, PollFlags::POLLIN)?;
    let reported = sys::probe::unread(&receiver)?;
    if sys::probe::received_by_tcp(&receiver)? != 0 {
        return Err(io::Error::other("the probe's bytes were not redirected"));
    }
    Ok(judge(BYTES.len(), reported, true))
}

/// Of textbook.bpf.c: `struct tuple`.
fn key(socket: &TcpStream) -> io::Result<Vec<u8>> {
    let (SocketAddr::V4(local), SocketAddr::V4(remote)) =
        (socket.local_addr()?, socket.peer_addr()?)
    else {
        return Err(io::Error::other("not IPv4"));
    };
    let addresses = [local, remote].map(|end| end.ip().octets());
    let ports = [local, remote].map(|end| u32::from(end.port()).to_be_bytes());
    Ok([addresses, ports].concat().concat())
}

fn judge(waiting: usize, reported: usize, redirected: bool) -> Fionread {
    if reported == waiting {
        Fionread::Right
    } else {
        Fionread::Wrong {
            waiting,
            reported,
            redirected,
        }
    }
}

/// Both ends of a new connection over loopback, which no instance takes where this
/// process is in a cgroup that it accelerates: neither end would go into our map then.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // Both ends have it from the start, and sockaccel skips such sockets.
    setsockopt(&listener, sockopt::ReceiveTimestamp, &true)?;
    let sender = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    setsockopt(&sender, sockopt::ReceiveTimestamp, &true)?;
    let sender = connect(sender, &getsockname(listener.as_raw_fd())?)?;
    sender.set_nonblocking(false)?;
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

/// The kernel's commits that it is about.
pub const fn reference(redirected: bool) -> &'static str {
    if redirected {
        "counted since 929e30f93125 and 04af4efde58a"
    } else {
        "bug 929e30f93125, fixed by 04af4efde58a"
    }
}

impl fmt::Display for Fionread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => f.write_str("FIONREAD counts what waits on an enrolled socket"),
            Self::Wrong {
                waiting,
                reported,
                redirected,
            } => write!(
                f,
                "on this kernel FIONREAD reports {reported} while the {waiting} {} of a probe \
                 wait on its enrolled socket ({})",
                if *redirected {
                    "redirected bytes"
                } else {
                    "bytes"
                },
                reference(*redirected)
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
        assert_eq!(judge(8, 8, false), Fionread::Right);
        for reported in [0, 7, 9] {
            let wrong = Fionread::Wrong {
                waiting: 8,
                reported,
                redirected: true,
            };
            assert_eq!(judge(8, reported, true), wrong);
        }
    }

    #[test]
    fn json() {
        let cases = [
            (Fionread::Right, r#"{"result":"right"}"#),
            (
                judge(8, 0, false),
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

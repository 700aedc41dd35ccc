//! Sockets as the options want them.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, UnixAddr, bind, connect, getsockname,
    getsockopt, listen, setsockopt, socket, sockopt,
};

use super::PeerOptions;
use crate::bench::options::{Nagle, Wait};
use crate::sys;

/// A listening socket, and what a client has to be told to find it.
pub fn listening(options: &PeerOptions, address: &str) -> io::Result<(OwnedFd, String)> {
    let Ok(tcp) = address.parse::<SocketAddrV4>() else {
        let listener = non_blocking(AddressFamily::Unix)?;
        let name = format!("sockaccel-bench-{}", process::id());
        bind(
            listener.as_raw_fd(),
            &UnixAddr::new_abstract(name.as_bytes())?,
        )?;
        listen(&listener, Backlog::MAXCONN)?;
        return Ok((listener, name));
    };
    let listener = non_blocking(AddressFamily::Inet)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    set_segment(&listener, options)?;
    bind(listener.as_raw_fd(), &SockaddrIn::from(tcp))?;
    listen(&listener, Backlog::MAXCONN)?;
    let bound = getsockname::<SockaddrIn>(listener.as_raw_fd())?.to_string();
    Ok((listener, bound))
}

/// A socket that begins to connect. Writable once it has.
pub fn connecting(options: &PeerOptions, address: &str) -> io::Result<File> {
    let (socket, started) = if let Ok(tcp) = address.parse::<SocketAddrV4>() {
        let socket = non_blocking(AddressFamily::Inet)?;
        set_nagle(&socket, options)?;
        set_segment(&socket, options)?;
        let started = connect(socket.as_raw_fd(), &SockaddrIn::from(tcp));
        (socket, started)
    } else {
        let socket = non_blocking(AddressFamily::Unix)?;
        let address = UnixAddr::new_abstract(address.as_bytes())?;
        let started = connect(socket.as_raw_fd(), &address);
        (socket, started)
    };
    match started {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket.into()),
        Err(err) => Err(err.into()),
    }
}

/// How connecting ended.
pub fn connected(socket: &File) -> io::Result<()> {
    match getsockopt(socket, sockopt::SocketError)? {
        0 => Ok(()),
        err => Err(io::Error::from_raw_os_error(err)),
    }
}

/// The next connection, if one waits.
pub fn accepted(options: &PeerOptions, listener: &OwnedFd, tcp: bool) -> io::Result<Option<File>> {
    match sys::tcp::accept_nonblocking(listener) {
        Ok(socket) => {
            if tcp {
                set_nagle(&socket, options)?;
            }
            Ok(Some(socket.into()))
        }
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(err) => Err(err),
    }
}

fn non_blocking(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn set_nagle(socket: &OwnedFd, options: &PeerOptions) -> io::Result<()> {
    let off = options.nagle == Nagle::Off;
    Ok(setsockopt(socket, sockopt::TcpNoDelay, &off)?)
}

fn set_segment(socket: &OwnedFd, options: &PeerOptions) -> io::Result<()> {
    match options.mss {
        Some(mss) => Ok(setsockopt(socket, sockopt::TcpMaxSeg, &mss)?),
        None => Ok(()),
    }
}

/// None when it would block.
pub fn read(mut socket: &File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    unless_blocked(socket.read(buffer))
}

/// None when it would block.
pub fn write(mut socket: &File, bytes: &[u8]) -> io::Result<Option<usize>> {
    unless_blocked(socket.write(bytes))
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(err) => Err(err),
    }
}

/// What a socket waits for, edge-triggered, as Go, tokio and nginx have it:
/// level-triggered epoll polls the socket once more before each sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        let read = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        EpollFlags::EPOLLET
            | match self {
                Self::Read => read,
                Self::Write => EpollFlags::EPOLLOUT,
                Self::Both => read | EpollFlags::EPOLLOUT,
            }
    }
}

/// The event loop's wait.
#[derive(Debug)]
pub struct Waiter {
    epoll: Epoll,
    timeout: EpollTimeout,
    events: Vec<EpollEvent>,
}

impl Waiter {
    pub fn new(wait: Wait) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            timeout: match wait {
                Wait::Epoll => EpollTimeout::NONE,
                Wait::Spin => EpollTimeout::ZERO,
            },
            events: vec![EpollEvent::empty(); 128],
        })
    }

    /// Level-triggered: a listener, or a pipe.
    pub fn watch(&self, fd: impl AsFd, id: u64) -> io::Result<()> {
        Ok(self
            .epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, id))?)
    }

    pub fn add(&self, socket: &File, interest: Interest, id: u64) -> io::Result<()> {
        Ok(self
            .epoll
            .add(socket, EpollEvent::new(interest.flags(), id))?)
    }

    pub fn change(&self, socket: &File, interest: Interest, id: u64) -> io::Result<()> {
        Ok(self
            .epoll
            .modify(socket, &mut EpollEvent::new(interest.flags(), id))?)
    }

    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Ids of what is ready; none after `at_most_ms`, if given.
    pub fn ready(&mut self, at_most_ms: Option<u16>) -> io::Result<Vec<u64>> {
        let timeout = at_most_ms.map_or(self.timeout, EpollTimeout::from);
        match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => Ok(self.events[..count].iter().map(EpollEvent::data).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(err) => Err(err.into()),
        }
    }
}

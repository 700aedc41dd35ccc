//! The connection that a check is tried on, and the story of what its two
//! programs saw. The same story is told on plain TCP and on an accelerated
//! connection, and compared.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::SocketAddrV4;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::sockopt;
use nix::unistd::Pid;

use super::super::wait::PATIENCE;
use super::super::wait::connect;
use super::super::wait::events;
use super::super::wait::wait_for;
use super::Programs;
use crate::sys;

/// A connection under test.
#[derive(Debug)]
pub struct Link {
    /// Sends.
    pub a: TcpStream,
    /// Receives.
    pub b: TcpStream,
    /// How both programs work.
    pub programs: Programs,
    /// What they saw.
    pub story: String,
    /// A figure that is told but not compared.
    pub aside: String,
    /// `sockaccel disable`, on an accelerated connection.
    pub disable: Option<Command>,
}

impl Link {
    /// A new connection.
    ///
    /// # Errors
    ///
    /// Those of socket(2), connect(2), accept(2).
    pub fn open(programs: Programs) -> io::Result<Self> {
        let listener = TcpListener::from(tcp_socket(programs)?);
        let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
        socket::bind(listener.as_raw_fd(), &any)?;
        socket::listen(&listener, Backlog::new(1)?)?;
        let to: SockaddrIn = socket::getsockname(listener.as_raw_fd())?;
        let a = connect(tcp_socket(programs)?, &to)?;
        wait_for(&listener, PollFlags::POLLIN)?;
        let b = match programs {
            Programs::EventLoops => TcpStream::from(sys::tcp::accept_nonblocking(&listener)?),
            Programs::Blocking => listener.accept()?.0,
        };
        for end in [&a, &b] {
            end.set_nodelay(true)?;
        }
        Ok(Self {
            a,
            b,
            programs,
            story: String::new(),
            aside: String::new(),
            disable: None,
        })
    }

    /// Messages each way, as many as show the data path how both ends read.
    /// Says whether the last ones went past TCP, which TCP itself is asked for.
    ///
    /// # Errors
    ///
    /// Those of send(2) and recv(2), and when bytes are not those sent.
    pub fn warm_up(&mut self) -> io::Result<bool> {
        const ROUNDS: u32 = 20;
        for _ in 0..ROUNDS {
            let there = one_way(&self.a, &self.b)?;
            let back = one_way(&self.b, &self.a)?;
            if there && back {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds to the story.
    pub fn note(&mut self, what: &str, saw: impl AsRef<str>) {
        if !self.story.is_empty() {
            self.story.push_str(", ");
        }
        let _ = write!(self.story, "{what}: {}", saw.as_ref());
    }

    /// From here on the other end sends.
    pub fn mirror(&mut self) {
        std::mem::swap(&mut self.a, &mut self.b);
    }

    /// Sends all of it, and tells only if that is not so.
    pub fn send(&mut self, text: &str) {
        let flags = MsgFlags::MSG_NOSIGNAL;
        match socket::send(self.a.as_raw_fd(), text.as_bytes(), flags) {
            Ok(n) if n == text.len() => {}
            Ok(n) => self.note("send", format!("{n} of {} bytes", text.len())),
            Err(error) => self.note("send", format!("{error:?}")),
        }
    }

    /// One receive as such programs do it; event loops wait first.
    pub fn recv(&mut self, len: usize) {
        self.recv_with(len, MsgFlags::empty());
    }

    /// The same with flags.
    pub fn recv_with(&mut self, len: usize, flags: MsgFlags) {
        let saw = received(&self.b, self.programs, len, flags);
        self.note("recv", saw);
    }

    /// What poll(2) says of the receiver, within a moment.
    pub fn poll(&mut self) {
        let saw = events(&self.b, PollFlags::POLLIN, 100);
        self.note("poll", format!("{saw:?}"));
    }

    /// Waits until there is something to read, and does not tell.
    pub fn until_readable(&self) {
        events(&self.b, PollFlags::POLLIN, 1000);
    }

    /// Half-closes the sender.
    pub fn shut(&mut self) {
        if let Err(error) = self.a.shutdown(Shutdown::Write) {
            self.note("shutdown", error.to_string());
        }
    }

    /// Closes the sender; a socket of no connection takes its place.
    ///
    /// # Errors
    ///
    /// Those of socket(2).
    pub fn close(&mut self) -> io::Result<()> {
        self.a = tcp_socket(self.programs)?.into();
        Ok(())
    }
}

/// One receive; event loops wait for the event first.
pub fn received(socket: &TcpStream, programs: Programs, len: usize, flags: MsgFlags) -> String {
    if programs == Programs::EventLoops && events(socket, PollFlags::POLLIN, 1000).is_empty() {
        return "nothing".to_owned();
    }
    let mut buffer = vec![0; len];
    match socket::recv(socket.as_raw_fd(), &mut buffer, flags) {
        Ok(0) => "the end".to_owned(),
        Ok(n) => format!("{:?}", String::from_utf8_lossy(&buffer[..n])),
        Err(error) => format!("{error:?}"),
    }
}

/// Waits until a thread of this process is in one of these system calls.
///
/// # Errors
///
/// When it does not come there, or /proc is not to be read.
pub fn until_in(thread: Pid, calls: &[libc::c_long]) -> io::Result<()> {
    let path = format!("/proc/self/task/{thread}/syscall");
    let end = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(&path)?;
        let number = text.split(' ').next().and_then(|n| n.trim().parse().ok());
        if number.is_some_and(|number: libc::c_long| calls.contains(&number)) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(io::Error::other("a thread does not come to wait"));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn tcp_socket(programs: Programs) -> nix::Result<OwnedFd> {
    let mut flags = SockFlag::SOCK_CLOEXEC;
    flags.set(SockFlag::SOCK_NONBLOCK, programs == Programs::EventLoops);
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    Ok(socket)
}

/// One message that arrives; true when TCP did not carry it.
fn one_way(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<bool> {
    const MESSAGE: &[u8] = b"sockaccel doctor";
    let before = sys::probe::received_by_tcp(to)?;
    from.write_all(MESSAGE)?;
    let mut got = [0; MESSAGE.len()];
    let mut filled = 0;
    while filled < got.len() {
        wait_for(to, PollFlags::POLLIN)?;
        match to.read(&mut got[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    if got != MESSAGE {
        return Err(io::Error::other("what arrived is not what was sent"));
    }
    Ok(sys::probe::received_by_tcp(to)? == before)
}

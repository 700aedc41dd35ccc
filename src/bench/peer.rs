//! The two programs that talk: child processes, one socket each.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io, process};

use clap::{Args, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, UnixAddr, bind, connect, getsockname,
    getsockopt, listen, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sys;

/// What one child process is to do.
#[derive(Debug, Clone, Args)]
pub struct PeerOptions {
    /// Cgroup to join before any socket is made
    #[arg(long)]
    pub cgroup: PathBuf,
    /// CPU to stay on
    #[arg(long)]
    pub cpu: usize,
    /// Bytes of each message
    #[arg(long)]
    pub size: usize,
    /// How to wait for the next message
    #[arg(long, value_enum)]
    pub wait: Wait,
    /// Serve, on an address of this kind
    #[arg(long, value_enum)]
    pub listen: Option<Transport>,
    /// Ask, at this address, as the server printed it
    #[arg(long, conflicts_with = "listen", required_unless_present = "listen")]
    pub connect: Option<String>,
    /// Seconds before the measurement
    #[arg(long, default_value_t = 0.0)]
    pub warm_up: f64,
    /// Seconds of it
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
}

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// TCP over 127.0.0.1
    Tcp,
    /// A stream `AF_UNIX` socket
    Unix,
}

/// How a program waits for its non-blocking socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Sleep in epoll, as event loops do
    Epoll,
    /// Ask epoll again and again; needs a CPU of its own
    Spin,
    /// Read again and again; the same
    Read,
}

impl Wait {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Spin => "spin",
            Self::Read => "read",
        }
    }
}

/// What the client found.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Exchange {
    /// Requests answered while measuring.
    pub requests: u64,
    /// How long that took.
    pub seconds: f64,
    /// Payload bytes of the connection, both directions, warm-up included.
    pub bytes: u64,
    /// Messages of the same.
    pub messages: u64,
    /// Of these bytes, those that the kernel's TCP carried.
    pub stack_bytes: u64,
}

impl Exchange {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let requests = self.requests as f64;
        requests / self.seconds
    }
}

/// Runs a child to its end. The server prints its address, then nothing; the
/// client prints an [`Exchange`] as JSON.
///
/// # Errors
///
/// What the kernel said, or that a message was not what the other one sent.
pub fn run(options: &PeerOptions) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    fs::write(
        options.cgroup.join("cgroup.procs"),
        process::id().to_string(),
    )?;
    let mut cpus = CpuSet::new();
    cpus.set(options.cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    if let Some(address) = &options.connect {
        let exchange = ask(options, address)?;
        println!("{}", serde_json::to_string(&exchange)?);
        return Ok(());
    }
    serve(options, options.listen.unwrap_or(Transport::Tcp))
}

fn serve(options: &PeerOptions, transport: Transport) -> io::Result<()> {
    let listener = match transport {
        Transport::Tcp => tcp_socket()?,
        Transport::Unix => unix_socket()?,
    };
    let address = match transport {
        Transport::Tcp => {
            bind(listener.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
            getsockname::<SockaddrIn>(listener.as_raw_fd())?.to_string()
        }
        Transport::Unix => {
            let name = format!("sockaccel-bench-{}", process::id());
            bind(
                listener.as_raw_fd(),
                &UnixAddr::new_abstract(name.as_bytes())?,
            )?;
            name
        }
    };
    listen(&listener, Backlog::new(1)?)?;
    println!("{address}");
    ready(&listener, PollFlags::POLLIN)?;
    let mut wire = Wire::new(sys::tcp::accept_nonblocking(&listener)?, options)?;
    if transport == Transport::Tcp {
        setsockopt(&wire.socket, sockopt::TcpNoDelay, &true)?;
    }

    let mut talk = Talk::new(options.size);
    while wire.receive(&mut talk.received)? {
        talk.check_request()?;
        wire.send(talk.reply())?;
    }
    Ok(())
}

fn ask(options: &PeerOptions, address: &str) -> io::Result<Exchange> {
    let mut wire = Wire::new(connected(address)?, options)?;
    let mut talk = Talk::new(options.size);
    let mut asked = 0_u64;
    let mut ask_for = |seconds: f64| -> io::Result<(u64, f64)> {
        let start = Instant::now();
        let length = Duration::from_secs_f64(seconds);
        let before = asked;
        // The clock is read rarely: it costs as much as a percent of an exchange.
        while start.elapsed() < length {
            for _ in 0..16 {
                wire.send(talk.request())?;
                if !wire.receive(&mut talk.received)? {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                talk.check_reply()?;
                asked += 1;
            }
        }
        Ok((asked - before, start.elapsed().as_secs_f64()))
    };
    ask_for(options.warm_up)?;
    let (requests, seconds) = ask_for(options.seconds)?;
    let stack_bytes = match address.parse::<SocketAddrV4>() {
        Ok(_) => sys::tcp::stack_bytes(&wire.socket)?,
        Err(_) => 0,
    };
    Ok(Exchange {
        requests,
        seconds,
        bytes: 2 * asked * options.size as u64,
        messages: 2 * asked,
        stack_bytes,
    })
}

fn tcp_socket() -> io::Result<OwnedFd> {
    non_blocking(AddressFamily::Inet)
}

fn unix_socket() -> io::Result<OwnedFd> {
    non_blocking(AddressFamily::Unix)
}

fn non_blocking(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn connected(address: &str) -> io::Result<OwnedFd> {
    let Ok(address) = address.parse::<SocketAddrV4>() else {
        let socket = unix_socket()?;
        connect(
            socket.as_raw_fd(),
            &UnixAddr::new_abstract(address.as_bytes())?,
        )?;
        return Ok(socket);
    };
    let socket = tcp_socket()?;
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    match connect(socket.as_raw_fd(), &SockaddrIn::from(address)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(err) => return Err(err.into()),
    }
    ready(&socket, PollFlags::POLLOUT)?;
    match getsockopt(&socket, sockopt::SocketError)? {
        0 => Ok(socket),
        err => Err(io::Error::from_raw_os_error(err)),
    }
}

fn ready(fd: impl AsFd, events: PollFlags) -> io::Result<()> {
    poll(&mut [PollFd::new(fd.as_fd(), events)], PollTimeout::NONE)?;
    Ok(())
}

/// One non-blocking socket, and how to wait for it.
struct Wire {
    socket: File,
    epoll: Option<(Epoll, EpollTimeout)>,
}

impl Wire {
    fn new(socket: OwnedFd, options: &PeerOptions) -> io::Result<Self> {
        let timeout = match options.wait {
            Wait::Epoll => Some(EpollTimeout::NONE),
            Wait::Spin => Some(EpollTimeout::ZERO),
            Wait::Read => None,
        };
        let epoll = timeout
            .map(|timeout| -> io::Result<_> {
                let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
                // Edge-triggered, as Go, tokio and nginx have it: level-triggered
                // epoll polls the socket once more before each sleep.
                let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
                epoll.add(&socket, EpollEvent::new(events, 0))?;
                Ok((epoll, timeout))
            })
            .transpose()?;
        Ok(Self {
            socket: socket.into(),
            epoll,
        })
    }

    fn send(&mut self, mut message: &[u8]) -> io::Result<()> {
        while !message.is_empty() {
            match self.socket.write(message) {
                Ok(sent) => message = &message[sent..],
                Err(err) if err.kind() == ErrorKind::WouldBlock => {
                    ready(&self.socket, PollFlags::POLLOUT)?;
                }
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// Fills the message; false at the end of the stream.
    fn receive(&mut self, message: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < message.len() {
            if let Some((epoll, timeout)) = &self.epoll
                && epoll.wait(&mut [EpollEvent::empty()], *timeout)? == 0
            {
                continue;
            }
            match self.socket.read(&mut message[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => filled += got,
                Err(err) if err.kind() == ErrorKind::WouldBlock => {}
                Err(err) => return Err(err),
            }
        }
        Ok(true)
    }
}

/// The payload: a number that both ends count, inverted in replies, and a
/// pattern. So a lost, repeated, swapped or reflected message is noticed.
struct Talk {
    number: u64,
    expected: Vec<u8>,
    received: Vec<u8>,
}

impl Talk {
    fn new(size: usize) -> Self {
        let pattern = (0..=250_u8).cycle().take(size).collect();
        Self {
            number: 0,
            expected: pattern,
            received: vec![0; size],
        }
    }

    fn mark(&mut self, number: u64) -> &[u8] {
        let head = self.expected.len().min(8);
        self.expected[..head].copy_from_slice(&number.to_le_bytes()[..head]);
        &self.expected
    }

    fn request(&mut self) -> &[u8] {
        self.number += 1;
        self.mark(self.number)
    }

    fn reply(&mut self) -> &[u8] {
        self.mark(!self.number)
    }

    fn check_request(&mut self) -> io::Result<()> {
        self.number += 1;
        self.mark(self.number);
        self.check("request")
    }

    fn check_reply(&mut self) -> io::Result<()> {
        self.mark(!self.number);
        self.check("reply")
    }

    fn check(&self, kind: &str) -> io::Result<()> {
        if self.expected == self.received {
            return Ok(());
        }
        Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("{kind} {} is not what was sent", self.number),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::Talk;

    #[test]
    fn a_conversation_is_checked_at_both_ends() {
        for size in [1, 7, 8, 9, 64, 1000] {
            let (mut client, mut server) = (Talk::new(size), Talk::new(size));
            for _ in 0..300 {
                server.received = client.request().to_vec();
                server.check_request().unwrap();
                client.received = server.reply().to_vec();
                client.check_reply().unwrap();
            }
        }
    }

    #[test]
    fn a_repeated_or_reflected_message_is_noticed() {
        let (mut client, mut server) = (Talk::new(64), Talk::new(64));
        server.received = client.request().to_vec();
        server.check_request().unwrap();
        server.check_request().unwrap_err();
        client.received = client.request().to_vec();
        client.check_reply().unwrap_err();
    }
}

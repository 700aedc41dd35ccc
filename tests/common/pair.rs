//! Connected TCP sockets.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::sockopt;

use sockaccel::sys::tcp::accept_nonblocking;

use super::cgroup::Cgroup;
use super::deadline::Deadline;
use super::raw;

/// How the sockets of a pair are made. Buffer sizes are set before connect and
/// listen, as programs do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the listener is bound; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the client connects, if not there; port 0 is the listener's.
    pub connect: Option<SocketAddr>,
    /// Local address of the client.
    pub bind: Option<SocketAddr>,
    /// `O_NONBLOCK` on listener and accepted socket.
    pub server_nonblocking: bool,
    /// `O_NONBLOCK` on the client, from before connect.
    pub client_nonblocking: bool,
    /// `SO_SNDBUF` of both ends.
    pub send_buffer: Option<usize>,
    /// `SO_RCVBUF` of both ends.
    pub receive_buffer: Option<usize>,
    /// `TCP_NODELAY` of both ends.
    pub nodelay: bool,
    /// Done to the client's socket before connect.
    pub prepare_client: fn(&OwnedFd),
    /// Done to the listener's socket before bind.
    pub prepare_listener: fn(&OwnedFd),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            connect: None,
            bind: None,
            server_nonblocking: true,
            client_nonblocking: true,
            send_buffer: None,
            receive_buffer: None,
            nodelay: true,
            prepare_client: |_| {},
            prepare_listener: |_| {},
        }
    }
}

impl Options {
    /// Both ends blocking.
    pub fn blocking() -> Self {
        Self {
            server_nonblocking: false,
            client_nonblocking: false,
            ..Self::default()
        }
    }

    /// IPv6 loopback.
    pub fn v6() -> Self {
        Self {
            listen: "[::1]:0".parse().expect("an address"),
            ..Self::default()
        }
    }

    /// Two `AF_INET6` sockets that talk IPv4.
    pub fn v4_mapped() -> Self {
        Self {
            listen: "[::ffff:127.0.0.1]:0".parse().expect("an address"),
            ..Self::default()
        }
    }
}

/// Both ends of one connection.
#[derive(Debug)]
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Pair {
    /// Non-blocking, on IPv4 loopback.
    pub fn new() -> Self {
        Self::with(&Options::default())
    }

    pub fn with(options: &Options) -> Self {
        Self::on(&listen(options), options)
    }

    /// Another connection to the same listener.
    pub fn on(listener: &TcpListener, options: &Options) -> Self {
        let mut to = listener.local_addr().expect("getsockname");
        if let Some(other) = options.connect {
            let port = if other.port() == 0 {
                to.port()
            } else {
                other.port()
            };
            to = SocketAddr::new(other.ip(), port);
        }
        let client = connect(to, options);
        let server = accept(listener, options);
        Self { client, server }
    }

    /// From one cgroup to another.
    pub fn between(client: &Cgroup, server: &Cgroup) -> Self {
        let options = Options::default();
        let listener = {
            let _joined = server.join();
            listen(&options)
        };
        let _joined = client.join();
        Self::on(&listener, &options)
    }

    /// The other way round, for tables of directions.
    pub fn swapped(self) -> Self {
        Self {
            client: self.server,
            server: self.client,
        }
    }
}

/// A listener alone.
pub fn listen(options: &Options) -> TcpListener {
    let fd = make(options.listen, options, options.server_nonblocking);
    (options.prepare_listener)(&fd);
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(options.listen))
        .unwrap_or_else(|e| panic!("bind {}: {e}", options.listen));
    socket::listen(&fd, Backlog::new(1024).expect("a backlog")).expect("listen");
    fd.into()
}

/// A client alone; returns when it is connected.
pub fn connect(to: SocketAddr, options: &Options) -> TcpStream {
    let fd = make(to, options, options.client_nonblocking);
    (options.prepare_client)(&fd);
    if let Some(from) = options.bind {
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(from))
            .unwrap_or_else(|e| panic!("bind {from}: {e}"));
    }
    let started = socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to));
    finish_connect(&fd, to, started);
    finish(fd.into(), options, options.client_nonblocking)
}

/// A socket that was connected, to somebody else: `connect(AF_UNSPEC)`, then again.
pub fn reconnect(client: &TcpStream, to: SocketAddr) {
    let deadline = Deadline::seconds(10);
    raw::disconnect(client).expect("connect to AF_UNSPEC");
    loop {
        match socket::connect(client.as_raw_fd(), &SockaddrStorage::from(to)) {
            // As long as a sender of the first connection is under way.
            Err(Errno::EADDRNOTAVAIL) => deadline.check("connect again"),
            started => break finish_connect(client, to, started),
        }
    }
}

/// Waits until it is connected, if that was started.
fn finish_connect(fd: &impl AsFd, to: SocketAddr, started: nix::Result<()>) {
    match started {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            Deadline::seconds(10).wait(fd, PollFlags::POLLOUT, "connect");
            let error = socket::getsockopt(fd, sockopt::SocketError).expect("SO_ERROR");
            assert_eq!(error, 0, "connect {to}: {}", Errno::from_raw(error));
        }
        Err(e) => panic!("connect {to}: {e}"),
    }
}

/// The next accepted socket.
pub fn accept(listener: &TcpListener, options: &Options) -> TcpStream {
    let deadline = Deadline::seconds(10);
    let stream = loop {
        deadline.wait(listener, PollFlags::POLLIN, "accept");
        // At once: on a slow machine it would be seen as blocking before fcntl(2).
        let accepted = if options.server_nonblocking {
            accept_nonblocking(listener).map(TcpStream::from)
        } else {
            listener.accept().map(|(stream, _)| stream)
        };
        match accepted {
            Ok(stream) => break stream,
            // Another thread was there first.
            Err(e) if e.kind() == ErrorKind::WouldBlock => deadline.check("accept"),
            Err(e) => panic!("accept: {e}"),
        }
    };
    finish(stream, options, options.server_nonblocking)
}

fn finish(stream: TcpStream, options: &Options, nonblocking: bool) -> TcpStream {
    stream.set_nodelay(options.nodelay).expect("TCP_NODELAY");
    if !nonblocking {
        // So that a hang becomes a failure.
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).expect("SO_RCVTIMEO");
        stream.set_write_timeout(limit).expect("SO_SNDTIMEO");
    }
    stream
}

fn make(address: SocketAddr, options: &Options, nonblocking: bool) -> OwnedFd {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let mut flags = SockFlag::SOCK_CLOEXEC;
    flags.set(SockFlag::SOCK_NONBLOCK, nonblocking);
    let fd = socket::socket(family, SockType::Stream, flags, None).expect("socket");
    buffers(&fd, options);
    fd
}

fn buffers(fd: &impl AsFd, options: &Options) {
    if let Some(size) = options.send_buffer {
        socket::setsockopt(fd, sockopt::SndBuf, &size).expect("SO_SNDBUF");
    }
    if let Some(size) = options.receive_buffer {
        socket::setsockopt(fd, sockopt::RcvBuf, &size).expect("SO_RCVBUF");
    }
}

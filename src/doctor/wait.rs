//! Waiting for sockets of our own.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::socket;
use nix::sys::socket::SockaddrIn;

/// No step on an idle loopback takes long; a filter that drops packets would.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What poll(2) says within so many milliseconds.
pub fn events(fd: impl AsFd, wanted: PollFlags, milliseconds: u16) -> PollFlags {
    let end = Instant::now() + Duration::from_millis(milliseconds.into());
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(fd.as_fd(), wanted)];
        match poll(
            &mut fds,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO),
        ) {
            Err(Errno::EINTR) => {}
            Ok(n) if n > 0 => return fds[0].revents().unwrap_or(PollFlags::empty()),
            _ => return PollFlags::empty(),
        }
    }
}

/// Waits until it can be read from, accepted from or written to.
///
/// # Errors
///
/// When that takes longer than [`PATIENCE`].
pub fn wait_for(fd: impl AsFd, wanted: PollFlags) -> io::Result<()> {
    let limit = u16::try_from(PATIENCE.as_millis()).unwrap_or(u16::MAX);
    if events(fd, wanted, limit).is_empty() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(())
}

/// Connects, and waits until it is so.
///
/// # Errors
///
/// Those of connect(2), and of [`wait_for`].
pub fn connect(socket: OwnedFd, to: &SockaddrIn) -> io::Result<TcpStream> {
    match socket::connect(socket.as_raw_fd(), to) {
        Ok(()) | Err(Errno::EINPROGRESS) => wait_for(&socket, PollFlags::POLLOUT)?,
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn waiting_ends() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback address");
        let error = wait_for(&listener, PollFlags::POLLIN).expect_err("nobody connects");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

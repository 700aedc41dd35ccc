//! TCP sockets, as far as the standard library and nix do not cover them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::sys::socket::SockFlag;

/// accept4(2) with `SOCK_NONBLOCK`: the socket is non-blocking from its first
/// moment in the program's hands.
///
/// # Errors
///
/// Whatever accept4(2) gives.
pub fn accept_nonblocking(listener: impl AsFd) -> io::Result<OwnedFd> {
    let fd = nix::sys::socket::accept4(
        listener.as_fd().as_raw_fd(),
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
    )?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

//! TCP sockets, as far as the standard library and nix do not cover them.
#![allow(unsafe_code)]

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;
use nix::sys::socket::SockFlag;

/// The part of `struct tcp_info` (linux/tcp.h) up to the byte counters.
#[repr(C)]
#[derive(Default)]
struct TcpInfo {
    bytes: [u8; 8],
    words: [u32; 24],
    rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
}
const _: () = assert!(offset_of!(TcpInfo, bytes_acked) == 120);

/// Payload bytes of this socket that the TCP stack carried, both directions:
/// what was redirected past it is not among them.
///
/// # Errors
///
/// Whatever getsockopt(2) gives, and `Unsupported` before Linux 4.2.
pub fn stack_bytes(socket: impl AsFd) -> io::Result<u64> {
    let mut info = TcpInfo::default();
    let mut len = libc::socklen_t::try_from(size_of::<TcpInfo>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes into `info`, which has
    // that size and no invalid bit patterns.
    let err = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if err != 0 {
        return Err(io::Error::last_os_error());
    }
    if (len as usize) < size_of::<TcpInfo>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(info.bytes_acked + info.bytes_received)
}

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

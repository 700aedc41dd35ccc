//! Socket options by name, where nix has none.

use std::os::fd::AsFd;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket;
use nix::sys::socket::sockopt;

/// include/uapi/linux/tcp.h
pub const TCP_INQ: i32 = 36;

macro_rules! int_options {
    ($($name:ident, $level:path, $option:path;)*) => {
        $(
            /// The option of this name.
            #[derive(Debug, Clone, Copy)]
            pub struct $name;
            nix::setsockopt_impl!($name, $level, $option, i32, sockopt::SetStruct<i32>);
        )*
    };
}

int_options! {
    RcvLowat, libc::SOL_SOCKET, libc::SO_RCVLOWAT;
    ZeroCopy, libc::SOL_SOCKET, libc::SO_ZEROCOPY;
    PeekOff, libc::SOL_SOCKET, libc::SO_PEEK_OFF;
    MaxPacingRate, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE;
    Inq, libc::SOL_TCP, TCP_INQ;
    QuickAck, libc::SOL_TCP, libc::TCP_QUICKACK;
    FastOpen, libc::SOL_TCP, libc::TCP_FASTOPEN;
    Repair, libc::SOL_TCP, libc::TCP_REPAIR;
    RepairQueue, libc::SOL_TCP, libc::TCP_REPAIR_QUEUE;
    QueueSeq, libc::SOL_TCP, libc::TCP_QUEUE_SEQ;
}

/// Sets an option, or fails the test.
pub fn set<O>(fd: &impl AsFd, option: O, value: i32)
where
    O: socket::SetSockOpt<Val = i32> + std::fmt::Debug,
{
    let name = format!("{option:?}");
    socket::setsockopt(fd, option, &value).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// TCP has `SO_PEEK_OFF` since Linux 6.9: before, there is nothing to go wrong.
pub fn tcp_has_peek_off() -> bool {
    let plain = socket::socket(
        socket::AddressFamily::Inet,
        socket::SockType::Stream,
        socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a TCP socket");
    match socket::setsockopt(&plain, PeekOff, &0) {
        Ok(()) => true,
        Err(Errno::EOPNOTSUPP) => false,
        Err(error) => panic!("SO_PEEK_OFF: {error}"),
    }
}

/// An unconnected, non-blocking MPTCP socket.
#[allow(unsafe_code)]
pub fn mptcp_socket() -> OwnedFd {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers, and the new descriptor is nobody else's.
    unsafe {
        let fd = libc::socket(libc::AF_INET, kind, libc::IPPROTO_MPTCP);
        OwnedFd::from_raw_fd(Errno::result(fd).expect("an MPTCP socket"))
    }
}

//! Sockets that are made up, with `TCP_REPAIR`.

use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;

use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::sockopt;

use super::option;

/// include/uapi/linux/tcp.h
const RECV_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;

/// A socket with these sequence numbers that believes to be connected.
pub fn forge(from: SocketAddr, to: SocketAddr, [own, peer]: [i32; 2]) -> TcpStream {
    let fd = bound(from);
    option::set(&fd, option::Repair, 1);
    option::set(&fd, option::RepairQueue, SEND_QUEUE);
    option::set(&fd, option::QueueSeq, own);
    option::set(&fd, option::RepairQueue, RECV_QUEUE);
    option::set(&fd, option::QueueSeq, peer);
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).expect("connect in repair");
    // -1: without a probe to the other end.
    option::set(&fd, option::Repair, -1);
    fd.into()
}

/// A bound, non-blocking socket.
pub fn bound(at: SocketAddr) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("socket");
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at)).expect("bind");
    fd
}

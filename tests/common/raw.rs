//! System calls that nix does not offer, as small as they can be.

#![allow(unsafe_code)]

use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SaFlags;
use nix::sys::signal::SigAction;
use nix::sys::signal::SigHandler;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::sigaction;

use super::option::TCP_INQ;

/// Any option, by number: what is asked for need not exist.
pub fn set_option(fd: impl AsFd, level: i32, name: i32, value: &[u8]) -> nix::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).expect("a small value");
    // SAFETY: `value` is readable for `len` bytes.
    let ret = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            len,
        )
    };
    Errno::result(ret).map(drop)
}

/// `connect(AF_UNSPEC)`: the socket can be connected again.
pub fn disconnect(fd: impl AsFd) -> nix::Result<()> {
    let address = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    let len = libc::socklen_t::try_from(size_of_val(&address)).expect("small");
    // SAFETY: `address` is readable for `len` bytes.
    let ret = unsafe { libc::connect(fd.as_fd().as_raw_fd(), &raw const address, len) };
    Errno::result(ret).map(drop)
}

/// The state of a TCP socket, as in `linux/tcp_states.h`.
pub fn tcp_state(fd: impl AsFd) -> u8 {
    let mut state = 0_u8;
    let mut len: libc::socklen_t = 1;
    // SAFETY: it is the first byte of struct tcp_info, and no more is asked for.
    let ret = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut len,
        )
    };
    Errno::result(ret).expect("TCP_INFO");
    state
}

/// FIONREAD.
pub fn waiting(fd: impl AsFd) -> i32 {
    let mut count = 0;
    // SAFETY: FIONREAD writes one int.
    let ret = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(ret).expect("FIONREAD");
    count
}

/// `recv(MSG_TRUNC)` without a buffer: TCP throws the bytes away.
pub fn discard(fd: impl AsFd, len: usize) -> nix::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: the kernel checks the address, and with MSG_TRUNC does not use it.
    let ret = unsafe { libc::recv(fd.as_fd().as_raw_fd(), ptr::null_mut(), len, flags) };
    Errno::result(ret).map(isize::cast_unsigned)
}

/// `TCP_CM_INQ` of one recvmsg, if there is such a message.
pub fn recv_inq(fd: impl AsFd, buffer: &mut [u8]) -> nix::Result<(usize, Option<i32>)> {
    /// linux/tcp.h: the message has the number of the option.
    const TCP_CM_INQ: i32 = TCP_INQ;
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = [0_u64; 16];
    // SAFETY: all zeroes is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: the header points to live buffers of the lengths it gives.
    let n = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut header, 0) };
    let n = Errno::result(n)?.cast_unsigned();
    // SAFETY: the kernel has filled the header.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !at.is_null() {
        // SAFETY: not null, so it is a whole message in `control`.
        let (level, kind, data) =
            unsafe { ((*at).cmsg_level, (*at).cmsg_type, libc::CMSG_DATA(at)) };
        if level == libc::SOL_TCP && kind == TCP_CM_INQ {
            // SAFETY: this kind of message carries an int.
            return Ok((n, Some(unsafe { ptr::read_unaligned(data.cast()) })));
        }
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(&raw const header, at) };
    }
    Ok((n, None))
}

/// A handler for SIGUSR1 that does nothing, with `SA_RESTART`.
pub fn handle_usr1() {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("sigaction");
}

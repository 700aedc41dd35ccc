//! Sockets that other processes have open.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// A process, as a descriptor: it does not become another when the pid is reused.
#[derive(Debug)]
pub struct Process(OwnedFd);

fn owned(ret: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(Errno::result(ret)?).map_err(io::Error::other)?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Process {
    /// `pidfd_open(2)`, Linux 5.3.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: takes plain numbers.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map(Self)
    }

    /// A copy of one of its descriptors: `pidfd_getfd(2)`, Linux 5.6. It needs the
    /// right to trace the process.
    pub fn descriptor(&self, fd: i32) -> io::Result<OwnedFd> {
        // SAFETY: takes plain numbers; the process is open for the call.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), fd, 0) })
    }
}

/// include/uapi/linux/sockios.h
const SIOCGSKNS: libc::Ioctl = 0x894C;

/// The network namespace of a socket, wherever its process is now.
pub fn netns_of(socket: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and gives a descriptor or an error.
    let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS) };
    owned(fd.into())
}

/// A socket option that is an int or a 64-bit number, by its number.
pub fn option<T: zerocopy::FromZeros + zerocopy::FromBytes>(
    socket: impl AsFd,
    level: i32,
    name: i32,
) -> io::Result<T> {
    let mut value = T::new_zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `len` bytes to `value`, of which any are valid.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    Errno::result(ret)?;
    Ok(value)
}

//! System calls that nix does not offer, as small as they can be.

#![allow(unsafe_code)]

use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SaFlags;
use nix::sys::signal::SigAction;
use nix::sys::signal::SigHandler;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::sigaction;

use super::deadline::Deadline;
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
    count(fd, libc::FIONREAD)
}

/// Waits until the peer has acknowledged all that was sent by the stack.
pub fn acknowledged(fd: impl AsFd) {
    let deadline = Deadline::seconds(20);
    deadline.until("all acknowledged", || count(&fd, libc::TIOCOUTQ) == 0);
}

fn count(fd: impl AsFd, request: libc::Ioctl) -> i32 {
    let mut count = 0;
    // SAFETY: both requests write one int.
    let ret = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut count) };
    Errno::result(ret).expect("a count");
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

/// A page that does not answer: who touches it waits until this is dropped, as with
/// memory of a file system that hangs.
#[derive(Debug)]
pub struct SilentPage {
    at: *mut libc::c_void,
    guard: Mutex<Option<OwnedFd>>,
}

// SAFETY: the page is used by its address only, which the kernel checks.
unsafe impl Sync for SilentPage {}

const PAGE: usize = 4096;

/// include/uapi/linux/userfaultfd.h
#[repr(C)]
struct UffdApi {
    api: u64,
    features: u64,
    ioctls: u64,
}
#[repr(C)]
struct UffdRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}
nix::ioctl_readwrite!(uffd_api, 0xaa, 0x3f, UffdApi);
nix::ioctl_readwrite!(uffd_register, 0xaa, 0x00, UffdRegister);

impl SilentPage {
    pub fn new() -> Self {
        let mut api = UffdApi {
            api: 0xaa,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the new descriptor is nobody else's, the mapping is new, and the
        // structs are those of the kernel.
        unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK);
            let fd = Errno::result(fd).expect("userfaultfd");
            let guard = OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor"));
            uffd_api(guard.as_raw_fd(), &raw mut api).expect("UFFDIO_API");
            let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let at = libc::mmap(ptr::null_mut(), PAGE, access, kind, -1, 0);
            assert_ne!(at, libc::MAP_FAILED, "mmap");
            let mut register = UffdRegister {
                start: at as u64,
                len: PAGE as u64,
                mode: 1,
                ioctls: 0,
            };
            uffd_register(guard.as_raw_fd(), &raw mut register).expect("UFFDIO_REGISTER");
            Self {
                at,
                guard: Mutex::new(Some(guard)),
            }
        }
    }

    /// Sends it, which takes as long as it is silent.
    pub fn send(&self, fd: impl AsFd) -> nix::Result<usize> {
        // SAFETY: the page is mapped as long as this lives.
        let n = unsafe { libc::send(fd.as_fd().as_raw_fd(), self.at, PAGE, 0) };
        Errno::result(n).map(|n| usize::try_from(n).expect("not negative"))
    }

    /// Whether somebody waits for it.
    pub fn is_asked_for(&self) -> bool {
        let guard = self.guard.lock().expect("nobody panics with it");
        let guard = guard.as_ref().expect("silent");
        let events = super::deadline::wait_at_most(guard, nix::poll::PollFlags::POLLIN, 0);
        events.contains(nix::poll::PollFlags::POLLIN)
    }

    /// It answers: all of it is zero.
    pub fn answer(&self) {
        drop(self.guard.lock().expect("nobody panics with it").take());
    }
}

impl Drop for SilentPage {
    fn drop(&mut self) {
        self.answer();
        // SAFETY: nobody has a reference into it.
        unsafe { libc::munmap(self.at, PAGE) };
    }
}

/// Lets go on whoever waits for the page, on drop.
#[derive(Debug)]
pub struct Answering<'a>(pub &'a SilentPage);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.answer();
    }
}

//! What the kernel probes need and no safe interface offers.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::ptr;

use libbpf_rs::libbpf_sys;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::socket;

use super::bpf::owned;

mod ioctl {
    use nix::libc;

    nix::ioctl_read_bad!(fionread, libc::FIONREAD, libc::c_int);
    nix::ioctl_write_ptr_bad!(siocsifflags, libc::SIOCSIFFLAGS, libc::ifreq);
}

/// Bytes that can be read from `socket`, as FIONREAD says.
///
/// # Errors
///
/// Those of ioctl(2).
pub fn unread(socket: impl AsFd) -> nix::Result<usize> {
    let mut bytes = 0;
    // SAFETY: FIONREAD writes one int, which `bytes` is, and the descriptor is borrowed.
    unsafe { ioctl::fionread(socket.as_fd().as_raw_fd(), &raw mut bytes) }?;
    usize::try_from(bytes).map_err(|_| Errno::ERANGE)
}

/// Payload bytes that `socket` has received by TCP, since it was opened.
///
/// # Errors
///
/// Those of getsockopt(2), and `EOPNOTSUPP` where the kernel is too old to
/// count them (Linux 4.1, bdd1f9edacb5).
pub fn received_by_tcp(socket: impl AsFd) -> nix::Result<u64> {
    // SAFETY: `tcp_info` consists of integers, for which all zeroes are valid.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel writes at most `len` bytes to `info` and the new length to `len`.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    Errno::result(ret)?;
    let needed = mem::offset_of!(libc::tcp_info, tcpi_bytes_received) + size_of::<u64>();
    if (len as usize) < needed {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(info.tcpi_bytes_received)
}

/// Brings the loopback interface of the calling thread's network namespace up.
///
/// # Errors
///
/// Those of socket(2) and netdevice(7).
pub fn raise_loopback() -> nix::Result<()> {
    let any = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: `ifreq` consists of integers and pointers, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed() as c_char;
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, whose name ends in a zero byte.
    unsafe { ioctl::siocsifflags(any.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Loads a program that does nothing for the iterator whose `bpf_iter_...`
/// function has this type id in the kernel's BTF, and unloads it again.
///
/// # Errors
///
/// Those of bpf(2), `BPF_PROG_LOAD`.
pub fn load_iterator(function: u32) -> io::Result<()> {
    load_tracing(function, libbpf_sys::BPF_TRACE_ITER).map(drop)
}

/// Attaches a program that does nothing to the entry of the kernel function
/// with this type id in the kernel's BTF, and takes it off again.
///
/// # Errors
///
/// Those of bpf(2), `BPF_PROG_LOAD` and `BPF_RAW_TRACEPOINT_OPEN`.
pub fn attach_to_entry(function: u32) -> io::Result<()> {
    let program = load_tracing(function, libbpf_sys::BPF_TRACE_FENTRY)?;
    // SAFETY: the program is open for the call; its type needs no tracepoint's name.
    owned(unsafe { libbpf_sys::bpf_raw_tracepoint_open(ptr::null(), program.as_raw_fd()) })
        .map(drop)
}

fn load_tracing(function: u32, attach_type: libbpf_sys::bpf_attach_type) -> io::Result<OwnedFd> {
    const MOV64_R0_0: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    let program = [MOV64_R0_0, EXIT].map(|code| libbpf_sys::bpf_insn {
        code,
        ..Default::default()
    });
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: attach_type,
        attach_btf_id: function,
        ..Default::default()
    };
    // SAFETY: the instructions, their number and the options are valid for the
    // call; no name is given; the licence ends in a zero byte.
    owned(unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_TRACING,
            ptr::null(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as libbpf_sys::size_t,
            &raw mut options,
        )
    })
}

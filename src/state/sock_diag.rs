//! The cgroup of a TCP socket: `sock_diag(7)` is the only one to tell.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::words::IPPROTO_TCP;

/// include/uapi/linux/netlink.h, `sock_diag.h`, `inet_diag.h`
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Attributes of a reply begin behind `struct inet_diag_msg`.
const REPLY_HEADERS: usize = 16 + 72;

/// `struct nlmsghdr` and `struct inet_diag_req_v2`
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Request {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    local_port: [u8; 2],
    remote_port: [u8; 2],
    local: [u8; 16],
    remote: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}
const _: () = assert!(size_of::<Request>() == 16 + 56);

impl Request {
    /// For exactly this socket.
    fn new(local: SocketAddr, remote: SocketAddr, cookie: u64) -> Self {
        let bytes = |ip: IpAddr| match ip {
            IpAddr::V6(v6) => v6.octets(),
            IpAddr::V4(v4) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&v4.octets());
                bytes
            }
        };
        let family = if local.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let cookie = [cookie as u32, (cookie >> 32) as u32];
        Self {
            len: u32::try_from(size_of::<Self>()).unwrap_or_default(),
            kind: SOCK_DIAG_BY_FAMILY,
            flags: NLM_F_REQUEST,
            sequence: 1,
            port: 0,
            family: u8::try_from(family as i32).unwrap_or_default(),
            protocol: IPPROTO_TCP,
            extensions: 0,
            pad: 0,
            states: u32::MAX,
            local_port: local.port().to_be_bytes(),
            remote_port: remote.port().to_be_bytes(),
            local: bytes(local.ip()),
            remote: bytes(remote.ip()),
            interface: 0,
            cookie,
        }
    }
}

/// The id of the cgroup that a connected socket belongs to: where it was made, or
/// its listener. `None` where the kernel does not tell (before 5.9, or without
/// `tcp_diag`). Addresses are as the socket itself says them.
pub fn cgroup_of(
    netns: OwnedFd,
    local: SocketAddr,
    remote: SocketAddr,
    cookie: u64,
) -> Option<u64> {
    // In a thread of its own, which alone changes its namespace.
    thread::spawn(move || {
        let here = File::open("/proc/thread-self/ns/net").ok()?;
        if inode(&here) != inode(&File::from(netns.try_clone().ok()?)) {
            setns(netns, CloneFlags::CLONE_NEWNET).ok()?;
        }
        ask(local, remote, cookie)
    })
    .join()
    .ok()?
}

fn inode(file: &File) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().ok().map(|meta| meta.ino())
}

fn ask(local: SocketAddr, remote: SocketAddr, cookie: u64) -> Option<u64> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )
    .ok()?;
    let request = Request::new(local, remote, cookie);
    sendto(
        netlink.as_raw_fd(),
        request.as_bytes(),
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )
    .ok()?;
    let mut reply = vec![0; 8192];
    let len = recv(netlink.as_raw_fd(), &mut reply, MsgFlags::empty()).ok()?;
    cgroup_in(reply.get(..len)?)
}

/// What a reply says.
fn cgroup_in(reply: &[u8]) -> Option<u64> {
    let kind = u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?);
    if kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    attribute(reply.get(REPLY_HEADERS..)?, INET_DIAG_CGROUP_ID)
        .and_then(|value| u64::read_from_bytes(value).ok())
}

/// The bytes as a reply, and as its attributes.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let _ = cgroup_in(bytes);
    for kind in [0, INET_DIAG_CGROUP_ID] {
        let value = attribute(bytes, kind);
        assert!(value.is_none_or(|value| value.len() + 4 <= bytes.len()));
    }
}

/// The payload of the first attribute of this kind.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    const HEADER: usize = 4;
    loop {
        let header = rest.get(..HEADER)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = rest.get(HEADER..len)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_bad_lengths_end_the_search() {
        let mut bytes = vec![5, 0, 8, 0, 1, 0, 0, 0];
        bytes.extend([12, 0, 21, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(attribute(&bytes, 8), Some(&[1][..]));
        assert_eq!(attribute(&bytes, 21), Some(&[7, 0, 0, 0, 0, 0, 0, 0][..]));
        assert_eq!(attribute(&bytes, 9), None);
        assert_eq!(attribute(&[0, 0, 0, 0], 9), None);
        assert_eq!(attribute(&[200, 0, 9, 0], 9), None);
    }
}

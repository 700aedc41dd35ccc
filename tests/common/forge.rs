//! TCP segments made by hand, for attackers with `CAP_NET_RAW` and no more.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;

use nix::poll::PollFlags;
use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;

use super::deadline::wait_at_most;

pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// An address and a port.
pub type End = (Ipv4Addr, u16);

/// One segment, in host byte order.
#[derive(Debug, Clone)]
pub struct Segment {
    pub from: End,
    pub to: End,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub payload: Vec<u8>,
}

impl Segment {
    /// With its IPv4 header, whose checksum the kernel fills in.
    fn packet(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.from.1.to_be_bytes());
        tcp.extend(self.to.1.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([5 << 4, self.flags]);
        tcp.extend(u16::MAX.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&self.payload);
        let sum = self.checksum(&tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());

        let length = u16::try_from(20 + tcp.len()).expect("a small segment");
        let mut packet = vec![0x45, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, 6, 0, 0]);
        packet.extend(self.from.0.octets());
        packet.extend(self.to.0.octets());
        packet.extend(tcp);
        packet
    }

    fn checksum(&self, tcp: &[u8]) -> u16 {
        let length = u16::try_from(tcp.len()).expect("a small segment");
        let mut bytes = [self.from.0.octets(), self.to.0.octets()].concat();
        bytes.extend([0, 6]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(tcp);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let mut sum: u32 = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| u32::from(u16::from_be_bytes(*pair)))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).expect("folded")
    }

    fn parse(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0xf) * 4;
        if packet[0] >> 4 != 4 || *packet.get(9)? != 6 {
            return None;
        }
        let address = |at: usize| -> Option<Ipv4Addr> {
            let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(octets.into())
        };
        let tcp = packet.get(header..)?;
        let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        Some(Self {
            from: (address(12)?, half(0)?),
            to: (address(16)?, half(2)?),
            seq: word(4)?,
            ack: word(8)?,
            flags: *tcp.get(13)?,
            payload: Vec::new(),
        })
    }
}

/// Sends and hears segments, past TCP.
#[derive(Debug)]
pub struct RawTcp {
    out: OwnedFd,
    sniffer: OwnedFd,
}

impl RawTcp {
    /// In the calling thread's network namespace.
    pub fn open() -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let make = |family, kind, protocol| {
            socket::socket(family, kind, flags, protocol).expect("a raw socket")
        };
        Self {
            out: make(AddressFamily::Inet, SockType::Raw, SockProtocol::Raw),
            sniffer: make(
                AddressFamily::Packet,
                SockType::Datagram,
                SockProtocol::EthAll,
            ),
        }
    }

    pub fn send(&self, segment: &Segment) {
        let [a, b, c, d] = segment.to.0.octets();
        let to = SockaddrIn::new(a, b, c, d, 0);
        let packet = segment.packet();
        socket::sendto(self.out.as_raw_fd(), &packet, &to, MsgFlags::empty()).expect("sendto");
    }

    /// The next segment for this address that has these flags; `None` when
    /// there is none for a second.
    pub fn hear(&self, to: End, flags: u8) -> Option<Segment> {
        let mut buffer = [0; 2048];
        loop {
            match socket::recv(self.sniffer.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(n) => {
                    let heard = Segment::parse(&buffer[..n]);
                    if let Some(segment) = heard.filter(|s| s.to == to && s.flags == flags) {
                        return Some(segment);
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => {
                    if wait_at_most(&self.sniffer, PollFlags::POLLIN, 1000).is_empty() {
                        return None;
                    }
                }
                Err(e) => panic!("sniff: {e}"),
            }
        }
    }
}

//! Addresses, ports and networks as users write them.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::maps::layout::{Addr, Tuple};

/// `a.b.c.d:80` or `[v6]:80`, v4-mapped addresses as IPv4.
pub fn end(addr: Addr, port: u16) -> SocketAddr {
    SocketAddr::new(addr.ip(), port)
}

/// The local end of a tuple, for people and JSON.
pub fn local(tuple: &Tuple) -> SocketAddr {
    end(tuple.local, tuple.local_port)
}

/// The remote end of a tuple, for people and JSON.
pub fn remote(tuple: &Tuple) -> SocketAddr {
    end(tuple.remote, tuple.remote_port)
}

/// An address, or a network in CIDR notation; an address is a network of one.
/// IPv4 written v4-mapped becomes IPv4. Host bits must be zero.
pub fn network(text: &str) -> Result<IpNet, String> {
    let net = IpNet::from_str(text)
        .or_else(|_| IpAddr::from_str(text).map(IpNet::from))
        .map_err(|_| format!("{text:?} is not an address or CIDR, like 10.0.0.0/8 or fd00::/64"))?;
    let net = canonical(net);
    if net.trunc() != net {
        return Err(format!(
            "{text:?} has host bits set; did you mean {}?",
            net.trunc()
        ));
    }
    Ok(net)
}

fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    match v6.addr().to_ipv4_mapped() {
        Some(v4) if v6.prefix_len() >= 96 => {
            IpNet::new(IpAddr::V4(v4), v6.prefix_len() - 96).unwrap_or(net)
        }
        _ => net,
    }
}

/// A port or a range of ports: `80`, `8000-8080`.
pub fn ports(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let parse = |part: &str| match part.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!(
            "{text:?} is not a port (1 to 65535) or a range of ports, like 8000-8080"
        )),
    };
    let range = parse(from)?..=parse(to)?;
    if range.is_empty() {
        Err(format!("{text:?} is an empty range of ports"))
    } else {
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks() {
        for (text, expected) in [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("10.1.2.3", Ok("10.1.2.3/32")),
            ("::ffff:10.1.2.3", Ok("10.1.2.3/32")),
            ("::ffff:10.0.0.0/104", Ok("10.0.0.0/8")),
            ("fd00::/64", Ok("fd00::/64")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("10.1.2.3/8", Err("did you mean 10.0.0.0/8?")),
            ("10.0.0.0/33", Err("is not an address")),
            ("localhost", Err("is not an address")),
            ("", Err("is not an address")),
        ] {
            match (network(text), expected) {
                (Ok(net), Ok(expected)) => assert_eq!(net.to_string(), expected),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (got, expected) => panic!("{text}: {got:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn port_ranges() {
        assert_eq!(ports("80"), Ok(80..=80));
        assert_eq!(ports("1-65535"), Ok(1..=65535));
        for bad in [
            "0", "65536", "80-79", "-", "80-", "-80", "x", "80,81", " 80",
        ] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn addresses_survive_the_map_encoding(ip: IpAddr) {
            prop_assert_eq!(Addr::from(ip).ip(), ip.to_canonical());
        }

        #[test]
        fn network_text_round_trips(ip: IpAddr, len in 0_u8..=128) {
            let ip = ip.to_canonical();
            let len = len % if ip.is_ipv4() { 33 } else { 129 };
            let net = IpNet::new(ip, len).unwrap().trunc();
            // A v6 network that holds the v4-mapped range is not itself IPv4.
            prop_assert_eq!(network(&net.to_string()), Ok(net));
        }

        #[test]
        fn parsers_never_panic(text in ".*") {
            let _ = (network(&text), ports(&text));
        }
    }
}

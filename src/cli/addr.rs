//! Both ends of a connection, as users read them.

use std::net::SocketAddr;

use crate::maps::layout::{Addr, ROLE_ACTIVE, Tuple};

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

/// Who connected, by the value in the maps.
pub fn role(role: u32) -> &'static str {
    if role == ROLE_ACTIVE {
        "active"
    } else {
        "passive"
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_survive_the_map_encoding(ip: IpAddr) {
            prop_assert_eq!(Addr::from(ip).ip(), ip.to_canonical());
        }
    }
}

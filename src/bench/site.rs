//! A place, built: namespaces, links, addresses, translation.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use super::Error;
use super::netns::{Namespace, Sent, sent_by_loopback};
use super::options::Place;

const IP: (&str, &str) = ("ip", "iproute2");
const NFT: (&str, &str) = ("nft", "nftables");

/// RFC 2544 gives 198.18.0.0/15 to benchmarks of networks.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
/// What the router translates: this port of [`NEAR`] to that of [`SERVER`].
const ASKED_PORT: u16 = 80;
const SERVED_PORT: u16 = 7000;

/// Where the programs of one place run and meet.
#[derive(Debug)]
pub struct Site {
    /// Client, server, router; the client's is also the server's on loopback.
    namespaces: Vec<Namespace>,
    place: Place,
    /// What the server binds; port 0 takes any.
    pub listen: SocketAddrV4,
    /// What the client connects to where that is not what the server bound.
    pub ask: Option<SocketAddrV4>,
}

impl Site {
    /// Builds it.
    pub fn build(place: Place, mtu: Option<u32>) -> Result<Self, Error> {
        let mut site = Self {
            namespaces: Vec::new(),
            place,
            listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
            ask: None,
        };
        let count = match place {
            Place::Host => return Ok(site),
            Place::Loopback => 1,
            Place::Netns => 2,
            Place::Nat => 3,
        };
        for _ in 0..count {
            site.namespaces.push(Namespace::new()?);
        }
        let client = &site.namespaces[0];
        // Else the ports of closed connections would be used up within seconds.
        client.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        client.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        let mtu = mtu.unwrap_or(1500).to_string();
        match place {
            Place::Netns => {
                let server = &site.namespaces[1];
                site.link((client, CLIENT), (server, NEAR), &mtu)?;
                site.listen = SocketAddrV4::new(NEAR, 0);
            }
            Place::Nat => {
                let (server, router) = (&site.namespaces[1], &site.namespaces[2]);
                site.link((client, CLIENT), (router, NEAR), &mtu)?;
                site.link((server, SERVER), (router, FAR), &mtu)?;
                router.sysctl("net/ipv4/ip_forward", "1")?;
                site.ip(
                    server,
                    &["route", "add", "default", "via", &FAR.to_string()],
                )?;
                let rules = format!(
                    "table ip bench {{\n chain in {{\n type nat hook prerouting priority -100;\n \
                     ip daddr {NEAR} tcp dport {ASKED_PORT} dnat to {SERVER}:{SERVED_PORT}\n }}\n}}\n"
                );
                router.run(place.name(), NFT, &["-f", "-"], &rules)?;
                // Else closed connections would fill the table; kernels differ in having it.
                let _ = router.sysctl("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1");
                site.listen = SocketAddrV4::new(SERVER, SERVED_PORT);
                site.ask = Some(SocketAddrV4::new(NEAR, ASKED_PORT));
            }
            Place::Host | Place::Loopback => {}
        }
        Ok(site)
    }

    /// The namespace of the client, if not this process's.
    pub fn client(&self) -> Option<PathBuf> {
        self.namespaces.first().map(Namespace::path)
    }

    /// The namespace of the server, if not this process's.
    pub fn server(&self) -> Option<PathBuf> {
        let server = self.namespaces.get(1).or(self.namespaces.first());
        server.map(Namespace::path)
    }

    /// What the interfaces of both ends sent, ever. On the host's loopback
    /// everybody's traffic is in it.
    pub fn sent(&self) -> Result<Sent, Error> {
        if self.place == Place::Host {
            return sent_by_loopback();
        }
        // The router only passes on what the ends have sent.
        let mut sent = Sent::default();
        for end in self.namespaces.iter().take(2) {
            sent = sent + end.sent()?;
        }
        Ok(sent)
    }

    fn ip(&self, namespace: &Namespace, args: &[&str]) -> Result<(), Error> {
        namespace.run(self.place.name(), IP, args, "")
    }

    /// A veth between two namespaces, an address at each end.
    fn link(
        &self,
        (from, from_address): (&Namespace, Ipv4Addr),
        (to, to_address): (&Namespace, Ipv4Addr),
        mtu: &str,
    ) -> Result<(), Error> {
        // Names are looked up in two namespaces, one of which may have another link.
        let names = [from_address, to_address].map(|address| {
            let [.., third, fourth] = address.octets();
            format!("sab{third}{fourth}")
        });
        let other = to.path().display().to_string();
        let [own, peer] = &names;
        #[rustfmt::skip]
        self.ip(from, &[
            "link", "add", own, "mtu", mtu, "type", "veth",
            "peer", "name", peer, "mtu", mtu, "netns", &other,
        ])?;
        let ends = [(from, from_address), (to, to_address)];
        for ((namespace, address), name) in ends.into_iter().zip(&names) {
            self.ip(
                namespace,
                &["addr", "add", &format!("{address}/24"), "dev", name],
            )?;
            self.ip(namespace, &["link", "set", name, "up"])?;
        }
        if from_address == CLIENT {
            self.ip(
                from,
                &["route", "add", "default", "via", &to_address.to_string()],
            )?;
        }
        Ok(())
    }
}

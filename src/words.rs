//! The values a user can set, each with its one spelling: on the command line,
//! in the file of `apply`, in `list` and `export`.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};

use crate::maps::layout::{
    Addr, Cidr, EGRESS, FAMILY_BITS, FAMILY_V4, IDENTITY_ANY, INGRESS, SCOPE_ENDPOINTS,
    SCOPE_LOCAL, ServiceKey, VERDICT_ALLOW, VERDICT_DENY,
};

/// The protocol of rules and services in the maps.
pub const IPPROTO_TCP: u8 = 6;

/// What happens to programs that read from blocking sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Blocking {
    /// They stay on the stack
    #[default]
    Skip,
    /// They are accelerated: see BLOCKING READERS in sockaccel(8) for the risk
    Accelerate,
}

impl From<bool> for Blocking {
    fn from(accelerate: bool) -> Self {
        if accelerate {
            Self::Accelerate
        } else {
            Self::Skip
        }
    }
}

/// Which paired peers are accelerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
#[repr(u32)]
pub enum Scope {
    /// Any local peer in an enabled cgroup
    #[default]
    Local = SCOPE_LOCAL,
    /// Only towards addresses that are endpoints
    Endpoints = SCOPE_ENDPOINTS,
}

impl Scope {
    /// As in the map: `enum sa_scope`.
    pub fn raw(self) -> u32 {
        self as u32
    }

    /// From the map.
    pub fn from_raw(raw: u32) -> Self {
        if raw == SCOPE_ENDPOINTS {
            Self::Endpoints
        } else {
            Self::Local
        }
    }
}

/// Which connections are enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Admission {
    /// To servers whose earlier connections have profited, and a sample of the others
    #[default]
    Learned,
    /// All of them
    All,
}

impl From<bool> for Admission {
    fn from(all: bool) -> Self {
        if all { Self::All } else { Self::Learned }
    }
}

/// Direction of a connection, seen from the endpoint: who connected counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[repr(u8)]
pub enum Direction {
    /// The endpoint connects
    Egress = EGRESS,
    /// The endpoint accepts
    Ingress = INGRESS,
}

impl Direction {
    /// As in the map: `enum sa_direction`.
    pub fn raw(self) -> u8 {
        self as u8
    }

    /// From the map.
    pub fn from_raw(raw: u8) -> Self {
        if raw == EGRESS {
            Self::Egress
        } else {
            Self::Ingress
        }
    }
}

/// A port or a range of ports: `80`, `8000-8080`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(pub RangeInclusive<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
            Ok(Self(range))
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.0.start(), self.0.end());
        if from == to {
            write!(f, "{from}")
        } else {
            write!(f, "{from}-{to}")
        }
    }
}

/// An address, or a network in CIDR notation; an address is a network of one.
/// IPv4 written v4-mapped becomes IPv4. Host bits must be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = IpNet::from_str(text)
            .or_else(|_| IpAddr::from_str(text).map(IpNet::from))
            .map_err(|_| {
                format!("{text:?} is not an address or CIDR, like 10.0.0.0/8 or fd00::/64")
            })?;
        let net = canonical(net);
        if net.trunc() != net {
            return Err(format!(
                "{text:?} has host bits set; did you mean {}?",
                net.trunc()
            ));
        }
        Ok(Self(net))
    }
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

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Cidr> for Network {
    fn from(cidr: Cidr) -> Self {
        let len = cidr.prefixlen.saturating_sub(FAMILY_BITS);
        let net = if cidr.family == FAMILY_V4 {
            (cidr.addr.ip(), len.saturating_sub(96))
        } else {
            (Ipv6Addr::from(cidr.addr.0).into(), len)
        };
        // Programs write these keys by From<IpNet> only, so the length fits.
        let len = u8::try_from(net.1).unwrap_or(128);
        Self(IpNet::new(net.0, len).unwrap_or_else(|_| net.0.into()))
    }
}

/// An identity, or `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(pub u32);

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<NonZeroU32>()) {
            ("any", _) => Ok(Self(IDENTITY_ANY)),
            (_, Ok(number)) => Ok(Self(number.get())),
            _ => Err(format!(
                "{text:?} is not an identity (a number from 1) or `any`"
            )),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IDENTITY_ANY => f.write_str("any"),
            number => number.fmt(f),
        }
    }
}

/// What a rule is about: `tcp`, or `tcp/PORT`. Port 0 is every port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic(pub u16);

impl FromStr for Traffic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("tcp/")) {
            ("tcp", _) => Ok(Self(0)),
            (_, Some(port)) => one_port(port).map(Self),
            _ => Err(format!("{text:?} is not tcp or tcp/PORT")),
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("tcp"),
            port => write!(f, "tcp/{port}"),
        }
    }
}

/// `allow`, `deny` or `proxy:PORT`, as in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict(pub i32);

impl FromStr for Verdict {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("proxy:")) {
            ("allow", _) => Ok(Self(VERDICT_ALLOW)),
            ("deny", _) => Ok(Self(VERDICT_DENY)),
            (_, Some(port)) => one_port(port).map(|port| Self(i32::from(port))),
            _ => Err(format!("{text:?} is not allow, deny or proxy:PORT")),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            VERDICT_ALLOW => f.write_str("allow"),
            port if port > 0 => write!(f, "proxy:{port}"),
            _ => f.write_str("deny"),
        }
    }
}

/// A number from 1; the standard library's complaint names neither it nor what it is.
pub fn from_one<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    match text.parse() {
        Ok(number) if number >= T::from(1) => Ok(number),
        _ => Err(format!("{text:?} is not a number from 1, or is too large")),
    }
}

/// An identity, which cannot be `any`.
pub fn identity(text: &str) -> Result<u32, String> {
    from_one(text).map_err(|_| format!("{text:?} is not an identity (a number from 1)"))
}

/// One port.
pub fn one_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port (1 to 65535)")),
    }
}

/// A service as users name it: `10.96.0.1:443` or `10.96.0.1:443/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceName(pub SocketAddr);

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = match text.rsplit_once('/') {
            Some((bare, "tcp" | "TCP")) => bare,
            Some((_, other)) => return Err(format!("protocol {other:?}: only tcp is accelerated")),
            None => text,
        };
        match bare.parse::<SocketAddr>() {
            // Lost, it would be the same address on every link.
            Ok(SocketAddr::V6(addr)) if addr.scope_id() > 0 => {
                Err(format!("{text:?}: the address of a service has no scope"))
            }
            Ok(addr) if addr.port() > 0 => Ok(Self(addr)),
            _ => Err(format!(
                "{text:?} is not VIP:PORT, like 10.96.0.1:443 or [fd00::1]:443"
            )),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addr = self.0;
        let end = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        write!(f, "{end}/tcp")
    }
}

impl From<ServiceName> for ServiceKey {
    fn from(ServiceName(addr): ServiceName) -> Self {
        Self {
            addr: Addr::from(addr.ip()),
            port: addr.port(),
            proto: IPPROTO_TCP,
            pad: 0,
        }
    }
}

impl From<ServiceKey> for ServiceName {
    fn from(key: ServiceKey) -> Self {
        Self(SocketAddr::new(key.addr.ip(), key.port))
    }
}

/// A number within fixed bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounded<const MIN: u32, const MAX: u32, const DEFAULT: u32>(pub u32);

/// Sockets that can be enrolled at one time; the default is that of src/bpf/maps.h.
pub type MaxSockets = Bounded<2, 4_194_304, 65_536>;
/// Messages that may wait in a redirect queue.
pub type BudgetMessages = Bounded<1, 4096, 64>;
/// Bytes that may wait in a redirect queue.
pub type BudgetBytes = Bounded<1, 16_777_216, 262_144>;

/// Messages after which the sender of a one-way stream leaves; 0 never.
pub type StreamLimit = Bounded<0, { u32::MAX }, 8192>;

impl<const MIN: u32, const MAX: u32, const DEFAULT: u32> Bounded<MIN, MAX, DEFAULT> {
    fn new(number: i64) -> Result<Self, String> {
        match u32::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(format!("{number} is not in {MIN}..={MAX}")),
        }
    }
}

impl<const MIN: u32, const MAX: u32, const DEFAULT: u32> Default for Bounded<MIN, MAX, DEFAULT> {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl<const MIN: u32, const MAX: u32, const DEFAULT: u32> FromStr for Bounded<MIN, MAX, DEFAULT> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text
            .parse()
            .map_err(|_| format!("{text:?} is not a number"))?;
        Self::new(number)
    }
}

impl<const MIN: u32, const MAX: u32, const DEFAULT: u32> Serialize for Bounded<MIN, MAX, DEFAULT> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, const MIN: u32, const MAX: u32, const DEFAULT: u32> Deserialize<'de>
    for Bounded<MIN, MAX, DEFAULT>
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(i64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// A length of time: `500ms`, `5s`, `1.5m`, `1h 30m`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    // humantime panics at sums above 2^64 s, which take more letters than these.
    const LONGEST: usize = 20;
    let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let spelt = format!("{text}{}", if bare { "s" } else { "" });
    Some(spelt)
        .filter(|spelt| spelt.len() <= LONGEST)
        .and_then(|spelt| humantime::parse_duration(&spelt).ok())
        .ok_or_else(|| format!("{text:?} is not a duration, like 500ms, 5s, 2m or 1h"))
}

/// In files words are strings, read by the parser of the command line; what is
/// a number on the command line may also be one there.
struct Words<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> de::Visitor<'_> for Words<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word as on the command line")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

macro_rules! in_files {
    ($($word:ident),* $(,)?) => { $(
        impl Serialize for $word {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $word {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Words(std::marker::PhantomData))
            }
        }
    )* };
}

macro_rules! strings {
    ($($word:ident),* $(,)?) => { $(
        impl JsonSchema for $word {
            fn schema_name() -> Cow<'static, str> {
                stringify!($word).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string" })
            }
        }
    )* };
}

impl<const MIN: u32, const MAX: u32, const DEFAULT: u32> JsonSchema for Bounded<MIN, MAX, DEFAULT> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("From{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

macro_rules! named {
    ($($word:ident),* $(,)?) => { $(
        impl FromStr for $word {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                <Self as ValueEnum>::from_str(text, false).map_err(|_| {
                    let names: Vec<String> =
                        Self::value_variants().iter().map(ToString::to_string).collect();
                    format!("{text:?} is not {}", names.join(" or "))
                })
            }
        }

        impl fmt::Display for $word {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = self.to_possible_value();
                f.write_str(value.as_ref().map_or("", |value| value.get_name()))
            }
        }
    )* };
}

named!(Blocking, Scope, Admission, Direction);
in_files!(
    Blocking,
    Scope,
    Admission,
    Direction,
    Ports,
    Network,
    Identity,
    Traffic,
    Verdict,
    ServiceName
);

strings!(
    Blocking,
    Scope,
    Admission,
    Direction,
    Ports,
    Network,
    Identity,
    Traffic,
    Verdict,
    ServiceName
);

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Display};

    use proptest::prelude::*;

    use super::*;

    fn spelt<T: FromStr<Err = String> + Display + Debug>(good: &[(&str, &str)], bad: &[&str]) {
        for (text, expected) in good {
            assert_eq!(text.parse::<T>().unwrap().to_string(), *expected, "{text}");
            assert_eq!(expected.parse::<T>().unwrap().to_string(), *expected);
        }
        for text in bad {
            assert!(text.parse::<T>().is_err(), "{text}");
        }
    }

    #[test]
    fn words_have_one_spelling() {
        spelt::<Traffic>(
            &[("tcp", "tcp"), ("tcp/80", "tcp/80")],
            &["tcp/0", "tcp/65536", "udp/53", ""],
        );
        spelt::<Verdict>(
            &[
                ("allow", "allow"),
                ("deny", "deny"),
                ("proxy:10000", "proxy:10000"),
            ],
            &["proxy:0", "proxy", "drop"],
        );
        spelt::<Identity>(
            &[("any", "any"), ("7", "7")],
            &["0", "-1", "4294967296", "ANY", ""],
        );
        spelt::<Ports>(&[("80", "80"), ("80-80", "80"), ("1-9", "1-9")], &["9-1"]);
        spelt::<ServiceName>(
            &[
                ("10.96.0.1:443", "10.96.0.1:443/tcp"),
                ("10.96.0.1:443/tcp", "10.96.0.1:443/tcp"),
                ("[fd00::1]:80", "[fd00::1]:80/tcp"),
                ("[::ffff:10.96.0.1]:80", "10.96.0.1:80/tcp"),
            ],
            &[
                "10.96.0.1:0",
                "10.96.0.1:443/udp",
                "10.96.0.1",
                "fd00::1:80",
                "[fe80::1%3]:80",
                "web:80",
            ],
        );
        spelt::<Scope>(
            &[("local", "local"), ("endpoints", "endpoints")],
            &["Local", "endpoint"],
        );
    }

    #[test]
    fn networks_survive_the_map() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "::/0",
            "fd00::/64",
            "127.0.0.1/32",
        ] {
            let network: Network = text.parse().unwrap();
            assert_eq!(Network::from(Cidr::from(network.0)), network);
        }
    }

    #[test]
    fn bounds() {
        assert_eq!("4096".parse(), Ok(Bounded::<1, 4096, 1>(4096)));
        for bad in ["0", "4097", "-1", "x", ""] {
            assert!(bad.parse::<BudgetMessages>().is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_from_one() {
        assert_eq!(identity("4294967295"), Ok(u32::MAX));
        for bad in ["0", "-1", "any", "4294967296", ""] {
            assert!(identity(bad).unwrap_err().contains("a number from 1"));
            assert!(from_one::<u32>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("500ms", Some(500)),
            ("5", Some(5_000)),
            ("5s", Some(5_000)),
            ("1.5s", Some(1_500)),
            ("1.5m", Some(90_000)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("0", Some(0)),
            ("", None),
            ("s", None),
            (".", None),
            ("-1s", None),
            ("1e3", None),
            ("5x", None),
            ("9999999999999999h", None),
            ("99999999999999999999s", None),
            ("18446744073709551615s1000ms", None),
        ] {
            let got = duration(text).ok().map(|time| time.as_millis());
            assert_eq!(got, milliseconds, "{text}");
        }
    }

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
            match (text.parse::<Network>(), expected) {
                (Ok(net), Ok(expected)) => assert_eq!(net.to_string(), expected),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (got, expected) => panic!("{text}: {got:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn port_ranges() {
        assert_eq!("80".parse(), Ok(Ports(80..=80)));
        assert_eq!("1-65535".parse(), Ok(Ports(1..=65535)));
        for bad in [
            "0", "65536", "80-79", "-", "80-", "-80", "x", "80,81", " 80",
        ] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn network_text_round_trips(ip: IpAddr, len in 0_u8..=128) {
            let ip = ip.to_canonical();
            let len = len % if ip.is_ipv4() { 33 } else { 129 };
            let net = IpNet::new(ip, len).unwrap().trunc();
            // A v6 network that holds the v4-mapped range is not itself IPv4.
            prop_assert_eq!(net.to_string().parse(), Ok(Network(net)));
        }

        #[test]
        fn parsers_never_panic(text in ".*") {
            let _ = (text.parse::<Network>(), text.parse::<Ports>(), duration(&text));
        }
    }
}

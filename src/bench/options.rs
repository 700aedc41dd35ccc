//! What to measure: the axes of the matrix, and how long.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::words::duration;

/// Options of `bench`. Axes take lists; every combination is one cell.
#[derive(Debug, Clone, Args)]
// What each axis takes is in its first line.
#[command(hide_possible_values = true)]
#[command(after_help = "\
Takes about a minute. Each combination of the values given is measured.

Example:  sockaccel bench --workload rr --size 64 --rounds 40
Example:  sockaccel bench --matrix --max-time 30m --report bench.html")]
pub struct Options {
    /// Of rr, stream, pipelined, crr, slow [default: rr,stream,crr]
    #[arg(long, value_delimiter = ',', value_name = "WORKLOAD")]
    pub workload: Vec<Workload>,
    /// Bytes of each message [default: 64,16384]
    #[arg(long, value_delimiter = ',', value_name = "BYTES", value_parser = bytes)]
    pub size: Vec<usize>,
    /// Connections at one time [default: 1]
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub connections: Vec<u32>,
    /// Nagle's algorithm on, or off (default): `TCP_NODELAY`
    #[arg(
        long,
        hide_short_help = true,
        value_delimiter = ',',
        value_name = "WHICH"
    )]
    pub nagle: Vec<Nagle>,
    /// Where: loopback (default), netns, nat, host
    #[arg(long, value_delimiter = ',', value_name = "PLACE")]
    pub place: Vec<Place>,
    /// MTU of the links of netns and nat [default: 1500]
    #[arg(long, hide_short_help = true, value_delimiter = ',', value_name = "BYTES", value_parser = clap::value_parser!(u32).range(576..=65_535))]
    pub mtu: Vec<u32>,
    /// Both programs on the same CPU (default), or across
    #[arg(long, value_delimiter = ',', value_name = "WHICH")]
    pub cores: Vec<Cores>,
    /// Besides tcp [default: sockaccel,textbook,unix]
    #[arg(long, alias = "modes", value_delimiter = ',', value_name = "MODE")]
    pub mode: Vec<Mode>,
    /// Every value of what is not given
    #[arg(long, visible_alias = "all")]
    pub matrix: bool,
    /// Largest segment that TCP may use (`TCP_MAXSEG`)
    #[arg(long, value_name = "BYTES", hide_short_help = true, value_parser = clap::value_parser!(u32).range(88..=32_767))]
    pub mss: Option<u32>,
    /// Requests of one connection under way at one time, in pipelined
    #[arg(long, hide_short_help = true, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub depth: u32,
    /// How programs wait: epoll, spin
    #[arg(long, hide_short_help = true, value_enum, default_value_t = Wait::Epoll, value_name = "HOW")]
    pub wait: Wait,
    /// Also with a peer outside the enabled cgroup
    #[arg(long, hide_short_help = true)]
    pub remote: bool,
    /// Options of `enable` for a second instance
    #[arg(
        long,
        hide_short_help = true,
        value_name = "OPTIONS",
        allow_hyphen_values = true,
        value_delimiter = ' '
    )]
    pub variant: Vec<String>,
    /// In each, every mode is measured once
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Of each measurement
    #[arg(long, hide_short_help = true, value_name = "SECONDS", default_value_t = 0.15, value_parser = seconds)]
    pub seconds: f64,
    /// Before it, which do not count
    #[arg(long, hide_short_help = true, value_name = "SECONDS", default_value_t = 0.05, value_parser = seconds)]
    pub warm_up: f64,
    /// Begin no measurement after this, like 30m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_time: Option<Duration>,
    /// Write plots, and FILE.json with raw data
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// The sockaccel to measure [default: this one]
    #[arg(long, hide = true)]
    pub sockaccel: Option<PathBuf>,
    /// The bpffs for the instances.
    #[arg(skip)]
    pub bpffs: PathBuf,
}

/// A closed list of words, the same on the command line, in JSON and in tables.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize, JsonSchema)]
        pub enum $name {
            $($(#[$doc])* #[value(name = $word)] #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// The word.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(self.name())
            }
        }
    };
}

words! {
    /// What the two programs do.
    Workload {
        /// One request, one response, one after the other
        RequestResponse = "rr",
        /// Messages one way, as many as go
        Stream = "stream",
        /// Several requests of a connection under way at one time
        Pipelined = "pipelined",
        /// Connect, one request, one response, close
        ConnectRequestClose = "crr",
        /// Messages one way, to a reader that is slower than its sender
        SlowReader = "slow",
    }
}

words! {
    /// Nagle's algorithm.
    Nagle {
        /// Small messages may wait for an acknowledgement
        On = "on",
        /// Every message is sent at once
        Off = "off",
    }
}

words! {
    /// Where the two programs are.
    Place {
        /// 127.0.0.1 of a network namespace of its own
        Loopback = "loopback",
        /// Two network namespaces, joined by a veth
        Netns = "netns",
        /// Two, joined by a third that translates the server's address
        Nat = "nat",
        /// 127.0.0.1 of the namespace that the command runs in
        Host = "host",
    }
}

words! {
    /// On which CPUs the two programs are.
    Cores {
        /// Both on one
        Same = "same",
        /// On one each
        Across = "across",
    }
}

words! {
    /// How a program waits for its non-blocking sockets.
    Wait {
        /// Sleep in epoll, as event loops do
        Epoll = "epoll",
        /// Ask epoll again and again; needs a CPU of its own
        Spin = "spin",
    }
}

words! {
    /// How the bytes travel.
    Mode {
        /// Plain TCP
        Tcp = "tcp",
        /// TCP with sockaccel
        Sockaccel = "sockaccel",
        /// TCP with a minimal sockmap program
        Textbook = "textbook",
        /// A stream `AF_UNIX` socket
        Unix = "unix",
        /// TCP with sockaccel, with the options of --variant.
        #[value(skip)]
        Variant = "variant",
        /// From an enabled cgroup to a peer outside of it.
        #[value(skip)]
        ToRemote = "to-remote",
        /// Into an enabled cgroup from a peer outside of it.
        #[value(skip)]
        FromRemote = "from-remote",
        /// Plain TCP again: its ratio shows the noise.
        #[value(skip)]
        TcpAgain = "tcp-again",
    }
}

impl Workload {
    /// Whether its operations are answered; else only arrival counts.
    pub const fn answered(self) -> bool {
        !matches!(self, Self::Stream | Self::SlowReader)
    }

    /// In headings.
    pub const fn title(self) -> &'static str {
        match self {
            Self::RequestResponse => "request/response",
            Self::Stream => "one-way stream",
            Self::Pipelined => "pipelined requests",
            Self::ConnectRequestClose => "connect, request, close",
            Self::SlowReader => "slow reader",
        }
    }
}

impl Place {
    /// Whether there are links whose MTU matters.
    pub const fn has_links(self) -> bool {
        matches!(self, Self::Netns | Self::Nat)
    }
}

fn bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if (1..=1 << 20).contains(&bytes) => Ok(bytes),
        _ => Err("not a number of bytes between 1 and 1048576".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds between 0 and 3600".to_owned()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::{Parser, ValueEnum as _};

    use super::{Cores, Mode, Nagle, Options, Place, Workload};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    pub fn parse(words: &str) -> Result<Options, clap::Error> {
        Line::try_parse_from(["bench"].into_iter().chain(words.split_whitespace()))
            .map(|line| line.options)
    }

    #[test]
    fn axes_take_lists() {
        let options = parse(
            "--workload rr,slow --size 1,1048576 --connections 1,128 --nagle on,off \
             --place loopback,nat --mtu 1500,9000 --cores same,across --mode sockaccel,unix",
        )
        .unwrap();
        assert_eq!(
            options.workload,
            [Workload::RequestResponse, Workload::SlowReader]
        );
        assert_eq!(options.size, [1, 1 << 20]);
        assert_eq!(options.connections, [1, 128]);
        assert_eq!(options.nagle, [Nagle::On, Nagle::Off]);
        assert_eq!(options.place, [Place::Loopback, Place::Nat]);
        assert_eq!(options.mtu, [1500, 9000]);
        assert_eq!(options.cores, [Cores::Same, Cores::Across]);
        assert_eq!(options.mode, [Mode::Sockaccel, Mode::Unix]);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for words in [
            "--size 0",
            "--size 1048577",
            "--connections 0",
            "--connections 1025",
            "--mtu 100",
            "--workload other",
            "--mode tcp-again",
            "--mode variant",
            "--rounds 0",
            "--seconds -1",
            "--depth 1",
            "--max-time soon",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn words_are_the_same_everywhere() {
        for workload in Workload::value_variants() {
            let json = serde_json::to_value(workload).unwrap();
            assert_eq!(json, workload.name());
            assert_eq!(
                workload.to_possible_value().unwrap().get_name(),
                workload.name()
            );
        }
    }
}

//! Connections whose bytes say whose they are: one that reaches another
//! connection fits nowhere there.

use std::io;
use std::io::Read as _;
use std::net::TcpStream;

use super::deadline::Deadline;
use super::pair::Pair;
use super::pattern::Pattern;
use super::rng::mix;
use super::stream::recv_all;
use super::stream::send_all;

/// Size of each message.
pub const MESSAGE: usize = 48;

/// A connection with a text of its own in each direction.
#[derive(Debug)]
pub struct Tagged {
    pub pair: Pair,
    name: String,
    up: Pattern,
    down: Pattern,
    at: u64,
}

impl Tagged {
    /// Two connections must not share a tag.
    pub fn new(name: &str, tag: u64, pair: Pair) -> Self {
        Self {
            pair,
            name: name.to_owned(),
            up: Pattern::new(mix(2 * tag)),
            down: Pattern::new(mix(2 * tag + 1)),
            at: 0,
        }
    }

    /// One message each way: sent, read, compared.
    pub fn exchange(&mut self, rounds: u32) {
        for _ in 0..rounds {
            carry(
                &self.name,
                "up",
                self.up,
                self.at,
                [&self.pair.client, &self.pair.server],
            );
            carry(
                &self.name,
                "down",
                self.down,
                self.at,
                [&self.pair.server, &self.pair.client],
            );
            self.at += MESSAGE as u64;
        }
    }

    /// Client to server only; for connections of which one direction is shut.
    pub fn up(&mut self) {
        carry(
            &self.name,
            "up",
            self.up,
            self.at,
            [&self.pair.client, &self.pair.server],
        );
        self.at += MESSAGE as u64;
    }

    /// Fails if an end has something to read that was not asked for, or has
    /// seen its connection end.
    pub fn assert_quiet(&self) {
        assert_nothing_to_read(&self.pair.client, &self.name);
        assert_nothing_to_read(&self.pair.server, &self.name);
    }
}

fn carry(name: &str, way: &str, text: Pattern, at: u64, [from, to]: [&TcpStream; 2]) {
    let deadline = Deadline::seconds(20);
    let mut bytes = [0; MESSAGE];
    text.fill(at, &mut bytes);
    send_all(from, &bytes, deadline);
    bytes.fill(0);
    recv_all(to, &mut bytes, deadline);
    text.check(at, &bytes, &format!("{name}, {way}"));
}

/// Of a connection that is open and idle.
pub fn assert_nothing_to_read(mut stream: &TcpStream, name: &str) {
    stream.set_nonblocking(true).expect("O_NONBLOCK");
    let mut bytes = [0; MESSAGE];
    match stream.read(&mut bytes) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        other => panic!("{name}: something to read: {other:?} {bytes:02x?}"),
    }
}

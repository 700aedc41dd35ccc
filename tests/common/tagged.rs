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
    /// Bytes behind that which each end has sent and none has read.
    unread: u64,
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
            unread: 0,
        }
    }

    /// One message each way: sent, read, compared.
    pub fn exchange(&mut self, rounds: u32) {
        assert_eq!(self.unread, 0, "{}", self.name);
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

    /// One message each way, which nobody reads for now.
    pub fn leave_unread(&mut self) {
        let at = self.at + self.unread;
        for (text, [from, _]) in self.ways() {
            put(text, at, from);
        }
        self.unread += MESSAGE as u64;
    }

    /// What was left unread, and nothing else.
    pub fn read_unread(&mut self, when: &str) {
        let end = self.at + self.unread;
        for (text, [_, to]) in self.ways() {
            self.take_to(end, text, self.at, to, when);
        }
        (self.at, self.unread) = (end, 0);
        self.assert_quiet();
    }

    /// One message more arrives at each end; of what was left unread before it all does,
    /// or nothing. At how many ends it was nothing.
    pub fn read_unread_or_nothing(&mut self, when: &str) -> usize {
        let next = self.at + self.unread;
        self.leave_unread();
        let mut dropped = 0;
        for (text, [_, to]) in self.ways() {
            let (mut first, mut last) = ([0; MESSAGE], [0; MESSAGE]);
            recv_all(to, &mut first, Deadline::seconds(20));
            text.fill(next, &mut last);
            if self.at < next && first == last {
                dropped += 1;
            } else {
                text.check(self.at, &first, &format!("{}, {when}", self.name));
                let rest = self.at + MESSAGE as u64;
                self.take_to(next + MESSAGE as u64, text, rest, to, when);
            }
        }
        (self.at, self.unread) = (next + MESSAGE as u64, 0);
        self.assert_quiet();
        dropped
    }

    fn ways(&self) -> [(Pattern, [&TcpStream; 2]); 2] {
        let Pair { client, server } = &self.pair;
        [(self.up, [client, server]), (self.down, [server, client])]
    }

    fn take_to(&self, end: u64, text: Pattern, at: u64, to: &TcpStream, when: &str) {
        let mut bytes = vec![0; usize::try_from(end - at).expect("small")];
        recv_all(to, &mut bytes, Deadline::seconds(20));
        text.check(at, &bytes, &format!("{}, {when}", self.name));
    }

    /// Fails if an end has something to read that was not asked for, or has
    /// seen its connection end.
    pub fn assert_quiet(&self) {
        assert_nothing_to_read(&self.pair.client, &self.name);
        assert_nothing_to_read(&self.pair.server, &self.name);
    }
}

fn put(text: Pattern, at: u64, from: &TcpStream) {
    let mut bytes = [0; MESSAGE];
    text.fill(at, &mut bytes);
    send_all(from, &bytes, Deadline::seconds(20));
}

fn carry(name: &str, way: &str, text: Pattern, at: u64, [from, to]: [&TcpStream; 2]) {
    put(text, at, from);
    let mut bytes = [0; MESSAGE];
    recv_all(to, &mut bytes, Deadline::seconds(20));
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

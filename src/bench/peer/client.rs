//! The program that asks, or sends.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::shutdown;
use std::os::fd::AsRawFd as _;

use super::meter::{Findings, Meter};
use super::pattern::{Pattern, Way};
use super::wire::{self, Interest, Waiter};
use super::{PeerOptions, Workload};
use crate::sys::probe::received_by_tcp;

/// Connections of one measurement, at most: ports must not run out.
const MOST_CONNECTIONS: u64 = 20_000;
/// Messages of a stream between two looks at the clock.
const BURST: u32 = 16;

struct Connection {
    socket: File,
    connected: bool,
    sent: u64,
    received: u64,
    /// When the requests under way began.
    began: VecDeque<Instant>,
    wants_to_write: bool,
}

struct Client<'a> {
    options: &'a PeerOptions,
    address: &'a str,
    waiter: Waiter,
    pattern: Pattern,
    buffer: Vec<u8>,
    meter: Meter,
    made: u64,
    going: bool,
}

/// Asks until the time is over and every request is answered.
pub fn run(options: &PeerOptions, address: &str) -> io::Result<Findings> {
    let piece = options.size.clamp(64 << 10, 256 << 10);
    let connections = u64::from(options.connections);
    let at_least = match options.workload {
        // What arrives counts, and not what was sent.
        Workload::Stream | Workload::SlowReader => 0,
        // Enough that opening the connections does not show.
        _ if options.size <= 4096 => 50 * connections,
        _ => connections,
    };
    let mut client = Client {
        options,
        address,
        waiter: Waiter::new(options.wait)?,
        pattern: Pattern::new(piece.max(options.size)),
        buffer: vec![0; piece],
        meter: Meter::new(options.warm_up(), options.seconds(), at_least),
        made: 0,
        going: true,
    };
    match options.workload {
        Workload::ConnectRequestClose => client.connect_each_time()?,
        Workload::RequestResponse | Workload::Pipelined => client.ask()?,
        Workload::Stream | Workload::SlowReader => client.stream()?,
    }
    Ok(client.meter.findings(options.size))
}

impl Client<'_> {
    fn begin(&mut self) -> io::Result<Connection> {
        let began = Instant::now();
        let socket = wire::connecting(self.options, self.address)?;
        self.made += 1;
        Ok(Connection {
            socket,
            connected: false,
            sent: 0,
            received: 0,
            began: VecDeque::from([began]),
            wants_to_write: false,
        })
    }

    /// All of them, before anything is sent.
    fn connect_all(&mut self, interest: Interest) -> io::Result<Vec<Connection>> {
        let mut connections = Vec::new();
        for id in 0..u64::from(self.options.connections) {
            let mut connection = self.begin()?;
            wait(&connection.socket, PollFlags::POLLOUT)?;
            wire::connected(&connection.socket)?;
            connection.connected = true;
            connection.began.clear();
            self.waiter.add(&connection.socket, interest, id)?;
            connections.push(connection);
        }
        Ok(connections)
    }

    fn ask(&mut self) -> io::Result<()> {
        let mut connections = self.connect_all(Interest::Read)?;
        self.meter.tick(Instant::now());
        for (id, connection) in (0..).zip(&mut connections) {
            self.advance(connection, id)?;
        }
        while connections.iter().any(|c| !c.began.is_empty()) {
            for id in self.waiter.ready(None)? {
                let connection = &mut connections[usize::try_from(id).unwrap_or_default()];
                self.advance(connection, id)?;
            }
        }
        self.end(&connections)
    }

    /// Sends what may be sent, reads what is there.
    fn advance(&mut self, connection: &mut Connection, id: u64) -> io::Result<()> {
        loop {
            let blocked = self.send_requests(connection)?;
            if blocked != connection.wants_to_write {
                connection.wants_to_write = blocked;
                let interest = if blocked {
                    Interest::Both
                } else {
                    Interest::Read
                };
                self.waiter.change(&connection.socket, interest, id)?;
            }
            let Some(got) = wire::read(&connection.socket, &mut self.buffer)? else {
                return Ok(());
            };
            self.take(connection, got)?;
            if connection.began.is_empty() {
                if !self.going {
                    return Ok(());
                }
                // All are answered: what the next ones bring is an event of its own.
                if !self.send_requests(connection)? {
                    return Ok(());
                }
            }
        }
    }

    /// Begins requests up to the depth; whether the socket is full.
    fn send_requests(&mut self, connection: &mut Connection) -> io::Result<bool> {
        let size = self.options.size as u64;
        loop {
            let at = connection.sent % size;
            if at == 0 {
                let under_way = connection.began.len() as u64;
                if !self.going || under_way >= u64::from(self.options.depth) {
                    return Ok(false);
                }
                connection.began.push_back(Instant::now());
            }
            if !self.send(connection)? {
                if at == 0 {
                    connection.began.pop_back();
                }
                return Ok(true);
            }
        }
    }

    /// The rest of a message, or what the socket takes of it; false for nothing.
    fn send(&mut self, connection: &mut Connection) -> io::Result<bool> {
        let size = self.options.size as u64;
        let left = usize::try_from(size - connection.sent % size).unwrap_or_default();
        let bytes = self.pattern.piece(Way::Request, connection.sent, left);
        let Some(sent) = wire::write(&connection.socket, bytes)? else {
            return Ok(false);
        };
        connection.sent += sent as u64;
        self.meter.sent(sent);
        Ok(true)
    }

    /// A piece of the replies.
    fn take(&mut self, connection: &mut Connection, got: usize) -> io::Result<()> {
        if got == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let size = self.options.size as u64;
        self.pattern
            .check(Way::Reply, connection.received, &self.buffer[..got])?;
        let before = connection.received / size;
        connection.received += got as u64;
        self.meter.received(got);
        let now = Instant::now();
        for _ in before..connection.received / size {
            let began = connection.began.pop_front().ok_or_else(|| {
                io::Error::new(ErrorKind::InvalidData, "a reply that was not asked for")
            })?;
            self.meter.answered(began, now);
        }
        self.going = self.meter.tick(now);
        Ok(())
    }

    fn connect_each_time(&mut self) -> io::Result<()> {
        self.meter.tick(Instant::now());
        let mut connections = Vec::new();
        for id in 0..u64::from(self.options.connections) {
            let connection = self.begin()?;
            self.waiter.add(&connection.socket, Interest::Both, id)?;
            connections.push(Some(connection));
        }
        while connections.iter().any(Option::is_some) {
            for id in self.waiter.ready(None)? {
                let slot = usize::try_from(id).unwrap_or_default();
                let Some(mut connection) = connections[slot].take() else {
                    continue;
                };
                if !self.exchange_once(&mut connection)? {
                    connections[slot] = Some(connection);
                    continue;
                }
                drop(connection);
                if self.going && self.made < MOST_CONNECTIONS {
                    let connection = self.begin()?;
                    self.waiter.add(&connection.socket, Interest::Both, id)?;
                    connections[slot] = Some(connection);
                }
            }
        }
        Ok(())
    }

    /// One request and its answer; true when it is there.
    fn exchange_once(&mut self, connection: &mut Connection) -> io::Result<bool> {
        let size = self.options.size as u64;
        if !connection.connected {
            wire::connected(&connection.socket)?;
            connection.connected = true;
        }
        while connection.sent < size {
            if !self.send(connection)? {
                return Ok(false);
            }
        }
        while connection.received < size {
            let Some(got) = wire::read(&connection.socket, &mut self.buffer)? else {
                return Ok(false);
            };
            self.take(connection, got)?;
        }
        Ok(true)
    }

    fn stream(&mut self) -> io::Result<()> {
        let mut connections = self.connect_all(Interest::Write)?;
        let limit = self.options.limit.unwrap_or(u64::MAX);
        let mut writable: VecDeque<usize> = (0..connections.len()).collect();
        while self.going && self.meter.sent_so_far() < limit {
            if writable.is_empty() {
                for id in self.waiter.ready(None)? {
                    writable.push_back(usize::try_from(id).unwrap_or_default());
                }
            } else if connections.len() > 1 && writable.len() < connections.len() {
                // Those that have room again get their turn, too.
                for id in self.waiter.ready(Some(0))? {
                    let id = usize::try_from(id).unwrap_or_default();
                    if !writable.contains(&id) {
                        writable.push_back(id);
                    }
                }
            }
            if let Some(id) = writable.pop_front()
                && self.burst(&mut connections[id])?
            {
                writable.push_back(id);
            }
            self.going = self.meter.tick(Instant::now());
        }
        self.meter.close(Instant::now());
        for connection in &mut connections {
            // Whole messages only.
            while !connection.sent.is_multiple_of(self.options.size as u64) {
                if !self.send(connection)? {
                    wait(&connection.socket, PollFlags::POLLOUT)?;
                }
            }
        }
        self.end(&connections)
    }

    /// Some messages; false when the socket is full.
    fn burst(&mut self, connection: &mut Connection) -> io::Result<bool> {
        for _ in 0..BURST {
            if !self.send(connection)? {
                return Ok(false);
            }
            if connection.sent.is_multiple_of(self.options.size as u64) {
                self.meter.ended(1);
            }
        }
        Ok(true)
    }

    /// Ends all connections and waits until the other end has, too: it has
    /// read everything then.
    fn end(&mut self, connections: &[Connection]) -> io::Result<()> {
        for connection in connections {
            shutdown(
                connection.socket.as_raw_fd(),
                nix::sys::socket::Shutdown::Write,
            )?;
        }
        for connection in connections {
            let socket = &connection.socket;
            loop {
                match wire::read(socket, &mut self.buffer)? {
                    Some(0) => break,
                    Some(_) => return Err(io::Error::other("a reply after the last one")),
                    None => wait(socket, PollFlags::POLLIN)?,
                }
            }
            if self.address.contains(':') {
                self.meter.by_tcp(received_by_tcp(socket)?);
            }
        }
        Ok(())
    }
}

fn wait(socket: &File, events: PollFlags) -> io::Result<()> {
    poll(
        &mut [PollFd::new(socket.as_fd(), events)],
        PollTimeout::NONE,
    )?;
    Ok(())
}

//! The program that is asked: answers requests, or reads what comes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use super::meter::{Findings, Meter};
use super::pattern::{Pattern, Way};
use super::wire::{self, Interest, Waiter};
use super::{PeerOptions, Workload};
use crate::sys::probe::received_by_tcp;

const LISTENER: u64 = u64::MAX;
const CONTROL: u64 = u64::MAX - 1;
/// A slow reader looks once in so many ms.
const PAUSE_MS: u16 = 1;
/// What it reads then, at most.
const SIP: usize = 16 << 10;

struct Connection {
    socket: File,
    received: u64,
    replied: u64,
    wants_to_write: bool,
}

struct Server<'a> {
    options: &'a PeerOptions,
    waiter: Waiter,
    listener: OwnedFd,
    tcp: bool,
    connections: Vec<Option<Connection>>,
    free: VecDeque<usize>,
    pattern: Pattern,
    buffer: Vec<u8>,
    meter: Meter,
}

/// Serves until standard input is closed and every connection has ended.
pub fn run(options: &PeerOptions, address: &str) -> io::Result<Findings> {
    let (listener, found_at) = wire::listening(options, address)?;
    let waiter = Waiter::new(options.wait)?;
    waiter.watch(&listener, LISTENER)?;
    let stdin = io::stdin();
    waiter.watch(&stdin, CONTROL)?;
    let piece = options.size.clamp(64 << 10, 256 << 10);
    let mut server = Server {
        options,
        waiter,
        listener,
        tcp: address != "unix",
        connections: Vec::new(),
        free: VecDeque::new(),
        pattern: Pattern::new(piece.max(options.size)),
        buffer: vec![0; piece],
        meter: Meter::new(options.warm_up(), options.seconds(), 0),
    };
    println!("{found_at}");
    let mut more_to_come = true;
    while more_to_come || server.open() > 0 {
        let slow = options.workload == Workload::SlowReader && server.open() > 0;
        for id in server.waiter.ready(slow.then_some(PAUSE_MS))? {
            match id {
                LISTENER => server.accept()?,
                CONTROL => {
                    server.waiter.remove(stdin.as_fd())?;
                    more_to_come = false;
                }
                id => server.serve(usize::try_from(id).unwrap_or(usize::MAX))?,
            }
        }
        if slow {
            server.sip()?;
        }
    }
    Ok(server.meter.findings(options.size))
}

impl Server<'_> {
    fn open(&self) -> usize {
        self.connections.len() - self.free.len()
    }

    fn accept(&mut self) -> io::Result<()> {
        while let Some(socket) = wire::accepted(self.options, &self.listener, self.tcp)? {
            let id = self.free.pop_front().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            if self.options.workload != Workload::SlowReader {
                self.waiter.add(&socket, Interest::Read, id as u64)?;
            }
            self.connections[id] = Some(Connection {
                socket,
                received: 0,
                replied: 0,
                wants_to_write: false,
            });
        }
        Ok(())
    }

    fn serve(&mut self, id: usize) -> io::Result<()> {
        let Some(mut connection) = self.connections.get_mut(id).and_then(Option::take) else {
            return Ok(());
        };
        let open = if self.options.workload.answered() {
            self.answer(&mut connection, id as u64)?
        } else {
            self.drain(&mut connection)?
        };
        self.keep(id, connection, open)
    }

    fn keep(&mut self, id: usize, connection: Connection, open: bool) -> io::Result<()> {
        if open {
            self.connections[id] = Some(connection);
            return Ok(());
        }
        if !connection.received.is_multiple_of(self.options.size as u64) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if self.tcp && self.options.workload != Workload::ConnectRequestClose {
            self.meter.by_tcp(received_by_tcp(&connection.socket)?);
        }
        self.free.push_back(id);
        Ok(())
    }

    /// Requests in, replies out; false at the end of the connection.
    fn answer(&mut self, connection: &mut Connection, id: u64) -> io::Result<bool> {
        let size = self.options.size as u64;
        let one_at_a_time = self.options.workload != Workload::Pipelined;
        loop {
            let owed = connection.received / size * size;
            let mut answered = false;
            while connection.replied < owed {
                let at = connection.replied;
                let left = usize::try_from(size - at % size).unwrap_or_default();
                let reply = self.pattern.piece(Way::Reply, at, left);
                let Some(sent) = wire::write(&connection.socket, reply)? else {
                    if !connection.wants_to_write {
                        connection.wants_to_write = true;
                        self.waiter.change(&connection.socket, Interest::Both, id)?;
                    }
                    return Ok(true);
                };
                connection.replied += sent as u64;
                self.meter.sent(sent);
                if connection.replied.is_multiple_of(size) {
                    self.meter.ended(1);
                    answered = true;
                }
            }
            if connection.wants_to_write {
                connection.wants_to_write = false;
                self.waiter.change(&connection.socket, Interest::Read, id)?;
            } else if answered && one_at_a_time {
                // The next request, or the end, will be an event of its own.
                return Ok(true);
            }
            let Some(got) = wire::read(&connection.socket, &mut self.buffer)? else {
                return Ok(true);
            };
            self.meter.tick(Instant::now());
            if got == 0 {
                return Ok(false);
            }
            self.take(connection, got)?;
        }
    }

    fn take(&mut self, connection: &mut Connection, got: usize) -> io::Result<()> {
        self.pattern
            .check(Way::Request, connection.received, &self.buffer[..got])?;
        connection.received += got as u64;
        self.meter.received(got);
        Ok(())
    }

    /// Reads all there is; false at the end of the connection.
    fn drain(&mut self, connection: &mut Connection) -> io::Result<bool> {
        loop {
            let Some(got) = wire::read(&connection.socket, &mut self.buffer)? else {
                return Ok(true);
            };
            if got == 0 {
                return Ok(false);
            }
            self.message(connection, got)?;
        }
    }

    /// A piece of a stream.
    fn message(&mut self, connection: &mut Connection, got: usize) -> io::Result<()> {
        let size = self.options.size as u64;
        self.meter.tick(Instant::now());
        let before = connection.received / size;
        self.take(connection, got)?;
        self.meter.ended(connection.received / size - before);
        Ok(())
    }

    /// What a slow reader reads in one go; all there is once that no longer counts.
    fn sip(&mut self) -> io::Result<()> {
        self.meter.tick(Instant::now());
        let sip = self.options.size.saturating_mul(64).min(SIP);
        for id in 0..self.connections.len() {
            let Some(mut connection) = self.connections[id].take() else {
                continue;
            };
            let open = if self.meter.over() {
                self.drain(&mut connection)?
            } else {
                match wire::read(&connection.socket, &mut self.buffer[..sip])? {
                    Some(0) => false,
                    Some(got) => {
                        self.message(&mut connection, got)?;
                        true
                    }
                    None => true,
                }
            };
            self.keep(id, connection, open)?;
        }
        Ok(())
    }
}

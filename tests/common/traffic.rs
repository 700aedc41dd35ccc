//! Random full-duplex traffic over one connection, checked byte by byte.

use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;

use super::deadline::Deadline;
use super::deadline::wait_at_most;
use super::pattern::Pattern;
use super::rng::Rng;

/// How one direction behaves.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Bytes it carries in all.
    pub total: u64,
    /// Largest write.
    pub largest: usize,
    /// Once in so many writes the sender waits until all was read: from there
    /// a direction can change over.
    pub lull_one_in: u64,
}

impl Plan {
    /// No more than so many bytes: tiny buffers make TCP wait for timers.
    #[must_use]
    pub fn at_most(self, total: u64) -> Self {
        Self {
            total: self.total.min(total),
            ..self
        }
    }

    /// Some size class: many tiny messages, or fewer and larger ones.
    pub fn random(rng: &mut Rng) -> Self {
        let (total, largest) = match rng.between(0, 3) {
            0 => (48 << 10, 64),
            1 => (1 << 20, 4 << 10),
            2 => (4 << 20, 96 << 10),
            _ => (8 << 20, 1 << 20),
        };
        Self {
            total,
            largest,
            lull_one_in: rng.between(2, 40) as u64,
        }
    }
}

/// One direction of a connection: what both of its ends know.
#[derive(Debug)]
pub struct Direction {
    name: String,
    pattern: Pattern,
    plan: Plan,
    sent: AtomicU64,
    messages: AtomicU64,
    received: AtomicU64,
    ending: AtomicBool,
}

impl Direction {
    pub fn new(name: String, tag: u64, plan: Plan) -> Self {
        Self {
            name,
            pattern: Pattern::new(tag),
            plan,
            sent: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            received: AtomicU64::new(0),
            ending: AtomicBool::new(false),
        }
    }

    /// Ends it with what has been sent.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Writes so far.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// The sending part of an end.
#[derive(Debug)]
struct Sender<'a> {
    direction: &'a Direction,
    buffer: Vec<u8>,
    lull: bool,
    shut: bool,
}

impl<'a> Sender<'a> {
    fn new(direction: &'a Direction) -> Self {
        Self {
            direction,
            buffer: vec![0; direction.plan.largest],
            lull: false,
            shut: false,
        }
    }

    /// One write; false when the socket takes nothing, or nothing is to be sent.
    fn step(&mut self, stream: &TcpStream, rng: &mut Rng) -> bool {
        let direction = self.direction;
        let sent = direction.sent.load(Ordering::Relaxed);
        if sent == direction.plan.total || direction.is_ending() {
            stream
                .shutdown(std::net::Shutdown::Write)
                .expect("shutdown");
            self.shut = true;
            return true;
        }
        if self.lull {
            if direction.received() < sent {
                // The socket would take more: polling it would spin.
                thread::sleep(Duration::from_micros(50));
                return false;
            }
            self.lull = false;
        }
        let left = usize::try_from(direction.plan.total - sent).unwrap_or(usize::MAX);
        let size = rng.size(direction.plan.largest).min(left);
        let bytes = &mut self.buffer[..size];
        direction.pattern.fill(sent, bytes);
        match std::io::Write::write(&mut &*stream, bytes) {
            Ok(n) => {
                direction.sent.store(sent + n as u64, Ordering::Relaxed);
                direction.messages.fetch_add(1, Ordering::Relaxed);
                self.lull = rng.one_in(direction.plan.lull_one_in);
                true
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => false,
            Err(e) => panic!("{}: send at {sent}: {e}", direction.name),
        }
    }
}

/// The receiving part of an end.
#[derive(Debug)]
struct Receiver<'a> {
    direction: &'a Direction,
    buffer: Vec<u8>,
    ended: bool,
}

impl<'a> Receiver<'a> {
    fn new(direction: &'a Direction) -> Self {
        Self {
            direction,
            buffer: vec![0; 256 << 10],
            ended: false,
        }
    }

    /// One read, sometimes with a look ahead; false when there is nothing.
    fn step(&mut self, stream: &TcpStream, rng: &mut Rng) -> bool {
        let direction = self.direction;
        let at = direction.received();
        if rng.one_in(4) {
            let room = rng.size(self.buffer.len());
            if let Ok(n) = stream.peek(&mut self.buffer[..room]) {
                direction.pattern.check(
                    at,
                    &self.buffer[..n],
                    &format!("{} (peek)", direction.name),
                );
            }
        }
        let room = rng.size(self.buffer.len());
        match std::io::Read::read(&mut &*stream, &mut self.buffer[..room]) {
            Ok(0) => {
                let total = if direction.is_ending() {
                    direction.sent.load(Ordering::Relaxed)
                } else {
                    direction.plan.total
                };
                assert_eq!(at, total, "{}: ended early", direction.name);
                self.ended = true;
                true
            }
            Ok(n) => {
                direction
                    .pattern
                    .check(at, &self.buffer[..n], &direction.name);
                direction.received.store(at + n as u64, Ordering::Relaxed);
                true
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => false,
            Err(e) => panic!("{}: receive at {at}: {e}", direction.name),
        }
    }
}

/// Runs one end of a non-blocking connection to the end of both directions, on
/// this thread: as an event loop does.
pub fn run_end(
    stream: &TcpStream,
    out: &Direction,
    inbound: &Direction,
    mut rng: Rng,
    deadline: Deadline,
) {
    let mut sender = Sender::new(out);
    let mut receiver = Receiver::new(inbound);
    while !(sender.shut && receiver.ended) {
        let mut moved = false;
        if !sender.shut && rng.one_in(2) {
            moved |= sender.step(stream, &mut rng);
        }
        // Reading less often than writing lets queues build up.
        if !receiver.ended && rng.one_in(3) {
            moved |= receiver.step(stream, &mut rng);
        }
        if !moved {
            pause(stream, &sender, &receiver, deadline);
        }
    }
}

/// The same with a thread for each direction: they use the socket at once.
pub fn run_end_on_two_threads(
    stream: &TcpStream,
    out: &Direction,
    inbound: &Direction,
    mut rng: Rng,
    deadline: Deadline,
) {
    let mut receiver_rng = rng.fork();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut sender = Sender::new(out);
            while !sender.shut {
                if !sender.step(stream, &mut rng) {
                    progress_or_fail(stream, PollFlags::POLLOUT, deadline, out);
                }
            }
        });
        let mut receiver = Receiver::new(inbound);
        while !receiver.ended {
            if !receiver.step(stream, &mut receiver_rng) {
                progress_or_fail(stream, PollFlags::POLLIN, deadline, inbound);
            }
        }
    });
}

fn pause(stream: &TcpStream, sender: &Sender, receiver: &Receiver, deadline: Deadline) {
    let mut events = PollFlags::empty();
    events.set(PollFlags::POLLIN, !receiver.ended);
    events.set(PollFlags::POLLOUT, !sender.shut);
    progress_or_fail(stream, events, deadline, sender.direction);
}

fn progress_or_fail(
    stream: &TcpStream,
    events: PollFlags,
    deadline: Deadline,
    direction: &Direction,
) {
    wait_at_most(stream, events, 50);
    if deadline.passed() {
        deadline.check(&format!(
            "{}: {} of {} sent, {} received",
            direction.name,
            direction.sent.load(Ordering::Relaxed),
            direction.plan.total,
            direction.received()
        ));
    }
}

//! A receiver that does not read stalls its sender, and then reads all of it.

use std::io;
use std::io::Read as _;
use std::io::Write as _;

use nix::poll::PollFlags;

use super::super::wait::events;
use super::Check;
use super::Verdict;
use super::check;
use super::link::Link;

/// More than TCP's buffers hold, and far less than a queue without bounds.
const LIMIT: usize = 64 << 20;

/// Bytes of one send.
const MESSAGE: usize = 16 << 10;

/// A prime, so that neighbouring messages begin with different bytes.
const PERIOD: usize = 251;

pub const CHECK: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "backpressure",
        run,
        "a receiver that does not read stalls its sender, as with TCP",
        "a receiver that does not read lets its sender fill the memory of the kernel: every \
         program that sends faster than its peer reads",
    )
};

fn run(link: &mut Link) -> io::Result<()> {
    let pattern: Vec<u8> = (0..PERIOD).map(|n| n.to_le_bytes()[0]).collect();
    let pattern = pattern.repeat(MESSAGE / PERIOD + 2);
    let mut sent = 0;
    while sent < LIMIT {
        let from = sent % PERIOD;
        match link.a.write(&pattern[from..from + MESSAGE]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Buffers grow a last time when the receiver's side has settled.
                if events(&link.a, PollFlags::POLLOUT, 50).is_empty() {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    let stalled = sent < LIMIT;
    link.note(
        "the sender",
        if stalled { "stalled" } else { "did not stall" },
    );
    link.aside = format!("{} KiB were queued", sent >> 10);

    let mut buffer = vec![0; 1 << 16];
    let mut got = 0;
    while got < sent && !events(&link.b, PollFlags::POLLIN, 1000).is_empty() {
        let n = match link.b.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let same = (got..got + n)
            .zip(&buffer)
            .all(|(at, byte)| usize::from(*byte) == at % PERIOD);
        if !same {
            link.note("order", "lost");
            return Ok(());
        }
        got += n;
    }
    link.note("bytes missing", (sent - got).to_string());
    Ok(())
}

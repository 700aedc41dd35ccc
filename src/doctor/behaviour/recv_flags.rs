//! recv(2) with `MSG_PEEK` and with `MSG_WAITALL`.

use std::io;
use std::thread;
use std::time::Duration;

use nix::sys::socket::MsgFlags;

use super::Check;
use super::Programs;
use super::Verdict;
use super::check;
use super::link::Link;
use super::link::received;

/// `MSG_PEEK`
pub const PEEK: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "msg_peek",
        peek,
        "MSG_PEEK shows redirected data and leaves it there",
        "programs that look before they read see the wrong bytes: HAProxy, sniffing proxies, \
         TLS servers that peek at the first record",
    )
};

/// `MSG_WAITALL`, which matters to blocking programs.
pub const WAITALL: Check = Check {
    programs: Programs::Blocking,
    ..check(
        "msg_waitall",
        waitall,
        "MSG_WAITALL waits for all of it",
        "MSG_WAITALL returns short: programs that read from blocking sockets with it and do not \
         check the length; they are skipped unless --blocking-readers accelerate",
    )
};

#[expect(clippy::unnecessary_wraps, reason = "the signature of all checks")]
fn peek(link: &mut Link) -> io::Result<()> {
    link.send("hello");
    link.recv_with(3, MsgFlags::MSG_PEEK);
    link.recv_with(10, MsgFlags::MSG_PEEK);
    link.recv(10);
    link.poll();
    Ok(())
}

fn waitall(link: &mut Link) -> io::Result<()> {
    let b = link.b.try_clone()?;
    let programs = link.programs;
    link.send("hello");
    link.until_readable();
    let reader =
        thread::Builder::new().spawn(move || received(&b, programs, 10, MsgFlags::MSG_WAITALL))?;
    // In between the reader has all the time to return early.
    thread::sleep(Duration::from_millis(50));
    link.send("world");
    let saw = reader
        .join()
        .map_err(|_| io::Error::other("the reading thread panicked"))?;
    link.note("recv", saw);
    Ok(())
}

//! Data that is redirected right before its sender closes.

use std::io;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::poll::PollFlags;

use super::super::wait::events;
use super::Check;
use super::Verdict;
use super::check;
use super::link::Link;

/// The receiver's socket stays open.
pub const BEFORE_CLOSE: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "last_data_before_close",
        before_close,
        "what is sent right before close(2) arrives",
        "programs that answer and close lose the answer: HTTP servers without keep-alive",
    )
};

/// The receiver's socket reaches `TCP_CLOSE` with it unread: before
/// d8616ee2affc (Linux 5.19) the kernel then drops what was redirected.
pub const AT_TCP_CLOSE: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "last_data_at_tcp_close",
        at_tcp_close,
        "redirected data outlives the end of the connection (d8616ee2affc)",
        "programs that half-close and then read the answer slowly lose its end \
         (fixed by d8616ee2affc): ssh, rsync, HTTP/1.0 clients",
    )
};

fn before_close(link: &mut Link) -> io::Result<()> {
    link.send("last words");
    link.close()?;
    link.recv(20);
    link.recv(20);
    Ok(())
}

fn at_tcp_close(link: &mut Link) -> io::Result<()> {
    link.mirror();
    link.shut();
    link.mirror();
    // The FIN of the reader is there before its peer sends and closes.
    events(&link.a, PollFlags::POLLIN, 1000);
    link.send("last words");
    link.close()?;
    // The FIN of the sender, behind what is unread. No descriptor tells that
    // the connection is over then, which it is some microseconds later.
    events(&link.b, PollFlags::from_bits_retain(libc::POLLRDHUP), 1000);
    thread::sleep(Duration::from_millis(20));
    link.recv(20);
    link.recv(20);
    Ok(())
}

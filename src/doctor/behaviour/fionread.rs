//! FIONREAD of both kinds of data that may wait on an enrolled socket.

use std::io;

use super::Check;
use super::Verdict;
use super::check;
use super::link::Link;
use crate::doctor::Risk;
use crate::sys;

/// Of what was redirected.
pub const REDIRECTED: Check = Check {
    if_not: Verdict::Fails,
    risk: Some(Risk::Fionread),
    ..check(
        "fionread_redirected",
        run,
        "FIONREAD counts redirected data",
        "programs that ask FIONREAD how much to read miss redirected data or read too much: \
         nginx >= 1.17.5, Java NIO, .NET",
    )
};

/// Of what came by TCP.
pub const TCP: Check = Check {
    if_not: Verdict::Fails,
    risk: Some(Risk::Fionread),
    redirected: false,
    ..check(
        "fionread_tcp",
        run,
        "FIONREAD counts data that came by TCP",
        "programs that rely on FIONREAD can hang (bug 929e30f93125, fixed by 04af4efde58a): \
         nginx >= 1.17.5, Java NIO, .NET",
    )
};

fn run(link: &mut Link) -> io::Result<()> {
    link.send("FIONREAD");
    link.until_readable();
    let waiting = sys::probe::unread(&link.b)?;
    link.note("FIONREAD of 8 bytes", waiting.to_string());
    link.recv(3);
    let waiting = sys::probe::unread(&link.b)?;
    link.note("of 5 bytes", waiting.to_string());
    link.recv(10);
    Ok(())
}

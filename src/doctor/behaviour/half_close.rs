//! shutdown(2) of one direction: the end comes after the data, and the other
//! direction goes on.

use std::io;

use super::Check;
use super::Verdict;
use super::check;
use super::link::Link;

pub const CHECK: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "half_close",
        run,
        "shutdown(2) ends one direction after its data, and the other goes on",
        "programs that half-close can lose data or the end of it: ssh, rsync, HTTP/1.0 clients",
    )
};

#[expect(clippy::unnecessary_wraps, reason = "the signature of all checks")]
fn run(link: &mut Link) -> io::Result<()> {
    link.send("request");
    link.shut();
    link.send("after shutdown");
    link.recv(20);
    link.recv(20);
    link.mirror();
    link.send("answer");
    link.shut();
    link.recv(20);
    link.recv(20);
    Ok(())
}

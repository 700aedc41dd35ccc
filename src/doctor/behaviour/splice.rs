//! A program that moves data with splice(2) from the start, as relays do: the
//! observer must see it before anything is redirected to it.

use std::io;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::fcntl::SpliceFFlags;
use nix::fcntl::splice;
use nix::poll::PollFlags;
use nix::unistd::pipe2;
use nix::unistd::read;

use super::super::wait::events;
use super::Check;
use super::Verdict;
use super::check;
use super::link::Link;

pub const CHECK: Check = Check {
    if_not: Verdict::Fails,
    redirected: false,
    ..check(
        "splice",
        run,
        "programs that splice(2) are seen, and stay on the stack",
        "relays can get stuck, because splice(2) does not see redirected data: HAProxy with \
         splice, Go's io.Copy, docker-proxy; keep them out of the enabled cgroups",
    )
};

fn run(link: &mut Link) -> io::Result<()> {
    let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    for round in 0..4 {
        // What a stuck relay would wait for.
        link.send("relayed");
        let mut got = String::new();
        while got.len() < 7 {
            if events(&link.b, PollFlags::POLLIN, 300).is_empty() {
                break;
            }
            match splice(
                &link.b,
                None,
                &into,
                None,
                100,
                SpliceFFlags::SPLICE_F_NONBLOCK,
            ) {
                Ok(0) => break,
                Ok(_) => {}
                // Readable and yet nothing to splice: that is being stuck.
                Err(Errno::EAGAIN) => {
                    got.push_str("(EAGAIN)");
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            let mut buffer = [0; 100];
            let n = read(&out, &mut buffer)?;
            got.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        link.note(&format!("splice {}", round + 1), got);
        link.mirror();
    }
    Ok(())
}

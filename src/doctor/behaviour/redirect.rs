//! Are messages redirected at all: both ways, and to a reader that waits?

use std::io;
use std::sync::mpsc;
use std::thread;

use nix::libc;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::epoll::EpollTimeout;
use nix::unistd::gettid;

use super::Check;
use super::Verdict;
use super::check;
use super::link::Link;
use super::link::until_in;

/// What `epoll_wait(3)` may be: newer architectures have only the second.
const EPOLL_WAITS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
];

/// To a reader that is busy elsewhere.
pub const CHECK: Check = Check {
    if_not: Verdict::Fails,
    shows_redirect: true,
    ..check(
        "redirect",
        run,
        "connections between event loops are accelerated",
        "nothing is accelerated on this kernel; programs run as on plain TCP",
    )
};

/// To one that sleeps in epoll(7), as event loops mostly do.
pub const TO_WAITING: Check = Check {
    if_not: Verdict::Fails,
    shows_redirect: true,
    ..check(
        "redirect_to_waiting",
        to_waiting,
        "event loops that wait in epoll are accelerated",
        "event loops that wait in epoll are taken for blocking readers, and run as on plain TCP; \
         see kernel_symbols",
    )
};

// That they are is asked of TCP before each check, and of the counters after.
#[expect(clippy::unnecessary_wraps, reason = "the signature of all checks")]
fn run(link: &mut Link) -> io::Result<()> {
    for _ in 0..3 {
        link.send("there");
        link.recv(10);
        link.mirror();
    }
    Ok(())
}

fn to_waiting(link: &mut Link) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    epoll.add(&link.b, EpollEvent::new(events, 0))?;
    for _ in 0..3 {
        let (hello, waits) = mpsc::channel();
        let woken = thread::scope(|scope| -> io::Result<usize> {
            let waiting = scope.spawn(|| {
                let _ = hello.send(gettid());
                epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(1000_u16))
            });
            let tid = waits.recv().map_err(io::Error::other)?;
            until_in(tid, EPOLL_WAITS)?;
            link.send("there");
            let woken = waiting.join();
            Ok(woken.map_err(|_| io::Error::other("the waiting thread panicked"))??)
        })?;
        link.note("events", woken.to_string());
        link.recv(10);
    }
    Ok(())
}

//! poll(2), and epoll(7) by level and by edge.

use std::io;

use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::epoll::EpollTimeout;

use super::Check;
use super::Verdict;
use super::check;
use super::link::Link;

/// poll(2)
pub const POLL: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "poll",
        poll,
        "poll and select see redirected data",
        "programs that wait with poll or select can miss data and hang",
    )
};

/// epoll(7) by level.
pub const LEVEL: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "epoll_level",
        level,
        "level-triggered epoll sees redirected data",
        "event loops by level can hang or spin: redis, HAProxy, libevent, Node.js",
    )
};

/// epoll(7) by edge.
pub const EDGE: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "epoll_edge",
        edge,
        "edge-triggered epoll tells of each arrival",
        "event loops by edge can miss data and hang: nginx, Go, tokio, Netty",
    )
};

#[expect(clippy::unnecessary_wraps, reason = "the signature of all checks")]
fn poll(link: &mut Link) -> io::Result<()> {
    link.send("hello");
    link.poll();
    link.recv(2);
    link.poll();
    link.recv(10);
    link.poll();
    Ok(())
}

fn level(link: &mut Link) -> io::Result<()> {
    epoll(link, EpollFlags::EPOLLIN)
}

fn edge(link: &mut Link) -> io::Result<()> {
    epoll(link, EpollFlags::EPOLLIN | EpollFlags::EPOLLET)
}

fn epoll(link: &mut Link, flags: EpollFlags) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&link.b, EpollEvent::new(flags, 0))?;
    let look = |link: &mut Link, when: &str| -> io::Result<()> {
        let mut got = [EpollEvent::empty()];
        let n = epoll.wait(&mut got, EpollTimeout::from(50_u16))?;
        let saw = if n == 0 {
            EpollFlags::empty()
        } else {
            got[0].events()
        };
        link.note(when, format!("{saw:?}"));
        Ok(())
    };
    look(link, "at first")?;
    link.send("hello");
    look(link, "arrived")?;
    look(link, "unread")?;
    link.recv(2);
    link.send("more");
    look(link, "more arrived")?;
    link.recv(3);
    link.recv(10);
    look(link, "all read")
}

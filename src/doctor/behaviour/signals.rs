//! A signal, whose handler has `SA_RESTART`, while a program waits in recv(2).

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::pthread::pthread_kill;
use nix::sys::pthread::pthread_self;
use nix::sys::signal::Signal;
use nix::sys::socket::MsgFlags;
use nix::unistd::gettid;

use super::Check;
use super::Programs;
use super::check;
use super::link::Link;
use super::link::received;
use super::link::until_in;
use crate::sys;

pub const CHECK: Check = Check {
    programs: Programs::Blocking,
    ..check(
        "signals",
        run,
        "a blocking recv goes on after a signal with SA_RESTART",
        "a blocking recv returns EAGAIN after a signal: programs that read from blocking sockets \
         and take that for an error; they are skipped unless --blocking-readers accelerate",
    )
};

fn run(link: &mut Link) -> io::Result<()> {
    sys::signal::ignore_with_restart(Signal::SIGUSR1)?;
    let b = link.b.try_clone()?;
    let programs = link.programs;
    let (hello, waits) = mpsc::channel();
    let reader = thread::Builder::new().spawn(move || {
        let _ = hello.send((pthread_self(), gettid()));
        received(&b, programs, 10, MsgFlags::empty())
    })?;
    let (thread, tid) = waits.recv().map_err(io::Error::other)?;
    until_in(tid, &[libc::SYS_recvfrom])?;
    for _ in 0..3 {
        if !reader.is_finished() {
            pthread_kill(thread, Signal::SIGUSR1)?;
            thread::sleep(Duration::from_millis(20));
        }
    }
    link.send("hello");
    let saw = reader
        .join()
        .map_err(|_| io::Error::other("the reading thread panicked"))?;
    link.note("recv", saw);
    Ok(())
}

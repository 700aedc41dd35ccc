//! No message stays where its reader cannot see it, and nothing that happens
//! to one message decides over the ones after it.

mod common;

use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::SpliceFFlags;
use nix::fcntl::splice;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recv;
use nix::sys::socket::send;
use nix::unistd::pipe;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::option;
use common::pair::Options;
use common::pair::Pair;
use common::stream::recv_all;
use common::stream::send_all;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;

/// The reader got the first half by TCP and sleeps there for the second: it
/// has read everything, and still does not look at its redirect queue.
#[test]
fn a_reader_that_waits_for_all_sees_the_second_half() {
    let cgroup = Cgroup::new("waitall");
    let instance = Instance::enable_blocking(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::with(&Options::blocking());
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 8];
            let got = recv(pair.server.as_raw_fd(), &mut buffer, MsgFlags::MSG_WAITALL);
            tell.send((got, buffer)).expect("somebody listens");
        });
        // Long enough that the reader sleeps before each half comes.
        for half in [b"1234", b"5678"] {
            thread::sleep(Duration::from_millis(200));
            (&pair.client).write_all(half).expect("send");
        }
        let outcome = told.recv_timeout(Duration::from_secs(10));
        let (got, buffer) = outcome.unwrap_or_else(|_| {
            let sockets = instance.dump("sockhash");
            // Lets the stuck reader go.
            let _ = pair.client.shutdown(Shutdown::Both);
            panic!("the reader still waits: {sockets:#?}")
        });
        assert_eq!((got, &buffer), (Ok(8), b"12345678"));
    });
    // It was the waiting alone that kept the second half on the stack.
    warm_up(&instance, &pair);
}

/// epoll(7): a short read means "drained" to edge-triggered readers, so what goes
/// by TCP must not lie behind a redirect queue that ends in one.
#[test]
fn edge_triggered_readers_are_not_left_behind() {
    for sizes in [&[4, 100_000][..], &[10; 100]] {
        let cgroup = Cgroup::new("edges");
        let instance = Instance::enable(&cgroup, &[]);
        let _joined = cgroup.join();
        let pair = Pair::new();
        warm_up(&instance, &pair);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll
            .add(&pair.server, EpollEvent::new(edges, 0))
            .expect("add");
        let before = instance.stats();
        for size in sizes {
            send_all(&pair.client, &vec![b'x'; *size], Deadline::seconds(10));
        }
        let (total, mut got) = (sizes.iter().sum::<usize>(), 0);
        let mut buffer = vec![0; 1 << 20];
        while got < total {
            let mut event = [EpollEvent::empty()];
            let events = epoll.wait(&mut event, 5000_u16).expect("wait");
            assert_eq!(events, 1, "{got} of {total} bytes, and no further edge");
            loop {
                match (&pair.server).read(&mut buffer) {
                    Ok(n) => {
                        got += n;
                        if n < buffer.len() {
                            break;
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => panic!("read: {e}"),
                }
            }
        }
        assert!(instance.stats().delta(&before, "redirected_messages") > 0);
    }
}

/// Sends to a receiver that reads so many messages and closes, until that fails.
fn send_past_close(pair: Pair, messages: usize) {
    let Pair { client, server } = pair;
    let deadline = Deadline::seconds(10);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; 64];
            for _ in 0..messages {
                recv_all(&server, &mut buffer, deadline);
            }
        });
        loop {
            deadline.check("an end");
            match send(client.as_raw_fd(), &[b'x'; 64], MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => assert_eq!(n, 64),
                Err(Errno::EAGAIN) => thread::yield_now(),
                Err(Errno::EPIPE | Errno::ECONNRESET) => break,
                Err(other) => panic!("{messages} messages, then {other}"),
            }
        }
    });
}

/// Also where the message is between its verdict and the receiver's queue.
#[test]
fn a_send_while_the_receiver_closes_fails_with_an_errno_of_tcp() {
    const PAIRS: usize = 200;
    let cgroup = Cgroup::new("closing");
    let instance = Instance::enable(&cgroup, &["--admission", "all"]);
    for messages in 0..PAIRS {
        send_past_close(Pair::new(), messages);
    }
    let _joined = cgroup.join();
    let before = instance.stats();
    for messages in 0..PAIRS {
        let pair = Pair::new();
        (0..10).for_each(|_| round_trip(&pair));
        send_past_close(pair, messages);
    }
    assert_redirected(&before, &instance.stats(), 64 * PAIRS as u64);
}

/// Pacing and timestamps are the sender's: its own direction leaves.
#[test]
fn an_option_of_the_sender_ends_its_own_direction() {
    let cgroup = Cgroup::new("sender");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    option::set(&pair.client, option::MaxPacingRate, 50_000_000);
    let before = instance.stats();
    round_trip(&pair);
    let after = instance.stats();
    assert_eq!(
        after.delta(&before, "redirected_messages"),
        0,
        "{}",
        after.0
    );
}

/// A reader that was seen splicing leaves its queue to fill up, then reads: what
/// was taken arrives, and the kernel lets nothing follow what was refused.
#[test]
fn what_was_taken_before_a_refusal_arrives() {
    let cgroup = Cgroup::new("refused");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);

    send_all(&pair.client, b"unseen by splice", Deadline::seconds(10));
    let (_read_end, write_end) = pipe().expect("pipe");
    let spliced = splice(
        pair.server.as_fd(),
        None,
        &write_end,
        None,
        1 << 16,
        SpliceFFlags::SPLICE_F_NONBLOCK,
    );
    let mut sent = match spliced {
        Ok(n) => 16 - n,
        Err(_) => 16,
    };
    let refusal = loop {
        match (&pair.client).write(&[b'x'; 100]) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
        assert!(sent < 16 << 20, "nothing ever stops the sender");
    };
    println!("{sent} bytes, then: {refusal}");

    let mut buffer = vec![0; sent];
    recv_all(&pair.server, &mut buffer, Deadline::seconds(10));
    let nothing = (&pair.server).read(&mut buffer).expect_err("all was read");
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    let again = (&pair.client)
        .write(b"after")
        .expect_err("it was refused before");
    assert_eq!(again.kind(), io::ErrorKind::PermissionDenied);
}

/// epoll(7) lets an edge-triggered reader take a short read for "empty". One that
/// ends where redirected bytes end must not have bytes by TCP behind it: their
/// edge is gone by then.
#[test]
fn a_burst_reaches_an_edge_triggered_reader_that_stops_at_a_short_read() {
    let cgroup = Cgroup::new("short-read");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    // More than the budget, and up to the hard cap of path.h.
    for messages in [65, 300, 1030, 2000] {
        let pair = Pair::new();
        warm_up(&instance, &pair);
        let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll
            .add(&pair.server, EpollEvent::new(edge, 0))
            .expect("EPOLL_CTL_ADD");
        for _ in 0..messages {
            send_all(&pair.client, &[b'x'; 64], Deadline::seconds(10));
        }
        let mut buffer = vec![0; 1 << 20];
        let mut got = 0;
        while got < messages * 64 {
            let events = epoll.wait(&mut [EpollEvent::empty()], 5000_u16);
            assert_eq!(events, Ok(1), "{messages} messages: {got} bytes, no event");
            while let Ok(n) = (&pair.server).read(&mut buffer) {
                got += n;
                if n < buffer.len() {
                    break;
                }
            }
        }
    }
}

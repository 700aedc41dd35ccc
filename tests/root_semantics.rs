//! What programs see: each case runs on plain TCP and on an accelerated pair,
//! and must tell the same story.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::fcntl::SpliceFFlags;
use nix::fcntl::splice;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::epoll::EpollTimeout;
use nix::sys::pthread::Pthread;
use nix::sys::pthread::pthread_kill;
use nix::sys::pthread::pthread_self;
use nix::sys::sendfile::sendfile;
use nix::sys::signal::Signal;
use nix::sys::socket;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockaddrStorage;
use nix::unistd::Pid;
use nix::unistd::getpid;
use nix::unistd::gettid;
use nix::unistd::pipe2;
use nix::unistd::read;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::deadline::wait_at_most;
use common::instance::Instance;
use common::option::TCP_INQ;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::raw;
use common::stream::recv_all;
use common::warm::round_trip;
use common::warm::warm_up;

/// How the two programs work, and what the instance does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    NonBlocking,
    /// Blocking programs, by default left alone.
    Skipped,
    /// Blocking programs with `--blocking-readers accelerate`.
    Blocking,
}

impl Mode {
    fn sockets(self) -> Options {
        if self == Mode::NonBlocking {
            Options::default()
        } else {
            Options::blocking()
        }
    }

    fn enable(self, cgroup: &Cgroup) -> Instance {
        if self == Mode::Blocking {
            Instance::enable_blocking(cgroup, &[])
        } else {
            Instance::enable(cgroup, &[])
        }
    }
}

/// A connection under test, and the story of what its programs saw.
#[derive(Debug)]
struct Link {
    /// Sends.
    a: TcpStream,
    /// Receives.
    b: TcpStream,
    mode: Mode,
    story: String,
}

impl Link {
    fn new(pair: Pair, mode: Mode) -> Self {
        let Pair { client, server } = pair;
        if mode != Mode::NonBlocking {
            let limit = Some(Duration::from_secs(10));
            for stream in [&client, &server] {
                stream.set_read_timeout(limit).expect("SO_RCVTIMEO");
            }
        }
        Self {
            a: client,
            b: server,
            mode,
            story: String::new(),
        }
    }

    fn note(&mut self, what: &str, saw: &str) {
        let _ = write!(self.story, "{what}: {saw}; ");
    }

    fn send(&mut self, bytes: &str) {
        self.send_with(bytes, MsgFlags::empty());
    }

    fn send_with(&mut self, bytes: &str, flags: MsgFlags) {
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        let saw = result(socket::send(self.a.as_raw_fd(), bytes.as_bytes(), flags));
        self.note("send", &saw);
    }

    fn recv(&mut self, len: usize) {
        self.recv_with(len, MsgFlags::empty());
    }

    fn recv_with(&mut self, len: usize, flags: MsgFlags) {
        let saw = recv_as(&self.b, self.mode, len, flags);
        self.note("recv", &saw);
    }

    /// What `FIONREAD` says once there should be something.
    fn count(&mut self) {
        wait_at_most(&self.b, PollFlags::POLLIN, 1000);
        let saw = raw::waiting(&self.b).to_string();
        self.note("FIONREAD", &saw);
    }

    /// Is there something to read soon?
    fn poll(&mut self) {
        let events = PollFlags::POLLIN;
        let saw = format!("{:?}", wait_at_most(&self.b, events, 100));
        self.note("poll", &saw);
    }

    /// Receives on another thread; `meanwhile` runs once that waits. Where it gets EAGAIN
    /// although it blocks, it tries again.
    fn receiving(
        &mut self,
        len: usize,
        flags: MsgFlags,
        meanwhile: impl FnOnce(&mut Self, &Receiver),
    ) {
        // With a timeout SA_RESTART restarts nothing.
        let limit = self.b.read_timeout().expect("SO_RCVTIMEO");
        self.b.set_read_timeout(None).expect("SO_RCVTIMEO");
        let receiver = Receiver::start(self, len, flags);
        receiver.settles();
        if receiver.ended() {
            self.note("receiver", "did not wait");
        } else {
            meanwhile(self, &receiver);
        }
        let saw = receiver.end(self);
        // The receiver may have ended the connection: then there is no limit.
        let _ = self.b.set_read_timeout(limit);
        self.received(&saw, len, flags);
    }

    fn received(&mut self, saw: &str, len: usize, flags: MsgFlags) {
        self.note("recv", saw);
        if saw == "EAGAIN" && self.mode != Mode::NonBlocking {
            self.recv_with(len, flags);
        }
    }

    /// Receives on two threads. `wake` runs once both wait, `again` once one has read and
    /// the other one has ended, too, or sleeps on.
    fn two_receiving(&mut self, wake: fn(&mut Self), again: fn(&mut Self)) {
        let (len, flags) = (10, MsgFlags::empty());
        let limit = self.b.read_timeout().expect("SO_RCVTIMEO");
        self.b.set_read_timeout(None).expect("SO_RCVTIMEO");
        let both = [(); 2].map(|()| Receiver::start(self, len, flags));
        let deadline = Deadline::seconds(5);
        let rest = || both.iter().all(Receiver::rests);
        deadline.until("both wait", rest);
        wake(self);
        // What woke the first one has woken the other one, before either could end.
        deadline.until("one reads", || both.iter().any(Receiver::ended) && rest());
        again(self);
        let mut all = both.map(|one| one.end(self));
        let _ = self.b.set_read_timeout(limit);
        all.sort();
        for saw in all {
            self.received(&saw, len, flags);
        }
    }

    /// Waits in a read, gets signals, then a message.
    fn receiving_signals(&mut self) {
        self.receiving(10, MsgFlags::empty(), |link, receiver| {
            for _ in 0..5 {
                let _ = pthread_kill(receiver.pthread, Signal::SIGUSR1);
                thread::sleep(Duration::from_millis(20));
            }
            receiver.settles();
            link.send("hello");
        });
    }
}

/// A thread that receives.
struct Receiver {
    thread: JoinHandle<String>,
    pthread: Pthread,
    tid: Pid,
}

impl Receiver {
    fn start(link: &Link, len: usize, flags: MsgFlags) -> Self {
        let (mode, b) = (link.mode, link.b.try_clone().expect("dup"));
        let (hello, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            let _ = hello.send((pthread_self(), gettid()));
            recv_as(&b, mode, len, flags)
        });
        let (pthread, tid) = started.recv().expect("the receiver lives");
        Self {
            thread,
            pthread,
            tid,
        }
    }

    fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// It waits, or has ended.
    fn rests(&self) -> bool {
        self.ended() || sleeps_in_a_call(self.tid.as_raw())
    }

    /// What has woken it is over: it has ended, or sleeps again.
    fn settles(&self) {
        Deadline::seconds(5).until("the receiver settles", || self.rests());
    }

    /// What it saw, once it has ended.
    fn end(self, link: &mut Link) -> String {
        let deadline = Deadline::seconds(5);
        while !self.ended() && !deadline.passed() {
            thread::sleep(Duration::from_millis(5));
        }
        if !self.ended() {
            link.note("receiver", "hung");
            let _ = link.b.shutdown(Shutdown::Both);
        }
        self.thread.join().expect("the receiver")
    }
}

fn sleeps_in_a_call(tid: i32) -> bool {
    let path = format!("/proc/self/task/{tid}/syscall");
    let calls = [libc::SYS_recvfrom, libc::SYS_poll, libc::SYS_ppoll];
    fs::read_to_string(path).is_ok_and(|line| {
        let number = line.split(' ').next().and_then(|n| n.parse().ok());
        number.is_some_and(|n| calls.contains(&n))
    })
}

fn result(got: nix::Result<usize>) -> String {
    got.map_or_else(|e| format!("{e:?}"), |n| n.to_string())
}

/// One receive as the mode's programs do it.
fn recv_as(stream: &TcpStream, mode: Mode, len: usize, flags: MsgFlags) -> String {
    let mut buffer = vec![0; len];
    if mode == Mode::NonBlocking {
        let deadline = Deadline::seconds(3);
        while wait_at_most(stream, PollFlags::POLLIN, 200).is_empty() {
            if deadline.passed() {
                return "nothing".to_owned();
            }
        }
    }
    match socket::recv(stream.as_raw_fd(), &mut buffer, flags) {
        Ok(n) => format!("{:?}", String::from_utf8_lossy(&buffer[..n])),
        Err(e) => format!("{e:?}"),
    }
}

/// One row of the table.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    run: fn(&mut Link),
    /// Some of its messages are redirected, or it tests nothing.
    redirects: bool,
    /// Nothing was sent before.
    cold: bool,
    /// It excludes this process from then on.
    splices: bool,
}

const fn case(name: &'static str, run: fn(&mut Link)) -> Case {
    Case {
        name,
        run,
        redirects: true,
        cold: false,
        splices: false,
    }
}

/// What it is about takes place on the stack.
const fn on_the_stack(name: &'static str, run: fn(&mut Link)) -> Case {
    Case {
        redirects: false,
        ..case(name, run)
    }
}

const fn cold(name: &'static str, run: fn(&mut Link)) -> Case {
    Case {
        cold: true,
        ..on_the_stack(name, run)
    }
}

const fn splicing(case: Case) -> Case {
    Case {
        splices: true,
        ..case
    }
}

const CASES: &[Case] = &[
    case("send and recv", |l| {
        l.send("hello");
        l.recv(3);
        l.recv(10);
    }),
    case("two sends, one recv", |l| {
        l.send("hello ");
        l.send("world");
        l.poll();
        l.recv(100);
    }),
    case("send of nothing", |l| {
        l.send("");
        l.poll();
        l.send("x");
        l.recv(10);
    }),
    case("recv of nothing", |l| {
        let mut none = [0; 0];
        let fd = l.b.as_raw_fd();
        let empty = result(socket::recv(fd, &mut none, MsgFlags::MSG_DONTWAIT));
        l.note("empty", &empty);
        l.send("x");
        l.poll();
        let full = result(socket::recv(fd, &mut none, MsgFlags::MSG_DONTWAIT));
        l.note("full", &full);
        l.recv(10);
    }),
    case("MSG_DONTWAIT", |l| {
        l.send("hello");
        l.poll();
        l.recv_with(10, MsgFlags::MSG_DONTWAIT);
        let fd = l.b.as_raw_fd();
        let saw = result(socket::recv(fd, &mut [0; 10], MsgFlags::MSG_DONTWAIT));
        l.note("again", &saw);
    }),
    case("MSG_PEEK", |l| {
        l.send("hello");
        l.recv_with(3, MsgFlags::MSG_PEEK);
        l.recv_with(10, MsgFlags::MSG_PEEK);
        l.recv(10);
        l.poll();
    }),
    case("MSG_TRUNC without a buffer", |l| {
        l.send("hello");
        l.poll();
        let saw = result(raw::discard(&l.b, 3));
        l.note("discard", &saw);
        l.recv(10);
    }),
    case("MSG_WAITALL", |l| {
        if l.mode == Mode::NonBlocking {
            l.send("hello");
            l.recv_with(10, MsgFlags::MSG_WAITALL);
            return;
        }
        l.send("hello");
        l.poll();
        // In between the receiver has all the time to return early.
        l.receiving(10, MsgFlags::MSG_WAITALL, |l, _| l.send("world"));
    }),
    case("MSG_OOB", |l| {
        l.send("ab");
        l.send_with("x", MsgFlags::MSG_OOB);
        l.send("cd");
        l.poll();
        l.recv(10);
        l.recv_with(10, MsgFlags::MSG_OOB);
    }),
    case(FIONREAD_REDIRECTED, |l| {
        l.send("hello");
        l.count();
        l.recv(2);
        l.count();
        l.recv(10);
        let saw = raw::waiting(&l.b).to_string();
        l.note("empty", &saw);
    }),
    cold(FIONREAD, |l| {
        l.send("hello");
        l.count();
        l.recv(10);
    }),
    on_the_stack("SO_RCVLOWAT", |l| {
        let saw = set(&l.b, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 8);
        l.note("set", &saw);
        l.send("hell");
        l.poll();
        l.send("o wo");
        l.poll();
        l.recv(10);
    }),
    on_the_stack("TCP_INQ", |l| {
        let saw = set(&l.b, libc::SOL_TCP, TCP_INQ, 1);
        l.note("set", &saw);
        l.send("hello");
        l.poll();
        let saw = format!("{:?}", raw::recv_inq(&l.b, &mut [0; 2]));
        l.note("recvmsg", &saw);
        l.recv(10);
    }),
    case("epoll, level", |l| {
        epoll(l, EpollFlags::EPOLLIN);
    }),
    case("epoll, edge", |l| {
        epoll(l, EpollFlags::EPOLLIN | EpollFlags::EPOLLET);
    }),
    case("a signal while in recv", |l| {
        raw::handle_usr1();
        l.send("first");
        l.recv(10);
        l.receiving_signals();
    }),
    case("a stop while in recv", |l| {
        l.send("first");
        l.recv(10);
        l.receiving(10, MsgFlags::empty(), |l, receiver| {
            stop_and_continue(receiver.tid);
            l.send("hello");
        });
    }),
    case("another thread reads first", |l| {
        l.send("first");
        l.recv(10);
        two_receive(l);
    }),
    cold(READS_FIRST_FROM_STACK, two_receive),
    cold("urgent data while in recv", |l| {
        l.receiving(10, MsgFlags::empty(), |l, _| {
            l.send_with("x", MsgFlags::MSG_OOB);
            l.send("hello");
        });
    }),
    on_the_stack("MSG_OOB without urgent data", |l| {
        let fd = l.b.as_raw_fd();
        let flags = MsgFlags::MSG_OOB | MsgFlags::MSG_DONTWAIT;
        let saw = result(socket::recv(fd, &mut [0; 10], flags));
        l.note("nothing there", &saw);
    }),
    case("a send lacks buffer space while in recv", |l| {
        l.send("first");
        l.recv(10);
        l.mirror();
        l.receiving(10, MsgFlags::empty(), |l, receiver| {
            let sent = fill(&l.b);
            drain(l, sent);
            receiver.settles();
            l.send("hello");
        });
    }),
    cold("no lack of buffer space before recv", |l| {
        space_is_freed(l, |_| 0);
    }),
    cold("a send lacks buffer space before recv", |l| {
        space_is_freed(l, |l| fill(&l.b));
    }),
    cold("a poll lacks buffer space before recv", |l| {
        space_is_freed(l, |l| {
            let saw = format!("{:?}", wait_at_most(&l.b, PollFlags::POLLIN, 0));
            l.note("poll", &saw);
            0
        });
    }),
    case("SO_RCVTIMEO", |l| {
        l.b.set_read_timeout(Some(Duration::from_millis(50)))
            .expect("SO_RCVTIMEO");
        let fd = l.b.as_raw_fd();
        let saw = result(socket::recv(fd, &mut [0; 10], MsgFlags::empty()));
        l.note("nothing there", &saw);
        l.send("hello");
        l.poll();
        l.recv(10);
    }),
    case("sendfile", |l| {
        l.send("head ");
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"of a file").expect("write");
        let mut at = 0;
        let saw = result(sendfile(&l.a, &file, Some(&mut at), 100));
        l.note("sendfile", &saw);
        l.send(" tail");
        let mut text = String::new();
        while text.len() < 19 {
            match recv_as(&l.b, l.mode, 100, MsgFlags::empty()) {
                part if part.len() > 2 && part.starts_with('"') => {
                    text.push_str(part.trim_matches('"'));
                }
                other => {
                    text.push_str(&other);
                    break;
                }
            }
        }
        l.note("text", &text);
    }),
    on_the_stack("connect(AF_UNSPEC), then elsewhere", |l| {
        let saw = format!("{:?}", raw::disconnect(&l.a));
        l.note("disconnect", &saw);
        l.recv(10);
        let listener = listen(&l.mode.sockets());
        let to = listener.local_addr().expect("getsockname");
        let saw = format!(
            "{:?}",
            socket::connect(l.a.as_raw_fd(), &SockaddrStorage::from(to))
        );
        l.note("connect", &saw);
        let old = std::mem::replace(&mut l.b, accept(&listener, &l.mode.sockets()));
        for _ in 0..10 {
            l.send("to the new one");
            l.recv(100);
            l.mirror();
            l.send("from the new one");
            l.recv(100);
            l.mirror();
        }
        let fd = old.as_raw_fd();
        let saw = result(socket::recv(fd, &mut [0; 10], MsgFlags::MSG_DONTWAIT));
        l.note("the old one", &saw);
    }),
    case("unread data, then connect(AF_UNSPEC)", |l| {
        l.mirror();
        l.send("for the old connection");
        l.poll();
        l.mirror();
        raw::disconnect(&l.a).expect("disconnect");
        let listener = listen(&l.mode.sockets());
        let to = listener.local_addr().expect("getsockname");
        let _ = socket::connect(l.a.as_raw_fd(), &SockaddrStorage::from(to));
        l.b = accept(&listener, &l.mode.sockets());
        l.mirror();
        l.send("new");
        l.recv(100);
    }),
    // Last: they exclude this process.
    splicing(on_the_stack("splice, tried before anything comes", |l| {
        let (out, into) = pipe2(OFlag::O_NONBLOCK).expect("pipe");
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        brief(&l.b);
        let saw = result(splice(&l.b, None, &into, None, 100, flags));
        l.note("nothing there", &saw);
        l.send("hello");
        spliced(l, &out, &into);
    })),
    splicing(case("splice after poll", |l| {
        let (out, into) = pipe2(OFlag::O_NONBLOCK).expect("pipe");
        l.send("hello");
        spliced(l, &out, &into);
    })),
];

/// How connections end, and what is still unread then.
const ENDS: &[Case] = &[
    case("EPOLLRDHUP", |l| {
        l.send("last");
        l.a.shutdown(Shutdown::Write).expect("shutdown");
        l.poll();
        // Data that is redirected may be there before the FIN.
        let end = watch(&l.b, EpollFlags::EPOLLRDHUP);
        let _ = end.wait(&mut [EpollEvent::empty()], EpollTimeout::from(1000_u16));
        let watch = watch(&l.b, EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP);
        let saw = events(&watch);
        l.note("epoll", &saw);
        l.recv(10);
        l.recv(10);
    }),
    on_the_stack("EPOLLHUP", |l| {
        l.a.shutdown(Shutdown::Write).expect("shutdown");
        l.recv(10);
        l.b.shutdown(Shutdown::Write).expect("shutdown");
        let watch = watch(&l.b, EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP);
        let saw = events(&watch);
        l.note("epoll", &saw);
    }),
    case("last data before close", |l| {
        l.send("last");
        close(&mut l.a);
        l.recv(10);
        l.recv(10);
    }),
    case("much data before close", |l| {
        for _ in 0..50 {
            l.send("a line of text that is to be there\n");
        }
        close(&mut l.a);
        let mut sum = 0;
        let end = loop {
            match recv_as(&l.b, l.mode, 100, MsgFlags::empty()) {
                end if !end.starts_with('"') || end == "\"\"" => break end,
                text => sum += text.replace("\\n", "\n").len() - 2,
            }
        };
        l.note("received", &format!("{sum}, then {end}"));
    }),
    case("close with unread data", |l| {
        l.send("nobody reads this");
        l.poll();
        close(&mut l.b);
        l.mirror();
        l.recv(10);
    }),
    case("send to a closed peer", |l| {
        l.send("x");
        l.recv(10);
        close(&mut l.b);
        wait_at_most(&l.a, PollFlags::POLLIN, 1000);
        l.send("first");
        wait_at_most(&l.a, PollFlags::POLLERR, 1000);
        l.send("second");
        l.send("third");
    }),
    case("reset with unread data", |l| {
        l.send("unread");
        l.poll();
        reset(&mut l.a);
        wait_at_most(&l.b, PollFlags::POLLERR, 1000);
        l.recv(10);
        l.recv(10);
        l.recv(10);
    }),
    case("reset with part of it read", |l| {
        l.send("read, ");
        l.send("unread");
        l.poll();
        l.recv(4);
        reset(&mut l.a);
        wait_at_most(&l.b, PollFlags::POLLERR, 1000);
        l.recv(10);
        l.recv(10);
    }),
    case("reset by the one that has unread data", |l| {
        l.send("unread");
        l.poll();
        reset(&mut l.b);
        wait_at_most(&l.a, PollFlags::POLLERR, 1000);
        l.mirror();
        l.recv(10);
        l.recv(10);
    }),
    case("FIN_WAIT2 with unread data", |l| {
        l.send("unread, ");
        l.poll();
        fin_wait_2(l);
        l.send("more, ");
        l.recv(3);
        l.send("the last");
        close(&mut l.a);
        // Its connection is over, for TCP, with most of it unread.
        wait_at_most(&l.b, PollFlags::POLLHUP, 1000);
        for _ in 0..4 {
            l.recv(8);
        }
    }),
    case("reset in FIN_WAIT2 with unread data", |l| {
        l.send("unread");
        l.poll();
        fin_wait_2(l);
        l.send("more");
        reset(&mut l.a);
        wait_at_most(&l.b, PollFlags::POLLERR, 1000);
        l.recv(10);
        l.recv(10);
    }),
    case("close in FIN_WAIT2 with unread data", |l| {
        l.send("nobody reads this");
        l.poll();
        fin_wait_2(l);
        close(&mut l.b);
        wait_at_most(&l.a, PollFlags::POLLERR, 1000);
        l.send("first");
        wait_at_most(&l.a, PollFlags::POLLERR, 1000);
        l.send("second");
    }),
    case("shutdown, then send", |l| {
        l.send("last");
        l.a.shutdown(Shutdown::Write).expect("shutdown");
        l.send("more");
        l.recv(10);
        l.recv(10);
    }),
    case("half-close, then an answer", |l| {
        l.send("request");
        l.a.shutdown(Shutdown::Write).expect("shutdown");
        l.recv(10);
        l.recv(10);
        l.mirror();
        l.send("answer");
        l.recv(10);
    }),
    cold("the FIN is acknowledged while in recv", |l| {
        let sent = much_unread(l);
        // Behind what is unread, where it is not acknowledged yet.
        l.b.shutdown(Shutdown::Write).expect("shutdown");
        l.receiving(10, MsgFlags::empty(), |l, receiver| {
            drain(l, sent);
            reaches(&l.b, TCP_FIN_WAIT2);
            receiver.settles();
            l.send("answer");
        });
    }),
    case("shutdown for writing while in recv", |l| {
        l.send("request");
        l.recv(10);
        l.receiving(10, MsgFlags::empty(), |l, receiver| {
            l.b.shutdown(Shutdown::Write).expect("shutdown");
            receiver.settles();
            l.send("answer");
        });
    }),
    case("shutdown for reading while in recv", |l| {
        l.send("first");
        l.recv(10);
        shut_down(l, Shutdown::Read);
    }),
    case("shutdown for both while in recv", |l| {
        l.send("first");
        l.recv(10);
        shut_down(l, Shutdown::Both);
    }),
    cold("shutdown while in recv, before any data", |l| {
        shut_down(l, Shutdown::Read);
    }),
    case("close while in recv", |l| {
        l.send("first");
        l.recv(10);
        l.receiving(10, MsgFlags::empty(), |l, _| close(&mut l.a));
        l.recv(10);
    }),
    case(END_FOR_TWO, |l| {
        l.send("first");
        l.recv(10);
        if l.mode != Mode::NonBlocking {
            let end = |l: &mut Link| l.a.shutdown(Shutdown::Write).expect("shutdown");
            l.two_receiving(end, |_| {});
        }
    }),
    case("reset while in recv", |l| {
        l.send("first");
        l.recv(10);
        l.receiving(10, MsgFlags::empty(), |l, _| reset(&mut l.a));
        l.recv(10);
    }),
    cold("reset while in recv, before any data", |l| {
        l.receiving(10, MsgFlags::empty(), |l, _| reset(&mut l.a));
        l.recv(10);
    }),
    cold("a timeout while in recv", |l| {
        if l.mode == Mode::NonBlocking {
            return;
        }
        much_unread(l);
        l.receiving(10, MsgFlags::empty(), |l, _| {
            let saw = set(&l.b, libc::SOL_TCP, libc::TCP_USER_TIMEOUT, 1);
            l.note("set", &saw);
            reaches(&l.b, TCP_CLOSE);
        });
        l.recv(10);
    }),
    on_the_stack("connect(AF_UNSPEC) while in recv", |l| {
        l.receiving(10, MsgFlags::empty(), |l, _| {
            let saw = format!("{:?}", raw::disconnect(&l.b));
            l.note("disconnect", &saw);
        });
        l.recv(10);
    }),
    case("shutdown of the receiver", |l| {
        l.send("unread");
        l.poll();
        l.b.shutdown(Shutdown::Read).expect("shutdown");
        l.recv(10);
        l.recv(10);
        l.send("more");
        // It is always readable now, also while ksoftirqd has the packet still.
        raw::acknowledged(&l.a);
        l.poll();
        l.recv(10);
        l.recv(10);
    }),
];

impl Link {
    /// From here on the other end sends.
    fn mirror(&mut self) {
        std::mem::swap(&mut self.a, &mut self.b);
    }
}

fn set(stream: &TcpStream, level: i32, name: i32, value: i32) -> String {
    format!(
        "{:?}",
        raw::set_option(stream, level, name, &value.to_ne_bytes())
    )
}

/// Closes one end; a connection to itself takes its place.
fn close(stream: &mut TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let other = TcpStream::connect(listener.local_addr().expect("getsockname")).expect("connect");
    drop(std::mem::replace(stream, other));
}

/// Lingers for 0 seconds: close sends RST.
fn reset(stream: &mut TcpStream) {
    let linger = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
    raw::set_option(&*stream, libc::SOL_SOCKET, libc::SO_LINGER, &linger).expect("SO_LINGER");
    close(stream);
}

/// `linux/tcp_states.h`
const TCP_FIN_WAIT2: u8 = 5;
const TCP_CLOSE: u8 = 7;

fn reaches(stream: &TcpStream, state: u8) {
    Deadline::seconds(20).until("the state", || raw::tcp_state(stream) == state);
}

/// The receiver will send no more, and its peer knows.
fn fin_wait_2(l: &mut Link) {
    l.b.shutdown(Shutdown::Write).expect("shutdown");
    l.mirror();
    l.recv(10);
    l.mirror();
    // The FIN is acknowledged some time.
    reaches(&l.b, TCP_FIN_WAIT2);
}

fn watch(stream: &TcpStream, events: EpollFlags) -> Epoll {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
    epoll
        .add(stream, EpollEvent::new(events, 0))
        .expect("epoll_ctl");
    epoll
}

fn events(epoll: &Epoll) -> String {
    let mut got = [EpollEvent::empty()];
    match epoll.wait(&mut got, EpollTimeout::from(200_u16)) {
        Ok(0) => "none".to_owned(),
        Ok(_) => format!("{:?}", got[0].events()),
        Err(e) => format!("{e:?}"),
    }
}

fn epoll(l: &mut Link, flags: EpollFlags) {
    let watch = watch(&l.b, flags);
    let look = |l: &mut Link, what: &str| {
        let saw = events(&watch);
        l.note(what, &saw);
    };
    look(l, "nothing there");
    l.send("hello");
    look(l, "hello");
    look(l, "again");
    l.recv(2);
    look(l, "part read");
    l.send("more");
    look(l, "more");
    l.recv(3);
    l.recv(10);
    look(l, "all read");
}

/// Blocking sockets block in splice, whatever its flags.
fn brief(stream: &TcpStream) {
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("SO_RCVTIMEO");
}

/// What splice(2) gives within a while.
fn spliced(l: &mut Link, out: &std::os::fd::OwnedFd, into: &std::os::fd::OwnedFd) {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
    let mut saw = String::new();
    brief(&l.b);
    for _ in 0..20 {
        wait_at_most(&l.b, PollFlags::POLLIN, 100);
        saw = result(splice(&l.b, None, into, None, 100, flags));
        if saw != "EAGAIN" {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    l.note("splice", &saw);
    let mut buffer = [0; 100];
    if let Ok(n) = read(out, &mut buffer) {
        l.note("pipe", &String::from_utf8_lossy(&buffer[..n]));
    }
}

/// Fills the send buffer of one end.
fn fill(from: &TcpStream) -> usize {
    let (bytes, mut sent) = ([b'f'; 16 << 10], 0);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match socket::send(from.as_raw_fd(), &bytes, flags) {
            Ok(n) => sent += n,
            Err(Errno::EAGAIN) => return sent,
            Err(e) => panic!("send after {sent}: {e}"),
        }
    }
}

/// The peer reads so much, and the receiver knows.
fn drain(l: &Link, sent: usize) {
    let deadline = Deadline::seconds(20);
    recv_all(&l.a, &mut vec![0; sent], deadline);
    raw::acknowledged(&l.b);
    // Takes the lock under which that wakes.
    raw::tcp_state(&l.b);
}

/// The receiver of the case sends more than fits into the window of its peer, which does
/// not read; its own buffer has space left.
fn much_unread(l: &mut Link) -> usize {
    set(&l.a, libc::SOL_SOCKET, libc::SO_RCVBUF, 64 << 10);
    let (bytes, flags) = ([b'm'; 16 << 10], MsgFlags::MSG_DONTWAIT);
    let send = |_| socket::send(l.b.as_raw_fd(), &bytes, flags).expect("send");
    (0..32).map(send).sum()
}

/// The peer reads all that makes the receiver's buffer too full, while that is in recv;
/// `before` may find out that it is, and tells what more it has sent.
fn space_is_freed(l: &mut Link, before: fn(&mut Link) -> usize) {
    let mut sent = much_unread(l);
    set(&l.b, libc::SOL_SOCKET, libc::SO_SNDBUF, 1);
    sent += before(l);
    l.receiving(10, MsgFlags::empty(), |l, receiver| {
        drain(l, sent);
        receiver.settles();
        l.send("hello");
    });
}

/// Two wait for one message each, and one message wakes both.
fn two_receive(l: &mut Link) {
    // A second one that polls may get EAGAIN by TCP, too.
    if l.mode != Mode::NonBlocking {
        l.two_receiving(|l| l.send("hello"), |l| l.send("hello"));
    }
}

fn shut_down(l: &mut Link, how: Shutdown) {
    l.receiving(10, MsgFlags::empty(), |l, _| {
        l.b.shutdown(how).expect("shutdown");
    });
    l.recv(10);
}

/// Stops this process until the thread has stopped.
fn stop_and_continue(tid: Pid) {
    // Not for ever: nobody else would let it go on.
    let script = "kill -STOP $0
        for _ in $(seq 1000); do
            ! grep -q 'T (stopped)' /proc/$0/task/$1/status || break
        done
        kill -CONT $0";
    let ids = [getpid(), tid].map(|id| id.to_string());
    let ended = Command::new("sh").args(["-c", script]).args(ids).status();
    assert!(ended.expect("sh").success());
}

/// A difference that may be, and where the manual has it: an entry of KNOWN LIMITS by
/// its head, one of BLOCKING READERS by its words.
struct Known {
    case: &'static str,
    modes: &'static [Mode],
    row: &'static str,
}

impl Known {
    /// A blocking program that tries again on EAGAIN gets what TCP gives.
    fn goes_on_as(&self, plain: &str, accelerated: &str) -> bool {
        const EAGAIN: &str = "recv: EAGAIN; ";
        self.modes != ONLY_BLOCKING
            || !accelerated.contains(EAGAIN)
            || accelerated.replace(EAGAIN, "") == plain
    }
}

const ANY: &[Mode] = &[Mode::NonBlocking, Mode::Blocking];
const ONLY_BLOCKING: &[Mode] = &[Mode::Blocking];

/// Wakes a blocking recv, which returns EAGAIN.
const fn wakes(case: &'static str, row: &'static str) -> Known {
    Known {
        case,
        modes: ONLY_BLOCKING,
        row,
    }
}

/// Which of them a kernel has differs: see docs/kernels.md.
const FIONREAD: &str = "FIONREAD of TCP's bytes";
const FIONREAD_REDIRECTED: &str = "FIONREAD of redirected bytes";
/// These take two threads to meet.
const READS_FIRST_FROM_STACK: &str = "another thread reads first, from the stack";
const END_FOR_TWO: &str = "the end of the stream wakes two";

const UNCERTAIN: &[&str] = &[
    FIONREAD,
    FIONREAD_REDIRECTED,
    READS_FIRST_FROM_STACK,
    END_FOR_TWO,
];

// What BLOCKING READERS says of them.
const SIGNAL: &str = "on a signal, also where its handler has SA_RESTART, and when the \
                      program is stopped and goes on, as by SIGSTOP, a debugger or the freezer \
                      of cgroups";
const FAILS: &str = "when the connection fails, as by a reset or a timeout";
const SHUT_DOWN: &str = "when another thread shuts the socket down, for reading or for writing";
const FIN: &str = "when the FIN of an earlier half-close is acknowledged";
const OTHER_READS: &str = "when another thread that slept, too, was first to read what woke \
                           both: data or the end of the stream";
const SPACE: &str = "when buffer space is freed after a send, or a poll for whatever event, \
                     found too little of it, also before the recv";

const KNOWN: &[Known] = &[
    Known {
        case: "MSG_WAITALL",
        modes: ONLY_BLOCKING,
        row: "MSG_WAITALL returns short",
    },
    Known {
        case: "MSG_OOB",
        modes: ANY,
        row: "MSG_OOB",
    },
    Known {
        case: "splice after poll",
        modes: ANY,
        row: "The first connection of a relay that splices late",
    },
    Known {
        case: "close with unread data",
        modes: ANY,
        row: "close with unread data",
    },
    Known {
        case: "close in FIN_WAIT2 with unread data",
        modes: ANY,
        row: "close with unread data",
    },
    Known {
        case: FIONREAD,
        modes: ANY,
        row: "FIONREAD",
    },
    Known {
        case: FIONREAD_REDIRECTED,
        modes: ANY,
        row: "FIONREAD",
    },
    Known {
        case: "recv of nothing",
        modes: ANY,
        row: "recv(2) of 0 bytes, and MSG_TRUNC",
    },
    Known {
        case: "MSG_TRUNC without a buffer",
        modes: ANY,
        row: "recv(2) of 0 bytes, and MSG_TRUNC",
    },
    Known {
        case: "MSG_OOB without urgent data",
        modes: ANY,
        row: "MSG_OOB",
    },
    wakes("a signal while in recv", SIGNAL),
    wakes("a stop while in recv", SIGNAL),
    wakes("another thread reads first", OTHER_READS),
    wakes(READS_FIRST_FROM_STACK, OTHER_READS),
    wakes(END_FOR_TWO, OTHER_READS),
    wakes("reset while in recv", FAILS),
    wakes("reset while in recv, before any data", FAILS),
    wakes("a timeout while in recv", FAILS),
    wakes("shutdown for writing while in recv", SHUT_DOWN),
    wakes("shutdown for reading while in recv", SHUT_DOWN),
    wakes("shutdown for both while in recv", SHUT_DOWN),
    wakes("shutdown while in recv, before any data", SHUT_DOWN),
    wakes("the FIN is acknowledged while in recv", FIN),
    wakes("a send lacks buffer space while in recv", SPACE),
    wakes("a send lacks buffer space before recv", SPACE),
    wakes("a poll lacks buffer space before recv", SPACE),
];

/// In a story that could not be told to its end.
const PANICKED: &str = "panicked";

/// How often a difference that depends on time is looked for.
const TRIES: u32 = 3;

/// The story of one case on one connection.
fn tell(case: &Case, mode: Mode, pair: Pair) -> String {
    let mut link = Link::new(pair, mode);
    let run = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut link)));
    if run.is_err() {
        link.note("the case", PANICKED);
    }
    link.story
}

fn oriented(pair: Pair, server_sends: bool) -> Pair {
    if server_sends { pair.swapped() } else { pair }
}

/// No more is listed than there is: what is, and does not differ by trying again either.
fn never_seen(
    cgroup: &Cgroup,
    mode: Mode,
    cases: &[Case],
    plain: &[String],
    differ: &BTreeSet<&str>,
) -> Vec<String> {
    let sides = cases.iter().flat_map(|case| [(case, false), (case, true)]);
    let told: Vec<_> = sides.zip(plain).collect();
    KNOWN
        .iter()
        .filter(|known| known.modes.contains(&mode) && !UNCERTAIN.contains(&known.case))
        .filter(|known| cases.iter().any(|case| case.name == known.case))
        .filter(|known| !differ.contains(known.case))
        .filter(|known| {
            // From the one before this process may be excluded.
            let instance = mode.enable(cgroup);
            let differs = |((case, side), plain): &((&Case, bool), &String)| {
                let pair = Pair::with(&mode.sockets());
                if !case.cold {
                    warm_up(&instance, &pair);
                }
                tell(case, mode, oriented(pair, *side)) != **plain
            };
            let of_case = told.iter().filter(|((case, _), _)| case.name == known.case);
            !(0..TRIES).any(|_| of_case.clone().any(differs))
        })
        .map(|known| format!("{}: listed, and never seen", known.case))
        .collect()
}

fn compare(name: &str, mode: Mode, cases: &[Case]) {
    let sides = [false, true];
    let plain: Vec<String> = cases
        .iter()
        .flat_map(|case| sides.map(|side| (case, side)))
        .map(|(case, side)| {
            let pair = oriented(Pair::with(&mode.sockets()), side);
            if !case.cold {
                round_trip(&pair);
            }
            tell(case, mode, pair)
        })
        .collect();

    let cgroup = Cgroup::new(name);
    let mut instance = mode.enable(&cgroup);
    let _joined = cgroup.join();
    let mut failures = Vec::new();
    let mut differ = BTreeSet::new();
    for ((case, side), plain) in cases
        .iter()
        .flat_map(|case| sides.map(|side| (case, side)))
        .zip(&plain)
    {
        if case.splices {
            drop(instance);
            instance = mode.enable(&cgroup);
        }
        let what = format!(
            "{} ({} sends)",
            case.name,
            if side { "server" } else { "client" }
        );
        let pair = Pair::with(&mode.sockets());
        if !case.cold && mode == Mode::Skipped {
            round_trip(&pair);
        } else if !case.cold
            && catch_unwind(AssertUnwindSafe(|| warm_up(&instance, &pair))).is_err()
        {
            failures.push(format!("{what}: not redirected to begin with"));
            continue;
        }
        let before = instance.stats();
        let accelerated = tell(case, mode, oriented(pair, side));
        let after = instance.stats();
        let redirected = after.delta(&before, "redirected_messages");
        if mode == Mode::Skipped {
            if redirected > 0 {
                failures.push(format!("{what}: redirected, although it is blocking"));
            }
        } else if case.redirects && redirected == 0 {
            failures.push(format!("{what}: nothing was redirected: {}", after.0));
        }
        if plain.contains(PANICKED) {
            failures.push(format!("{what}: cannot be told on plain TCP: {plain}"));
        }
        let known = KNOWN
            .iter()
            .find(|known| known.case == case.name && known.modes.contains(&mode));
        match known {
            Some(known) if *plain == accelerated => {
                println!("{what}: as plain TCP this time, although \"{}\"", known.row);
            }
            Some(known) => {
                differ.insert(known.case);
                println!("{what}: {}\n  {accelerated}", known.row);
                if !known.goes_on_as(plain, &accelerated) {
                    failures.push(format!("{what}, after EAGAIN: {accelerated}"));
                }
            }
            None if *plain == accelerated => {}
            None => failures.push(format!(
                "{what}\n        plain TCP: {plain}\n      accelerated: {accelerated}"
            )),
        }
    }
    drop(instance);
    failures.extend(never_seen(&cgroup, mode, cases, &plain, &differ));
    assert!(
        failures.is_empty(),
        "{mode:?}, {} differences:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn nonblocking_programs_see_what_tcp_shows() {
    compare("semantics", Mode::NonBlocking, CASES);
}

#[test]
fn nonblocking_programs_see_the_ends_that_tcp_shows() {
    compare("semantics-ends", Mode::NonBlocking, ENDS);
}

#[test]
fn blocking_programs_see_what_tcp_shows() {
    compare("semantics-skip", Mode::Skipped, CASES);
    compare("semantics-skip", Mode::Skipped, ENDS);
}

#[test]
fn accelerated_blocking_programs_differ_only_as_documented() {
    compare("semantics-blocking", Mode::Blocking, CASES);
}

#[test]
fn ends_of_accelerated_blocking_programs_differ_only_as_documented() {
    compare("semantics-blocking-ends", Mode::Blocking, ENDS);
}

/// The words of a section of the manual, a line for each entry of its lists.
fn entries(section: &str) -> Vec<String> {
    let manual = include_str!("../man/sockaccel.8");
    let heading = format!(".Sh {section}");
    let lines = manual.lines().skip_while(|line| *line != heading).skip(1);
    let mut found: Vec<String> = Vec::new();
    let mut inside = false;
    for line in lines.take_while(|line| !line.starts_with(".Sh ")) {
        if let Some(head) = line.strip_prefix(".It") {
            inside = true;
            found.push(head.trim_start_matches(" Sy ").to_owned());
        } else if [".El", ".Ss", ".Pp"]
            .iter()
            .any(|end| line.starts_with(end))
        {
            inside = false;
        } else if let (true, Some(entry)) = (inside, found.last_mut()) {
            let text = [".Dv ", ".Er ", ".Xr "]
                .iter()
                .find_map(|mark| line.strip_prefix(mark))
                .unwrap_or(line);
            let space = if entry.is_empty() || text.starts_with(['.', ',']) {
                ""
            } else {
                " "
            };
            *entry = format!(
                "{entry}{space}{}",
                text.replace(" .", ".").replace(" ,", ",")
            );
        }
    }
    found
}

#[test]
fn known_differences_name_cases_and_are_those_of_the_manual() {
    let limits = entries("KNOWN LIMITS");
    for known in KNOWN {
        let case = known.case;
        assert!(
            CASES.iter().chain(ENDS).any(|one| one.name == case),
            "{case}"
        );
        let listed = limits.iter().any(|entry| entry.starts_with(known.row));
        assert!(listed || known.modes == ONLY_BLOCKING, "{case}: {limits:?}");
    }
    let entries = entries("BLOCKING READERS");
    let mut listed: Vec<&str> = entries
        .iter()
        .map(|entry| entry.trim_end_matches(['.', ';']))
        .collect();
    let blocking = KNOWN.iter().filter(|known| known.modes == ONLY_BLOCKING);
    let mut tested: Vec<&str> = blocking.map(|known| known.row).collect();
    listed.sort_unstable();
    tested.sort_unstable();
    tested.dedup();
    assert_eq!(listed, tested);
}

/// An event loop that once reads with the socket set to block, while signals come in:
/// as redis does with `repl-diskless-load`. Before, it gets so many messages.
fn blocks_later(pair: Pair, messages: usize, settled: &dyn Fn()) -> String {
    raw::handle_usr1();
    pair.server.set_nonblocking(false).expect("O_NONBLOCK");
    let mut link = Link::new(pair, Mode::Blocking);
    for _ in 0..messages {
        link.send("hello");
        link.recv(10);
    }
    settled();
    link.receiving_signals();
    link.story
}

/// How many messages come, and whether it is plain TCP then.
fn blocks_once_redirected(messages: usize, leaves: bool) {
    let plain = blocks_later(Pair::new(), messages, &|| ());
    let cgroup = Cgroup::new("blocks-later");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let before = instance.stats();
    let accelerated = blocks_later(pair, messages, &|| {
        if leaves {
            let is_out = || instance.dump("sockhash").is_empty();
            Deadline::seconds(10).until("both ends leave", is_out);
        }
    });
    assert_eq!(instance.stats().delta(&before, "redirected_messages"), 0);
    assert!(!plain.contains("EAGAIN"), "{plain}");
    if leaves {
        assert_eq!(accelerated, plain);
    } else {
        assert!(accelerated.contains("EAGAIN"), "not listed: {accelerated}");
    }
}

#[test]
fn a_socket_that_blocks_once_it_is_redirected_is_plain_tcp_after_a_message() {
    blocks_once_redirected(1, true);
    blocks_once_redirected(3, true);
}

#[test]
fn a_socket_that_blocks_once_it_is_redirected_differs_as_documented() {
    blocks_once_redirected(0, false);
    let row = "A socket that is set to block once it is redirected";
    assert!(
        entries("KNOWN LIMITS")
            .iter()
            .any(|entry| entry.starts_with(row))
    );
}

/// When the client's first message comes.
#[derive(Debug, Clone, Copy)]
enum First {
    BeforeAccept,
    AfterAccept,
    Never,
}

/// A program that accepts blocking sockets and only receives, while signals
/// come in; the client is an event loop. The story of one connection.
///
/// Of a listener's first child it is not known before accept(2) how it reads;
/// `settled` waits for that to be seen, which takes some milliseconds.
fn only_receives(listener: &TcpListener, first: First, settled: &dyn Fn()) -> String {
    raw::handle_usr1();
    let client = connect(
        listener.local_addr().expect("getsockname"),
        &Options::default(),
    );
    let say = |link: &mut Link| {
        link.send("hello");
    };
    let (hello, waiting) = (matches!(first, First::BeforeAccept), Deadline::seconds(5));
    if hello {
        socket::send(client.as_raw_fd(), b"hello", MsgFlags::MSG_NOSIGNAL).expect("send");
    }
    waiting.wait(listener, PollFlags::POLLIN, "accept");
    let (server, _) = listener.accept().expect("accept");
    server.set_nonblocking(false).expect("O_NONBLOCK");
    settled();
    let mut link = Link::new(Pair { client, server }, Mode::Blocking);
    if matches!(first, First::AfterAccept) {
        say(&mut link);
    }
    if !matches!(first, First::Never) {
        link.recv(10);
    }
    for _ in 0..3 {
        link.receiving_signals();
    }
    link.story
}

#[test]
fn a_blocking_program_that_only_receives_is_left_alone_by_signals() {
    let cases: Vec<(bool, First)> = [true, false]
        .into_iter()
        .flat_map(|listener| {
            [First::BeforeAccept, First::AfterAccept, First::Never].map(|first| (listener, first))
        })
        .collect();
    let stories = |settled: &dyn Fn()| -> Vec<String> {
        cases
            .iter()
            .flat_map(|&(nonblocking, first)| {
                let options = Options {
                    server_nonblocking: nonblocking,
                    ..Options::default()
                };
                // The second connection is one the listener is known by.
                let listener = listen(&options);
                [0, 1].map(|n| {
                    format!(
                        "listener nonblocking: {nonblocking}, first message: {first:?}, \
                         connection {n}: {}",
                        only_receives(&listener, first, settled)
                    )
                })
            })
            .collect()
    };
    let plain = stories(&|| {});
    let cgroup = Cgroup::new("only-receives");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let enabled = stories(&|| {
        Deadline::seconds(5).until("the blocking reader to be seen", || {
            let sockets = instance.dump("sockhash");
            sockets.iter().all(|socket| socket["role"] != "passive")
        });
    });
    println!("{}", instance.stats().0);
    let different: Vec<String> = plain
        .into_iter()
        .zip(enabled)
        .filter(|(plain, enabled)| plain != enabled)
        .map(|(plain, enabled)| format!("  plain TCP: {plain}\n    enabled: {enabled}"))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// A program that connects with a time limit: `O_NONBLOCK` while it connects, and
/// blocking afterwards, `late` where it had to wait for a processor. It only receives,
/// while signals come in; the server is an event loop. The story of one connection.
fn connects_with_a_timeout(
    listener: &TcpListener,
    first: First,
    late: Duration,
    settled: &dyn Fn(),
) -> String {
    raw::handle_usr1();
    let to = listener.local_addr().expect("getsockname");
    let client = connect(to, &Options::default());
    let accepted = matches!(first, First::Never).then(|| accept(listener, &Options::default()));
    thread::sleep(late);
    client.set_nonblocking(false).expect("O_NONBLOCK");
    if matches!(first, First::BeforeAccept) {
        socket::send(client.as_raw_fd(), b"hello", MsgFlags::MSG_NOSIGNAL).expect("send");
    }
    let server = accepted.unwrap_or_else(|| accept(listener, &Options::default()));
    if matches!(first, First::BeforeAccept) {
        recv_all(&server, &mut [0; 5], Deadline::seconds(5));
    }
    settled();
    let mut link = Link::new(
        Pair {
            client: server,
            server: client,
        },
        Mode::Blocking,
    );
    if matches!(first, First::AfterAccept) {
        link.send("hello");
        link.recv(10);
    }
    for _ in 0..3 {
        link.receiving_signals();
    }
    link.story
}

#[test]
fn a_program_that_connects_with_a_timeout_is_left_alone_by_signals() {
    let stories = |known: &dyn Fn(&TcpListener), settled: &dyn Fn()| -> Vec<String> {
        let mut all = Vec::new();
        for learned in [false, true] {
            for first in [First::BeforeAccept, First::AfterAccept, First::Never] {
                let listener = listen(&Options::default());
                if learned {
                    known(&listener);
                }
                for late in [0, 0, 100].map(Duration::from_millis) {
                    all.push(format!(
                        "listener known: {learned}, first message: {first:?}, late: {late:?}: {}",
                        connects_with_a_timeout(&listener, first, late, settled)
                    ));
                }
            }
        }
        all
    };
    let plain = stories(&|_| {}, &|| {});
    let cgroup = Cgroup::new("timeout");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let enabled = stories(
        // By connections of event loops, that its children do not block.
        &|listener| warm_up(&instance, &Pair::on(listener, &Options::default())),
        &|| {
            Deadline::seconds(5).until("the blocking reader to be seen", || {
                instance.dump("sockhash").is_empty()
            });
        },
    );
    println!("{}", instance.stats().0);
    assert_eq!(instance.stats().by_reason("ejected", "blocking_reader"), 36);
    let different: Vec<String> = plain
        .into_iter()
        .zip(enabled)
        .filter(|(plain, enabled)| plain != enabled)
        .map(|(plain, enabled)| format!("  plain TCP: {plain}\n    enabled: {enabled}"))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

//! `top` on a terminal of the test's own, and every command with ten thousand
//! connections.

mod common;

use std::fs::File;
use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::num::NonZero;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::pty::Winsize;
use nix::pty::openpty;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::epoll::EpollTimeout;
use nix::sys::resource::Resource;
use nix::sys::resource::UsageWho;
use nix::sys::resource::getrlimit;
use nix::sys::resource::getrusage;
use nix::sys::resource::setrlimit;
use nix::sys::signal::Signal;
use nix::sys::termios::Termios;
use nix::sys::termios::tcgetattr;
use nix::sys::time::TimeVal;
use nix::sys::time::TimeValLike as _;
use nix::unistd::SysconfVar;
use nix::unistd::sysconf;

use common::adopt::works_here;
use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::helper;
use common::helper::Channel;
use common::helper::Helper;
use common::instance::Instance;
use common::instance::sockaccel;
use common::pair::Options;
use common::pair::Pair;
use common::pair::connect;
use common::pair::listen;
use common::privileges::with_only;
use common::process::Process;
use common::stream::recv_all;
use common::stream::send_all;
use common::warm::round_trip;
use common::warm::warm_up;

const ROWS: u16 = 24;
const COLUMNS: u16 = 160;

fn cells(n: u16) -> NonZero<u16> {
    NonZero::new(n).expect("a size")
}

/// `top` on a pseudo-terminal.
struct Top {
    child: Process,
    keyboard: File,
    /// Kept open, so that what the terminal was set to can be seen at the end.
    terminal: OwnedFd,
    before: Termios,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Top {
    fn start(instance: &Instance, args: &[&str]) -> Self {
        let size = Winsize {
            ws_row: ROWS,
            ws_col: COLUMNS,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).expect("a pseudo-terminal");
        let before = tcgetattr(&pty.slave).expect("its settings");
        let end = || pty.slave.try_clone().expect("a descriptor");
        let child = Process::start(
            Command::new(env!("CARGO_BIN_EXE_sockaccel"))
                .args(["top", "--instance", instance.name()])
                .args(args)
                .env("TERM", "xterm")
                .env_remove("NO_COLOR")
                .stdin(end())
                .stdout(end())
                .stderr(end()),
        );
        let keyboard = File::from(pty.master);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(
            cells(ROWS),
            cells(COLUMNS),
            0,
        )));
        let (to, mut from) = (Arc::clone(&screen), keyboard.try_clone().expect("a copy"));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                to.lock().expect("not poisoned").process(&buffer[..n]);
            }
        });
        Self {
            child,
            keyboard,
            terminal: pty.slave,
            before,
            screen,
        }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typed");
    }

    fn text(&self) -> String {
        self.screen
            .lock()
            .expect("not poisoned")
            .screen()
            .contents()
    }

    /// Waits until the screen shows it.
    fn shows(&self, what: &str) {
        self.until(what, |text| text.contains(what));
    }

    fn until(&self, what: &str, holds: impl Fn(&str) -> bool) {
        let deadline = Deadline::seconds(60);
        while !holds(&self.text()) {
            assert!(!deadline.passed(), "no {what} on\n{}", self.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its end: the exit status, with the terminal as it was found.
    fn ended(&mut self, how: &str) -> Option<i32> {
        let code = self.child.ended(Deadline::seconds(60)).code();
        let after = tcgetattr(&self.terminal).expect("its settings");
        assert_eq!(after, self.before, "{how}");
        Deadline::seconds(60).until(&format!("{how}: the first screen"), || {
            let parser = self.screen.lock().expect("not poisoned");
            !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
        });
        code
    }
}

#[test]
#[ignore = "the body of the helper processes"]
fn helper_process() {
    helper::main(&[("echo", echo)]);
}

#[test]
fn live_connections_are_shown() {
    let cgroup = Cgroup::new("top");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let blocking = Pair::with(&Options {
        client_nonblocking: false,
        ..Options::default()
    });
    let mut top = Top::start(&instance, &["--interval", "0.2"]);
    let client = pair.client.local_addr().expect("a name").to_string();
    let server = pair.server.local_addr().expect("a name").to_string();
    top.shows("1 connections, 1 redirected both ways");
    let own = std::process::id();
    let name = std::fs::read_to_string("/proc/self/comm").expect("a name");
    for part in [
        &*client,
        &server,
        "redirect>redirect",
        &format!("{own}>{own}"),
        &format!("{0}>{0}", name.trim_end()),
        "peer_not_eligible 1",
        "blocking_reader 1",
    ] {
        top.shows(part);
    }
    top.until("the rate of this traffic", |text| {
        for _ in 0..10 {
            round_trip(&pair);
        }
        let line = text.lines().find(|line| line.contains(&client));
        let rate = line.and_then(|line| line.split_whitespace().nth(5));
        rate.is_some_and(|rate| rate != "0" && rate.starts_with(|c: char| c.is_ascii_digit()))
    });
    top.type_keys("\r");
    top.shows(&format!("{client} to {server}"));
    top.shows("1 promotion, 0 demotions");
    top.type_keys("\x1b");
    top.shows("q quit");
    top.type_keys("/nothing\r");
    top.shows("filter: nothing");
    assert!(!top.text().contains(&client), "{}", top.text());
    top.type_keys("\x1b");
    top.shows(&client);
    drop(pair);
    top.shows("0 connections");
    top.type_keys("q");
    assert_eq!(top.ended("q"), Some(0));
    drop(blocking);
}

#[test]
fn top_needs_no_capability() {
    let cgroup = Cgroup::new("top");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let mut top = with_only(&[], || Top::start(&instance, &[]));
    top.shows("1 connections, 1 redirected both ways");
    top.shows(&pair.client.local_addr().expect("a name").to_string());
    top.type_keys("q");
    assert_eq!(top.ended("q"), Some(0));
}

#[test]
fn the_terminal_is_restored_whatever_ends_it() {
    let cgroup = Cgroup::new("top");
    let instance = Instance::enable(&cgroup, &[]);
    for (how, signal) in [
        ("SIGTERM", Signal::SIGTERM),
        ("SIGINT", Signal::SIGINT),
        ("SIGHUP", Signal::SIGHUP),
        ("SIGQUIT", Signal::SIGQUIT),
    ] {
        let mut top = Top::start(&instance, &[]);
        top.shows("0 connections");
        let raw = tcgetattr(&top.terminal).expect("its settings");
        assert_ne!(raw, top.before, "raw while it runs");
        top.child.signal(signal);
        assert_eq!(top.ended(how), Some(0), "{how}");
    }
    let mut top = Top::start(&instance, &[]);
    top.shows("0 connections");
    top.type_keys("\x03");
    assert_eq!(top.ended("ctrl-c"), Some(0));

    let mut top = Top::start(&instance, &["--interval", "0.1"]);
    top.shows("0 connections");
    instance.disable().ok();
    assert_eq!(top.ended("disable"), Some(4));
    top.shows("is not enabled");
}

#[test]
fn it_follows_the_size_of_the_terminal() {
    let cgroup = Cgroup::new("top");
    let instance = Instance::enable(&cgroup, &[]);
    let mut top = Top::start(&instance, &["--interval", "3600"]);
    top.shows("i invert");
    let narrow = Winsize {
        ws_row: 5,
        ws_col: 20,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    resize(&top.terminal, narrow);
    top.screen
        .lock()
        .expect("not poisoned")
        .screen_mut()
        .set_size(cells(narrow.ws_row), cells(narrow.ws_col));
    top.child.signal(Signal::SIGWINCH);
    top.until("a screen without a head", |text| {
        text.starts_with("LOCAL") && text.contains("by messages")
    });
    top.type_keys("q");
    assert_eq!(top.ended("q"), Some(0));
}

#[allow(unsafe_code)]
fn resize(terminal: &OwnedFd, size: Winsize) {
    mod ioctl {
        nix::ioctl_write_ptr_bad!(tiocswinsz, nix::libc::TIOCSWINSZ, nix::pty::Winsize);
    }
    // SAFETY: the descriptor is open, and TIOCSWINSZ reads one `Winsize`.
    unsafe { ioctl::tiocswinsz(terminal.as_raw_fd(), &raw const size) }.expect("TIOCSWINSZ");
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let cgroup = Cgroup::new("top");
    let instance = Instance::enable(&cgroup, &[]);
    let ran = instance.run(&["top"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr.contains("dump sockhash --json"),
        "{}",
        ran.stderr
    );
    assert_eq!(instance.run(&["top", "--json"]).code, Some(2));
    assert_eq!(instance.run(&["top", "--sort", "none"]).code, Some(2));
}

/// Sends back what it reads, on as many connections as come.
fn echo(channel: &mut Channel) {
    raise_limit();
    let listener = listen(&Options::default());
    channel.say(&listener.local_addr().expect("a name").port().to_string());
    thread::spawn(move || echo_all(&listener));
    while channel.hear().is_some() {}
}

fn echo_all(listener: &TcpListener) {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
    let watch = |fd: &dyn std::os::fd::AsFd, token: u64| {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(fd.as_fd(), event).expect("EPOLL_CTL_ADD");
    };
    watch(&listener, u64::MAX);
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 1024];
    let mut buffer = [0; 4096];
    loop {
        let n = epoll
            .wait(&mut events, EpollTimeout::NONE)
            .expect("epoll_wait");
        for event in &events[..n] {
            if event.data() == u64::MAX {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).expect("O_NONBLOCK");
                    watch(&stream, streams.len() as u64);
                    streams.push(stream);
                }
            } else {
                let mut stream = &streams[usize::try_from(event.data()).expect("an index")];
                match stream.read(&mut buffer) {
                    Ok(n @ 1..) => stream.write_all(&buffer[..n]).expect("echo"),
                    Ok(0) => epoll.delete(stream.as_fd()).expect("EPOLL_CTL_DEL"),
                    _ => {}
                }
            }
        }
    }
}

fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("setrlimit");
}

/// Each command answers for all of them. How long that takes depends on the
/// machine: it is printed, with the processor time that `top` takes.
#[test]
fn ten_thousand_connections() {
    const CONNECTIONS: usize = 10_000;
    const BATCH: usize = 500;
    raise_limit();
    let cgroup = Cgroup::new("top");
    let instance = Instance::enable(&cgroup, &["--admission", "all"]);
    let joined = cgroup.join();
    let mut server = Helper::start("echo");
    let port: u16 = server.hear().parse().expect("a port");
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let options = Options::default();
    let mut clients: Vec<TcpStream> = Vec::new();
    let deadline = Deadline::seconds(300);
    let exchange = |clients: &[TcpStream]| {
        for client in clients {
            send_all(client, b"ping", deadline);
        }
        for client in clients {
            recv_all(client, &mut [0; 4], deadline);
        }
    };
    while clients.len() < CONNECTIONS {
        let first = clients.len();
        clients.extend((0..BATCH).map(|_| connect(to, &options)));
        for _ in 0..3 {
            exchange(&clients[first..]);
        }
    }
    drop(joined);

    let local = clients[0].local_addr().expect("a name").to_string();
    let (remote, port) = (to.to_string(), port.to_string());
    let own = std::process::id().to_string();
    for args in [
        &["stats"][..],
        &["stats", "--json"],
        &["stats", "--format", "openmetrics"],
        &["status"],
        &["status", "--json"],
        &["dump", "sockhash"],
        &["dump", "sockhash", "--json"],
        &["dump", "connections"],
        &["dump", "connections", "--json"],
        &["dump", "config"],
        &["endpoint", "list"],
        &["policy", "list"],
        &["export"],
        &["explain", &local, &remote],
        &["explain", "--port", &port],
        &["explain", "--pid", &own],
        &["assert", "--redirected-share", ">0.1"],
        &["assert", "--redirected-share", ">0.1", "--for", &port],
        &["assert", "--enrolled", ">=20000"],
        &["adopt", "--dry-run"],
        &["enable", "--cgroup", &cgroup.path().to_string_lossy()],
        &["upgrade", "--again"],
    ] {
        if args[0] != "adopt" || works_here() {
            time(&instance, args);
        }
    }
    let stats = instance.stats();
    assert_eq!(stats.count("enrolled_now"), 2 * CONNECTIONS as u64);
    // All of the third exchange, whatever the first two had to show.
    let redirected = stats.redirected_messages();
    assert!(redirected >= 2 * CONNECTIONS as u64, "{}", stats.0);
    assert_eq!(instance.dump("sockhash").len(), 2 * CONNECTIONS);
    assert_eq!(instance.dump("connections").len(), 2 * CONNECTIONS);
    let lines = instance.run(&["dump", "sockhash"]).ok().stdout;
    assert_eq!(lines.lines().count(), 2 * CONNECTIONS + 1);

    let mut top = Top::start(&instance, &[]);
    top.shows(": 10000 connections, ");
    let pid = top.child.id();
    let begin = (Instant::now(), cpu_seconds(pid));
    while begin.0.elapsed().as_secs() < 10 {
        exchange(&clients[..BATCH]);
    }
    let share = (cpu_seconds(pid) - begin.1) / begin.0.elapsed().as_secs_f64();
    println!("top: {:.2} % of one processor", share * 100.0);
    top.until("their rate", |text| {
        text.lines()
            .next()
            .is_some_and(|line| !line.contains(" 0 messages/s"))
    });
    // A filter looks at all of them.
    let one = clients[CONNECTIONS - 1]
        .local_addr()
        .expect("a name")
        .to_string();
    top.type_keys(&format!("/{one}\r"));
    top.until("that one alone", |text| {
        text.matches(&to.to_string()).count() == 1
    });
    top.shows(&one);
    top.type_keys("q");
    assert_eq!(top.ended("q"), Some(0));

    drop(server);
    drop(clients);
    assert!(sockaccel(&["stats", "--instance", instance.name()]).code == Some(0));
}

/// Prints the best of some runs.
fn time(instance: &Instance, args: &[&str]) {
    let (mut best, mut busy) = (f64::INFINITY, f64::INFINITY);
    let mut lines = 0;
    for _ in 0..5 {
        let begin = (Instant::now(), cpu_seconds_of_ended());
        lines = instance.run(args).ok().stdout.lines().count();
        best = best.min(begin.0.elapsed().as_secs_f64());
        busy = busy.min(cpu_seconds_of_ended() - begin.1);
    }
    println!(
        "{:6.1} ms, {:6.1} ms of processor time, {lines} lines: {}",
        best * 1e3,
        busy * 1e3,
        args.join(" ")
    );
}

/// User and system time of all children that were waited for.
fn cpu_seconds_of_ended() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    let seconds = |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs());
    (seconds(usage.user_time()) + seconds(usage.system_time())).as_secs_f64()
}

/// User and system time of a process so far: fields 14 and 15 of proc(5).
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its statistics");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u32 = fields[11..=12]
        .iter()
        .map(|ticks| ticks.parse::<u32>().expect("a number"))
        .sum();
    let per_second = sysconf(SysconfVar::CLK_TCK)
        .expect("sysconf")
        .expect("a number");
    f64::from(ticks) / f64::from(i32::try_from(per_second).expect("small"))
}

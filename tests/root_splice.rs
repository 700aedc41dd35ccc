//! Relays that move data with splice(2), which shows them only what came by
//! TCP: a message redirected to such a reader would never arrive.

mod common;

use std::env;
use std::fmt::Debug;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::fcntl::SpliceFFlags;
use nix::fcntl::splice;
use nix::poll::PollFlags;
use nix::sys::sendfile::sendfile;
use nix::unistd::pipe2;
use tempfile::TempDir;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::deadline::wait_at_most;
use common::helper;
use common::helper::Channel;
use common::helper::Helper;
use common::instance::Instance;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::pattern::Pattern;
use common::process::Process;
use common::rng::Rng;
use common::stream::recv_all;
use common::stream::recv_some;
use common::stream::send_all;
use common::traffic::Direction;
use common::traffic::Plan;
use common::traffic::run_end;
use common::warm::assert_redirected;
use common::warm::warm_up;

/// What a relay does with a connection before it splices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Nothing.
    Splice,
    /// Answers some requests itself, as for CONNECT and SOCKS.
    Answer,
    /// Reads some and passes it on, without a word, as for SNI.
    Sniff,
}

/// Messages that pass before a relay splices, where it does not start with it.
const ROUNDS: u32 = 5;
const REQUEST: usize = 32;

impl Start {
    fn name(self) -> &'static str {
        match self {
            Start::Splice => "splice",
            Start::Answer => "answer",
            Start::Sniff => "sniff",
        }
    }

    fn from_name(name: &str) -> Self {
        [Start::Splice, Start::Answer, Start::Sniff]
            .into_iter()
            .find(|start| start.name() == name)
            .unwrap_or_else(|| panic!("no such start: {name}"))
    }
}

/// The helper: a relay with a thread for each direction.
fn relay(channel: &mut Channel) {
    let line = channel.hear().expect("what to do");
    let words: Vec<&str> = line.split(' ').collect();
    let [upstream, start, at] = words[..] else {
        panic!("not upstream, start and address: {line}");
    };
    let upstream: SocketAddr = upstream.parse().expect("an address");
    let start = Start::from_name(start);
    let listener = listen(&Options {
        listen: at.parse().expect("an address"),
        ..Options::default()
    });
    let port = listener.local_addr().expect("getsockname").port();
    channel.say(&port.to_string());
    thread::spawn(move || {
        loop {
            if !wait_at_most(&listener, PollFlags::POLLIN, 1000).is_empty() {
                let client = accept(&listener, &Options::default());
                thread::spawn(move || relay_one(&client, upstream, start));
            }
        }
    });
    // Until the test lets go.
    while channel.hear().is_some() {}
}

fn relay_one(client: &TcpStream, upstream: SocketAddr, start: Start) {
    let deadline = Deadline::seconds(60);
    let mut request = [0; REQUEST];
    if start == Start::Answer {
        for _ in 0..ROUNDS {
            recv_all(client, &mut request, deadline);
            send_all(client, &request, deadline);
        }
    }
    let server = connect(upstream, &Options::default());
    if start == Start::Sniff {
        for _ in 0..ROUNDS {
            recv_all(client, &mut request, deadline);
            send_all(&server, &request, deadline);
        }
    }
    // As nginx and most others: splice only what poll announced. It is the
    // harder case, a message may be redirected before the first splice.
    let polls_first = start != Start::Splice;
    thread::scope(|scope| {
        scope.spawn(|| pump(client, &server, polls_first));
        pump(&server, client, polls_first);
    });
}

fn pump(from: &TcpStream, to: &TcpStream, polls_first: bool) {
    let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).expect("pipe");
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    let mut wait = polls_first;
    loop {
        if wait {
            wait_at_most(from, PollFlags::POLLIN, 1000);
        }
        let mut left = match splice(from, None, &into, None, 64 << 10, flags) {
            Ok(0) => break,
            Ok(n) => n,
            Err(Errno::EAGAIN) => {
                wait = true;
                // Stuck readers are told of data again and again.
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(_) => break,
        };
        while left > 0 {
            match splice(&out, None, to, None, left, flags) {
                Ok(n) => left -= n,
                Err(Errno::EAGAIN) => {
                    wait_at_most(to, PollFlags::POLLOUT, 1000);
                }
                Err(_) => return,
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Go's relay, built once for all tests of this file; already built where the
/// environment names it, for machines without Go.
fn go_relay() -> PathBuf {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    if let Some(built) = env::var_os("SOCKACCEL_TEST_GO_RELAY") {
        return PathBuf::from(built);
    }
    let (_, path) = BUILT.get_or_init(|| {
        let dir = TempDir::new().expect("a temporary directory");
        let path = dir.path().join("relay");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/go/relay.go");
        let output = Command::new("go")
            .args(["build", "-o"])
            .arg(&path)
            .arg(source)
            .env("GOCACHE", dir.path().join("cache"))
            .env("GOPATH", dir.path().join("path"))
            .env("GOPROXY", "off")
            .env("CGO_ENABLED", "0")
            .output()
            .expect("run go: is golang-go installed?");
        assert!(
            output.status.success(),
            "go build: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        (dir, path)
    });
    path.clone()
}

/// A relay and what is behind it.
#[derive(Debug)]
struct Relay {
    _process: Box<dyn Debug>,
    address: SocketAddr,
    upstream: TcpListener,
    start: Start,
}

impl Relay {
    fn own(start: Start) -> Self {
        Self::own_at("127.0.0.1:0", start)
    }

    fn own_at(listen_at: &str, start: Start) -> Self {
        let upstream = listen(&Options::default());
        let mut helper = Helper::start("relay");
        let to = upstream.local_addr().expect("getsockname");
        helper.say(&format!("{to} {} {listen_at}", start.name()));
        let port = helper.hear();
        Self::new(Box::new(helper), &port, upstream, start)
    }

    fn go() -> Self {
        let upstream = listen(&Options::default());
        let mut process = Process::start(
            Command::new(go_relay())
                .arg(upstream.local_addr().expect("getsockname").to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        );
        let mut port = String::new();
        BufReader::new(process.0.stdout.take().expect("piped"))
            .read_line(&mut port)
            .expect("the port");
        Self::new(Box::new(process), port.trim(), upstream, Start::Splice)
    }

    fn new(process: Box<dyn Debug>, port: &str, upstream: TcpListener, start: Start) -> Self {
        let port: u16 = port.parse().unwrap_or_else(|_| panic!("no port: {port}"));
        Self {
            _process: process,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            upstream,
            start,
        }
    }

    /// A connection through it, at the point where the relay begins to splice.
    fn open(&self) -> Pair {
        let deadline = Deadline::seconds(30);
        let client = connect(self.address, &Options::default());
        let mut request = [b'r'; REQUEST];
        if self.start == Start::Answer {
            for _ in 0..ROUNDS {
                send_all(&client, &request, deadline);
                recv_all(&client, &mut request, deadline);
            }
        }
        if self.start == Start::Sniff {
            send_all(&client, &request, deadline);
        }
        let server = accept(&self.upstream, &Options::default());
        if self.start == Start::Sniff {
            for round in 0..ROUNDS {
                if round > 0 {
                    send_all(&client, &request, deadline);
                }
                recv_all(&server, &mut request, deadline);
            }
        }
        assert_eq!(request, [b'r'; REQUEST], "what passed before splicing");
        Pair { client, server }
    }
}

/// Small requests and answers, one at a time. What arrives is checked; an
/// error says which message did not arrive.
fn ping_pong(pair: &Pair, rounds: u32, patience: u64) -> Result<(), String> {
    let ends = [(&pair.client, &pair.server), (&pair.server, &pair.client)];
    let patterns = [Pattern::new(1), Pattern::new(2)];
    let mut at = 0;
    for round in 0..rounds {
        let size = 1 + usize::try_from(round * 37 % 500).expect("small");
        for ((from, to), pattern) in ends.into_iter().zip(patterns) {
            let mut bytes = vec![0; size];
            pattern.fill(at, &mut bytes);
            send_all(from, &bytes, Deadline::seconds(10));
            let deadline = Deadline::seconds(patience);
            let mut got = 0;
            while got < size {
                if wait_at_most(to, PollFlags::POLLIN, 100).is_empty() {
                    if deadline.passed() {
                        return Err(format!("stuck in round {round}, {got} of {size} bytes"));
                    }
                    continue;
                }
                let n = recv_some(to, &mut bytes[got..], deadline);
                assert!(n > 0, "round {round}: ended");
                pattern.check(at + got as u64, &bytes[got..got + n], "ping-pong");
                got += n;
            }
        }
        at += size as u64;
    }
    Ok(())
}

/// Random traffic both ways to the end of the stream, byte by byte.
fn stress(pair: &Pair, rng: &mut Rng) {
    let deadline = Deadline::seconds(60);
    let mut direction = |name: &str| {
        let plan = Plan::random(rng).at_most(1 << 20);
        Direction::new(name.to_owned(), rng.next(), plan)
    };
    let to_server = direction("through the relay to the server");
    let to_client = direction("through the relay to the client");
    let (client_rng, server_rng) = (rng.fork(), rng.fork());
    thread::scope(|scope| {
        scope.spawn(|| run_end(&pair.client, &to_server, &to_client, client_rng, deadline));
        run_end(&pair.server, &to_client, &to_server, server_rng, deadline);
    });
}

/// What may happen to the first connection of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Passes,
    /// The known limit: it may get stuck, and its client goes on sending.
    MayStick,
    /// The same, and its client waits for the answer.
    MayStickSilently,
}

/// Connections through one relay, one after the other and some at once.
fn relays(name: &str, start: impl FnOnce() -> Relay, limit: First) {
    let mut rng = Rng::for_test(name);
    let cgroup = Cgroup::new(name);
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let relay = start();
    let before = instance.stats();

    let first = relay.open();
    let patience = if limit == First::Passes { 20 } else { 3 };
    match ping_pong(&first, 50, patience) {
        Ok(()) => stress(&first, &mut rng),
        Err(stuck) if limit == First::Passes => panic!(
            "the first connection: {stuck}\nsockhash: {:#?}",
            instance.dump("sockhash")
        ),
        Err(stuck) => {
            println!("{name}: the first connection, the known limit: {stuck}");
            if limit == First::MayStick {
                stuck_is_not_reordered(&first);
            }
        }
    }
    let between = instance.stats();
    for connection in 2..8 {
        let pair = relay.open();
        if let Err(stuck) = ping_pong(&pair, 50, 20) {
            panic!(
                "connection {connection}: {stuck}\nstats: {}\nsockhash: {:#?}",
                instance.stats().0,
                instance.dump("sockhash")
            );
        }
        stress(&pair, &mut rng);
    }
    thread::scope(|scope| {
        for _ in 0..6 {
            let pair = relay.open();
            let mut rng = rng.fork();
            scope.spawn(move || stress(&pair, &mut rng));
        }
    });
    let after = instance.stats();
    println!("{name}: {}", after.0);
    // The relay's own sends to a reader that uses recv, before it was known.
    assert_redirected(&before, &after, 1);
    let splicing =
        after.by_reason("skipped", "splicing") - between.by_reason("skipped", "splicing");
    assert!(splicing > 0, "the relay was not recognised: {}", after.0);
}

/// Messages into a stuck connection, each once, may never come; but none may
/// come in the wrong place.
fn stuck_is_not_reordered(pair: &Pair) {
    let request = [b's'; REQUEST];
    for _ in 0..200 {
        send_all(&pair.client, &request, Deadline::seconds(10));
    }
    let mut buffer = [0; REQUEST];
    let came = wait_at_most(&pair.server, PollFlags::POLLIN, 1000);
    if came.contains(PollFlags::POLLIN) {
        let n = recv_some(&pair.server, &mut buffer, Deadline::seconds(10));
        panic!(
            "bytes overtook the stuck one: {:?}",
            &buffer[..n.min(REQUEST)]
        );
    }
}

/// The observer is what makes the difference.
fn stuck_without_the_observer(name: &str, start: impl FnOnce() -> Relay) {
    let cgroup = Cgroup::new(name);
    let instance = Instance::enable(&cgroup, &["--without", "observer"]);
    let _joined = cgroup.join();
    let relay = start();
    let pair = relay.open();
    let stuck = ping_pong(&pair, 50, 3).expect_err("not stuck, although nobody observes");
    let unread = instance
        .dump("sockhash")
        .iter()
        .filter_map(|row| row["unread_bytes"].as_u64())
        .sum::<u64>();
    println!("{name}: {stuck}, {unread} bytes unread");
    assert!(unread > 0, "stuck for another reason: {stuck}");
}

#[test]
fn a_relay_that_splices() {
    relays("splice", || Relay::own(Start::Splice), First::Passes);
}

#[test]
fn a_relay_that_splices_is_stuck_without_the_observer() {
    stuck_without_the_observer("splice-blind", || Relay::own(Start::Splice));
}

#[test]
fn a_relay_of_go() {
    relays("go", Relay::go, First::Passes);
}

#[test]
fn a_relay_of_go_is_stuck_without_the_observer() {
    stuck_without_the_observer("go-blind", Relay::go);
}

#[test]
fn a_relay_that_answers_and_then_splices() {
    relays("answer", || Relay::own(Start::Answer), First::MayStick);
}

#[test]
fn a_relay_that_answers_and_then_splices_is_stuck_without_the_observer() {
    stuck_without_the_observer("answer-blind", || Relay::own(Start::Answer));
}

#[test]
fn a_relay_that_reads_and_then_splices() {
    relays("sniff", || Relay::own(Start::Sniff), First::MayStick);
}

#[test]
fn a_relay_that_reads_and_then_splices_is_stuck_without_the_observer() {
    stuck_without_the_observer("sniff-blind", || Relay::own(Start::Sniff));
}

#[test]
fn a_relay_that_answers_and_then_splices_to_a_patient_client() {
    relays(
        "answer-patient",
        || Relay::own(Start::Answer),
        First::MayStickSilently,
    );
}

#[test]
fn a_relay_that_reads_and_then_splices_to_a_patient_client() {
    relays(
        "sniff-patient",
        || Relay::own(Start::Sniff),
        First::MayStickSilently,
    );
}

/// What was learned of a port was of the program that listened there.
#[test]
fn the_next_program_at_a_relays_port_is_accelerated() {
    for at in ["127.0.0.1:0", "0.0.0.0:0"] {
        let cgroup = Cgroup::new("next");
        let instance = Instance::enable(&cgroup, &[]);
        let _joined = cgroup.join();
        let relay = Relay::own_at(at, Start::Splice);
        for _ in 0..3 {
            let pair = relay.open();
            ping_pong(&pair, 10, 20).expect("not stuck");
        }
        let mut listen_at: SocketAddr = at.parse().expect("an address");
        listen_at.set_port(relay.address.port());
        let connect_to = relay.address;
        drop(relay);
        let options = Options {
            listen: listen_at,
            connect: Some(connect_to),
            ..Options::default()
        };
        println!("at {at}");
        warm_up(&instance, &Pair::with(&options));
    }
}

/// A client's port may have been a listener's before: what the client does is
/// not what the program that listened there does.
#[test]
fn a_splicing_client_says_nothing_about_who_listened_on_its_port() {
    let cgroup = Cgroup::new("client-port");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let port = listen(&Options::default())
        .local_addr()
        .expect("getsockname");
    let server = listen(&Options::default());
    let mut client = Helper::start("splicing_client");
    client.say(&format!(
        "{port} {}",
        server.local_addr().expect("getsockname")
    ));
    let accepted = accept(&server, &Options::default());
    let before = instance.stats();
    Deadline::seconds(10).until("the client to splice", || {
        send_all(&accepted, b"s", Deadline::seconds(10));
        client.say("more?");
        client.hear() == "spliced"
    });
    assert_eq!(instance.stats().delta(&before, "redirected_messages"), 0);
    // This process listened there, and on this one, and is not that client.
    warm_up(&instance, &Pair::new());
}

/// Connects from a port to a server, and splices whatever comes.
fn splicing_client(channel: &mut Channel) {
    let line = channel.hear().expect("two addresses");
    let (from, to) = line.split_once(' ').expect("two addresses");
    let options = Options {
        bind: Some(from.parse().expect("an address")),
        ..Options::default()
    };
    let stream = connect(to.parse().expect("an address"), &options);
    let (_reader, writer) = pipe2(OFlag::O_NONBLOCK).expect("pipe");
    while channel.hear().is_some() {
        wait_at_most(&stream, PollFlags::POLLIN, 1000);
        let moved = splice(&stream, None, &writer, None, 1, SpliceFFlags::empty());
        channel.say(if moved == Ok(1) { "spliced" } else { "nothing" });
    }
}

/// Stuck is one thing, filling the memory another.
#[test]
fn a_stuck_relay_stalls_its_sender() {
    const TOO_MUCH: usize = 48 << 20;
    let cgroup = Cgroup::new("stuck");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    // Each is a process of its own: whether its first connection gets stuck is a
    // race with the observer.
    let (_relay, pair) = (0..20)
        .map(|_| {
            let relay = Relay::own(Start::Answer);
            let pair = relay.open();
            (relay, pair)
        })
        .find(|(_, pair)| ping_pong(pair, 50, 3).is_err())
        .unwrap_or_else(|| panic!("none gets stuck: {}", instance.stats().0));
    let bytes = vec![b'x'; 16 << 10];
    let mut sent = 0;
    let mut quiet = 0;
    while sent < TOO_MUCH && quiet < 15 {
        match (&pair.client).write(&bytes) {
            Ok(n) => (sent, quiet) = (sent + n, 0),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                wait_at_most(&pair.client, PollFlags::POLLOUT, 100);
                quiet += 1;
            }
            // The connection is lost, and says so.
            Err(e) if e.kind() == ErrorKind::PermissionDenied => break,
            Err(e) => panic!("send after {sent}: {e}"),
        }
    }
    println!("stuck: {sent} bytes taken");
    assert!(sent < TOO_MUCH, "{}", instance.stats().0);
}

/// sendfile(2) into a pipe is a splice that the tracepoint of splice(2) does not
/// show. Nothing is lost either way: the reader can recv(2).
#[test]
fn sendfile_from_a_socket_is_seen_where_functions_are_traced() {
    let cgroup = Cgroup::new("sendfile");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    warm_up(&instance, &pair);
    let status = instance.run(&["status", "--json"]).ok().json();
    let seen = match status["splice_observer"].as_str() {
        Some("fentry") => true,
        Some("tracepoint") => false,
        other => panic!("splice_observer is {other:?}"),
    };

    let (_out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).expect("pipe");
    assert_eq!(
        sendfile(&into, &pair.server, None, 4096),
        Err(Errno::EAGAIN)
    );
    let before = instance.stats();
    let deadline = Deadline::seconds(10);
    send_all(&pair.client, b"hello", deadline);
    let redirected = instance.stats().delta(&before, "redirected_bytes");
    assert_eq!(redirected, if seen { 0 } else { 5 });
    let mut bytes = [0; 5];
    recv_all(&pair.server, &mut bytes, deadline);
    assert_eq!(&bytes, b"hello");
}

#[test]
#[ignore = "the body of the helper processes"]
fn helper_process() {
    helper::main(&[("relay", relay), ("splicing_client", splicing_client)]);
}

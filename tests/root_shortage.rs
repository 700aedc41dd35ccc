//! Many receivers that do not read, and little memory for sockets: senders see
//! what plain TCP shows them, and what was taken arrives.

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::sys::resource::setrlimit;
use nix::sys::socket;
use nix::sys::socket::MsgFlags;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
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
use common::shortage::Shortage;
use common::stream::recv_all;
use common::stream::recv_some;
use common::stream::send_all;
use common::warm::warm_up;

const CONNECTIONS: usize = 10_000;
const BATCH: usize = 500;
const MIB: u64 = 1 << 20;
/// For all of them: some KiB each.
const LIMIT: u64 = 64 * MIB;
/// A socket may have a little above every limit. Much more of it, and TCP's timers have
/// backed off for minutes.
const ENOUGH: u64 = 2 * LIMIT;

fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("setrlimit");
}

/// Receives only what it is told to.
fn receivers(channel: &mut Channel) {
    raise_limit();
    let options = Options::default();
    let listener = listen(&options);
    let port = listener.local_addr().expect("getsockname").port();
    channel.say(&port.to_string());
    let mut streams = Vec::new();
    while let Some(line) = channel.hear() {
        let deadline = Deadline::seconds(300);
        match line.as_str() {
            "accept" => streams.extend((0..BATCH).map(|_| accept(&listener, &options))),
            "echo" => {
                for stream in &streams[streams.len() - BATCH..] {
                    let mut bytes = [0; 4];
                    recv_all(stream, &mut bytes, deadline);
                    send_all(stream, &bytes, deadline);
                }
            }
            // To the end of each stream.
            _ => {
                let mut total = 0;
                for (n, stream) in streams.iter().enumerate() {
                    total += read_to_end(stream, deadline);
                    if n % BATCH == 0 {
                        channel.say("reading");
                    }
                }
                channel.say(&total.to_string());
                continue;
            }
        }
        channel.say("done");
    }
}

/// What a connection carries, by its client's port: with little memory they need not be
/// accepted in the order in which they connected.
fn text(client: std::io::Result<SocketAddr>) -> (u16, Pattern) {
    let port = client.expect("an address").port();
    (port, Pattern::new(u64::from(port)))
}

fn read_to_end(stream: &TcpStream, deadline: Deadline) -> u64 {
    let (port, pattern) = text(stream.peer_addr());
    let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        match recv_some(stream, &mut buffer, deadline) {
            0 => return at,
            got => {
                pattern.check(at, &buffer[..got], &format!("connection of port {port}"));
                at += got as u64;
            }
        }
    }
}

#[test]
#[ignore = "the body of the helper processes"]
fn helper_process() {
    helper::main(&[("receivers", receivers)]);
}

fn ask(helper: &mut Helper, what: &str) {
    helper.say(what);
    assert_eq!(helper.hear(), "done");
}

/// What senders were told while nobody read.
#[derive(Debug, Default)]
struct Story {
    sent: u64,
    errors: BTreeMap<String, u64>,
}

/// Sends on all of them in turn until none takes anything any more.
fn flood(shortage: &Shortage, clients: &[TcpStream]) -> Story {
    // Where nobody is limited this is not to fill the machine.
    let enough = match shortage {
        Shortage::None => LIMIT,
        _ => ENOUGH,
    };
    let mut story = Story::default();
    let mut sent = vec![0; clients.len()];
    let texts: Vec<Pattern> = clients.iter().map(|c| text(c.local_addr()).1).collect();
    let mut bytes = [0; 2048];
    loop {
        let before = story.sent;
        for (n, client) in clients.iter().enumerate() {
            texts[n].fill(sent[n], &mut bytes);
            match socket::send(client.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(took) => {
                    sent[n] += took as u64;
                    story.sent += took as u64;
                }
                Err(errno) => *story.errors.entry(format!("{errno:?}")).or_default() += 1,
            }
        }
        if story.sent == before || story.sent > enough {
            return story;
        }
    }
}

/// All connections from beginning to end, in a cgroup. `promoted` is called before the
/// flood.
fn run(cgroup: &Cgroup, promoted: impl FnOnce()) -> (Story, &'static str) {
    let shortage = Shortage::new(LIMIT);
    let _joined = cgroup.join();
    let options = Options::default();
    let mut helper = Helper::start("receivers");
    let port: u16 = helper.hear().parse().expect("a port");
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let mut clients: Vec<TcpStream> = Vec::new();
    let deadline = Deadline::seconds(300);
    while clients.len() < CONNECTIONS {
        let first = clients.len();
        clients.extend((0..BATCH).map(|_| connect(to, &options)));
        ask(&mut helper, "accept");
        for _ in 0..3 {
            for client in &clients[first..] {
                send_all(client, b"ping", deadline);
            }
            ask(&mut helper, "echo");
            for client in &clients[first..] {
                recv_all(client, &mut [0; 4], deadline);
            }
        }
    }
    promoted();
    let story = flood(&shortage, &clients);
    for client in &clients {
        client
            .shutdown(std::net::Shutdown::Write)
            .expect("shutdown");
    }
    shortage.lift();
    helper.say("read");
    let arrived = std::iter::repeat_with(|| helper.hear())
        .find_map(|line| line.parse::<u64>().ok())
        .expect("a number");
    assert_eq!(arrived, story.sent, "bytes that arrived: {story:?}");
    (story, shortage.name())
}

#[test]
fn ten_thousand_receivers_that_do_not_read() {
    raise_limit();
    let (plain, limit) = run(&Cgroup::new("plenty"), || {});
    let cgroup = Cgroup::new("shortage");
    let instance = Instance::enable(&cgroup, &["--admission", "all"]);
    let mut before = None;
    let (accelerated, _) = run(&cgroup, || before = Some(instance.stats()));
    let after = instance.stats();
    let redirected = after.delta(&before.expect("stats"), "redirected_bytes");
    println!(
        "limited by {limit}: plain TCP {plain:?}, accelerated {accelerated:?}, {redirected} redirected"
    );
    assert!(redirected > MIB, "{}", after.0);
    // KNOWN LIMITS has ENOMEM: what waits unread keeps its direction from the stack.
    let known = |errno: &str| errno == "ENOMEM" && limit != Shortage::None.name();
    let new: Vec<_> = accelerated
        .errors
        .keys()
        .filter(|errno| !plain.errors.contains_key(*errno) && !known(errno))
        .collect();
    assert!(new.is_empty(), "errors that TCP does not give: {new:?}");
}

/// The first message that could be redirected finds no memory for that.
#[test]
fn nothing_is_redirected_where_memory_is_short_to_begin_with() {
    let shortage = Shortage::new(16 * MIB);
    let cgroup = Cgroup::new("short");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    let fillers: Vec<Pair> = (0..32).map(|_| Pair::new()).collect();
    let clients: Vec<TcpStream> = fillers
        .iter()
        .map(|pair| pair.client.try_clone().expect("dup"))
        .collect();
    let deadline = Deadline::seconds(60);
    send_all(&pair.client, b"ping", deadline);
    recv_all(&pair.server, &mut [0; 4], deadline);
    let before = instance.stats();
    println!("{:?}", flood(&shortage, &clients));
    let sent = socket::send(pair.client.as_raw_fd(), &[0; 4096], MsgFlags::MSG_NOSIGNAL);
    assert!(matches!(sent, Ok(_) | Err(Errno::EAGAIN)), "{sent:?}");
    let after = instance.stats();
    if !matches!(shortage, Shortage::None) {
        assert_eq!(
            after.delta(&before, "redirected_messages"),
            0,
            "{}",
            after.0
        );
    }
    shortage.lift();
    recv_all(&pair.server, &mut vec![0; sent.unwrap_or(0)], deadline);
    drop((fillers, clients));
    warm_up(&instance, &pair);
}

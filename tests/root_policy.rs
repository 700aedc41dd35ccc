//! What the tables say decides on real traffic: for each of them a test in
//! which only its entry turns redirect on and off.

mod common;

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;

use common::cgroup::Cgroup;
use common::cgroup::Joined;
use common::deadline::Deadline;
use common::deadline::PATIENCE;
use common::instance::Instance;
use common::instance::Ran;
use common::instance::Stats;
use common::netns::Netns;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::process::Process;
use common::rng::Rng;
use common::stream::recv_all;
use common::traffic::Direction;
use common::traffic::Plan;
use common::traffic::run_end;
use common::warm::round_trip;
use sockaccel::maps::Table;
use sockaccel::maps::layout::Policy;
use sockaccel::maps::layout::PolicyKey;
use tempfile::TempDir;

const SERVER: &str = "127.0.0.1";
const CLIENT: &str = "127.0.0.2";
const ROUNDS: u64 = 10;
/// One message each way of a round trip.
const MESSAGES: u64 = 2 * ROUNDS;

/// A connection from CLIENT to SERVER, and the instance it belongs to.
struct Bed {
    pair: Pair,
    listener: TcpListener,
    options: Options,
    _joined: Joined,
    instance: Instance,
    cgroup: Cgroup,
}

impl Bed {
    fn new(enable: &[&str]) -> Self {
        let cgroup = Cgroup::new("policy");
        let instance = Instance::enable(&cgroup, enable);
        let joined = cgroup.join();
        let options = between(CLIENT, SERVER);
        let listener = listen(&options);
        Self {
            pair: Pair::on(&listener, &options),
            listener,
            options,
            _joined: joined,
            instance,
            cgroup,
        }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().expect("getsockname").port()
    }

    fn another(&self) -> Pair {
        Pair::on(&self.listener, &self.options)
    }

    /// A command that must succeed.
    fn run(&self, command: &str) -> Ran {
        let words: Vec<&str> = command.split(' ').collect();
        self.instance.run(&words).ok()
    }

    /// What the next round trips did, from the first message on.
    fn next(&self, pair: &Pair) -> Carried {
        Carried::over(&self.instance, ROUNDS, || round_trip(pair))
    }

    fn redirected(&self, what: &str) {
        self.next(&self.pair).all_redirected(what);
    }

    fn on_the_stack(&self, what: &str, why: &str) {
        self.next(&self.pair).all_on_the_stack(what, why);
    }

    fn evaluations(&self, rule: &str) -> u64 {
        let row = self.run(&format!("policy get {rule} --json")).json();
        row["evaluations"].as_u64().expect("a number")
    }
}

/// Addresses of both ends, and a free port.
fn between(client: &str, server: &str) -> Options {
    let at = |ip: &str, port| SocketAddr::new(ip.parse().expect("an address"), port);
    Options {
        listen: at(server, 0),
        bind: Some(at(client, 0)),
        ..Options::default()
    }
}

/// Messages in between two looks at the counters.
struct Carried {
    before: Stats,
    after: Stats,
}

impl Carried {
    fn over(instance: &Instance, rounds: u64, mut round: impl FnMut()) -> Self {
        let before = instance.stats();
        for _ in 0..rounds {
            round();
        }
        let after = instance.stats();
        Self { before, after }
    }

    fn messages(&self, name: &str) -> u64 {
        self.after.delta(&self.before, name)
    }

    /// From the very next message: the receiver has read everything before it.
    fn all_redirected(&self, what: &str) {
        assert_eq!(
            (
                self.messages("redirected_messages"),
                self.messages("stack_messages")
            ),
            (MESSAGES, 0),
            "{what}: {}",
            self.after.0
        );
        assert!(self.messages("redirected_bytes") > 0, "{what}");
    }

    fn all_on_the_stack(&self, what: &str, why: &str) {
        assert_eq!(self.messages("redirected_bytes"), 0, "{what}");
        let for_this = self.after.by_reason("stack_reasons", why)
            - self.before.by_reason("stack_reasons", why);
        assert_eq!(for_this, MESSAGES, "{what}: {}", self.after.0);
    }
}

/// Each end must have shown once how it reads.
fn shown(bed: &Bed) {
    bed.next(&bed.pair);
}

#[test]
fn an_endpoint_alone_turns_redirect_on_and_off_with_scope_endpoints() {
    let bed = Bed::new(&["--scope", "endpoints"]);
    shown(&bed);
    bed.on_the_stack("no endpoints", "not_endpoint");

    bed.run("endpoint add 127.0.0.1");
    let towards_server = bed.next(&bed.pair);
    assert_eq!(
        (
            towards_server.messages("redirected_messages"),
            towards_server.messages("stack_messages")
        ),
        (ROUNDS, ROUNDS),
        "only the destination of each socket counts"
    );
    bed.run("endpoint add 127.0.0.2");
    bed.redirected("both are endpoints");
    bed.run("endpoint del 127.0.0.1");
    bed.run("endpoint del 127.0.0.2");
    bed.on_the_stack("none again", "not_endpoint");
    bed.run("endpoint add --host");
    bed.run("endpoint add 127.0.0.2");
    bed.redirected("the host's own addresses, and the client's");
}

#[test]
fn an_identity_alone_turns_redirect_on_and_off() {
    let bed = Bed::new(&[]);
    shown(&bed);
    bed.redirected("no policy");
    bed.run("endpoint add 127.0.0.2");
    bed.run("policy add 127.0.0.2 egress 1001 tcp allow");
    bed.on_the_stack("the server is world", "denied");

    bed.run("identity add 127.0.0.1/32 1001");
    bed.redirected("the server is 1001");
    bed.run("identity del 127.0.0.1/32");
    bed.on_the_stack("the server is world again", "denied");

    bed.run("identity add 127.0.0.0/8 1001");
    bed.redirected("its network is 1001");
    bed.run("identity add 127.0.0.1/32 7");
    bed.on_the_stack("the longer prefix counts", "denied");
    bed.run("identity del 127.0.0.1/32");
    bed.redirected("its network is 1001 again");

    bed.run("endpoint add 127.0.0.1 --identity 8");
    bed.on_the_stack("the endpoint's own identity comes first", "denied");
    bed.run("endpoint del 127.0.0.1");
    bed.redirected("its network is 1001 once more");
}

/// The same for both directions of policy: the endpoint that has it differs.
fn a_rule_turns_redirect_on_and_off(endpoint: &str, direction: &str) {
    let bed = Bed::new(&[]);
    let port = bed.port();
    let rule = |verb: &str, rest: &str| {
        bed.run(&format!(
            "policy {verb} {endpoint} {direction} {}",
            rest.replace("PORT", &port.to_string())
        ))
    };
    shown(&bed);
    bed.redirected("no policy");
    bed.run(&format!("endpoint add {endpoint}"));
    bed.redirected("an endpoint without policy");

    rule("add", "any tcp/PORT deny");
    bed.on_the_stack("denied by port", "denied");
    rule("del", "any tcp/PORT");
    bed.redirected("no policy again");

    let said = rule("add", "any tcp/1 allow");
    let wanted = format!("First {direction} rule of {endpoint}");
    assert!(said.stderr.contains(&wanted), "{}", said.stderr);
    bed.on_the_stack("the default is deny now", "denied");
    let said = rule("add", "any tcp/PORT allow");
    assert!(!said.stderr.contains("First"), "{}", said.stderr);
    bed.redirected("allowed by port");
    rule("add", "2 tcp/PORT deny");
    bed.on_the_stack("the identity (world) is more exact", "denied");
    rule("del", "2 tcp/PORT");
    bed.redirected("allowed by port again");
    rule("del", "any tcp/PORT");
    bed.on_the_stack("the default again", "denied");
    rule("del", "any tcp/1");
    bed.redirected("the last rule took the default with it");
}

#[test]
fn egress_policy_alone_turns_redirect_on_and_off() {
    a_rule_turns_redirect_on_and_off(CLIENT, "egress");
}

#[test]
fn ingress_policy_alone_turns_redirect_on_and_off() {
    a_rule_turns_redirect_on_and_off(SERVER, "ingress");
}

/// Services are met when a connection is established: new ones change over.
#[test]
fn a_service_alone_keeps_new_connections_on_the_stack() {
    let bed = Bed::new(&[]);
    let service = format!("127.0.0.1:{}", bed.port());
    let skipped = || bed.instance.stats().by_reason("skipped", "service");
    let stays = |what: &str| {
        let before = skipped();
        let pair = bed.another();
        shown(&bed);
        let carried = Carried::over(&bed.instance, ROUNDS, || round_trip(&pair));
        assert_eq!(carried.messages("redirected_bytes"), 0, "{what}");
        assert_eq!(skipped(), before + 1, "{what}: its client is skipped");
        pair
    };
    let goes = |what: &str| {
        let pair = bed.another();
        bed.next(&pair);
        bed.next(&pair).all_redirected(what);
    };
    shown(&bed);
    goes("no services");

    bed.run(&format!("service add {service}"));
    let kept = stays("a service");
    bed.on_the_stack("a connection from before, too", "service");
    let said = bed.run(&format!("service del {service}"));
    assert!(said.stderr.contains("new ones"), "{}", said.stderr);
    goes("a service no more");
    bed.redirected("a connection from before, too");
    let carried = Carried::over(&bed.instance, ROUNDS, || round_trip(&kept));
    assert_eq!(
        carried.messages("redirected_bytes"),
        0,
        "what was skipped stays on the stack, as the command says"
    );

    bed.run(&format!("service add {service} --accelerate"));
    goes("an accelerated service");
    let row = bed.run(&format!("service get {service} --json")).json();
    assert_eq!(row["connections"], 1, "{row}");
}

/// The server's own egress rules are about what it connects to, never about
/// what it answers.
#[test]
fn replies_are_not_egress() {
    let bed = Bed::new(&[]);
    shown(&bed);
    bed.run("endpoint add 127.0.0.1");
    bed.run("endpoint add 127.0.0.2");
    bed.run("policy add 127.0.0.1 egress any deny");
    bed.run("policy add 127.0.0.2 ingress any deny");
    bed.redirected("rules for the other direction");
    assert_eq!(bed.evaluations("127.0.0.1 egress any"), 0);
    assert_eq!(bed.evaluations("127.0.0.2 ingress any"), 0);

    let back = Pair::with(&between(SERVER, CLIENT));
    bed.next(&back);
    bed.next(&back)
        .all_on_the_stack("a connection the other way", "denied");
    assert!(bed.evaluations("127.0.0.1 egress any") > 0);
}

/// Each of the two sockets asks once after each change of the tables.
#[test]
fn verdicts_are_evaluated_once_per_generation() {
    let bed = Bed::new(&[]);
    shown(&bed);
    bed.run("endpoint add 127.0.0.2");
    bed.run("policy add 127.0.0.2 egress any tcp allow");
    for generation in 1..=5_u8 {
        bed.redirected("allowed");
        bed.redirected("still allowed");
        assert_eq!(
            bed.evaluations("127.0.0.2 egress any tcp"),
            2 * u64::from(generation)
        );
        // Of nobody here: but the tables have changed.
        bed.run(&format!("identity add 192.0.2.{generation}/32 5"));
    }
}

/// Also where the ends of a connection are in the hands of several processes.
#[test]
fn processes_that_take_turns_on_a_socket_evaluate_nothing_again() {
    let bed = Bed::new(&[]);
    shown(&bed);
    bed.run("endpoint add 127.0.0.2");
    bed.run("policy add 127.0.0.2 egress any tcp allow");
    let socket = bed.pair.client.try_clone().expect("dup");
    let mut other = Command::new("sh")
        .args(["-c", r#"while read -r word; do printf %s "$word"; done"#])
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(socket))
        .spawn()
        .expect("sh");
    let mut tell = other.stdin.take().expect("a pipe");
    let mut turns = || {
        writeln!(tell, "turn").expect("sh reads");
        let mut got = [0; 4];
        recv_all(&bed.pair.server, &mut got, Deadline::seconds(10));
        assert_eq!(&got, b"turn");
        round_trip(&bed.pair);
    };
    turns();
    let evaluated = bed.evaluations("127.0.0.2 egress any tcp");
    let carried = Carried::over(&bed.instance, ROUNDS, turns);
    let redirected = carried.messages("redirected_messages");
    // Two that send count as company, now and then.
    assert!(redirected > 0, "{}", carried.after.0);
    assert_eq!(bed.evaluations("127.0.0.2 egress any tcp"), evaluated);
    drop(tell);
    assert!(other.wait().expect("wait").success());
}

/// One connection with random traffic both ways, from CLIENT to SERVER.
fn random_traffic(name: &str, mut rng: Rng, deadline: Deadline) {
    let mut direction = |towards: &str| {
        // Small messages: what is large goes by the stack whatever policy says.
        let plan = Plan {
            total: 3 << 20,
            largest: 8 << 10,
            lull_one_in: rng.between(2, 20) as u64,
        };
        Direction::new(format!("{name} to {towards}"), rng.next(), plan)
    };
    let (to_server, to_client) = (direction("server"), direction("client"));
    let (client_rng, server_rng) = (rng.fork(), rng.fork());
    let pair = Pair::with(&between(CLIENT, SERVER));
    thread::scope(|scope| {
        scope.spawn(|| run_end(&pair.client, &to_server, &to_client, client_rng, deadline));
        run_end(&pair.server, &to_client, &to_server, server_rng, deadline);
    });
}

/// Set also when what it watches over panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn policy_changes_under_traffic_lose_and_reorder_nothing() {
    let mut rng = Rng::for_test("flips");
    let bed = Bed::new(&[]);
    bed.run("endpoint add 127.0.0.2");
    bed.run("policy add 127.0.0.2 egress any allow");
    let done = AtomicBool::new(false);
    let flips = AtomicU32::new(0);
    let before = bed.instance.stats();
    let limit = Deadline::seconds(120 * u64::from(*PATIENCE));
    thread::scope(|scope| {
        let flipper = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) && !limit.passed() {
                bed.run("policy add 127.0.0.2 egress any tcp deny");
                bed.run("policy del 127.0.0.2 egress any tcp");
                flips.fetch_add(1, Ordering::Relaxed);
            }
        });
        let watch = Done(&done);
        let end = Deadline::seconds(8);
        let few = || flips.load(Ordering::Relaxed) < 10;
        while !end.passed() || few() && !limit.passed() {
            let deadline = Deadline::seconds(100);
            thread::scope(|scope| {
                for i in 0..4 {
                    let rng = rng.fork();
                    scope.spawn(move || random_traffic(&i.to_string(), rng, deadline));
                }
            });
        }
        drop(watch);
        flipper.join().expect("the flipper");
    });
    let flips = flips.into_inner();
    let after = bed.instance.stats();
    let carried = Carried { before, after };
    let revoked = carried.after.by_reason("demotions", "denied");
    println!(
        "{flips} flips, {revoked} directions revoked, {} bytes redirected, {} by the stack",
        carried.messages("redirected_bytes"),
        carried.messages("stack_bytes")
    );
    assert!(flips > 3, "{flips} flips");
    assert!(revoked > 3, "{}", carried.after.0);
    assert!(
        carried.after.by_reason("stack_reasons", "denied") > 0,
        "{}",
        carried.after.0
    );
    assert!(carried.messages("redirected_bytes") > 1 << 16);
    assert!(
        carried.messages("promotions") > revoked / 2,
        "granted again"
    );
}

const HTTP: u16 = 80;
const PROXY: u16 = 10_000;

/// How connections get to the proxy.
#[derive(Debug, Clone, Copy)]
struct Interception {
    chain: &'static str,
    statement: &'static str,
    bind: &'static str,
    /// The proxy's socket has the server's address and port.
    transparent: bool,
}

const REDIRECTED: Interception = Interception {
    chain: "type nat hook prerouting priority -100",
    statement: "redirect to :10000",
    bind: "",
    transparent: false,
};

/// Only the listener tells that the accepted socket is the proxy's.
const TRANSPARENT: Interception = Interception {
    chain: "type filter hook prerouting priority -150",
    statement: "tproxy to :10000 accept",
    bind: "transparent",
    transparent: true,
};

/// A running haproxy.
struct Haproxy {
    _process: Process,
    _files: TempDir,
}

impl Haproxy {
    /// Relays `PROXY` to the server, from an address of its own.
    fn start(netns: &Netns, bind: &str) -> Self {
        let files = TempDir::new().expect("a directory");
        let config = files.path().join("haproxy.cfg");
        // Spliced connections are not accelerated.
        let text = format!(
            "global\n nbthread 1\n nosplice\n\
             defaults\n mode tcp\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n\
             frontend f\n bind *:{PROXY} {bind}\n default_backend b\n\
             backend b\n server s 10.2.0.2:{HTTP} source 10.2.0.3\n"
        );
        fs::write(&config, text).expect("haproxy.cfg");
        let mut process = netns.enter(|| {
            Process::start(
                Command::new("haproxy")
                    .args([Path::new("-db"), Path::new("-q"), Path::new("-f"), &config])
                    .stdin(Stdio::null()),
            )
        });
        let sockets = format!("/proc/{}/net/tcp", process.id());
        let listening = format!("00000000:{PROXY:04X} 00000000:0000 0A");
        Deadline::seconds(20).until("haproxy listens", || {
            let ended = process.0.try_wait().expect("waitpid");
            assert!(ended.is_none(), "haproxy ended: {ended:?}");
            fs::read_to_string(&sockets).is_ok_and(|text| text.contains(&listening))
        });
        Self {
            _process: process,
            _files: files,
        }
    }
}

/// A client at 10.1.0.2; in another namespace the server, 10.2.0.2, and a real
/// proxy that connects to it from 10.2.0.3. A rule there gives the client's
/// connections to the proxy, until it is deleted.
struct ProxyBed {
    pair: Pair,
    listener: TcpListener,
    options: Options,
    _proxy: Haproxy,
    _joined: Joined,
    instance: Instance,
    client: Netns,
    server: Netns,
    _cgroup: Cgroup,
}

impl ProxyBed {
    fn new(how: Interception) -> Self {
        let cgroup = Cgroup::new("proxy");
        let (client, server) = (Netns::new("client"), Netns::new("server"));
        client.veth(("va", "10.1.0.2/24"), &server, ("vb", "10.1.0.1/24"));
        client.ip(&["route", "add", "10.2.0.0/24", "via", "10.1.0.1"]);
        for ip in ["10.2.0.2/32", "10.2.0.3/32"] {
            server.ip(&["addr", "add", ip, "dev", "lo"]);
        }
        let Interception {
            chain, statement, ..
        } = how;
        let rules = format!(
            "add table ip sat; \
             add chain ip sat in {{ {chain} ; }}; \
             add rule ip sat in iifname vb ip daddr 10.2.0.2 tcp dport {HTTP} {statement}"
        );
        server.run("nft", &[&rules]);
        let instance = Instance::enable(&cgroup, &[]);
        let joined = cgroup.join();
        let proxy = Haproxy::start(&server, how.bind);
        let options = Options {
            listen: SocketAddr::from((Ipv4Addr::new(10, 2, 0, 2), HTTP)),
            ..Options::default()
        };
        let listener = server.enter(|| listen(&options));
        let pair = meet(&client, &listener, &options);
        assert_eq!(peer_of(&pair), "10.2.0.3", "it goes through the proxy");
        Self {
            pair,
            listener,
            options,
            _proxy: proxy,
            _joined: joined,
            instance,
            client,
            server,
            _cgroup: cgroup,
        }
    }

    fn run(&self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        self.instance.run(&words).ok();
    }

    fn next(&self, pair: &Pair) -> Carried {
        Carried::over(&self.instance, ROUNDS, || round_trip(pair))
    }

    /// Is the connection between client and proxy redirected, from its next
    /// message on? The proxy's own, to the server, never is here.
    fn client_leg(&self, what: &str, redirected: bool) {
        let carried = self.next(&self.pair);
        let got = (
            carried.messages("redirected_messages"),
            carried.messages("stack_messages"),
        );
        let want = if redirected {
            (MESSAGES, MESSAGES)
        } else {
            (0, 2 * MESSAGES)
        };
        assert_eq!(got, want, "{what}: {}", carried.after.0);
    }

    fn with_rule(&self, rule: &str, verdict: &str, redirected: bool) {
        self.run(&format!("policy add {rule} {verdict}"));
        self.client_leg(&format!("{rule} {verdict}"), redirected);
        self.run(&format!("policy del {rule}"));
    }

    /// A connection that gets past the proxy.
    fn direct(&self) -> Pair {
        self.server.run("nft", &["delete table ip sat"]);
        let pair = meet(&self.client, &self.listener, &self.options);
        assert_eq!(peer_of(&pair), "10.1.0.2", "it is direct");
        self.next(&pair);
        pair
    }
}

fn meet(client: &Netns, listener: &TcpListener, options: &Options) -> Pair {
    let client = client.enter(|| connect(options.listen, options));
    let server = accept(listener, options);
    Pair { client, server }
}

fn peer_of(pair: &Pair) -> String {
    let peer = pair.server.peer_addr().expect("getpeername");
    peer.ip().to_string()
}

fn proxied(how: Interception) {
    let bed = ProxyBed::new(how);
    // Else the proxy's own connection to the server is redirected as well.
    bed.run("endpoint add 10.2.0.3");
    bed.run("policy add 10.2.0.3 egress any deny");
    bed.next(&bed.pair);
    bed.client_leg("no policy", true);

    bed.run("endpoint add 10.1.0.2");
    let egress = "10.1.0.2 egress any tcp/80";
    for (verdict, redirected) in [
        ("proxy:10000", true),
        ("proxy:10001", false),
        ("deny", false),
        ("proxy:80", how.transparent),
        ("proxy:10000", true),
    ] {
        bed.with_rule(egress, verdict, redirected);
    }
    if how.transparent {
        bed.run("endpoint add 10.2.0.2");
        let ingress = "10.2.0.2 ingress any tcp/80";
        bed.with_rule(ingress, "proxy:10000", true);
        bed.with_rule(ingress, "proxy:10001", false);
    }

    bed.run(&format!("policy add {egress} proxy:10000"));
    let direct = bed.direct();
    bed.next(&direct)
        .all_on_the_stack("past the proxy", "proxy");
    bed.run(&format!("policy del {egress}"));
    bed.next(&direct)
        .all_redirected("without the rule it could");
}

#[test]
fn a_proxy_verdict_accelerates_towards_the_proxy_and_nothing_past_it() {
    proxied(REDIRECTED);
}

#[test]
fn a_transparent_proxy_is_known_by_its_listener() {
    proxied(TRANSPARENT);
}

/// Where the proxy has no rules of its own, its connection to the server is
/// judged like any other: both connections are redirected, each for itself.
#[test]
fn both_connections_of_a_proxy_can_be_redirected() {
    let bed = ProxyBed::new(REDIRECTED);
    bed.run("endpoint add 10.1.0.2");
    bed.run("policy add 10.1.0.2 egress any tcp/80 proxy:10000");
    bed.next(&bed.pair);
    let carried = bed.next(&bed.pair);
    assert_eq!(
        (
            carried.messages("redirected_messages"),
            carried.messages("stack_messages")
        ),
        (2 * MESSAGES, 0),
        "{}",
        carried.after.0
    );
}

/// Scope is part of the verdict: either it acts on live connections when it is
/// changed, or never. Not at the next change of something else.
#[test]
fn a_change_of_scope_acts_on_live_connections() {
    let bed = Bed::new(&[]);
    shown(&bed);
    bed.redirected("scope local");
    for (scope, redirected) in [("endpoints", false), ("local", true)] {
        let ran = bed
            .instance
            .enable_more(&[&bed.cgroup], &["--scope", scope]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        if redirected {
            bed.redirected(scope);
        } else {
            bed.on_the_stack(scope, "not_endpoint");
        }
    }
}

#[test]
fn del_host_deletes_all_or_nothing() {
    let bed = Bed::new(&[]);
    bed.run("endpoint add --host");
    let before = bed.instance.dump("endpoints");
    assert!(before.len() > 1, "{before:?}");
    bed.run("policy add 127.0.0.1 ingress any allow");
    let ran = bed.instance.run(&["endpoint", "del", "--host"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_eq!(bed.instance.dump("endpoints"), before);
}

/// A command killed between its write and the new generation, then repeated.
#[test]
fn a_repeated_command_finishes_what_a_killed_one_began() {
    let bed = Bed::new(&[]);
    shown(&bed);
    bed.run("endpoint add 127.0.0.2");
    bed.run("policy add 127.0.0.2 egress any allow");
    bed.redirected("allowed");
    let dir = bed.instance.dir();
    let rules: Table<PolicyKey, Policy> = Table::open(&dir, "sa_policy").expect("the map");
    let (key, value) = rules
        .entries()
        .expect("rules")
        .into_iter()
        .find(|(key, _)| key.kind == 0)
        .expect("the rule");
    let key = PolicyKey { proto: 6, ..key };
    let value = Policy {
        verdict: -1,
        evaluations: 0,
        ..value
    };
    rules.set(&key, &value).expect("the write");
    bed.run("policy add 127.0.0.2 egress any tcp deny");
    bed.on_the_stack("denied", "denied");
}

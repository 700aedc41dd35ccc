//! Tuples lie: network address translation, and one family talking to another.
//! Connections are accelerated all the same, to the socket that TCP chose.

mod common;

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::thread;

use common::books::assert_balanced;
use common::cgroup::Cgroup;
use common::instance::Instance;
use common::netns::Netns;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::tagged::Tagged;
use common::warm::assert_mostly_redirected;
use common::warm::warm_up;

const SERVERS: u16 = 3;
const CLIENTS: u64 = 3;
const ROUNDS: u32 = 200;

fn at(host: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(host), port))
}

/// client 10.77.1.2 - 10.77.1.1 router 10.77.2.1 - 10.77.2.2 server
#[derive(Debug)]
struct Net {
    client: Netns,
    router: Netns,
    server: Netns,
}

impl Net {
    fn new() -> Self {
        let [client, router, server] = ["client", "router", "server"].map(Netns::new);
        router.veth(("vc", "10.77.1.1/24"), &client, ("v0", "10.77.1.2/24"));
        router.veth(("vs", "10.77.2.1/24"), &server, ("v0", "10.77.2.2/24"));
        router.run("sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"]);
        client.ip(&["route", "add", "default", "via", "10.77.1.1"]);
        Self {
            client,
            router,
            server,
        }
    }

    fn nat(netns: &Netns, rules: &[&str]) {
        netns.run("nft", &["add table ip sat"]);
        for (chain, priority) in [
            ("prerouting", "dstnat"),
            ("output", "-100"),
            ("postrouting", "srcnat"),
        ] {
            netns.run(
                "nft",
                &[&format!(
                    "add chain ip sat {chain} {{ type nat hook {chain} priority {priority}; }}"
                )],
            );
        }
        for rule in rules {
            netns.run("nft", &[&format!("add rule ip sat {rule}")]);
        }
    }
}

/// How a client reaches a server: which namespaces, which addresses.
struct Way<'a> {
    client: &'a Netns,
    server: &'a Netns,
    ask: SocketAddr,
    listen: SocketAddr,
}

/// Several clients at several servers at once, each on a way of its own.
fn all_accelerated(instance: &Instance, ways: &[Way]) {
    let mut pairs = Vec::new();
    for (number, way) in (0_u64..).zip(ways) {
        let options = Options {
            listen: way.listen,
            ..Options::default()
        };
        let listener = way.server.enter(|| listen(&options));
        for n in 0..CLIENTS {
            let pair = Pair {
                client: way.client.enter(|| connect(way.ask, &options)),
                server: accept(&listener, &options),
            };
            warm_up(instance, &pair);
            let name = format!("{} for {}, client {n}", way.listen, way.ask);
            pairs.push(Tagged::new(&name, number << 32 | n, pair));
        }
    }
    let before = instance.stats();
    thread::scope(|scope| {
        for tagged in &mut pairs {
            scope.spawn(|| tagged.exchange(ROUNDS));
        }
    });
    for tagged in &pairs {
        tagged.assert_quiet();
    }
    assert_mostly_redirected(&before, &assert_balanced(instance), 900);
}

#[test]
fn dnat_and_masquerade_between_three_namespaces() {
    let cgroup = Cgroup::new("dnat");
    let instance = Instance::enable(&cgroup, &[]);
    let net = Net::new();
    let mut rules: Vec<String> = (1..=SERVERS)
        .map(|n| {
            format!(
                "prerouting tcp dport {} dnat to 10.77.2.2:{}",
                80 + n,
                7000 + n
            )
        })
        .collect();
    rules.push("postrouting oifname vs masquerade".to_owned());
    Net::nat(
        &net.router,
        &rules.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let _joined = cgroup.join();
    let ways: Vec<Way> = (1..=SERVERS)
        .map(|n| Way {
            client: &net.client,
            server: &net.server,
            ask: at([10, 77, 1, 1], 80 + n),
            listen: at([10, 77, 2, 2], 7000 + n),
        })
        .collect();
    all_accelerated(&instance, &ways);
}

/// The router's own process is the client, or the server that a redirected
/// connection ends at, as with a transparent proxy.
#[test]
fn the_host_between_is_client_and_server_too() {
    let cgroup = Cgroup::new("host");
    let instance = Instance::enable(&cgroup, &[]);
    let net = Net::new();
    Net::nat(
        &net.router,
        &[
            "prerouting iifname vc tcp dport 80 redirect to :7000",
            "output ip daddr 10.96.0.1 tcp dport 80 dnat to 10.77.2.2:7001",
            "postrouting oifname vs masquerade",
        ],
    );
    net.router
        .ip(&["route", "add", "10.96.0.1", "via", "10.77.2.2"]);
    let _joined = cgroup.join();
    all_accelerated(
        &instance,
        &[
            Way {
                client: &net.client,
                server: &net.router,
                ask: at([10, 77, 2, 2], 80),
                listen: at([0, 0, 0, 0], 7000),
            },
            Way {
                client: &net.router,
                server: &net.server,
                ask: at([10, 96, 0, 1], 80),
                listen: at([10, 77, 2, 2], 7001),
            },
        ],
    );
}

#[test]
fn veth_without_translation() {
    let cgroup = Cgroup::new("veth");
    let instance = Instance::enable(&cgroup, &[]);
    let net = Net::new();
    net.server
        .ip(&["route", "add", "default", "via", "10.77.2.1"]);
    let _joined = cgroup.join();
    all_accelerated(
        &instance,
        &[
            Way {
                client: &net.client,
                server: &net.server,
                ask: at([10, 77, 2, 2], 7000),
                listen: at([10, 77, 2, 2], 7000),
            },
            Way {
                client: &net.client,
                server: &net.router,
                ask: at([10, 77, 1, 1], 7000),
                listen: at([10, 77, 1, 1], 7000),
            },
        ],
    );
}

/// Client and server in one namespace, and the rules of that namespace between.
fn within_one_namespace(rule: &str, ask: SocketAddr) {
    let cgroup = Cgroup::new("one");
    let instance = Instance::enable(&cgroup, &[]);
    let netns = Netns::new("one");
    netns.ip(&["route", "add", "10.96.0.1", "dev", "lo", "src", "127.0.0.1"]);
    Net::nat(&netns, &[rule]);
    let _joined = cgroup.join();
    all_accelerated(
        &instance,
        &[Way {
            client: &netns,
            server: &netns,
            ask,
            listen: at([127, 0, 0, 1], 7000),
        }],
    );
}

#[test]
fn redirect_to_a_local_port_within_one_namespace() {
    within_one_namespace(
        "output tcp dport 80 redirect to :7000",
        at([127, 0, 0, 1], 80),
    );
}

#[test]
fn dnat_of_a_virtual_address_within_one_namespace() {
    within_one_namespace(
        "output ip daddr 10.96.0.1 tcp dport 80 dnat to 127.0.0.1:7000",
        at([10, 96, 0, 1], 80),
    );
}

#[test]
fn families_talk_to_each_other_on_loopback() {
    let listener = |listen: &str, connect: Option<&str>| Options {
        listen: listen.parse().expect("an address"),
        connect: connect.map(|to| to.parse().expect("an address")),
        ..Options::default()
    };
    for (name, options) in [
        ("v4", Options::default()),
        ("v6", Options::v6()),
        ("v4-mapped both", Options::v4_mapped()),
        (
            "v4-mapped to v4",
            listener("127.0.0.1:0", Some("[::ffff:127.0.0.1]:0")),
        ),
        (
            "v4 to v4-mapped",
            listener("[::ffff:127.0.0.1]:0", Some("127.0.0.1:0")),
        ),
        ("v4 to v6 any", listener("[::]:0", Some("127.0.0.1:0"))),
        ("v6 to v6 any", listener("[::]:0", Some("[::1]:0"))),
        (
            "v4-mapped to v4 any",
            listener("0.0.0.0:0", Some("[::ffff:127.0.0.1]:0")),
        ),
    ] {
        println!("{name}");
        let cgroup = Cgroup::new("families");
        let instance = Instance::enable(&cgroup, &[]);
        let _joined = cgroup.join();
        let pair = Pair::with(&options);
        warm_up(&instance, &pair);
        let before = instance.stats();
        let mut tagged = Tagged::new(name, 1, pair);
        tagged.exchange(ROUNDS);
        assert_mostly_redirected(&before, &assert_balanced(&instance), 900);
    }
}

//! The kernel's TLS, switched on between handshake and first record: refused
//! where bytes may be redirected to the socket, so that nobody is handed them as
//! if they had been decrypted; as without sockaccel where they cannot be.
//!
//! On a kernel without TLS the refusal is still sockaccel's own, and elsewhere the
//! kernel's answer comes through. `SOCKACCEL_TEST_KTLS=required` fails there.

mod common;

use std::env;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::ChildStdin;
use std::process::Command;
use std::process::Stdio;

use nix::errno::Errno;
use nix::libc;
use tempfile::TempDir;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::Instance;
use common::pair::Options;
use common::pair::Pair;
use common::pair::accept;
use common::pair::connect;
use common::pair::listen;
use common::process::Process;
use common::raw::set_option;
use common::stream::recv_all;
use common::stream::send_all;
use common::warm::assert_redirected;
use common::warm::round_trip;
use common::warm::warm_up;

/// include/uapi/linux/tls.h
const SOL_TLS: i32 = 282;
const TLS_TX: i32 = 1;
const TLS_RX: i32 = 2;

/// What begins a record of application data.
const APPLICATION_DATA: [u8; 3] = [0x17, 3, 3];

/// `struct tls12_crypto_info_aes_gcm_128`, with keys that this byte tells apart.
fn keys(of: u8) -> Vec<u8> {
    const TLS_1_2: u16 = 0x0303;
    const AES_GCM_128: u16 = 51;
    let (iv, key, salt, sequence) = ([of; 8], [of; 16], [of; 4], [0; 8]);
    [TLS_1_2.to_ne_bytes(), AES_GCM_128.to_ne_bytes()]
        .concat()
        .into_iter()
        .chain(iv)
        .chain(key)
        .chain(salt)
        .chain(sequence)
        .collect()
}

fn attach_tls(stream: &TcpStream) -> nix::Result<()> {
    set_option(stream, libc::SOL_TCP, libc::TCP_ULP, b"tls")
}

fn encrypt(stream: &TcpStream, of: u8) -> nix::Result<()> {
    set_option(stream, SOL_TLS, TLS_TX, &keys(of))
}

fn decrypt(stream: &TcpStream, of: u8) -> nix::Result<()> {
    set_option(stream, SOL_TLS, TLS_RX, &keys(of))
}

/// What the kernel says to a socket that no instance knows.
fn plain_answer() -> nix::Result<()> {
    let pair = Pair::new();
    let answer = attach_tls(&pair.client);
    assert!(
        answer == Ok(()) || answer == Err(Errno::ENOENT),
        "{answer:?}"
    );
    let required = env::var("SOCKACCEL_TEST_KTLS").is_ok_and(|value| value == "required");
    assert!(answer.is_ok() || !required, "this kernel has no TLS");
    answer
}

fn recv(stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    recv_all(stream, &mut bytes, Deadline::seconds(20));
    bytes
}

fn send(stream: &TcpStream, bytes: &[u8]) {
    send_all(stream, bytes, Deadline::seconds(20));
}

/// An answer, a record that came early, and one that comes after: the program
/// goes on in user space, accelerated.
#[test]
fn refused_where_messages_are_redirected() {
    let cgroup = Cgroup::new("ktls");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    for server_switches in [true, false] {
        let pair = Pair::new();
        warm_up(&instance, &pair);
        let Pair { client, server } = &pair;
        let (own, peer) = if server_switches {
            (server, client)
        } else {
            (client, server)
        };
        for waiting in [false, true] {
            let before = instance.stats();
            if waiting {
                send(peer, b"a record that is early");
            }
            assert_eq!(attach_tls(own), Err(Errno::EOPNOTSUPP));
            // Programs go on to set the keys.
            for switch in [encrypt, decrypt] {
                assert_eq!(switch(own, 1), Err(Errno::ENOPROTOOPT));
            }
            if waiting {
                assert_eq!(recv(own, 22), b"a record that is early");
            }
            send(own, b"a record");
            assert_eq!(recv(peer, 8), b"a record");
            send(peer, b"another");
            assert_eq!(recv(own, 7), b"another");
            let after = instance.stats();
            assert_eq!(after.delta(&before, "refused_options"), 1);
            assert_redirected(&before, &after, 15);
        }
    }
}

/// Enrolled, and nothing has been redirected to it: that may come any time.
#[test]
fn refused_before_the_first_message() {
    let cgroup = Cgroup::new("ktls-early");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    let pair = Pair::new();
    assert_eq!(instance.dump("sockhash").len(), 2);
    assert_eq!(attach_tls(&pair.client), Err(Errno::EOPNOTSUPP));
    assert_eq!(attach_tls(&pair.server), Err(Errno::EOPNOTSUPP));
    warm_up(&instance, &pair);
}

/// Its connection is in no table any more, if it ever was.
fn wait_until_plain(instance: &Instance, pair: &Pair) {
    Deadline::seconds(20).until("a connection that is plain TCP", || {
        round_trip(pair);
        instance.dump("sockhash").is_empty()
    });
}

/// A record of each side that only the other can read, and some more.
fn talk_encrypted(pair: &Pair) {
    let Pair { client, server } = pair;
    for (from, to, of) in [(client, server, 1), (server, client, 2)] {
        assert_eq!(encrypt(from, of), Ok(()));
        assert_eq!(decrypt(to, of), Ok(()));
    }
    for (from, to) in [(client, server), (server, client)] {
        for text in ["the first record", "and another one "] {
            send(from, text.as_bytes());
            assert_eq!(recv(to, 16), text.as_bytes());
        }
    }
}

/// Only the sender is switched: what comes is a record, and nothing of the text.
fn see_the_record(pair: &Pair) {
    assert_eq!(encrypt(&pair.client, 3), Ok(()));
    send(&pair.client, b"nobody is to see this");
    let mut header = [0; 5];
    recv_all(&pair.server, &mut header, Deadline::seconds(20));
    assert_eq!(header[..3], APPLICATION_DATA);
    let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
    let record = recv(&pair.server, len);
    assert!(!record.windows(6).any(|part| part == b"nobody"));
    round_trip_back(pair);
}

/// The other direction is as it was.
fn round_trip_back(pair: &Pair) {
    send(&pair.server, b"in the clear");
    assert_eq!(recv(&pair.client, 12), b"in the clear");
}

/// The kernel's own answer, the handshake's bytes before it and the records after
/// it, on a connection that is not accelerated.
fn as_without_sockaccel(instance: &Instance, answer: nix::Result<()>, pair: impl Fn() -> Pair) {
    for talk in [talk_encrypted, see_the_record] {
        let pair = pair();
        wait_until_plain(instance, &pair);
        let before = instance.stats();
        // The last word of the handshake waits while the switch is made.
        send(&pair.client, b"finished");
        for end in [&pair.client, &pair.server] {
            assert_eq!(attach_tls(end), answer);
        }
        assert_eq!(recv(&pair.server, 8), b"finished");
        if answer.is_ok() {
            talk(&pair);
        } else {
            round_trip(&pair);
        }
        let after = instance.stats();
        assert_eq!(after.delta(&before, "refused_options"), 0);
        assert_eq!(after.delta(&before, "redirected_messages"), 0);
    }
}

#[test]
fn as_without_sockaccel_on_blocking_sockets() {
    let answer = plain_answer();
    let cgroup = Cgroup::new("ktls-blocking");
    let instance = Instance::enable(&cgroup, &[]);
    let _joined = cgroup.join();
    as_without_sockaccel(&instance, answer, || Pair::with(&Options::blocking()));
}

/// A stream, which no longer takes part.
#[test]
fn as_without_sockaccel_once_it_was_ejected() {
    let answer = plain_answer();
    let cgroup = Cgroup::new("ktls-ejected");
    let instance = Instance::enable(&cgroup, &["--stream-limit", "100"]);
    let _joined = cgroup.join();
    as_without_sockaccel(&instance, answer, || {
        let pair = Pair::new();
        warm_up(&instance, &pair);
        Deadline::seconds(60).until("a stream that was ejected", || {
            for _ in 0..200 {
                send(&pair.client, &[b's'; 100]);
                recv(&pair.server, 100);
            }
            instance.dump("sockhash").is_empty()
        });
        pair
    });
    assert_eq!(instance.stats().by_reason("ejected", "stream"), 4);
}

/// The client is of no cgroup that is enabled.
#[test]
fn as_without_sockaccel_where_the_peer_is_elsewhere() {
    let answer = plain_answer();
    let cgroup = Cgroup::new("ktls-elsewhere");
    let instance = Instance::enable(&cgroup, &[]);
    let options = Options::default();
    let listener: TcpListener = {
        let _joined = cgroup.join();
        listen(&options)
    };
    let address = listener.local_addr().expect("getsockname");
    as_without_sockaccel(&instance, answer, || {
        let client = connect(address, &options);
        // While it is enrolled it is refused, whoever its peer may turn out to be.
        let server = accept(&listener, &options);
        Pair { client, server }
    });
}

/// One that was switched on before: left alone. The other is adopted, so it is the
/// TLS that made the difference. Before Linux 6.12 `adopt` is refused.
#[test]
fn what_has_it_already_is_not_adopted() {
    let answer = plain_answer();
    let cgroup = Cgroup::new("ktls-adopt");
    let _joined = cgroup.join();
    let [switched, other] = [Pair::new(), Pair::new()];
    for pair in [&switched, &other] {
        round_trip(pair);
    }
    for end in [&switched.client, &switched.server] {
        assert_eq!(attach_tls(end), answer);
    }
    let instance = Instance::enable(&cgroup, &[]);
    let ran = instance.run(&["adopt", "--json"]);
    if ran.code == Some(0) {
        let told = ran.json();
        let [adopted, left] =
            ["adopted", "left"].map(|list| told[list].as_array().expect("an array").clone());
        if answer.is_ok() {
            assert_eq!(adopted.len(), 1, "{told}");
            assert!(!left.is_empty(), "{told}");
            assert!(left.iter().all(|end| end["reason"] == "ulp"), "{told}");
        } else {
            assert_eq!(adopted.len(), 2, "{told}");
        }
        warm_up(&instance, &other);
    } else {
        assert_eq!(ran.code, Some(3), "{ran:?}");
    }
    let before = instance.stats();
    if answer.is_ok() {
        talk_encrypted(&switched);
        let after = instance.stats();
        assert_eq!(after.delta(&before, "redirected_messages"), 0);
    } else {
        round_trip(&switched);
    }
}

/// `openssl s_server`, which sends each line back reversed, or `s_client`.
struct OpenSsl {
    process: Process,
    heard: BufReader<std::process::ChildStdout>,
    said: ChildStdin,
}

impl OpenSsl {
    /// With a configuration that asks for the kernel's TLS.
    fn start(dir: &Path, words: &[&str]) -> Self {
        let mut process = Process::start(
            Command::new("openssl")
                .args(words)
                .env("OPENSSL_CONF", dir.join("openssl.cnf"))
                .current_dir(dir)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null()),
        );
        let heard = BufReader::new(process.0.stdout.take().expect("piped"));
        let said = process.0.stdin.take().expect("piped");
        Self {
            process,
            heard,
            said,
        }
    }
}

const CONFIGURATION: &str = "
openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = default
[default]
Options = KTLS
[req]
distinguished_name = name
[name]
";
const LINES: u32 = 20;

/// A conversation over TLS; gives what the instance counted meanwhile.
fn openssl_talks(cgroup: &Cgroup, instance: &Instance) -> [u64; 2] {
    let dir = TempDir::new().expect("a temporary directory");
    fs::write(dir.path().join("openssl.cnf"), CONFIGURATION).expect("write");
    let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                -subj /CN=localhost -keyout key.pem -out cert.pem";
    let words: Vec<&str> = request.split_whitespace().collect();
    let mut maker = OpenSsl::start(dir.path(), &words);
    assert!(maker.process.ended(Deadline::seconds(60)).success());

    let before = instance.stats();
    let _joined = cgroup.join();
    let free = listen(&Options::default())
        .local_addr()
        .expect("getsockname");
    let address = free.to_string();
    let words = [
        "s_server", "-accept", &address, "-rev", "-key", "key.pem", "-cert", "cert.pem",
    ];
    let _server = OpenSsl::start(dir.path(), &words);
    Deadline::seconds(60).until("openssl s_server", || TcpStream::connect(free).is_ok());
    let words = ["s_client", "-connect", &address, "-quiet"];
    let mut client = OpenSsl::start(dir.path(), &words);
    for n in 0..LINES {
        writeln!(client.said, "{n} records").expect("write");
        let mut line = String::new();
        client.heard.read_line(&mut line).expect("read");
        let reversed: String = format!("{n} records").chars().rev().collect();
        assert_eq!(line.trim_end(), reversed);
    }
    let after = instance.stats();
    ["refused_options", "redirected_messages"].map(|name| after.delta(&before, name))
}

/// Which asks for it right after connect(2) and accept(2).
#[test]
fn openssl_goes_on_in_user_space() {
    let cgroup = Cgroup::new("ktls-openssl");
    let instance = Instance::enable_blocking(&cgroup, &[]);
    let [refused, redirected] = openssl_talks(&cgroup, &instance);
    assert_eq!(refused, 2);
    assert!(redirected >= u64::from(LINES), "{}", instance.stats().0);
}

/// Left alone as it blocks: the kernel encrypts, if it can.
#[test]
fn openssl_has_it_where_it_is_not_accelerated() {
    let answer = plain_answer();
    let cgroup = Cgroup::new("ktls-openssl-plain");
    let instance = Instance::enable(&cgroup, &["--exclude-port", "1-65535"]);
    let encrypted = switched_on();
    assert_eq!(openssl_talks(&cgroup, &instance), [0, 0]);
    if answer.is_ok() {
        assert!(switched_on() >= encrypted + 2);
    }
}

/// How many sockets of this network namespace the kernel has encrypted for so far.
fn switched_on() -> u64 {
    let counts = fs::read_to_string("/proc/net/tls_stat").unwrap_or_default();
    counts
        .lines()
        .filter_map(|line| line.strip_prefix("TlsTxSw"))
        .filter_map(|count| count.trim().parse::<u64>().ok())
        .sum()
}

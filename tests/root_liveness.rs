//! No message stays where its reader cannot see it.

mod common;

use std::io::Write as _;
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::socket::MsgFlags;
use nix::sys::socket::recv;

use common::cgroup::Cgroup;
use common::instance::Instance;
use common::pair::Options;
use common::pair::Pair;

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
        let sockets = instance.dump("sockhash");
        // Lets a stuck reader go.
        pair.client.shutdown(Shutdown::Both).expect("shutdown");
        let (got, buffer) =
            outcome.unwrap_or_else(|_| panic!("the reader still waits: {sockets:#?}"));
        assert_eq!((got, &buffer), (Ok(8), b"12345678"));
    });
    let stats = instance.stats();
    assert_eq!(
        stats.count("paired"),
        2,
        "not accelerated at all: {}",
        stats.0
    );
}

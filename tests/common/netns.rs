//! Network namespaces of the test's own.

use std::fs::File;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;

use nix::sched::CloneFlags;
use nix::sched::setns;

/// A namespace with `lo` up, removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn new(name: &str) -> Self {
        super::require_root();
        let name = super::unique(&format!("sat-{name}"));
        ip(&["netns", "add", &name]);
        let netns = Self { name };
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip` inside the namespace.
    pub fn ip(&self, args: &[&str]) {
        ip(&[&["-n", &self.name], args].concat());
    }

    /// Any command inside the namespace, for `nft` and `sysctl`.
    pub fn run(&self, program: &str, args: &[&str]) {
        run(
            "ip",
            &[&["netns", "exec", &self.name, program], args].concat(),
        );
    }

    /// A veth from here, with this address (`10.0.0.1/24`), to another
    /// namespace. The interfaces have the names given and go with either end.
    pub fn veth(&self, own: (&str, &str), other: &Netns, theirs: (&str, &str)) {
        self.ip(&[
            "link",
            "add",
            own.0,
            "type",
            "veth",
            "peer",
            "name",
            theirs.0,
            "netns",
            &other.name,
        ]);
        for (netns, (interface, address)) in [(self, own), (other, theirs)] {
            if address.contains(':') {
                // Without duplicate address detection it is usable at once.
                netns.ip(&["addr", "add", address, "dev", interface, "nodad"]);
            } else {
                netns.ip(&["addr", "add", address, "dev", interface]);
            }
            netns.ip(&["link", "set", interface, "up"]);
        }
    }

    /// Runs the closure on a thread that is in the namespace. What it opens
    /// there stays there; the thread ends with it.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
                    setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
                    body()
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let status = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("left behind: network namespace {}", self.name);
        }
    }
}

fn ip(args: &[&str]) {
    run("ip", args);
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

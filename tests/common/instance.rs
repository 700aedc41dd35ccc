//! `sockaccel` itself, run as users run it.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use serde_json::Value;

use super::cgroup::Cgroup;

/// What a run of the binary gave.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = command
            .output()
            .unwrap_or_else(|e| panic!("run {}: {e}", command.get_program().display()));
        Self {
            code: status.code(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// Fails unless it exited with 0.
    pub fn ok(self) -> Self {
        assert_eq!(
            self.code,
            Some(0),
            "sockaccel failed\nstdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {}\n{}", self.stdout, self.stderr))
    }
}

/// Runs the binary with these arguments.
pub fn sockaccel<S: AsRef<OsStr>>(args: &[S]) -> Ran {
    run_build(env!("CARGO_BIN_EXE_sockaccel").as_ref(), args)
}

fn run_build<S: AsRef<OsStr>>(binary: &OsStr, args: &[S]) -> Ran {
    Ran::of(
        Command::new(binary)
            .args(args)
            .env_remove("SOCKACCEL_ALLOW"),
    )
}

/// Where the usual bpffs has the directories of all instances.
pub const BASE: &str = "/sys/fs/bpf/sockaccel";

/// An enabled instance; disabled on drop.
#[derive(Debug)]
pub struct Instance {
    name: String,
}

impl Instance {
    /// Enables for the cgroup, with these options; fails the test if it cannot.
    pub fn enable(cgroup: &Cgroup, options: &[&str]) -> Self {
        match Self::try_enable(&[cgroup], options) {
            Ok(instance) => instance,
            Err(ran) => panic!(
                "enable failed ({:?})\nstdout: {}\nstderr: {}",
                ran.code, ran.stdout, ran.stderr
            ),
        }
    }

    /// Includes blocking readers.
    pub fn enable_blocking(cgroup: &Cgroup, options: &[&str]) -> Self {
        let all = [&["--blocking-readers", "accelerate"], options].concat();
        Self::enable(cgroup, &all)
    }

    /// For tests that want it refused.
    pub fn try_enable(cgroups: &[&Cgroup], options: &[&str]) -> Result<Self, Ran> {
        super::require_root();
        // Before the run: what a failed enable leaves behind goes as well.
        let instance = Self {
            name: super::unique("test"),
        };
        let ran = instance.enable_more(cgroups, options);
        if ran.code == Some(0) {
            Ok(instance)
        } else {
            Err(ran)
        }
    }

    /// `enable` again, for what it adds or changes. The environment may name the
    /// form of the splice observer, else it is the one that `enable` chooses.
    pub fn enable_more(&self, cgroups: &[&Cgroup], options: &[&str]) -> Ran {
        let mut args = vec!["enable".as_ref(), "--instance".as_ref(), self.name.as_ref()];
        for cgroup in cgroups {
            args.push(OsStr::new("--cgroup"));
            args.push(cgroup.path().as_os_str());
        }
        args.extend(["--allow", "fionread"].map(OsStr::new));
        let form = env::var_os("SOCKACCEL_TEST_OBSERVER");
        if let Some(form) = &form {
            args.extend([OsStr::new("--splice-observer"), form]);
        }
        args.extend(options.iter().map(OsStr::new));
        sockaccel(&args)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory of pins.
    pub fn dir(&self) -> PathBuf {
        Path::new(BASE).join(&self.name)
    }

    /// Any other command on this instance.
    pub fn run(&self, args: &[&str]) -> Ran {
        sockaccel(&[args, &["--instance", &self.name]].concat())
    }

    /// The same by another build of the binary.
    pub fn run_by(&self, binary: &OsStr, args: &[&str]) -> Ran {
        run_build(binary, &[args, &["--instance", &self.name]].concat())
    }

    pub fn stats(&self) -> Stats {
        Stats(self.run(&["stats", "--json"]).ok().json())
    }

    /// The rows of `dump TABLE`.
    pub fn dump(&self, table: &str) -> Vec<Value> {
        match self.run(&["dump", table, "--json"]).ok().json() {
            Value::Array(rows) => rows,
            other => panic!("dump {table} is not an array: {other}"),
        }
    }

    /// No socket and no connection is in its tables.
    pub fn is_empty(&self) -> bool {
        self.dump("sockhash").is_empty() && self.dump("connections").is_empty()
    }

    pub fn disable(&self) -> Ran {
        self.run(&["disable"])
    }

    /// Without waiting: what is unread is lost.
    pub fn disable_now(&self) -> Ran {
        self.run(&["disable", "--now"])
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let ran = self.disable_now();
        if ran.code != Some(0) {
            eprintln!("disable {}: {:?} {}", self.name, ran.code, ran.stderr);
        }
    }
}

/// What `stats` said at one moment.
#[derive(Debug, Clone)]
pub struct Stats(pub Value);

impl Stats {
    /// A counter by its name in the JSON.
    pub fn count(&self, name: &str) -> u64 {
        self.0[name]
            .as_u64()
            .unwrap_or_else(|| panic!("stats has no counter {name}: {}", self.0))
    }

    /// A counter of `skipped`, `ejected` and the like; 0 if it is not listed.
    pub fn by_reason(&self, object: &str, reason: &str) -> u64 {
        self.0[object][reason].as_u64().unwrap_or(0)
    }

    pub fn redirected_bytes(&self) -> u64 {
        self.count("redirected_bytes")
    }

    pub fn redirected_messages(&self) -> u64 {
        self.count("redirected_messages")
    }

    pub fn stack_bytes(&self) -> u64 {
        self.count("stack_bytes")
    }

    pub fn stack_messages(&self) -> u64 {
        self.count("stack_messages")
    }

    /// How much a counter grew since.
    pub fn delta(&self, before: &Self, name: &str) -> u64 {
        self.count(name) - before.count(name)
    }
}

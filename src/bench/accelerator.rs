//! What accelerates: sockaccel itself, by its own commands, and the textbook
//! program that it is compared with.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::skel::{OpenSkel, SkelBuilder as _};
use libbpf_rs::{Link, MapHandle};
use serde_json::Value;

use super::Error;
use super::cgroup::Cgroup;
use crate::output::say;
use crate::sys::textbook::TextbookSkelBuilder;

/// An instance of sockaccel, disabled in the end.
#[derive(Debug)]
pub struct Sockaccel {
    binary: PathBuf,
    bpffs: PathBuf,
    instance: String,
}

impl Sockaccel {
    /// Enables an instance for one cgroup, with further options of `enable`.
    /// Gives what it warned of, too.
    pub fn enable(
        binary: &Path,
        bpffs: &Path,
        cgroup: &Cgroup,
        options: &[String],
    ) -> Result<(Self, Vec<String>), Error> {
        // Made first: what a failed `enable` leaves behind is to be removed, too.
        let this = Self {
            binary: binary.to_owned(),
            bpffs: bpffs.to_owned(),
            instance: format!("bench-{}-{}", std::process::id(), cgroup.name()),
        };
        let output = this.command(
            Command::new(binary)
                .arg("enable")
                .arg("--cgroup")
                .arg(cgroup.path())
                // The two programs of the benchmark do not use it.
                .args(["--allow", "fionread"])
                .args(options.iter().filter(|option| !option.is_empty())),
        )?;
        let warnings = String::from_utf8_lossy(&output.stderr)
            .lines()
            .filter_map(|line| line.strip_prefix("sockaccel: ").map(str::to_owned))
            .collect();
        Ok((this, warnings))
    }

    /// Bytes redirected so far.
    pub fn redirected_bytes(&self) -> Result<u64, Error> {
        let output = self.command(Command::new(&self.binary).args(["stats", "--json"]))?;
        let unusable = |why: String| Error::Command {
            text: format!("stats --json: {why}"),
            code: None,
        };
        let stats: Value =
            serde_json::from_slice(&output.stdout).map_err(|err| unusable(err.to_string()))?;
        let bytes = &stats["redirected_bytes"];
        bytes
            .as_u64()
            .or_else(|| bytes.as_str()?.parse().ok())
            .ok_or_else(|| unusable("no redirected_bytes".to_owned()))
    }

    fn command(&self, command: &mut Command) -> Result<Output, Error> {
        command
            .args(["--instance", &self.instance])
            .arg("--bpffs")
            .arg(&self.bpffs);
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|err| Error::io(format!("starting {}", self.binary.display()), err))?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::Command {
            text: said.trim().trim_start_matches("sockaccel: ").to_owned(),
            code: output.status.code(),
        })
    }
}

impl Drop for Sockaccel {
    fn drop(&mut self) {
        if let Err(err) = self.command(Command::new(&self.binary).args(["disable", "--now"])) {
            say(format_args!("sockaccel: {err}"));
        }
    }
}

/// Where to attach the textbook program.
#[derive(Debug, clap::Args)]
pub struct TextbookOptions {
    /// The cgroup whose connections it takes
    #[arg(long, value_name = "PATH")]
    cgroup: PathBuf,
}

/// Attaches the textbook program, says so in a line, and detaches it when
/// standard input ends.
pub fn hold(options: &TextbookOptions) -> Result<(), Error> {
    let _attached = Textbook::attach(&options.cgroup)?;
    println!("attached");
    io::copy(&mut io::stdin().lock(), &mut io::sink())
        .map_err(|err| Error::io("reading standard input".to_owned(), err))?;
    Ok(())
}

/// The textbook program, attached to one cgroup.
#[derive(Debug)]
pub struct Textbook {
    _sockops: Link,
    /// The kernel detaches the `sk_msg` program with the map's last descriptor.
    _sockhash: MapHandle,
}

impl Textbook {
    pub fn attach(cgroup: &Path) -> Result<Self, Error> {
        let load = |what: &'static str| move |err| Error::Bpf(what, err);
        let directory = File::open(cgroup)
            .map_err(|err| Error::io(format!("opening {}", cgroup.display()), err))?;
        let mut object = MaybeUninit::uninit();
        let skeleton = TextbookSkelBuilder::default()
            .open(&mut object)
            .and_then(OpenSkel::load)
            .map_err(load("loading the textbook program"))?;
        let sockhash = MapHandle::try_from(&skeleton.maps.tb_sockhash)
            .map_err(load("keeping the textbook map"))?;
        skeleton
            .progs
            .tb_skmsg
            .attach_sockmap(sockhash.as_fd().as_raw_fd())
            .map_err(load("attaching the textbook sk_msg program"))?;
        let sockops = skeleton
            .progs
            .tb_sockops
            .attach_cgroup(directory.as_raw_fd())
            .map_err(load("attaching the textbook sock_ops program"))?;
        Ok(Self {
            _sockops: sockops,
            _sockhash: sockhash,
        })
    }
}

/// Runs and run time in ns of every loaded program of one name, by program id.
#[derive(Debug)]
pub struct Runs {
    name: &'static str,
    by_id: HashMap<u32, (u64, u64)>,
}

impl Runs {
    pub fn of(name: &'static str) -> Self {
        let by_id = ProgInfoIter::default()
            .filter(|program| program.name.to_str() == Some(name))
            .map(|program| (program.id, (program.run_cnt, program.run_time_ns)))
            .collect();
        Self { name, by_id }
    }

    /// Ns per run since then, of the program that ran for (nearly) all of so
    /// many messages: other instances have programs of the same name.
    pub fn ns_since(&self, messages: u64) -> Option<f64> {
        let (runs, ns) = Self::of(self.name)
            .by_id
            .into_iter()
            .map(|(id, (runs, ns))| {
                let (runs_before, ns_before) = self.by_id.get(&id).copied().unwrap_or_default();
                (
                    runs.saturating_sub(runs_before),
                    ns.saturating_sub(ns_before),
                )
            })
            .min_by_key(|(runs, _)| runs.abs_diff(messages))?;
        if runs < messages / 10 * 9 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        Some(ns as f64 / runs as f64)
    }
}

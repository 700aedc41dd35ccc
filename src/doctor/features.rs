//! What the programs need of the kernel, piece by piece.
//!
//! Each piece is tried, none is concluded from the kernel's version. The
//! answers mean something only with the privileges to try: without them
//! everything looks missing.

use std::fmt;
use std::path::Path;

use libbpf_rs::MapType;
use libbpf_rs::ProgramType;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Func;
use libbpf_rs::libbpf_sys::BPF_FUNC_get_current_task;
use libbpf_rs::libbpf_sys::BPF_FUNC_get_current_task_btf;
use libbpf_rs::libbpf_sys::BPF_FUNC_get_netns_cookie;
use libbpf_rs::libbpf_sys::BPF_FUNC_get_socket_cookie;
use libbpf_rs::libbpf_sys::BPF_FUNC_jiffies64;
use libbpf_rs::libbpf_sys::BPF_FUNC_ktime_get_coarse_ns;
use libbpf_rs::libbpf_sys::BPF_FUNC_loop;
use libbpf_rs::libbpf_sys::BPF_FUNC_msg_redirect_hash;
use libbpf_rs::libbpf_sys::BPF_FUNC_probe_read_kernel;
use libbpf_rs::libbpf_sys::BPF_FUNC_ringbuf_reserve;
use libbpf_rs::libbpf_sys::BPF_FUNC_ringbuf_submit;
use libbpf_rs::libbpf_sys::BPF_FUNC_set_retval;
use libbpf_rs::libbpf_sys::BPF_FUNC_sk_storage_get;
use libbpf_rs::libbpf_sys::BPF_FUNC_skc_to_tcp_sock;
use libbpf_rs::libbpf_sys::BPF_FUNC_sock_hash_update;
use libbpf_rs::libbpf_sys::BPF_FUNC_sock_ops_cb_flags_set;
use libbpf_rs::libbpf_sys::BPF_FUNC_timer_init;
use libbpf_rs::libbpf_sys::BPF_FUNC_timer_set_callback;
use libbpf_rs::libbpf_sys::BPF_FUNC_timer_start;
use libbpf_rs::libbpf_sys::bpf_func_id;
use nix::sys::utsname::uname;
use schemars::JsonSchema;
use serde::Serialize;
use serde::Serializer;

use crate::sys;

/// Where the kernel shows the types it was built with.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// One piece, and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Feature {
    /// What it is.
    #[serde(flatten)]
    pub piece: Piece,
    /// Where it came from: a version of Linux, or a build option.
    pub since: &'static str,
    /// Whether the kernel has it.
    pub state: State,
}

/// Answer of one probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The kernel has it.
    Supported,
    /// The kernel lacks it.
    Missing,
    /// The probe itself failed, with this error.
    Unknown(String),
}

/// Something a kernel may have or lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Piece {
    /// The kernel's own types, which the programs are fitted to when loaded.
    Btf,
    /// A program type.
    Program {
        /// Type, in JSON by its name in bpftool(8).
        #[serde(rename = "name", serialize_with = "program_name")]
        #[schemars(with = "String")]
        program: ProgramType,
    },
    /// Timers of programs. The verifier of a real-time kernel refuses them (e25ddfb388c8),
    /// and where an older one takes them a timer can sleep in atomic context.
    Timers,
    /// An iterator over kernel objects.
    Iterator {
        /// Name after `iter/`.
        name: &'static str,
    },
    /// A map type.
    Map {
        /// Type, in JSON by its name in bpftool(8).
        #[serde(rename = "name", serialize_with = "map_name")]
        #[schemars(with = "String")]
        map: MapType,
    },
    /// A helper function, for programs of one type.
    Helper {
        /// Name as in bpf-helpers(7).
        name: &'static str,
        /// Its number there.
        #[serde(skip)]
        id: bpf_func_id,
        /// The caller's type, in JSON by its name in bpftool(8).
        #[serde(serialize_with = "program_name")]
        #[schemars(with = "String")]
        program: ProgramType,
    },
}

const fn program(program: ProgramType, since: &'static str) -> (Piece, &'static str) {
    (Piece::Program { program }, since)
}

const fn map(map: MapType, since: &'static str) -> (Piece, &'static str) {
    (Piece::Map { map }, since)
}

const fn helper(
    program: ProgramType,
    name: &'static str,
    id: bpf_func_id,
    since: &'static str,
) -> (Piece, &'static str) {
    (Piece::Helper { name, id, program }, since)
}

/// All that src/bpf uses and a kernel that has bpf(2) might lack.
const PIECES: &[(Piece, &str)] = &[
    (Piece::Btf, "CONFIG_DEBUG_INFO_BTF=y"),
    (Piece::Timers, "a kernel without CONFIG_PREEMPT_RT"),
    program(ProgramType::SockOps, "Linux 4.13"),
    program(ProgramType::SkMsg, "Linux 4.17"),
    program(ProgramType::CgroupSockopt, "Linux 5.3"),
    program(ProgramType::CgroupSockAddr, "Linux 4.17"),
    program(ProgramType::Tracepoint, "Linux 4.7"),
    (Piece::Iterator { name: "sockmap" }, "Linux 5.10"),
    (Piece::Iterator { name: "task_file" }, "Linux 5.8"),
    map(MapType::Sockhash, "Linux 4.18"),
    map(MapType::SkStorage, "Linux 5.2"),
    map(MapType::LpmTrie, "Linux 4.11"),
    map(MapType::Hash, "Linux 3.19"),
    map(MapType::LruHash, "Linux 4.10"),
    map(MapType::PercpuArray, "Linux 4.6"),
    map(MapType::RingBuf, "Linux 5.8"),
    helper(
        ProgramType::SkMsg,
        "bpf_jiffies64",
        BPF_FUNC_jiffies64,
        "Linux 5.6",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_ktime_get_coarse_ns",
        BPF_FUNC_ktime_get_coarse_ns,
        "Linux 5.11",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_timer_init",
        BPF_FUNC_timer_init,
        "Linux 5.15",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_timer_set_callback",
        BPF_FUNC_timer_set_callback,
        "Linux 5.15",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_timer_start",
        BPF_FUNC_timer_start,
        "Linux 5.15",
    ),
    helper(
        ProgramType::CgroupSockAddr,
        "bpf_sk_storage_get",
        BPF_FUNC_sk_storage_get,
        "Linux 5.9",
    ),
    helper(
        ProgramType::CgroupSockAddr,
        "bpf_set_retval",
        BPF_FUNC_set_retval,
        "Linux 5.19",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_sk_storage_get",
        BPF_FUNC_sk_storage_get,
        "Linux 5.2",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_skc_to_tcp_sock",
        BPF_FUNC_skc_to_tcp_sock,
        "Linux 5.9",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_sock_hash_update",
        BPF_FUNC_sock_hash_update,
        "Linux 4.18",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_sock_ops_cb_flags_set",
        BPF_FUNC_sock_ops_cb_flags_set,
        "Linux 4.16",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_get_socket_cookie",
        BPF_FUNC_get_socket_cookie,
        "Linux 4.18",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_get_netns_cookie",
        BPF_FUNC_get_netns_cookie,
        "Linux 5.15",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_get_current_task_btf",
        BPF_FUNC_get_current_task_btf,
        "Linux 5.15",
    ),
    helper(
        ProgramType::SkMsg,
        "bpf_sk_storage_get",
        BPF_FUNC_sk_storage_get,
        "Linux 5.8",
    ),
    helper(
        ProgramType::SkMsg,
        "bpf_skc_to_tcp_sock",
        BPF_FUNC_skc_to_tcp_sock,
        "Linux 5.9",
    ),
    helper(
        ProgramType::SkMsg,
        "bpf_msg_redirect_hash",
        BPF_FUNC_msg_redirect_hash,
        "Linux 4.18",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_probe_read_kernel",
        BPF_FUNC_probe_read_kernel,
        "Linux 5.8",
    ),
    helper(
        ProgramType::SkMsg,
        "bpf_probe_read_kernel",
        BPF_FUNC_probe_read_kernel,
        "Linux 5.8",
    ),
    helper(
        ProgramType::SkMsg,
        "bpf_get_current_task_btf",
        BPF_FUNC_get_current_task_btf,
        "Linux 5.15",
    ),
    helper(
        ProgramType::SockOps,
        "bpf_ringbuf_reserve",
        BPF_FUNC_ringbuf_reserve,
        "Linux 5.8",
    ),
    helper(ProgramType::SkMsg, "bpf_loop", BPF_FUNC_loop, "Linux 5.17"),
    helper(
        ProgramType::SockOps,
        "bpf_ringbuf_submit",
        BPF_FUNC_ringbuf_submit,
        "Linux 5.8",
    ),
    helper(
        ProgramType::SkMsg,
        "bpf_ringbuf_reserve",
        BPF_FUNC_ringbuf_reserve,
        "Linux 5.8",
    ),
    helper(
        ProgramType::SkMsg,
        "bpf_ringbuf_submit",
        BPF_FUNC_ringbuf_submit,
        "Linux 5.8",
    ),
    helper(
        ProgramType::CgroupSockopt,
        "bpf_sk_storage_get",
        BPF_FUNC_sk_storage_get,
        "Linux 5.3",
    ),
    helper(
        ProgramType::CgroupSockopt,
        "bpf_set_retval",
        BPF_FUNC_set_retval,
        "Linux 5.18",
    ),
    helper(
        ProgramType::Tracepoint,
        "bpf_get_current_task",
        BPF_FUNC_get_current_task,
        "Linux 4.8",
    ),
    helper(
        ProgramType::Tracepoint,
        "bpf_probe_read_kernel",
        BPF_FUNC_probe_read_kernel,
        "Linux 5.5",
    ),
];

/// Tries every piece, in the order that `doctor` shows them.
pub fn probe() -> Vec<Feature> {
    // libbpf would look for a copy elsewhere, and complain on stderr.
    let btf = Path::new(KERNEL_BTF)
        .exists()
        .then(Btf::from_vmlinux)
        .transpose();
    let btf = btf
        .as_ref()
        .map(Option::as_ref)
        .map_err(ToString::to_string);
    PIECES
        .iter()
        .map(|&(piece, since)| Feature {
            piece,
            since,
            state: state(piece, btf.clone()),
        })
        .collect()
}

/// The kernel's types: `None` if it shows none.
type KernelTypes<'a> = Result<Option<&'a Btf<'a>>, String>;

fn state(piece: Piece, btf: KernelTypes<'_>) -> State {
    let found = match piece {
        Piece::Program { program } => known(program.is_supported()),
        Piece::Map { map } => known(map.is_supported()),
        Piece::Helper { id, program, .. } => known(program.is_helper_supported(id)),
        Piece::Btf => btf.map(|btf| btf.is_some()),
        Piece::Timers => real_time().map(|real_time| !real_time),
        Piece::Iterator { name } => btf.and_then(|btf| iterator(btf, name)),
    };
    match found {
        Ok(true) => State::Supported,
        Ok(false) => State::Missing,
        Err(error) => State::Unknown(error),
    }
}

fn known(answer: libbpf_rs::Result<bool>) -> Result<bool, String> {
    answer.map_err(|error| error.to_string())
}

fn real_time() -> Result<bool, String> {
    let names = uname().map_err(|error| error.to_string())?;
    Ok(is_real_time(&names.version().to_string_lossy()))
}

/// By what `uname -v` prints: `#1 SMP PREEMPT_RT Debian 6.12.57-1 (2025-11-05)`. The
/// kernel's build puts it there (init/Makefile, `UTS_VERSION`).
fn is_real_time(build: &str) -> bool {
    build.split_whitespace().any(|word| word == "PREEMPT_RT")
}

fn function(btf: Option<&Btf<'_>>, name: &str) -> Option<u32> {
    let function: Func<'_> = btf?.type_by_name(name)?;
    Some(function.type_id().into())
}

/// Iterators are one program type with tracing programs, which a locked down
/// kernel refuses. So one is loaded.
fn iterator(btf: Option<&Btf<'_>>, name: &str) -> Result<bool, String> {
    let Some(function) = function(btf, &format!("bpf_iter_{name}")) else {
        return Ok(false);
    };
    sys::probe::load_iterator(function)
        .map(|()| true)
        .map_err(|error| error.to_string())
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            piece,
            since,
            state,
        } = self;
        match state {
            State::Supported => write!(f, "the kernel supports {piece}"),
            State::Missing => write!(f, "the kernel does not support {piece} ({since} does)"),
            State::Unknown(error) => {
                write!(
                    f,
                    "whether the kernel supports {piece} could not be probed: {error}"
                )
            }
        }
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Btf => write!(f, "BTF of its own types ({KERNEL_BTF})"),
            Self::Program { program } => write!(f, "BPF {} programs", program_text(program)),
            Self::Timers => f.write_str("BPF timers"),
            Self::Iterator { name } => write!(f, "BPF iter/{name} programs"),
            Self::Map { map } => write!(f, "BPF {} maps", map_text(map)),
            Self::Helper { name, program, .. } => {
                write!(f, "{name} in BPF {} programs", program_text(program))
            }
        }
    }
}

fn program_text(program: ProgramType) -> &'static str {
    match program {
        ProgramType::SockOps => "sock_ops",
        ProgramType::SkMsg => "sk_msg",
        ProgramType::CgroupSockopt => "cgroup_sockopt",
        ProgramType::CgroupSockAddr => "cgroup_sock_addr",
        ProgramType::Tracepoint => "tracepoint",
        _ => "other",
    }
}

fn map_text(map: MapType) -> &'static str {
    match map {
        MapType::Sockhash => "sockhash",
        MapType::SkStorage => "sk_storage",
        MapType::LpmTrie => "lpm_trie",
        MapType::Hash => "hash",
        MapType::LruHash => "lru_hash",
        MapType::PercpuArray => "percpu_array",
        MapType::RingBuf => "ringbuf",
        _ => "other",
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn program_name<S: Serializer>(program: &ProgramType, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(program_text(*program))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn map_name<S: Serializer>(map: &MapType, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(map_text(*map))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn a_real_time_kernel_has_no_timers_for_us() {
        assert!(is_real_time(
            "#1 SMP PREEMPT_RT Debian 6.12.57-1 (2025-11-05)"
        ));
        assert!(is_real_time("#1 SMP PREEMPT_RT"));
        assert!(!is_real_time("#1 SMP PREEMPT_DYNAMIC Debian 6.12.57-1"));
        assert!(!is_real_time("#1 SMP PREEMPT_DYNAMIC_RT1 @0"));
    }

    fn feature(piece: Piece, state: State) -> Feature {
        Feature {
            piece,
            since: "Linux 4.13",
            state,
        }
    }

    #[test]
    fn texts() {
        let sock_ops = Piece::Program {
            program: ProgramType::SockOps,
        };
        let cases = [
            (
                State::Supported,
                "the kernel supports BPF sock_ops programs",
            ),
            (
                State::Missing,
                "the kernel does not support BPF sock_ops programs (Linux 4.13 does)",
            ),
            (
                State::Unknown("interrupted".to_owned()),
                "whether the kernel supports BPF sock_ops programs could not be probed: interrupted",
            ),
        ];
        for (state, expected) in cases {
            assert_eq!(feature(sock_ops, state).to_string(), expected);
        }
    }

    #[test]
    fn every_piece_has_a_line_of_its_own() {
        let lines: BTreeSet<String> = PIECES.iter().map(|(piece, _)| piece.to_string()).collect();
        assert_eq!(lines.len(), PIECES.len());
        assert!(
            !lines.iter().any(|line| line.contains("other")),
            "{lines:?}"
        );
    }

    #[test]
    fn json() {
        let helper = PIECES
            .iter()
            .find(|(piece, _)| {
                matches!(piece, Piece::Helper { name, program: ProgramType::SockOps, .. }
                    if *name == "bpf_sk_storage_get")
            })
            .expect("the programs use it");
        assert_eq!(
            serde_json::to_value(feature(helper.0, State::Missing)).expect("serializes"),
            serde_json::json!({
                "kind": "helper",
                "name": "bpf_sk_storage_get",
                "program": "sock_ops",
                "since": "Linux 4.13",
                "state": "missing",
            })
        );
    }

    #[test]
    fn root_what_no_kernel_has_is_missing() {
        assert!(nix::unistd::geteuid().is_root(), "run this test as root");
        let btf = Btf::from_vmlinux().expect("kernel BTF");
        let none = [
            helper(
                ProgramType::SockOps,
                "bpf_msg_redirect_hash",
                BPF_FUNC_msg_redirect_hash,
                "",
            )
            .0,
            Piece::Iterator {
                name: "no_such_iterator",
            },
        ];
        for piece in none {
            assert_eq!(state(piece, Ok(Some(&btf))), State::Missing, "{piece}");
        }
        for piece in PIECES.iter().map(|(piece, _)| *piece) {
            let needs_btf = matches!(piece, Piece::Btf | Piece::Iterator { .. });
            if needs_btf {
                assert_eq!(state(piece, Ok(None)), State::Missing, "{piece}");
            }
        }
    }

    /// Helpers that have been there since maps and iterators have, or longer than
    /// others of [`PIECES`] (in iterators, for which libbpf has no probe), and
    /// functions that the programs do without (kernel.h).
    const NOT_PROBED: &[&str] = &[
        "bpf_ktime_get_ns",
        "bpf_map_lookup_elem",
        "bpf_map_update_elem",
        "bpf_map_delete_elem",
        "bpf_tail_call",
        "bpf_seq_write",
        "bpf_sock_from_file",
        "bpf_rdonly_cast",
    ];

    #[test]
    fn every_helper_that_the_programs_call_is_probed() {
        let probed: BTreeSet<&str> = PIECES
            .iter()
            .filter_map(|(piece, _)| match piece {
                Piece::Helper { name, .. } => Some(*name),
                _ => None,
            })
            .chain(NOT_PROBED.iter().copied())
            .collect();
        for called in calls() {
            assert!(
                probed.contains(called.as_str()),
                "src/bpf calls {called}: add it to PIECES, for each type that does"
            );
        }
    }

    /// Names in src/bpf that are called and look like a helper's. What only `adopt`
    /// loads, and the tests, need not be there for `enable`.
    fn calls() -> BTreeSet<String> {
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bpf");
        fs::read_dir(sources)
            .expect("src/bpf")
            .map(|entry| entry.expect("entry").path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                !name.ends_with(".bpf.c") || name == "sockaccel.bpf.c"
            })
            .map(|path| fs::read_to_string(path).expect("source"))
            .flat_map(|source| names_before_parentheses(&source))
            .filter(|name| name.starts_with("bpf_"))
            // Of libbpf's headers: no calls in the end.
            .filter(|name| !name.starts_with("bpf_core_") && name != "bpf_ksym_exists")
            .filter(|name| !name.starts_with("bpf_hton") && !name.starts_with("bpf_ntoh"))
            .collect()
    }

    fn names_before_parentheses(source: &str) -> Vec<String> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        source
            .split('(')
            .filter_map(|before| before.rsplit(|c| !is_part(c)).next())
            .map(str::to_owned)
            .collect()
    }
}

//! A BPF program that somebody else attached to a cgroup.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use libbpf_rs::libbpf_sys;

use super::cgroup::Cgroup;

/// `r0 = 1; exit`
const LET_EVERYTHING_PASS: [u64; 2] = [0x1_0000_00b7, 0x95];

/// Of a `sock_ops` program, `include/uapi/linux/bpf.h`: it is called at each RTO.
pub const RTO_CALLBACK: u32 = 1 << 0;
/// It is called at each ACK that gives a round-trip time.
pub const RTT_CALLBACK: u32 = 1 << 3;

/// One instruction, `struct bpf_insn`.
const fn insn(code: u8, registers: u8, offset: u16, imm: u32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset as u64) << 16 | (imm as u64) << 32
}

/// At `BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB` (4) and `PASSIVE` (5) it sets these callback
/// flags and no others; at `BPF_SOCK_OPS_RTT_CB` (12) it adds one in the map.
fn with_flags(flags: u32, map: &OwnedFd) -> Vec<u64> {
    let fd = u32::try_from(map.as_raw_fd()).expect("a descriptor");
    vec![
        insn(0x61, 0x12, 0, 0),           // r2 = ops->op
        insn(0x15, 0x02, 3, 4),           // if r2 == 4 goto set
        insn(0x15, 0x02, 2, 5),           // if r2 == 5 goto set
        insn(0x15, 0x02, 4, 12),          // if r2 == 12 goto count
        insn(0x05, 0, 12, 0),             // goto out
        insn(0xb7, 0x02, 0, flags),       // set: r2 = flags
        insn(0x85, 0, 0, 59),             // call bpf_sock_ops_cb_flags_set
        insn(0x05, 0, 9, 0),              // goto out
        insn(0x62, 0x0a, 0xfffc, 0),      // count: key = 0
        insn(0xbf, 0xa2, 0, 0),           // r2 = fp
        insn(0x07, 0x02, 0, 0xffff_fffc), // r2 -= 4
        insn(0x18, 0x11, 0, fd),          // r1 = map
        0,
        insn(0x85, 0, 0, 1),    // call bpf_map_lookup_elem
        insn(0x15, 0x00, 2, 0), // if !r0 goto out
        insn(0xb7, 0x01, 0, 1), // r1 = 1
        insn(0xdb, 0x10, 0, 0), // lock *r0 += r1
        LET_EVERYTHING_PASS[0], // out:
        LET_EVERYTHING_PASS[1],
    ]
}

/// Program type and where it is attached.
type Kind = (libbpf_sys::bpf_prog_type, libbpf_sys::bpf_attach_type);

const SOCK_OPS: Kind = (
    libbpf_sys::BPF_PROG_TYPE_SOCK_OPS,
    libbpf_sys::BPF_CGROUP_SOCK_OPS,
);
const INGRESS: Kind = (
    libbpf_sys::BPF_PROG_TYPE_CGROUP_SKB,
    libbpf_sys::BPF_CGROUP_INET_INGRESS,
);

/// A program on a cgroup, detached on drop.
#[derive(Debug)]
pub struct OtherProgram {
    program: OwnedFd,
    cgroup: File,
    attached: libbpf_sys::bpf_attach_type,
    /// What it counts.
    map: Option<OwnedFd>,
}

impl OtherProgram {
    /// A `sock_ops` program, beside others.
    pub fn attach(cgroup: &Cgroup) -> Self {
        Self::of_type(SOCK_OPS, cgroup, libbpf_sys::BPF_F_ALLOW_MULTI)
    }

    /// A `sock_ops` program and the only one: the kernel refuses every other.
    pub fn attach_exclusively(cgroup: &Cgroup) -> Self {
        Self::of_type(SOCK_OPS, cgroup, 0)
    }

    /// One that lets all packets pass that come in.
    pub fn attach_to_packets(cgroup: &Cgroup) -> Self {
        Self::of_type(INGRESS, cgroup, libbpf_sys::BPF_F_ALLOW_MULTI)
    }

    /// A `sock_ops` program that sets callback flags of its own for each connection.
    pub fn attach_with_flags(cgroup: &Cgroup, flags: u32) -> Self {
        super::require_root();
        // SAFETY: the name lives through the call, and no options are given.
        let fd = unsafe {
            libbpf_sys::bpf_map_create(
                libbpf_sys::BPF_MAP_TYPE_ARRAY,
                c"sat_other".as_ptr(),
                4,
                8,
                1,
                std::ptr::null(),
            )
        };
        assert!(fd >= 0, "make a map: errno {}", -fd);
        // SAFETY: the call just returned it.
        let map = unsafe { OwnedFd::from_raw_fd(fd) };
        let code = with_flags(flags, &map);
        let multi = libbpf_sys::BPF_F_ALLOW_MULTI;
        let mut program = Self::load(SOCK_OPS, cgroup, multi, &code);
        program.map = Some(map);
        program
    }

    /// ACKs that the program was told of.
    pub fn acks(&self) -> u64 {
        let map = self.map.as_ref().expect("a program that counts");
        let (key, mut count) = (0_u32, 0_u64);
        // SAFETY: key and value are as large as the map has them.
        let ret = unsafe {
            libbpf_sys::bpf_map_lookup_elem(
                map.as_raw_fd(),
                (&raw const key).cast(),
                (&raw mut count).cast(),
            )
        };
        assert_eq!(ret, 0, "look up in the map");
        count
    }

    fn of_type(kind: Kind, cgroup: &Cgroup, flags: u32) -> Self {
        Self::load(kind, cgroup, flags, &LET_EVERYTHING_PASS)
    }

    fn load((kind, attached): Kind, cgroup: &Cgroup, flags: u32, code: &[u64]) -> Self {
        super::require_root();
        // SAFETY: name, licence and instructions live through the call.
        let fd = unsafe {
            libbpf_sys::bpf_prog_load(
                kind,
                c"sat_other".as_ptr(),
                c"Dual BSD/GPL".as_ptr(),
                code.as_ptr().cast(),
                code.len() as u64,
                std::ptr::null_mut(),
            )
        };
        assert!(fd >= 0, "load a program: errno {}", -fd);
        // SAFETY: the call just returned it.
        let program = unsafe { OwnedFd::from_raw_fd(fd) };
        let cgroup = File::open(cgroup.path()).expect("open the cgroup");
        // SAFETY: both descriptors are open.
        let ret = unsafe {
            libbpf_sys::bpf_prog_attach(program.as_raw_fd(), cgroup.as_raw_fd(), attached, flags)
        };
        assert_eq!(ret, 0, "attach to the cgroup");
        Self {
            program,
            cgroup,
            attached,
            map: None,
        }
    }
}

impl Drop for OtherProgram {
    fn drop(&mut self) {
        // SAFETY: both descriptors are open.
        let ret = unsafe {
            libbpf_sys::bpf_prog_detach2(
                self.program.as_raw_fd(),
                self.cgroup.as_raw_fd(),
                self.attached,
            )
        };
        if ret != 0 {
            eprintln!("detach the test's own program: errno {}", -ret);
        }
    }
}

/// Ids of the programs attached to a cgroup: `sock_ops`, then `setsockopt`.
pub fn attached_to(cgroup: &Path) -> [Vec<u32>; 2] {
    let dir = File::open(cgroup).expect("open the cgroup");
    [
        libbpf_sys::BPF_CGROUP_SOCK_OPS,
        libbpf_sys::BPF_CGROUP_SETSOCKOPT,
    ]
    .map(|kind| {
        let mut ids = vec![0_u32; 64];
        let mut count = 64_u32;
        let mut flags = 0_u32;
        // SAFETY: `ids` has room for `count` of them.
        let ret = unsafe {
            libbpf_sys::bpf_prog_query(
                dir.as_raw_fd(),
                kind,
                0,
                &raw mut flags,
                ids.as_mut_ptr(),
                &raw mut count,
            )
        };
        assert_eq!(ret, 0, "query {}", cgroup.display());
        ids.truncate(count as usize);
        ids
    })
}

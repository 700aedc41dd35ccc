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

    fn of_type((kind, attached): Kind, cgroup: &Cgroup, flags: u32) -> Self {
        super::require_root();
        // SAFETY: name, licence and the two instructions live through the call.
        let fd = unsafe {
            libbpf_sys::bpf_prog_load(
                kind,
                c"sat_other".as_ptr(),
                c"Dual BSD/GPL".as_ptr(),
                LET_EVERYTHING_PASS.as_ptr().cast(),
                LET_EVERYTHING_PASS.len() as u64,
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

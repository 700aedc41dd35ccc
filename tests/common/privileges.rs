//! The program as root with less than all privileges.

use std::ffi::OsStr;
use std::thread;

use caps::CapSet;
use caps::Capability;
use nix::errno::Errno;
use nix::libc;

use super::instance::Ran;
use super::instance::sockaccel;

/// Runs the binary as uid 0 with exactly these capabilities.
pub fn sockaccel_with<S: AsRef<OsStr> + Sync>(held: &[Capability], args: &[S]) -> Ran {
    with_only(held, || sockaccel(args))
}

/// Runs the closure; what it starts has exactly these capabilities.
pub fn with_only<T: Send>(held: &[Capability], body: impl FnOnce() -> T + Send) -> T {
    // The bounding set is the thread's: what it starts has no others.
    alone(|| {
        let all = caps::read(None, CapSet::Bounding).expect("the bounding set");
        for capability in all.iter().filter(|c| !held.contains(c)) {
            caps::drop(None, CapSet::Bounding, *capability).expect("drop");
        }
        caps::clear(None, CapSet::Inheritable).expect("clear");
        body()
    })
}

/// Runs the closure; what it starts may not use bpf(2), whatever it holds.
#[allow(unsafe_code)]
pub fn without_bpf<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let instruction = |code, operand, otherwise| libc::sock_filter {
        code: u16::try_from(code).expect("a code"),
        jt: 0,
        jf: otherwise,
        k: operand,
    };
    let bpf = u32::try_from(libc::SYS_bpf).expect("a number");
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    let mut filter = [
        // The number of the call is the first word of `struct seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, bpf, 1),
        instruction(libc::BPF_RET | libc::BPF_K, refused, 0),
        instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    alone(move || {
        let program = libc::sock_fprog {
            len: 4,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the kernel copies the filter, of as many instructions.
        let ret = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        Errno::result(ret).expect("a seccomp filter");
        body()
    })
}

/// On a thread that takes what it gives up with it.
fn alone<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(body)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

//! bpf(2) where libbpf-rs has no call, or one that hides errors.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// Where a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachType {
    /// `BPF_CGROUP_SOCK_OPS`
    CgroupSockOps,
    /// `BPF_CGROUP_SETSOCKOPT`
    CgroupSetsockopt,
    /// `BPF_CGROUP_INET4_CONNECT`
    CgroupConnect4,
    /// `BPF_CGROUP_INET6_CONNECT`
    CgroupConnect6,
    /// `BPF_SK_MSG_VERDICT`
    SkMsgVerdict,
    /// `BPF_CGROUP_INET_INGRESS`
    CgroupIngress,
    /// `BPF_CGROUP_INET_EGRESS`
    CgroupEgress,
}

impl AttachType {
    const fn raw(self) -> libbpf_sys::bpf_attach_type {
        match self {
            Self::CgroupSockOps => libbpf_sys::BPF_CGROUP_SOCK_OPS,
            Self::CgroupSetsockopt => libbpf_sys::BPF_CGROUP_SETSOCKOPT,
            Self::CgroupConnect4 => libbpf_sys::BPF_CGROUP_INET4_CONNECT,
            Self::CgroupConnect6 => libbpf_sys::BPF_CGROUP_INET6_CONNECT,
            Self::SkMsgVerdict => libbpf_sys::BPF_SK_MSG_VERDICT,
            Self::CgroupIngress => libbpf_sys::BPF_CGROUP_INET_INGRESS,
            Self::CgroupEgress => libbpf_sys::BPF_CGROUP_INET_EGRESS,
        }
    }
}

fn check(ret: i32) -> io::Result<i32> {
    // libbpf 1.0: negative errno is returned and also set.
    if ret < 0 {
        Err(io::Error::from_raw_os_error(-ret))
    } else {
        Ok(ret)
    }
}

fn owned(ret: i32) -> io::Result<OwnedFd> {
    let fd = check(ret)?;
    // SAFETY: the call just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_LINK_CREATE`: attaches a program to a cgroup or a sockmap. The link
/// keeps it attached until the descriptor and every pin of it are gone.
pub fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    // SAFETY: both descriptors are open for the call; null options are allowed.
    owned(unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            target.as_raw_fd(),
            attach_type.raw(),
            std::ptr::null(),
        )
    })
}

/// `BPF_PROG_ATTACH`: for sockmaps of kernels before 6.10, which have no link.
pub fn prog_attach(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<()> {
    // SAFETY: both descriptors are open for the call.
    let ret = unsafe {
        libbpf_sys::bpf_prog_attach(
            program.as_raw_fd(),
            target.as_raw_fd(),
            attach_type.raw(),
            0,
        )
    };
    check(ret).map(drop)
}

/// `BPF_PROG_DETACH` of exactly this program.
pub fn prog_detach(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<()> {
    // SAFETY: both descriptors are open for the call.
    let ret = unsafe {
        libbpf_sys::bpf_prog_detach2(program.as_raw_fd(), target.as_raw_fd(), attach_type.raw())
    };
    check(ret).map(drop)
}

/// `BPF_LINK_UPDATE`: the link runs this program from now on.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open for the call; null options are allowed.
    let ret = unsafe {
        libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null())
    };
    check(ret).map(drop)
}

/// Returns when every BPF program that runs now has come to its end.
///
/// membarrier(2) waits for that, and needs no privileges, but refuses on machines
/// with `nohz_full`. There the kernel waits when a map of maps is changed, so that
/// nobody uses what was in it any more (1ae80cf31938).
pub fn grace_period() -> io::Result<()> {
    let (none, cpu) = (0, 0);
    // SAFETY: takes no pointers.
    let ret =
        unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, none, cpu) };
    if ret == 0 {
        return Ok(());
    }
    let array = |kind, value: usize, inner: Option<&OwnedFd>| {
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut options: libbpf_sys::bpf_map_create_opts = unsafe { std::mem::zeroed() };
        options.sz = size_of_val(&options) as u64;
        options.inner_map_fd = inner.map_or(0, |fd| fd.as_raw_fd().unsigned_abs());
        // SAFETY: the name ends in a zero byte, the options outlive the call.
        owned(unsafe {
            libbpf_sys::bpf_map_create(
                kind,
                c"sa_grace".as_ptr(),
                4,
                u32::try_from(value).unwrap_or(u32::MAX),
                1,
                &raw const options,
            )
        })
    };
    let inner = array(libbpf_sys::BPF_MAP_TYPE_ARRAY, 4, None)?;
    let outer = array(libbpf_sys::BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, Some(&inner))?;
    let (key, value) = (0_u32, inner.as_raw_fd());
    // SAFETY: key and value have the sizes that the map was made with.
    let ret = unsafe {
        libbpf_sys::bpf_map_update_elem(
            outer.as_raw_fd(),
            (&raw const key).cast(),
            (&raw const value).cast(),
            0,
        )
    };
    check(ret).map(drop)
}

/// `BPF_LINK_DETACH`: takes the program off at once. When the last pin of a link
/// goes the kernel does the same, but some time later.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call.
    check(unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) }).map(drop)
}

/// `BPF_OBJ_PIN`: gives a program, map or link a name in bpffs.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated and lives through the call.
    check(unsafe { libbpf_sys::bpf_obj_pin(fd.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// `BPF_OBJ_GET`: opens what a bpffs name stands for.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated and lives through the call.
    owned(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })
}

/// The maps that a program uses, with their names. Fails for what is no program.
pub fn maps_of(program: BorrowedFd<'_>) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut ids = [0_u32; 64];
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut info: libbpf_sys::bpf_prog_info = unsafe { std::mem::zeroed() };
    info.nr_map_ids = u32::try_from(ids.len()).unwrap_or_default();
    info.map_ids = ids.as_mut_ptr() as u64;
    let mut len = u32::try_from(size_of_val(&info)).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes of `info` and `nr_map_ids` ids.
    check(unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut len)
    })?;
    let count = (info.nr_map_ids as usize).min(ids.len());
    ids[..count]
        .iter()
        .map(|id| {
            // SAFETY: takes a plain value.
            let map = owned(unsafe { libbpf_sys::bpf_map_get_fd_by_id(*id) })?;
            // SAFETY: as above.
            let mut info: libbpf_sys::bpf_map_info = unsafe { std::mem::zeroed() };
            let mut len = u32::try_from(size_of_val(&info)).unwrap_or_default();
            // SAFETY: the kernel writes at most `len` bytes of `info`.
            check(unsafe {
                libbpf_sys::bpf_map_get_info_by_fd(map.as_raw_fd(), &raw mut info, &raw mut len)
            })?;
            let name = info.name.map(|c| c.to_ne_bytes()[0]);
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok((String::from_utf8_lossy(name).into_owned(), map))
        })
        .collect()
}

/// Starts an `iter/sockmap` program over a map; reading the file runs it.
pub fn iterate_sockmap(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<File> {
    // SAFETY: all-zero is a valid value of this plain C union.
    let mut target: libbpf_sys::bpf_iter_link_info = unsafe { std::mem::zeroed() };
    target.map.map_fd = map.as_raw_fd().unsigned_abs();
    start_iterator(program, Some(&mut target))
}

/// Starts an iterator over what its program says: all TCP sockets of the calling
/// thread's network namespace, all files of the processes of its pid namespace.
/// Reading the file runs it.
pub fn iterate(program: BorrowedFd<'_>) -> io::Result<File> {
    start_iterator(program, None)
}

fn start_iterator(
    program: BorrowedFd<'_>,
    target: Option<&mut libbpf_sys::bpf_iter_link_info>,
) -> io::Result<File> {
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut options: libbpf_sys::bpf_link_create_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of_val(&options) as u64;
    if let Some(target) = target {
        options.iter_info_len = u32::try_from(size_of_val(target)).unwrap_or(u32::MAX);
        options.iter_info = target;
    }
    // SAFETY: descriptors are open, options and target outlive the call.
    let link = owned(unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            0,
            libbpf_sys::BPF_TRACE_ITER,
            &raw const options,
        )
    })?;
    // SAFETY: the link is open.
    let iterator = owned(unsafe { libbpf_sys::bpf_iter_create(link.as_raw_fd()) })?;
    Ok(File::from(iterator))
}

/// `BPF_MAP_GET_NEXT_KEY`: the key after this one, or the first. Unlike the
/// iterators of libbpf-rs it tells an error from the end.
pub fn next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    size: usize,
) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0_u8; size];
    let from = key.map_or(std::ptr::null(), <[u8]>::as_ptr);
    // SAFETY: the caller's key and `next` both have the map's key size.
    let ret = unsafe {
        libbpf_sys::bpf_map_get_next_key(map.as_raw_fd(), from.cast(), next.as_mut_ptr().cast())
    };
    match check(ret) {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `BPF_PROG_QUERY`: ids of the programs that run for a cgroup, those attached
/// above it included.
pub fn programs_on(cgroup: BorrowedFd<'_>, attach_type: AttachType) -> io::Result<Vec<u32>> {
    // The kernel attaches 64 to a cgroup at most, and cgroups nest.
    let mut ids = vec![0_u32; 1024];
    let mut count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    // SAFETY: `ids` has room for `count` ids, and both outlive the call; flags
    // of the attachment are not asked for.
    let ret = unsafe {
        libbpf_sys::bpf_prog_query(
            cgroup.as_raw_fd(),
            attach_type.raw(),
            libbpf_sys::BPF_F_QUERY_EFFECTIVE,
            std::ptr::null_mut(),
            ids.as_mut_ptr(),
            &raw mut count,
        )
    };
    check(ret)?;
    ids.truncate(count as usize);
    Ok(ids)
}

/// `BPF_PROG_GET_NEXT_ID`: the id after this one. Needs `CAP_SYS_ADMIN`.
pub fn next_program(id: u32) -> io::Result<Option<u32>> {
    let mut next = 0;
    // SAFETY: the kernel writes one id.
    match check(unsafe { libbpf_sys::bpf_prog_get_next_id(id, &raw mut next) }) {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `BPF_PROG_QUERY`: how many programs an interface of this network namespace
/// has as tcx, in both directions; 0 where the kernel has no tcx (before 6.6).
pub fn programs_on_interface(index: u32) -> io::Result<usize> {
    let mut sum = 0;
    for kind in [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS] {
        let mut count = 0_u32;
        // SAFETY: without room for ids the kernel writes only their number.
        let ret = unsafe {
            libbpf_sys::bpf_prog_query(
                index.cast_signed(),
                kind,
                0,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                &raw mut count,
            )
        };
        match check(ret) {
            Ok(_) => sum += count as usize,
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => return Ok(0),
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

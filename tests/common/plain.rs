//! Proof that a socket is plain TCP, and that nothing of an instance is left.

use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;

use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::libbpf_sys;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder as _;
use sockaccel::sys::textbook::TextbookSkelBuilder;

use super::deadline::Deadline;
use super::instance::Instance;

/// A sockmap of somebody else, whose `sk_msg` program a socket cannot have
/// beside another: the kernel answers EBUSY while a socket is enrolled.
#[derive(Debug)]
pub struct Probe(MapHandle);

impl Probe {
    pub fn new() -> Self {
        let mut storage = MaybeUninit::uninit();
        let skeleton = TextbookSkelBuilder::default()
            .open(&mut storage)
            .and_then(OpenSkel::load)
            .expect("load the textbook program");
        let map = MapHandle::try_from(&skeleton.maps.tb_sockhash).expect("its map");
        skeleton
            .progs
            .tb_skmsg
            .attach_sockmap(map.as_fd().as_raw_fd())
            .expect("attach sk_msg");
        Self(map)
    }

    pub fn is_plain(&self, stream: &TcpStream) -> bool {
        let key = [7; 16];
        let value = stream.as_raw_fd().to_ne_bytes();
        match self.0.update(&key, &value, MapFlags::ANY) {
            Ok(()) => {
                self.0.delete(&key).expect("delete from the sockmap");
                true
            }
            Err(e) if e.to_string().contains("os error 16") => false,
            Err(e) => panic!("update of the sockmap: {e}"),
        }
    }

    pub fn assert_plain(&self, stream: &TcpStream, what: &str) {
        assert!(self.is_plain(stream), "{what}: {stream:?} is enrolled");
    }
}

/// The kernel's ids of an instance's maps.
pub fn map_ids(instance: &Instance) -> Vec<u32> {
    let dir = instance.dir();
    let ids: Vec<u32> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .flatten()
        .filter_map(|entry| MapHandle::from_pinned_path(entry.path()).ok())
        .map(|map| map.info().expect("map info").info.id)
        .collect();
    assert!(ids.len() > 10, "{ids:?}");
    ids
}

/// Waits until the kernel has freed all of them: programs hold their maps, so
/// they are gone, too.
pub fn assert_gone(ids: &[u32], when: &str) {
    let deadline = Deadline::seconds(30);
    deadline.until(&format!("{when}: maps freed"), || {
        ids.iter().all(|id| !is_there(*id))
    });
}

/// Without opening it: a `PROG_ARRAY` that is opened and closed again while its last
/// pin goes is cleared twice, and then the kernel never frees it.
#[allow(unsafe_code)]
fn is_there(id: u32) -> bool {
    let mut next = 0;
    // SAFETY: the call writes one u32.
    let ret = unsafe { libbpf_sys::bpf_map_get_next_id(id - 1, &raw mut next) };
    ret == 0 && next == id
}

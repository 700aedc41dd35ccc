//! Throw-away maps of one element, for probes.

use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use libbpf_rs::libbpf_sys;

/// Bytes of a key and of a value.
const SIZE: u32 = 8;

/// A map that is gone when the handle is dropped: nothing pins it.
pub fn create(kind: MapType) -> libbpf_rs::Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    MapHandle::create(kind, Some("sa_probe"), SIZE, SIZE, 1, &options)
}

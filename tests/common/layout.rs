//! An instance as another version of sockaccel would have made it.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::OpenObject;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;
use sockaccel::maps::layout::Config;
use sockaccel::sys::bpf;
use sockaccel::sys::skel::sockaccel::SockaccelSkelBuilder;
use zerocopy::FromBytes as _;
use zerocopy::IntoBytes as _;

use super::bpffs::pins;

/// No version has this one.
pub const OTHER: u32 = 99;

/// What is behind the words that this version knows.
const REST: [u8; 24] = [0xa5; 24];

fn config_map(dir: &Path) -> MapHandle {
    MapHandle::from_pinned_path(dir.join("sa_config")).expect("sa_config")
}

/// The bytes of the configuration.
pub fn config(dir: &Path) -> Vec<u8> {
    let bytes = config_map(dir).lookup(&0_u32.to_ne_bytes(), MapFlags::ANY);
    bytes.expect("look up").expect("the element")
}

fn write(map: &MapHandle, layout: u32, mut config: Vec<u8>) {
    config[..4].copy_from_slice(&layout.to_ne_bytes());
    map.update(&0_u32.to_ne_bytes(), &config, MapFlags::ANY)
        .expect("update");
}

/// Gives the instance the programs of another build, by its number.
pub fn other_build(dir: &Path) {
    let mut config = Config::read_from_bytes(&config(dir)).expect("of this layout");
    config.build ^= 1 << 63;
    config_map(dir)
        .update(&0_u32.to_ne_bytes(), config.as_bytes(), MapFlags::ANY)
        .expect("update");
}

/// Gives the instance this number of a layout.
pub fn number(dir: &Path, layout: u32) {
    write(&config_map(dir), layout, config(dir));
}

/// Gives it that of another layout and, under traffic, programs with a configuration
/// that is longer.
pub fn lengthen(dir: &Path) {
    let longer = [config(dir), REST.to_vec()].concat();
    let mut storage = MaybeUninit::uninit();
    let mut open = SockaccelSkelBuilder::default()
        .open(&mut storage)
        .expect("open the programs");
    reuse_all_but_config(open.open_object_mut(), dir, longer.len());
    let mut skeleton = open.load().expect("load the programs");

    fs::remove_file(dir.join("sa_config")).expect("unpin");
    let map = &mut skeleton.maps.sa_config;
    map.pin(dir.join("sa_config")).expect("pin");
    write(&config_map(dir), OTHER, longer);
    for mut program in skeleton.object_mut().progs_mut() {
        let pin = dir.join(program.name());
        // Of the two observers one is not loaded, and the other goes on as it was.
        if program.autoload() && !program.name().to_string_lossy().starts_with("sa_splice") {
            fs::remove_file(&pin).unwrap_or_else(|e| panic!("{}: {e}", pin.display()));
            program.pin(&pin).expect("pin");
        }
    }
    let verdict = bpf::open_pinned(&dir.join("sa_verdict")).expect("sa_verdict");
    MapHandle::from_pinned_path(dir.join("sa_programs"))
        .expect("sa_programs")
        .update(
            &0_u32.to_ne_bytes(),
            &verdict.as_raw_fd().to_ne_bytes(),
            MapFlags::ANY,
        )
        .expect("update");
    // Each link has the name of its program.
    for pin in pins(dir) {
        if pin.parent() != Some(dir) {
            let link = bpf::open_pinned(&pin).expect("a link");
            let name = pin.file_name().expect("a name");
            let program = bpf::open_pinned(&dir.join(name)).expect("its program");
            bpf::link_update(link.as_fd(), program.as_fd()).expect("update the link");
        }
    }
}

fn reuse_all_but_config(object: &mut OpenObject, dir: &Path, size: usize) {
    for mut map in object.maps_mut() {
        let pin = dir.join(map.name());
        if map.name() == "sa_config" {
            let size = u32::try_from(size).expect("small");
            map.set_value_size(size).expect("the size of sa_config");
        } else if pin.exists() {
            map.reuse_pinned_map(&pin).expect("a map that is pinned");
        }
    }
}

//! Every BPF program that the binary carries, each alone before the verifier of
//! the kernel that runs: also those that `enable` would not choose here.

mod common;

use std::ffi::OsStr;
use std::mem::MaybeUninit;

use libbpf_rs::ErrorKind;
use libbpf_rs::OpenObject;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::skel::SkelBuilder;
use sockaccel::state::Observer;
use sockaccel::sys::skel::adopt::AdoptSkelBuilder;
use sockaccel::sys::skel::sockaccel::SockaccelSkelBuilder;
use sockaccel::sys::textbook::TextbookSkelBuilder;

/// The names of an object's programs.
fn programs<'obj>(
    builder: impl SkelBuilder<'obj>,
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> Vec<String> {
    let open = builder.open(storage).expect("open the object");
    open.open_object()
        .progs()
        .map(|program| program.name().to_string_lossy().into_owned())
        .collect()
}

/// Loads one of them, and no other.
fn load<'obj>(
    builder: impl SkelBuilder<'obj>,
    storage: &'obj mut MaybeUninit<OpenObject>,
    name: &str,
) -> libbpf_rs::Result<()> {
    let mut open = builder.open(storage)?;
    for mut program in open.open_object_mut().progs_mut() {
        program.set_autoload(program.name() == OsStr::new(name));
    }
    open.load().map(drop)
}

/// Loads each of an object; gives what was refused.
macro_rules! load_each {
    ($builder:ty) => {{
        let names = programs(<$builder>::default(), &mut MaybeUninit::uninit());
        assert!(!names.is_empty(), "an object without programs");
        names
            .into_iter()
            .filter_map(|name| {
                load(<$builder>::default(), &mut MaybeUninit::uninit(), &name)
                    .err()
                    .map(|error| (name, error))
            })
            .collect::<Vec<_>>()
    }};
}

#[test]
fn the_textbook_program_is_accepted() {
    common::require_root();
    let refused = load_each!(TextbookSkelBuilder);
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn the_walks_of_adopt_are_accepted() {
    common::require_root();
    let refused = load_each!(AdoptSkelBuilder);
    assert!(refused.is_empty(), "{refused:#?}");
}

/// Where functions may not be traced, this is the one that is refused, and `enable`
/// knows it.
#[test]
fn all_of_the_instance_is_accepted() {
    common::require_root();
    let mut refused = load_each!(SockaccelSkelBuilder);
    if Observer::choose() == Observer::Tracepoint {
        refused.retain(|(name, error)| {
            name != Observer::Fentry.program() || error.kind() != ErrorKind::PermissionDenied
        });
    }
    assert!(refused.is_empty(), "{refused:#?}");
}

//! Every BPF program that the binary carries before the verifier of the kernel
//! that runs: also the one that `enable` would not choose here.

mod common;

use std::mem::MaybeUninit;

use libbpf_rs::ErrorKind;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;
use sockaccel::state::Observer;
use sockaccel::sys::skel::adopt::AdoptSkelBuilder;
use sockaccel::sys::skel::sockaccel::SockaccelSkelBuilder;
use sockaccel::sys::textbook::TextbookSkelBuilder;

/// Loads all programs of an object but those named, which must be there; libbpf
/// says on stderr which was refused, and why.
macro_rules! load_without {
    ($builder:ty, $names:expr) => {{
        common::require_root();
        let left_out: Vec<&str> = $names;
        let mut storage = MaybeUninit::uninit();
        let mut open = <$builder>::default().open(&mut storage).expect("open");
        let (mut loaded, mut left) = (0, 0);
        for mut program in open.open_object_mut().progs_mut() {
            let wanted = !left_out.iter().any(|name| program.name() == *name);
            program.set_autoload(wanted);
            *(if wanted { &mut loaded } else { &mut left }) += 1;
        }
        assert_eq!(left, left_out.len(), "{left_out:?}");
        assert!(loaded > 0, "nothing to load");
        open.load().map(drop)
    }};
}

#[test]
fn all_of_the_instance() {
    // The form that does not fit where functions may not be traced.
    let unfit = match Observer::choose() {
        Observer::Fentry => vec![],
        Observer::Tracepoint => vec![Observer::Fentry.program()],
    };
    load_without!(SockaccelSkelBuilder, unfit).expect("accepted");
}

/// `enable` chooses the tracepoint for no other reason than that.
#[test]
fn the_form_that_was_not_chosen() {
    let load = load_without!(SockaccelSkelBuilder, vec![]);
    match Observer::choose() {
        Observer::Fentry => load.expect("accepted"),
        Observer::Tracepoint => {
            let error = load.expect_err("functions may not be traced");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        }
    }
}

#[test]
fn the_walks_of_adopt() {
    load_without!(AdoptSkelBuilder, vec![]).expect("accepted");
}

#[test]
fn the_textbook_program() {
    load_without!(TextbookSkelBuilder, vec![]).expect("accepted");
}

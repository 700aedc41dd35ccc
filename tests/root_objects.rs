//! Every BPF program that the binary carries before the verifier of the kernel
//! that runs: also the one that `enable` would not choose here.

mod common;

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::path::Path;

use libbpf_rs::ErrorKind;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::BtfType;
use libbpf_rs::btf::HasSize as _;
use libbpf_rs::btf::types::Composite;
use libbpf_rs::btf::types::Int;
use libbpf_rs::btf::types::MemberAttr;
use libbpf_rs::btf::types::Struct;
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

/// The size of each number of a struct, also of what is in it without a name.
fn numbers(btf: &Btf<'_>, of: &Composite<'_>, into: &mut BTreeMap<String, usize>) {
    for member in of.iter() {
        let ty: BtfType<'_> = btf.type_by_id(member.ty).expect("a type");
        let ty = ty.skip_mods_and_typedefs();
        let name = member.name.unwrap_or_default().to_string_lossy();
        let whole = matches!(member.attr, MemberAttr::Normal { .. });
        if let Ok(inner) = Composite::try_from(ty) {
            if name.is_empty() {
                numbers(btf, &inner, into);
            }
        } else if let Ok(int) = Int::try_from(ty)
            && whole
        {
            into.insert(name.into_owned(), int.size());
        }
    }
}

/// Before Linux 6.2 a helper reads them in the size that is declared: what is larger than
/// the kernel's has its neighbour in it. `sa_load_bits()` asks the kernel.
#[test]
fn numbers_are_declared_in_the_size_that_the_kernel_has() {
    const ASKED: [&str; 1] = ["sk_tsflags"];
    let kernel = Btf::from_vmlinux().expect("type information of the kernel");
    let mut compared = 0;
    for object in ["sockaccel.bpf.o", "adopt.bpf.o"] {
        let path = Path::new(env!("OUT_DIR")).join(object);
        let btf = Btf::from_path(&path).expect("type information of the object");
        for ours in btf.type_by_kind::<Struct<'_>>() {
            let name = ours.name().unwrap_or_default().to_string_lossy();
            let Some(name) = name.strip_suffix("___sa") else {
                continue;
            };
            let Some(theirs) = kernel.type_by_name::<Struct<'_>>(name) else {
                continue;
            };
            let [mut declared, mut there] = [BTreeMap::new(), BTreeMap::new()];
            numbers(&btf, &ours.into(), &mut declared);
            numbers(&kernel, &theirs.into(), &mut there);
            for (field, size) in declared {
                let Some(has) = there.get(&field).filter(|_| !ASKED.contains(&&*field)) else {
                    continue;
                };
                assert_eq!(size, *has, "{field} of struct {name}");
                compared += 1;
            }
        }
    }
    assert!(compared > 50, "{compared}");
}

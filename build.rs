//! Compiles the BPF programs and generates their skeletons into `OUT_DIR`.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;

#[path = "src/outcome.rs"]
#[allow(dead_code)]
mod outcome;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("outcome.h"), outcome_header()?)?;
    // decide_test is for tests/root_decide.rs alone, which includes its skeleton.
    for object in ["sockaccel", "adopt", "textbook", "decide_test"] {
        let source = format!("src/bpf/{object}.bpf.c");
        if !Path::new(&source).exists() {
            continue;
        }
        SkeletonBuilder::new()
            .source(&source)
            // Kept: the tests read its type information.
            .obj(out.join(format!("{object}.bpf.o")))
            .clang_args(clang_args(&out)?)
            .build_and_generate(out.join(format!("{object}.skel.rs")))?;
    }
    let object = fs::read(out.join("sockaccel.bpf.o"))?;
    println!("cargo:rustc-env=SOCKACCEL_BUILD={}", build_id(&object));
    println!("cargo:rerun-if-changed=src/bpf");
    println!("cargo:rerun-if-changed=src/outcome.rs");
    Ok(())
}

/// Tells one build of the programs from another: FNV-1a, and never 0.
fn build_id(object: &[u8]) -> u64 {
    object
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
        .max(1)
}

/// The enums of `src/outcome.rs`, for C.
fn outcome_header() -> Result<String, std::fmt::Error> {
    let mut header =
        String::from("/* From src/outcome.rs. */\n#ifndef SA_OUTCOME_H\n#define SA_OUTCOME_H\n");
    for (name, prefix, outcomes) in [
        ("reason", "REASON", outcome::REASONS),
        ("why", "WHY", outcome::WHYS),
        ("event_kind", "EVENT", outcome::EVENTS),
    ] {
        writeln!(header, "enum sa_{name} {{")?;
        for outcome in outcomes {
            writeln!(
                header,
                "\tSA_{prefix}_{}, /* {} */",
                outcome.name.to_uppercase(),
                outcome.text
            )?;
        }
        writeln!(header, "\tSA_{prefix}_COUNT,\n}};")?;
    }
    header.push_str("#endif\n");
    Ok(header)
}

fn clang_args(out: &Path) -> Result<Vec<OsString>, env::VarError> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    Ok([
        "-mcpu=v3".into(),
        "-Wall".into(),
        "-Werror".into(),
        // Helpers are static functions in headers, not all used by each object.
        "-Wno-unused-function".into(),
        "-I".into(),
        out.into(),
        // Debian and Ubuntu keep asm/types.h here; clang's bpf target does not look.
        "-I".into(),
        format!("/usr/include/{arch}-linux-gnu").into(),
        // And those of another architecture, to cross-build.
        "-idirafter".into(),
        format!("/usr/{arch}-linux-gnu/include").into(),
    ]
    .into())
}

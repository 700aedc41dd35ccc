#!/bin/bash
# Builds the packages and a static binary: scripts/package.sh [TARGET]
#
# TARGET is a Rust target, like aarch64-unknown-linux-gnu; without one it is this
# machine's. In the packages of this machine's the libraries are the distribution's;
# in those for another one is the static binary, which needs none.
# The files are named at the end.
#
# What it needs besides Rust: cargo install --locked cargo-deb cargo-generate-rpm;
# autoconf automake autopoint bison flex gawk gettext make, to build libelf and zlib
# from source; for another target its std (rustup target add) and a cross compiler,
# like gcc-aarch64-linux-gnu.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

target=${1:-}
need_cargo
builder cargo deb --version >/dev/null 2>&1 || die "cargo-deb not found: cargo install cargo-deb"
builder cargo generate-rpm --version >/dev/null 2>&1 ||
	die "cargo-generate-rpm not found: cargo install cargo-generate-rpm"
targets=${CARGO_TARGET_DIR:-target}
out=$targets/packages${target:+/$target}
host=$(builder rustc -vV | sed -n 's/^host: //p')
static=$targets/${target:-$host}/release/sockaccel
arch=${target:-$host}
arch=${arch%%-*}
case $target in
aarch64-unknown-linux-gnu)
	export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
	;;
esac

# Also by another target: of a binary that runs here are the completions.
builder cargo build --release --locked
mkdir -p target/completions
"$targets/release/sockaccel" completions bash >target/completions/sockaccel.bash
"$targets/release/sockaccel" completions zsh >target/completions/_sockaccel
"$targets/release/sockaccel" completions fish >target/completions/sockaccel.fish

# With --target, so that the flags are not those of what runs while building.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
	builder cargo build --release --locked --features vendored --target "${target:-$host}"
! readelf --program-headers "$static" | grep -q INTERP || die "$static is not static"

mkdir -p "$out"
# Of another version may be what is there.
rm -f "$out"/sockaccel*
args=(${target:+--target "$target"})
builder cargo deb --no-build --no-strip "${args[@]}" -o "$out/"
builder cargo generate-rpm "${args[@]}" --target-dir "$targets" -o "$out/"
cp "$static" "$out/sockaccel-static-$arch"
ls -l "$out"

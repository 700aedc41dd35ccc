#!/bin/bash
# Builds the packages: scripts/package.sh [TARGET]
#
# TARGET is a Rust target, like aarch64-unknown-linux-gnu; without one it is this
# machine's. For another one libelf and zlib are built from source and linked in.
# The files are named at the end.
#
# What it needs besides Rust: cargo install --locked cargo-deb cargo-generate-rpm;
# for another target also autoconf automake autopoint bison flex gawk gettext make
# and a cross compiler, like gcc-aarch64-linux-gnu.
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
args=()
release=$targets/release
if [[ $target ]]; then
	args=(--target "$target" --features vendored)
	release=$targets/$target/release
fi
case $target in
aarch64-unknown-linux-gnu)
	export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
	;;
esac

builder cargo build --release --locked "${args[@]}"

# By a binary that runs here, whatever the target.
[[ -z $target ]] || builder cargo build --release --locked
mkdir -p target/completions
"$targets/release/sockaccel" completions bash >target/completions/sockaccel.bash
"$targets/release/sockaccel" completions zsh >target/completions/_sockaccel
"$targets/release/sockaccel" completions fish >target/completions/sockaccel.fish

# Packages of two targets may have the same name.
out=$targets/packages${target:+/$target}
mkdir -p "$out"
args=(${target:+--target "$target"})
builder cargo deb --no-build --no-strip "${args[@]}" -o "$out/"
builder cargo generate-rpm "${args[@]}" --target-dir "$targets" -o "$out/"
cp "$release/sockaccel" "$out/"
ls -l "$out"

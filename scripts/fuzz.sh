#!/bin/bash
# Fuzzes what reads the command line (arguments, values), the file of apply (spec),
# and what maps, iterators and sock_diag(7) hand out (records): each target for
# SECONDS (60), with the toolchain that is there.
#
#     scripts/fuzz.sh [SECONDS [TARGET...]]
#
# `cargo fuzz run TARGET` does the same with a nightly toolchain and the address
# sanitizer, but without fuzz/seeds. Inputs that crash are left in fuzz/artifacts.
# Exit status 1: one did.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-60}
(($# == 0)) || shift
targets=("$@")
((${#targets[@]})) || targets=(arguments values spec records)

# The coverage that libFuzzer steers by: what cargo-fuzz passes, without the
# sanitizer that only nightly has.
flags=(--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
	flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
export RUSTFLAGS=${flags[*]}
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}
# With a target, so that the flags are not those of build scripts.
cargo build --quiet --release --target "$host"
for name in "${targets[@]}"; do
	mkdir -p "corpus/$name" "artifacts/$name"
	from=("corpus/$name")
	[[ ! -d seeds/$name ]] || from+=("seeds/$name")
	echo "fuzzing $name for $seconds s"
	if ! "$target/$host/release/$name" -max_total_time="$seconds" -max_len=2048 -timeout=10 \
		-artifact_prefix="artifacts/$name/" -print_final_stats=1 "${from[@]}" >"artifacts/$name.log" 2>&1; then
		tail -n 30 "artifacts/$name.log"
		exit 1
	fi
	grep -E 'number_of_executed_units|average_exec_per_sec' "artifacts/$name.log"
done

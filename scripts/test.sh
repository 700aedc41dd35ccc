#!/bin/bash
# Everything the tests need, then all tests. Run it as root: sudo scripts/test.sh
#
#   --vm   also loads the programs, and runs a few of the tests, under other
#          kernels (scripts/vmtest.sh --quick)
#
# Root tests are those of tests/root_*.rs. They make their own cgroups, network
# namespaces and bpffs directories, and this script fails when one stays behind.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

trap 'exit 130' INT
trap 'exit 143' TERM

vm=
case "$*" in
'') ;;
--vm) vm=yes ;;
*) die "no such option: $*" ;;
esac

need_root
install_packages clang llvm libelf-dev zlib1g-dev pkg-config linux-libc-dev iproute2 \
	nftables redis-server redis-tools nginx-light libnginx-mod-stream haproxy golang-go jq \
	strace mandoc python3 python3-jsonschema curl wrk openssl zsh fish
need_cargo

bpffs=/sys/fs/bpf
mounted=
work=$(mktemp -d)
cleanup() {
	rm -rf "$work"
	[[ -z $mounted ]] || umount "$bpffs"
}
trap cleanup EXIT
if ! awk -v at="$bpffs" '$2 == at && $3 == "bpf" { found = 1 } END { exit !found }' /proc/mounts; then
	mount -t bpf bpf "$bpffs"
	mounted=yes
fi
# As far as this machine lets us.
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
ulimit -l unlimited 2>/dev/null || true

traces() {
	find "$(cgroup2)" -type d -name 'sockaccel-*' | sed 's/^/cgroup /'
	ip netns list | awk '$1 ~ /^sat-/ { print "netns", $1 }'
	find "$bpffs" -mindepth 2 -path "$bpffs/sockaccel*" | sed 's/^/pin /'
	awk '{ print "mount", $1, $2, $3 }' /proc/mounts
}
# Other test runs on this machine may go on: names end in -PID-N of their maker.
of_the_dead() {
	local trace
	while read -r trace; do
		if [[ ! $trace =~ -([0-9]+)-[0-9]+([/ ]|$) || ! -d /proc/${BASH_REMATCH[1]} ]]; then
			echo "$trace"
		fi
	done
}
traces | sort >"$work/before"

# Parts of a Rust toolchain that not every one has; the tests do not need them.
if builder cargo fmt --version >/dev/null 2>&1; then
	builder cargo fmt --check
fi
if builder cargo clippy --version >/dev/null 2>&1; then
	builder cargo clippy --all-targets -- -D warnings
fi

scripts/licences.sh >/dev/null

plain=() root=()
for file in tests/*.rs; do
	[[ -e $file ]] || continue
	name=${file#tests/}
	name=${name%.rs}
	case $name in
	root_*) root+=("$name") ;;
	*) plain+=(--test "$name") ;;
	esac
done
builder cargo test --lib --bins "${plain[@]}"
builder cargo test --doc

# Built by cargo, all at once, and run by us: cargo may not be root's, and must not be.
builder cargo test --no-run "${root[@]/#/--test=}" --message-format=json |
	jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable)
		| "\(.target.name)\t\(.executable)"' >"$work/programs"
ran=0 ignored=0 failed=()
for name in "${root[@]}"; do
	program=$(awk -F'\t' -v name="$name" '$1 == name { print $2 }' "$work/programs")
	[[ -x $program ]] || die "no test program for $name"
	if ! CARGO_MANIFEST_DIR=$PWD "$program" --test-threads=1 2>&1 | tee "$work/log"; then
		failed+=("$name")
	fi
	counts=$(awk '/^test result:/ { print $4 + 0, $6 + 0, $8 + 0 }' "$work/log")
	read -r passed broken skipped <<<"${counts:-0 0 0}"
	ran=$((ran + passed + broken))
	ignored=$((ignored + skipped))
done
traces | sort >"$work/after"
left=$(comm -13 "$work/before" "$work/after" | of_the_dead)

echo "root tests run: $ran, ignored: $ignored, failed programs: ${failed[*]:-none}"
[[ -z $left ]] || die "left behind:"$'\n'"$left"
((${#failed[@]} == 0)) || die "root tests failed: ${failed[*]}"
((ran > 0)) || die "no root test ran"
[[ -z $vm ]] || scripts/vmtest.sh --quick

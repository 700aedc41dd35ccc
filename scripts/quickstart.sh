#!/bin/bash
# Builds sockaccel and shows what it does, on real traffic: redis-benchmark
# against redis-server, plain and accelerated in turns.
#
#     sudo scripts/quickstart.sh
#
# Everything happens in cgroups and in a network namespace of its own, and is
# removed afterwards, also when interrupted. Exit status 1: less than 0.9 of the
# bytes were redirected, or more packets on lo than 20 % of the messages.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

rounds=${ROUNDS:-5}
requests=${REQUESTS:-100000}
clients=${CLIENTS:-50}

trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

need_root
install_packages clang llvm libelf-dev zlib1g-dev pkg-config linux-libc-dev iproute2 \
	redis-server redis-tools jq
unset SOCKACCEL
need_sockaccel

name=quickstart-$$
netns=sat-$name
plain=$(cgroup2)/sockaccel-$name-plain
fast=$(cgroup2)/sockaccel-$name-fast
work=$(mktemp -d)
declare -A running=()

cleanup() {
	local status=$? pid
	trap '' INT TERM HUP
	set +e
	for pid in "${!running[@]}"; do
		kill "$pid" 2>/dev/null
	done
	for pid in "${!running[@]}"; do
		wait "$pid" 2>/dev/null
	done
	[[ ! -d $fast ]] || "$SOCKACCEL" disable --now --instance "$name"
	remove_cgroup "$fast"
	remove_cgroup "$plain"
	[[ ! -e /run/netns/$netns ]] || ip netns del "$netns"
	rm -rf "$work"
	exit "$status"
}
trap cleanup EXIT

# start OUTPUT CGROUP COMMAND...: in the cgroup and the namespace; sets $started.
start() {
	local output=$1 cgroup=$2
	shift 2
	(
		trap - EXIT HUP INT TERM
		echo "$BASHPID" >"$cgroup/cgroup.procs"
		exec ip netns exec "$netns" "$@"
	) >"$output" 2>&1 &
	started=$!
	running[$started]=1
}

# Traps wait for a foreground command, not for this.
finish() {
	local status=0
	wait "$1" || status=$?
	unset "running[$1]"
	return "$status"
}

serve() {
	start "$work/redis-$2.log" "$1" redis-server --bind 127.0.0.1 --port "$2" --save '' \
		--appendonly no --daemonize no --dir "$work"
	for _ in {1..100}; do
		if [[ $(redis "$2" ping 2>/dev/null) == PONG ]]; then
			return
		fi
		sleep 0.05
	done
	die "redis-server does not answer: $(tail -3 "$work/redis-$2.log")"
}

# Outside both cgroups: not part of what is measured.
redis() {
	ip netns exec "$netns" redis-cli -p "$@"
}

load() {
	start "$work/csv" "$1" redis-benchmark -p "$2" -t get -n "$requests" -c "$clients" -d 64 --csv
}

lo_packets() {
	ip -n "$netns" -j -s link show lo | jq '.[0].stats64.rx.packets'
}

# Bytes that the server received and sent, as redis counts them.
redis_bytes() {
	redis "$1" info stats | tr -d '\r' |
		awk -F: '/^total_net_(input|output)_bytes:/ { sum += $2 } END { print sum }'
}

stat_of() {
	"$SOCKACCEL" stats --json --instance "$name" | jq "(.$1 | tonumber)"
}

# measure NAME CGROUP PORT: appends "rps p50 p99 lo-packets" to a file.
measure() {
	local before after row
	before=$(lo_packets)
	load "$2" "$3"
	finish "$started" || die "redis-benchmark failed: $(tail -3 "$work/csv")"
	after=$(lo_packets)
	# Percentiles are there since redis 6.2: test, rps, avg, min, p50, p95, p99, max.
	row=$(tr -d '"' <"$work/csv" | awk -F, '$1 == "GET" { print $2, ($5 ? $5 : "-"), ($7 ? $7 : "-") }')
	[[ -n $row ]] || die "redis-benchmark printed no result: $(tail -3 "$work/csv")"
	echo "$row $((after - before))" >>"$work/$1"
	echo "  $1: $row" | awk '{ printf "  %-12s %9.0f requests/s   p50 %s ms   p99 %s ms\n", $1, $2, $3, $4 }'
}

median() {
	sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

column() {
	awk -v n="$2" '{ print $n }' "$work/$1"
}

show() {
	echo "+ sockaccel $*"
	"$SOCKACCEL" "$@"
}

mkdir "$plain" "$fast"
ip netns add "$netns"
ip -n "$netns" link set lo up

# redis reads its non-blocking sockets until EAGAIN; it does not use FIONREAD,
# so a kernel whose FIONREAD is wrong for enrolled sockets does it no harm.
show enable --cgroup "$fast" --instance "$name" --allow fionread
serve "$plain" 6379
serve "$fast" 6380

echo "$rounds rounds of $requests GET requests over $clients connections, in turns:"
bytes_before=$(redis_bytes 6380)
for ((round = 1; round <= rounds; round++)); do
	measure plain "$plain" 6379
	measure accelerated "$fast" 6380
done
redirected=$(stat_of redirected_bytes)
bytes=$(($(redis_bytes 6380) - bytes_before))
packets=$(column accelerated 4 | awk '{ sum += $1 } END { print sum }')
plain_packets=$(column plain 4 | awk '{ sum += $1 } END { print sum }')
messages=$((2 * requests * rounds))

echo
echo "the sockhash while the load runs:"
load "$fast" 6380
sleep 0.3
show dump sockhash --instance "$name" >"$work/dump"
head -n 11 "$work/dump"
echo "... $(($(wc -l <"$work/dump") - 1)) sockets in all"
kill "$started" 2>/dev/null || true
finish "$started" || true
show stats --instance "$name"

echo
ratio() {
	awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.3f", a / b; else print "-" }'
}
printf '%-14s %14s %10s %10s\n' "medians" "requests/s" "p50 ms" "p99 ms"
for mode in plain accelerated; do
	printf '%-14s %14.0f %10s %10s\n' "$mode" "$(column "$mode" 1 | median)" \
		"$(column "$mode" 2 | median)" "$(column "$mode" 3 | median)"
done
echo "requests per second, accelerated to plain, median of the rounds: $(
	paste "$work/plain" "$work/accelerated" | awk '{ print $5 / $1 }' | median
)"
echo
share=$(ratio "$redirected" "$bytes")
on_lo=$(ratio "$packets" "$messages")
echo "proof: $redirected of $bytes bytes redirected ($share; at least 0.9 wanted)"
echo "       $packets packets on lo for $messages messages ($on_lo; at most 0.2 wanted; plain: $(
	ratio "$plain_packets" "$messages"
))"
awk -v share="$share" -v on_lo="$on_lo" 'BEGIN { exit !(share >= 0.9 && on_lo <= 0.2) }' ||
	die "not accelerated as it should be: see the reasons in the statistics above"
echo
echo "built: $SOCKACCEL"
echo "to go on: docs/tutorial.md"

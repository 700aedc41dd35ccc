#!/bin/bash
# How much faster real programs are: redis, nginx, memcached, PostgreSQL, proxies
# and iperf3, with the load generators that come with them.
#
#     sudo scripts/bench-apps.sh [--only CELL]... [--rounds N] [--seconds S]
#         [--blocking-readers skip|accelerate] [--out PREFIX] [--report FILE.html]
#
# Every cell is measured as plain TCP, sockaccel, the textbook sockmap program and,
# where the program has it, a Unix socket; and plain TCP again, for the noise. Each
# has servers of its own, all running all the time. In each round every mode is
# measured once, in an order that rotates; the ratio is to plain TCP of the same
# round, and the table has the medians of these ratios with 95 % bootstrap
# intervals. PREFIX.txt is the table, PREFIX.json has every single value.
#
# One network namespace and one cgroup for each mode, removed in the end. Exit
# status 1: a cell failed with plain TCP.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

cells=() rounds=10 seconds=1 blocking=skip out=bench-apps report=
while (($#)); do
	case $1 in
	--only) cells+=("${2:?--only needs a cell}") && shift ;;
	--rounds) rounds=${2:?--rounds needs a number} && shift ;;
	--seconds) seconds=${2:?--seconds needs a number} && shift ;;
	--blocking-readers) blocking=${2:?--blocking-readers needs skip or accelerate} && shift ;;
	--out) out=${2:?--out needs a path} && shift ;;
	--report) report=${2:?--report needs a file} && shift ;;
	*) sed -n '/^#  /s/^# *//p' "$0" >&2 && exit 2 ;;
	esac
	shift
done
((rounds > 0)) || die "--rounds must be at least 1"

trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

need_root
install_packages iproute2 jq redis-server redis-tools nginx-light haproxy wrk memcached \
	libmemcached-tools postgresql iperf3
need_sockaccel
postgres=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin | sort -V | tail -n 1)

name=bench-apps-$$
netns=sat-$name
parent=$(cgroup2)/sockaccel-$name
work=$(mktemp -d)
# PostgreSQL and nginx drop privileges.
chmod 755 "$work"
modes=(tcp sockaccel textbook unix again)
# Servers listen at these ports plus the offset of their mode.
declare -A offset=([tcp]=0 [again]=0 [sockaccel]=100 [textbook]=200 [unix]=300)
declare -A cgroup=([tcp]=$parent/tcp [again]=$parent/tcp [sockaccel]=$parent/sockaccel
	[textbook]=$parent/textbook [unix]=$parent/unix)
textbook=

cleanup() {
	local status=$? mode
	trap '' INT TERM HUP
	set +e
	[[ ! -d $parent ]] || echo 1 >"$parent/cgroup.kill"
	if [[ -n $textbook ]]; then
		exec {hold}>&-
		wait "$textbook" 2>/dev/null
	fi
	"$SOCKACCEL" disable --instance "$name" >/dev/null 2>&1
	for mode in tcp sockaccel textbook unix; do
		remove_cgroup "$parent/$mode"
	done
	remove_cgroup "$parent"
	[[ ! -e /run/netns/$netns ]] || ip netns del "$netns"
	rm -rf "$work"
	exit "$status"
}
trap cleanup EXIT

# in_mode MODE COMMAND...: becomes it, in the mode's cgroup and the namespace.
in_mode() {
	trap - EXIT HUP INT TERM
	echo "$BASHPID" >"${cgroup[$1]}/cgroup.procs"
	shift
	exec ip netns exec "$netns" "$@"
}

# start MODE NAME COMMAND...: a server. It ends with its cgroup.
start() {
	local mode=$1 log=$work/$2-$1.log
	shift 2
	(in_mode "$mode" "$@") >"$log" 2>&1 </dev/null &
	disown
}

# load MODE COMMAND...: a load generator, which gets 20 seconds more than it needs.
load() {
	local mode=$1
	shift
	# In the background, because traps wait for a foreground command.
	(in_mode "$mode" timeout $((seconds + 20)) "$@") </dev/null &
	wait $!
}

listening() {
	ip netns exec "$netns" ss -Hltn "sport = :$1" | grep -q .
}
wait_for() {
	local try
	for try in {1..200}; do
		if listening "$1"; then
			return
		fi
		sleep 0.05
	done
	die "nothing listens at port $1 after $try tries: $(tail -n 3 "$work"/*.log)"
}
port() {
	echo $((${offset[$1]} + $2))
}

unprivileged=(setpriv --reuid nobody --regid nogroup --clear-groups --)

serve_redis() {
	start "$1" redis redis-server --bind 127.0.0.1 --port "$(port "$1" 6379)" \
		--unixsocket "$work/redis-$1" --save '' --appendonly no --daemonize no --dir "$work"
	wait_for "$(port "$1" 6379)"
}
# The key is the one redis-benchmark asks for.
fill_redis() {
	local bytes value
	for bytes in 64 4096; do
		value=$(head -c "$bytes" /dev/zero | tr '\0' x)
		ip netns exec "$netns" redis-cli -p "$(port "$1" 6379)" set "key:__rand_int__" "$value" >/dev/null
		[[ $2 != "$bytes" ]] || return 0
	done
}
redis() {
	local mode=$1 bytes=$2 where
	shift 2
	where=(-p "$(port "$mode" 6379)")
	[[ $mode != unix ]] || where=(-s "$work/redis-$mode")
	fill_redis "$mode" "$bytes" || return
	load "$mode" redis-benchmark "${where[@]}" -t get -d "$bytes" --csv "$@" |
		tr -d '"' | awk -F, '$1 == "GET" { print $2; found = 1 } END { exit !found }'
}

serve_nginx() {
	local back front dir=$work/nginx-$1
	back=$(port "$1" 8081) front=$(port "$1" 8080)
	mkdir -p "$dir"
	chmod 777 "$dir"
	head -c 1024 /dev/zero | tr '\0' x >"$dir/1k"
	head -c 16384 /dev/zero | tr '\0' x >"$dir/16k"
	chmod 644 "$dir"/*
	cat >"$dir/conf" <<-END
		worker_processes 1;
		pid $dir/pid;
		error_log stderr crit;
		daemon off;
		user nobody nogroup;
		events { worker_connections 512; }
		http {
			access_log off;
			keepalive_requests 100000000;
			client_body_temp_path $dir/body;
			proxy_temp_path $dir/proxy;
			fastcgi_temp_path $dir/fastcgi;
			uwsgi_temp_path $dir/uwsgi;
			scgi_temp_path $dir/scgi;
			upstream back { server 127.0.0.1:$back; keepalive 64; }
			server { listen $back; root $dir; }
			server {
				listen $front;
				location / {
					proxy_pass http://back;
					proxy_http_version 1.1;
					proxy_set_header Connection "";
				}
			}
		}
	END
	start "$1" nginx nginx -e stderr -c "$dir/conf"
	cat >"$dir/haproxy" <<-END
		global
			nbthread 1
		defaults
			mode http
			timeout connect 5s
			timeout client 60s
			timeout server 60s
		listen front
			bind 127.0.0.1:$(port "$1" 8082)
			http-reuse always
			server back 127.0.0.1:$back
	END
	start "$1" haproxy haproxy -db -f "$dir/haproxy"
	wait_for "$front"
	wait_for "$(port "$1" 8082)"
}
http() {
	local output
	output=$(load "$1" wrk -t 1 -c "$4" -d "$seconds" --timeout 5 "http://127.0.0.1:$(port "$1" "$2")/$3") || return
	! grep -E 'Socket errors|Non-2xx' <<<"$output" >&2 || return
	awk '$1 == "Requests/sec:" && $2 > 0 { print $2; found = 1 } END { exit !found }' <<<"$output"
}

serve_memcached() {
	start "$1" memcached memcached -u nobody -l 127.0.0.1 -p "$(port "$1" 11211)" -t 1
	wait_for "$(port "$1" 11211)"
}
memcached() {
	load "$1" memcslap --servers="127.0.0.1:$(port "$1" 11211)" --non-blocking --test=get --concurrency=8 \
		--execute-number=$((3000 * seconds)) |
		awk '/^Time to get / { keys = $4; print keys / $(NF - 1) } END { exit !keys }'
}
# This one connects first and makes its socket non-blocking then.
memcaslap() {
	load "$1" "$(type -P memcaslap)" -s "127.0.0.1:$(port "$1" 11211)" -t "${seconds}s" -T 1 -c 16 -X 64 |
		sed -nE 's/.*TPS: ([0-9]+).*/\1/p' | awk '$1 > 0 { last = $1 } END { print last; exit !last }'
}

serve_postgres() {
	local dir=$work/postgres-$1
	mkdir "$dir"
	chown nobody:nogroup "$dir"
	"${unprivileged[@]}" "$postgres/initdb" -D "$dir/data" -U nobody --no-locale -A trust --no-sync >/dev/null
	start "$1" postgres "${unprivileged[@]}" "$postgres/postgres" -D "$dir/data" -p "$(port "$1" 5432)" \
		-c listen_addresses=127.0.0.1 -c unix_socket_directories="$dir" -c fsync=off -c shared_buffers=32MB
	wait_for "$(port "$1" 5432)"
	# It listens before it serves.
	local try
	for try in {1..300}; do
		! ip netns exec "$netns" "$postgres/pg_isready" -q -h 127.0.0.1 -p "$(port "$1" 5432)" || break
		sleep 0.1
	done
	ip netns exec "$netns" "${unprivileged[@]}" "$postgres/pgbench" -h 127.0.0.1 -p "$(port "$1" 5432)" \
		-i -q postgres >"$work/error" 2>&1 || die "PostgreSQL is not ready after $try tries: $(tail -n 3 "$work/error")"
}
pgbench() {
	local host=127.0.0.1
	[[ $1 != unix ]] || host=$work/postgres-$1
	load "$1" "${unprivileged[@]}" "$postgres/pgbench" -h "$host" -p "$(port "$1" 5432)" -S -n -M prepared \
		-c "$2" -j 1 -T "$seconds" postgres 2>&1 |
		awk '$1 == "tps" { print $3; found = 1 } END { exit !found }'
}

serve_iperf3() {
	start "$1" iperf3 iperf3 -s -p "$(port "$1" 5201)"
	wait_for "$(port "$1" 5201)"
}
iperf() {
	local mode=$1
	shift
	load "$mode" iperf3 -c 127.0.0.1 -p "$(port "$mode" 5201)" -J -t "$seconds" "$@" |
		jq -e '.end.sum_received.bits_per_second / 1e6 | select(. > 0)'
}

# shellcheck disable=SC2016 # evaluated with the mode in place
# CELL|SERVER|UNIT|HAS A UNIX SOCKET|MEASUREMENT, which gets the mode as first word
all_cells='redis-c1|redis|requests/s|yes|redis MODE 64 -c 1 -n $((20000 * seconds))
redis-c50|redis|requests/s|yes|redis MODE 64 -c 50 -n $((60000 * seconds))
redis-P16|redis|requests/s|yes|redis MODE 64 -c 50 -P 16 -n $((400000 * seconds))
redis-4k|redis|requests/s|yes|redis MODE 4096 -c 50 -n $((60000 * seconds))
nginx-c1|nginx|requests/s|no|http MODE 8081 1k 1
nginx-c16|nginx|requests/s|no|http MODE 8081 1k 16
nginx-16k|nginx|requests/s|no|http MODE 8081 16k 16
nginx-nginx|nginx|requests/s|no|http MODE 8080 1k 16
haproxy-nginx|nginx|requests/s|no|http MODE 8082 1k 16
memcslap|memcached|requests/s|no|memcached MODE
memcaslap|memcached|requests/s|no|memcaslap MODE
pgbench-c1|postgres|transactions/s|yes|pgbench MODE 1
pgbench-c8|postgres|transactions/s|yes|pgbench MODE 8
iperf3|iperf3|Mbit/s|no|iperf MODE
iperf3-64k|iperf3|Mbit/s|no|iperf MODE -l 64K
iperf3-1k|iperf3|Mbit/s|no|iperf MODE -N -l 1K'
if ((${#cells[@]} == 0)); then
	mapfile -t cells < <(cut -d'|' -f1 <<<"$all_cells")
fi
row_of() {
	grep "^$1|" <<<"$all_cells" || die "no such cell: $1; there are: $(cut -d'|' -f1 <<<"$all_cells" | tr '\n' ' ')"
}
mapfile -t servers < <(for cell in "${cells[@]}"; do row_of "$cell" | cut -d'|' -f2; done | sort -u)
((${#servers[@]})) || exit 1

mkdir "$parent"
for mode in tcp sockaccel textbook unix; do
	mkdir "${cgroup[$mode]}"
done
ip netns add "$netns"
ip -n "$netns" link set lo up
# What FIONREAD does to nginx is part of the result.
"$SOCKACCEL" enable --cgroup "${cgroup[sockaccel]}" --instance "$name" --allow fionread \
	--blocking-readers "$blocking" >/dev/null 2>"$work/enable" || die "$(<"$work/enable")"
mkfifo "$work/hold"
: >"$work/textbook"
"$SOCKACCEL" bench-textbook --cgroup "${cgroup[textbook]}" <"$work/hold" >"$work/textbook" 2>&1 &
textbook=$!
exec {hold}>"$work/hold"
for _ in {1..100}; do
	! grep -q attached "$work/textbook" || break
	kill -0 "$textbook" 2>/dev/null || die "$(<"$work/textbook")"
	sleep 0.05
done
for server in "${servers[@]}"; do
	echo "starting $server"
	for mode in tcp sockaccel textbook unix; do
		"serve_$server" "$mode"
	done
done

redirected() {
	"$SOCKACCEL" stats --json --instance "$name" |
		jq -r '"\(.redirected_bytes | tonumber) \(.stack_bytes | tonumber)"'
}
# Medians of the ratios and what resampling them leaves open.
# shellcheck disable=SC2016 # awk's
summary='
function median(v, n,   i, j, t) {
	for (i = 2; i <= n; i++)
		for (j = i; j > 1 && v[j - 1] > v[j]; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
	return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
}
{ x[NR] = $1 }
END {
	srand(1)
	for (b = 1; b <= 1000; b++) {
		for (i = 1; i <= NR; i++) s[i] = x[1 + int(rand() * NR)]
		m[b] = median(s, NR)
	}
	median(m, 1000)
	printf "{\"median\":%.4f,\"low\":%.4f,\"high\":%.4f}\n", median(x, NR), m[25], m[976]
}'

echo "[]" >"$work/cells.json"
broken=0
for cell in "${cells[@]}"; do
	IFS='|' read -r _ _ unit has_unix command <<<"$(row_of "$cell")"
	declare -A failed=()
	rm -f "$work"/values-*
	before=$(redirected)
	for ((round = 0; round < rounds; round++)); do
		for ((turn = 0; turn < ${#modes[@]}; turn++)); do
			mode=${modes[(turn + round) % ${#modes[@]}]}
			[[ $mode != unix || $has_unix == yes ]] || continue
			[[ -z ${failed[$mode]:-} ]] || continue
			if value=$(eval "${command/MODE/$mode}" 2>"$work/error"); then
				echo "$round $value" >>"$work/values-$mode"
			else
				failed[$mode]=$round
				echo "  $cell, $mode: failed in round $((round + 1)): $(tail -n 2 "$work/error")"
			fi
		done
	done
	after=$(redirected)
	# A share of what went by enrolled sockets, so it says little without the amount.
	read -r share bytes < <(awk -v before="$before" -v after="$after" 'BEGIN {
		split(before, b); split(after, a)
		r = a[1] - b[1]; s = a[2] - b[2]
		if (r + s > 0) printf "%.4f", r / (r + s); else printf "null"
		printf " %.0f\n", r
	}')
	[[ -z ${failed[tcp]:-} ]] || broken=1
	for mode in "${modes[@]}"; do
		[[ -e $work/values-$mode ]] || continue
		ratios=null
		if [[ $mode != tcp && -z ${failed[$mode]:-} && -z ${failed[tcp]:-} ]]; then
			ratios=$(join "$work/values-$mode" "$work/values-tcp" | awk '{ print $2 / $3 }' | awk "$summary")
		fi
		jq -nc --arg mode "$mode" --argjson ratio "$ratios" --arg failed "${failed[$mode]:-}" \
			--argjson values "[$(cut -d' ' -f2 "$work/values-$mode" | paste -sd,)]" \
			'{mode: $mode, values: $values, ratio: $ratio, failed: ($failed != "")}'
	done | jq -s --arg cell "$cell" --arg unit "$unit" --argjson share "$share" --argjson bytes "$bytes" \
		--argjson failed "$(printf '%s\n' "${!failed[@]}" | jq -R 'select(. != "")' | jq -s .)" \
		'{cell: $cell, unit: $unit, redirected_share: $share, redirected_bytes: $bytes, failed: $failed, modes: .}' >"$work/cell.json"
	jq -c --slurpfile cell "$work/cell.json" '. + $cell' "$work/cells.json" >"$work/cells.new"
	mv "$work/cells.new" "$work/cells.json"
	jq -r '"  \(.cell): " + ([.modes[] | select(.ratio) | "\(.mode) \(.ratio.median)"] | join(", ")) +
		", redirected \(.redirected_share) of the enrolled bytes, \(.redirected_bytes)"' "$work/cell.json"
done

jq --arg kernel "$(uname -r)" --argjson cpus "$(nproc)" --arg blocking "$blocking" \
	--argjson rounds "$rounds" --argjson seconds "$seconds" --arg sockaccel "$("$SOCKACCEL" --version)" \
	'{sockaccel: $sockaccel, kernel: $kernel, cpus: $cpus, blocking_readers: $blocking, rounds: $rounds,
		seconds: $seconds, cells: .}' "$work/cells.json" >"$out.json"
{
	echo "Ratios to plain TCP: median of $rounds interleaved rounds of $seconds s (95 % interval)."
	echo "Linux $(uname -r), $(nproc) CPUs, --blocking-readers $blocking."
	echo
	jq -r '
		def cell($name): [.modes[] | select(.mode == $name)][0] as $mode |
			if (.failed | index($name)) then "failed"
			elif $mode.ratio then "\($mode.ratio | [.median, .low, .high] | map(. * 100 | round / 100) |
				"\(.[0]) (\(.[1])-\(.[2]))")"
			else "-" end;
		def median: sort | if length == 0 then null else .[length / 2 | floor] end;
		["cell", "plain TCP", "unit", "sockaccel", "textbook", "unix", "TCP again", "redirected", "MB"],
		(.cells[] | [.cell, ([.modes[] | select(.mode == "tcp") | .values[]] | median // 0 | round),
			.unit, cell("sockaccel"), cell("textbook"), cell("unix"), cell("again"),
			(if .redirected_share then "\(.redirected_share * 100 | round) %" else "none" end),
			(.redirected_bytes / 1e6 | round)]) |
		map(tostring) | join("\t")' "$out.json" | column -t -s "$(printf '\t')"
} | tee "$out.txt"
if [[ -n $report ]]; then
	jq -r -f scripts/bench-apps.jq "$out.json" >"$report"
fi
((broken == 0)) || die "a cell failed with plain TCP"

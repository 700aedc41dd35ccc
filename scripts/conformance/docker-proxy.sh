#!/bin/bash
# The relay of Docker before nginx and redis, under load: it splices from the first
# byte on. What nginx says stays on the stack, because nginx is the subject of its
# own suite; redis without the relay shows that the others are redirected.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"
# shellcheck source=scripts/conformance/bodies.sh
. "${0%/*}/bodies.sh"

# shellcheck disable=SC2034 # common.sh has their readers
packages=(nginx-light libnginx-mod-stream curl wrk openssl redis-server redis-tools)

enabling=(--exclude-port 8081)

# Only the relay is unpacked: the package would bring all of Docker, and start it.
prepare() {
	make_bodies
	apt-get -qq -o APT::Sandbox::User=root download docker.io
	dpkg -x docker.io_*.deb docker
	ln -s "$(find "$PWD/docker" -type f -name docker-proxy)" docker-proxy
}

relay() {
	# It says on descriptor 3 that it listens.
	"$SETUP/docker-proxy" -proto tcp -host-ip 127.0.0.1 -host-port "$1" \
		-container-ip 127.0.0.1 -container-port "$2" 3>"ready-$1" &
	wait_for listening "$1"
}

# Every answer arrives, and none is an error.
answered() {
	local output
	output=$(redis-benchmark -t set,get --csv "$@") || return
	echo "$output"
	[[ $(grep -cE '^"(SET|GET)","[1-9]' <<<"$output") == 2 ]] && ! grep -qi error <<<"$output"
}

run() {
	serve_bodies
	redis-server --port 6379 --bind 127.0.0.1 --save '' --appendonly no &
	wait_for listening 6379
	relay 9080 8081
	relay 9379 6379
	all_bodies relay http://127.0.0.1:9080
	check "relay: upload" upload http://127.0.0.1:9080
	check "relay: many requests" loaded http://127.0.0.1:9080/4096
	check "relay: pipelined" pipelined http://127.0.0.1:9080
	local port
	for port in 9379 6379; do
		check "redis at $port: one client" answered -p "$port" -c 1 -n 5000
		check "redis at $port: 50 clients" answered -p "$port" -c 50 -n 100000
		check "redis at $port: pipelines of 16" answered -p "$port" -c 50 -P 16 -n 200000
		check "redis at $port: 60 kB" answered -p "$port" -c 20 -d 60000 -n 10000
	done
}

suite "$@"

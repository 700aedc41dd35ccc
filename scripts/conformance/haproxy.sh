#!/bin/bash
# haproxy before nginx: as an HTTP proxy, as a TCP relay, splicing, and two in a
# row. What haproxy and nginx say to each other stays on the stack, because nginx
# is the subject of its own suite.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"
# shellcheck source=scripts/conformance/bodies.sh
. "${0%/*}/bodies.sh"

# shellcheck disable=SC2034 # common.sh has their readers
packages=(haproxy nginx-light libnginx-mod-stream curl wrk openssl)

enabling=(--exclude-port 8081)

prepare() {
	make_bodies
}

run() {
	serve_bodies
	cat >haproxy.cfg <<-END
		global
			nbthread 2
		defaults
			timeout connect 5s
			timeout client 60s
			timeout server 60s
		listen http
			mode http
			bind 127.0.0.1:9080
			http-reuse always
			server nginx 127.0.0.1:8081
		listen tcp
			mode tcp
			bind 127.0.0.1:9081
			server nginx 127.0.0.1:8081
		listen splicing-http
			mode http
			option splice-auto
			option splice-request
			option splice-response
			bind 127.0.0.1:9082
			server nginx 127.0.0.1:8081
		listen splicing-tcp
			mode tcp
			option splice-request
			option splice-response
			bind 127.0.0.1:9083
			server nginx 127.0.0.1:8081
		listen twice
			mode http
			http-reuse always
			bind 127.0.0.1:9084
			server haproxy 127.0.0.1:9080
	END
	haproxy -db -f haproxy.cfg &
	wait_for listening 9084
	local port ports=("9080 http" "9081 tcp" "9082 splicing http" "9083 splicing tcp" "9084 two in a row")
	# For CI. The first connection of a program that splices late is a known limit.
	[[ -z ${CONFORMANCE_SHORT:-} ]] || ports=("9080 http" "9081 tcp" "9084 two in a row")
	for port in "${ports[@]}"; do
		all_bodies "${port#* }" "http://127.0.0.1:${port%% *}"
		check "${port#* }: upload" upload "http://127.0.0.1:${port%% *}"
		check "${port#* }: upload, chunked" upload "http://127.0.0.1:${port%% *}" -H 'Transfer-Encoding: chunked'
		check "${port#* }: many requests" loaded "http://127.0.0.1:${port%% *}/4096"
		check "${port#* }: pipelined" pipelined "http://127.0.0.1:${port%% *}"
	done
}

suite "$@"

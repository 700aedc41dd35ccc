#!/bin/bash
# nginx: static files, chunked answers, uploads, proxying, relaying, TLS.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"
# shellcheck source=scripts/conformance/bodies.sh
. "${0%/*}/bodies.sh"

# shellcheck disable=SC2034 # common.sh has their readers
packages=(nginx-light libnginx-mod-stream curl wrk openssl)

prepare() {
	make_bodies
}

run() {
	[[ ! -e $SETUP/fionread.so ]] || nginx_preload=$SETUP/fionread.so
	serve_bodies
	all_bodies sendfile http://127.0.0.1:8080
	all_bodies chunked http://127.0.0.1:8080/chunked
	check "gzip" compressed http://127.0.0.1:8080/gzip
	all_bodies read http://127.0.0.1:8081
	check "upload" upload http://127.0.0.1:8081
	check "upload, chunked" upload http://127.0.0.1:8081 -H 'Transfer-Encoding: chunked'
	all_bodies proxy http://127.0.0.1:8082
	all_bodies "proxy without buffers" http://127.0.0.1:8082/streaming
	check "proxy: upload, chunked" upload http://127.0.0.1:8082 -H 'Transfer-Encoding: chunked'
	check "proxy without buffers: upload, chunked" upload http://127.0.0.1:8082/streaming -H 'Transfer-Encoding: chunked'
	all_bodies stream http://127.0.0.1:8083
	check "stream: upload" upload http://127.0.0.1:8083
	all_bodies TLS https://127.0.0.1:8443
	check "TLS: upload" upload https://127.0.0.1:8443
	check "pipelined" pipelined http://127.0.0.1:8080
	check "proxy: pipelined" pipelined http://127.0.0.1:8082
	check "many requests" loaded http://127.0.0.1:8080/4096
	check "proxy: many requests" loaded http://127.0.0.1:8082/4096
	check "stream: many requests" loaded http://127.0.0.1:8083/4096
}

suite "$@"

#!/bin/bash
# memcached with the tools of libmemcached: its test of the server's protocol,
# and load.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"

# shellcheck disable=SC2034 # common.sh has their readers
packages=(memcached libmemcached-tools)

prepare() {
	:
}

run() {
	local mode
	memcached -u nobody -l 127.0.0.1 -p 21211 -t 2 -I 8m &
	wait_for listening 21211
	memccapable -h 127.0.0.1 -p 21211 -t 10 2>&1 | tee /dev/stderr |
		sed -u -nE 's/^(.*[^ ]) +\[pass\]$/ok\t\1/p; s/^(.*[^ ]) +\[FAIL\].*/failed\t\1/p' >>"$RESULTS" || true
	for mode in "" --non-blocking --binary "--non-blocking --tcp-nodelay"; do
		# shellcheck disable=SC2086 # several words are meant
		check "memcslap $mode" memcslap --servers=127.0.0.1:21211 $mode --concurrency=8 \
			--execute-number=5000 --test=get --flush
	done
	check "a file of 4 MB" stored
}

stored() {
	head -c 4000000 /dev/urandom >value
	memccp --servers=127.0.0.1:21211 value &&
		memccat --servers=127.0.0.1:21211 --file=back value &&
		cmp value back
}

suite "$@"

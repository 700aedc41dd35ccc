#!/bin/bash
# redis' own test suite, against the packaged redis.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"

# shellcheck disable=SC2034 # common.sh has their readers
packages=(redis-server redis-tools tcl tcl-tls dpkg-dev)

# These only test the server's memory and files, some for minutes.
without=(integration/corrupt-dump integration/corrupt-dump-fuzzer
	integration/convert-zipmap-hash-on-load integration/convert-ziplist-hash-on-load
	integration/convert-ziplist-zset-on-load integration/dismiss-mem unit/oom-score-adj
	unit/memefficiency)

prepare() {
	debian_source redis
	local program
	for program in redis-server redis-cli redis-benchmark redis-check-aof redis-check-rdb redis-sentinel; do
		ln -sf "/usr/bin/$program" "redis/src/$program"
	done
}

run() {
	local unit options=()
	cp -a "$SETUP/redis" .
	cd redis || return
	for unit in "${without[@]}"; do
		options+=(--skipunit "$unit")
	done
	tclsh tests/test_helper.tcl --clients 4 --tags "-slow -needs:debug-assert" "${options[@]}" |
		sed -u 's/\x1b\[[0-9;]*m//g' | tee /dev/stderr |
		sed -u -nE '# Names of cases that are drawn by lot, or counted as time allows.
			/PSYNC2: /s/#[0-9]+/#N/g
			/PSYNC2: /s/CYCLE [0-9]+/CYCLE N/
			/PSYNC2: /s/\(x = [0-9]+\)/(x)/
			s/^\[ok\]: (.*) \([0-9]+ ms\)$/ok\t\1/p
			s/^\[err\]: (.*) in tests\/.*/failed\t\1/p
			s/^\[(exception|timeout)\]: ?(.*)/failed\t\1/p' >>"$RESULTS" || true
}

suite "$@"

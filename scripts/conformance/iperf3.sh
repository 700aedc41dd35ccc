#!/bin/bash
# iperf3, which also compares what was sent with what was received.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"

# shellcheck disable=SC2034 # common.sh has their readers
packages=(iperf3 jq)

prepare() {
	:
}

measured() {
	iperf3 -c 127.0.0.1 -J -t 2 "$@" >last.json || {
		jq -r .error last.json
		return 1
	}
	jq -e '.end.sum_received.bytes > 0 and .end.sum_received.bytes <= .end.sum_sent.bytes' last.json
}

run() {
	iperf3 -s >server.log 2>&1 &
	wait_for listening 5201
	check "a stream" measured
	check "reverse" measured -R
	check "both directions" measured --bidir
	check "8 streams" measured -P 8
	check "NODELAY, 100 bytes" measured -N -l 100
	check "1 MiB writes" measured -l 1M
	check "zero copy" measured -Z
	check "paced" measured -b 100M
	check "a window of 64 KiB" measured -w 64K
}

suite "$@"

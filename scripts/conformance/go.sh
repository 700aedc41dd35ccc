#!/bin/bash
# The tests of Go's own network packages.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"

# shellcheck disable=SC2034 # common.sh has their readers
packages=(golang-go golang-src)

tested=(net net/http net/http/httputil net/http/httptest net/rpc net/rpc/jsonrpc net/smtp
	net/textproto crypto/tls)
# Names that need a resolver, and interfaces that come and go.
without='Lookup|Resolver|DNS|CNAME|Google|InterfaceArrival|TestCmdGoNoHTTPServer|^TestDialCancel$'

prepare() {
	local package
	export GOCACHE=$SETUP/cache GOFLAGS=-mod=vendor
	for package in "${tested[@]}"; do
		(cd "$(go env GOROOT)/src/$package" && go test -c -o "$SETUP/${package//\//_}.test" .)
	done
}

run() {
	local package program pattern short
	export GOCACHE=$WORK/cache
	for package in "${tested[@]}"; do
		program=$SETUP/${package//\//_}.test
		pattern="^($("$program" -test.list . | grep '^Test' | grep -vE "$without" | paste -sd '|'))\$"
		echo "== $package"
		# Stress tests of minutes elsewhere; sockets are net's.
		short=true
		[[ $package != net ]] || short=false
		(cd "$(go env GOROOT)/src/$package" &&
			"$program" -test.v -test.short=$short -test.timeout 150s -test.run "$pattern" 2>&1) |
			tee /dev/stderr |
			sed -u -nE "s#^ *--- (PASS|FAIL|SKIP): (.*) \([0-9.]+s\)\$#\1\t$package \2#p
				s#^panic: (.*)#FAIL\t$package panic: \1#p" |
			sed -u 's/^PASS/ok/; s/^FAIL/failed/; s/^SKIP/skipped/' >>"$RESULTS" || true
	done
}

suite "$@"

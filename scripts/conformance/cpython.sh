#!/bin/bash
# CPython's tests of sockets, event loops, TLS and what is built on them.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"

# shellcheck disable=SC2034 # common.sh has their readers
packages=(python3 "lib$(default_version python3 'python3\.[0-9]+')-testsuite")

modules=(test_socket test_asyncio test_ssl test_selectors test_select test_poll test_epoll
	test_socketserver test_asyncore test_asynchat test_ftplib test_poplib test_imaplib
	test_nntplib test_smtplib test_telnetlib test_httplib test_httpservers
	test_urllib2_localnet test_xmlrpc test_docxmlrpc test_wsgiref)
# CONFORMANCE_SHORT is for CI.
[[ -z ${CONFORMANCE_SHORT:-} ]] || modules=(test_socket test_selectors test_epoll test_poplib)

prepare() {
	/usr/bin/python3 -c 'import test.test_socket, test.test_asyncio, test.test_ssl'
}

run() {
	local module
	# One after another: a module that hangs takes only its own cases with it.
	# VSOCK is no TCP and hangs where the machine has the device but no peer.
	for module in "${modules[@]}"; do
		/usr/bin/python3 -m test -v -u network --timeout 300 --junit-xml "$WORK/$module.xml" \
			-i '*VSOCK*' "$module" 2>&1 || true
		/usr/bin/python3 - "$WORK/$module.xml" "$module" <<-'END' >>"$RESULTS"
			import os, sys, xml.etree.ElementTree as tree
			path, module = sys.argv[1:]
			if not os.path.exists(path) or not os.path.getsize(path):
			    print(f"failed\t{module} (hung or died)")
			    sys.exit()
			for case in tree.parse(path).iter("testcase"):
			    kinds = {child.tag for child in case}
			    bad = kinds & {"failure", "error"}
			    skipped = "skipped" in kinds or case.get("result") == "skipped"
			    print("failed" if bad else "skipped" if skipped else "ok", case.get("name"), sep="\t")
		END
	done
}

suite "$@"

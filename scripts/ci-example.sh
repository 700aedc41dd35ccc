#!/bin/bash
# How a CI job accelerates one command and checks that it was:
#
#     sudo scripts/ci-example.sh COMMAND [ARGUMENT...]
#
# The instance is the job's own, so that jobs on one machine do not meet, and the
# trap removes it and the cgroup however the job ends. The exit status is the
# command's, or 5 when less than MIN_PERCENT of the bytes were redirected.
#
# Where no cgroup of one's own is needed, `sockaccel run -- COMMAND` does the same.
set -euo pipefail

sockaccel=${SOCKACCEL:-sockaccel}
min_percent=${MIN_PERCENT:-1}
instance=ci-$$
(($#)) || {
	echo "usage: $0 COMMAND [ARGUMENT...]" >&2
	exit 2
}

cgroup=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)/sockaccel-$instance
pid=
cleanup() {
	status=$?
	trap '' INT TERM
	if [[ -n $pid ]]; then
		kill "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	fi
	"$sockaccel" disable --now --instance "$instance" || true
	# What the command started and left behind ends here.
	echo 1 2>/dev/null >"$cgroup/cgroup.kill" || true
	for _ in {1..50}; do
		rmdir "$cgroup" 2>/dev/null && break
		sleep 0.1
	done
	exit "$status"
}
mkdir "$cgroup"
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# This job accepts what enable would refuse: nothing in it uses FIONREAD.
"$sockaccel" enable --cgroup "$cgroup" --instance "$instance" --allow fionread

# The shell joins the cgroup before it becomes the command. In the background,
# because bash runs traps only between foreground commands.
(
	echo "$BASHPID" >"$cgroup/cgroup.procs"
	exec "$@"
) &
pid=$!
status=0
wait "$pid" || status=$?
pid=

((status == 0)) || exit "$status"

# Tells the figures and, where it fails, the reasons with what would change them.
"$sockaccel" assert --instance "$instance" --redirected-share ">=$min_percent%"

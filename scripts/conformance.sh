#!/bin/bash
# Programs nobody here wrote, over plain TCP and then over accelerated
# connections, and what differs.
#
#     sudo scripts/conformance.sh [--only SUITE]... [--time SECONDS] [--short]
#         [--blocking-readers skip|accelerate] [--keep DIR]
#
# The suites are scripts/conformance/*.sh; --short is a part of two of them, for
# CI, and only with blocking readers skipped. --keep leaves logs and results of
# cases in DIR. Each suite runs on plain TCP, then with
# sockaccel enabled, and once more with --blocking-readers accelerate where
# connections were skipped as blocking. Every run has a cgroup, a network
# namespace, an instance and a directory of its own, and at most SECONDS (900).
#
# A case that failed accelerated and not plain is run again, both ways and twice:
# what plain TCP fails too is unsteady, the rest is a difference. Differences that
# are explained are in scripts/conformance/known. Exit status 1: a difference that
# is not, or a suite of which nothing was redirected in any mode.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

suites=() limit=900 keep='' modes=(skip accelerate)
while (($#)); do
	case $1 in
	--only) suites+=("${2:?--only needs a suite}") && shift ;;
	--time) limit=${2:?--time needs seconds} && shift ;;
	--short) export CONFORMANCE_SHORT=yes && modes=(skip) && suites=(cpython haproxy) ;;
	--blocking-readers) modes=("${2:?--blocking-readers needs skip or accelerate}") && shift ;;
	--keep) keep=${2:?--keep needs a directory} && shift ;;
	*) sed -n '/^#  /s/^#     //p' "$0" >&2 && exit 2 ;;
	esac
	shift
done
if ((${#suites[@]} == 0)); then
	for suite in scripts/conformance/*.sh; do
		suite=${suite##*/}
		case $suite in
		common.sh | bodies.sh) ;;
		*) suites+=("${suite%.sh}") ;;
		esac
	done
fi
for suite in "${suites[@]}"; do
	[[ -x scripts/conformance/$suite.sh ]] || die "no such suite: $suite"
done

trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

need_root
mapfile -t packages < <(for suite in "${suites[@]}"; do
	bash "scripts/conformance/$suite.sh" packages
done | sort -u)
install_packages iproute2 jq "${packages[@]}"
need_sockaccel

name=conformance-$$
netns=sat-$name
cgroup=$(cgroup2)/sockaccel-$name
work=$(mktemp -d)
# Some suites drop privileges.
chmod 755 "$work"
running=

# Ends everything of a run.
end_run() {
	if [[ -d $cgroup ]]; then
		echo 1 >"$cgroup/cgroup.kill"
		for _ in {1..200}; do
			[[ -s $cgroup/cgroup.procs ]] || break
			sleep 0.05
		done
	fi
	if [[ -n $running ]]; then
		wait "$running" 2>/dev/null || true
		running=
	fi
	"$SOCKACCEL" disable --instance "$name" >/dev/null 2>&1 || true
	remove_cgroup "$cgroup"
	[[ ! -e /run/netns/$netns ]] || ip netns del "$netns"
}
cleanup() {
	local status=$?
	trap '' INT TERM HUP
	set +e
	end_run
	[[ -z $keep ]] || cp -r "$work/results" "$keep"
	rm -rf "$work"
	exit "$status"
}
trap cleanup EXIT

# run SUITE MODE ROUND: leaves "verdict case" lines, statistics and a log in
# results/SUITE.MODE.ROUND.
run() {
	local suite=$1 mode=$2 status=0 options
	local out=$work/results/$suite.$mode.$3
	mkdir -p "$work/run" "$work/results"
	chmod 755 "$work/run"
	: >"$out.cases"
	mkdir "$cgroup"
	ip netns add "$netns"
	ip -n "$netns" link set lo up
	if [[ $mode != plain ]]; then
		# What FIONREAD does to these programs is part of the result.
		mapfile -t options < <(bash "scripts/conformance/$suite.sh" enabling)
		"$SOCKACCEL" enable --cgroup "$cgroup" --instance "$name" --allow fionread \
			--blocking-readers "$mode" ${options[@]+"${options[@]}"} >/dev/null 2>"$out.enable" || die "$(<"$out.enable")"
	fi
	local began=$SECONDS
	(
		trap - EXIT HUP INT TERM
		echo "$BASHPID" >"$cgroup/cgroup.procs"
		export SETUP=$work/setup-$suite WORK=$work/run RESULTS=$out.cases
		exec ip netns exec "$netns" timeout "$limit" bash "$PWD/scripts/conformance/$suite.sh" run
	) >"$out.log" 2>&1 </dev/null &
	running=$!
	wait "$running" || status=$?
	running=
	case $status in
	0) ;;
	124) printf 'failed\tthe suite ran out of its %s seconds\n' "$limit" >>"$out.cases" ;;
	*) printf 'failed\tthe suite itself (status %s)\n' "$status" >>"$out.cases" ;;
	esac
	echo $((SECONDS - began)) >"$out.seconds"
	if [[ $mode == plain ]]; then
		echo '{}'
	else
		"$SOCKACCEL" stats --json --instance "$name"
	fi >"$out.stats"
	end_run
	rm -rf "$work/run"
}

stat_of() {
	jq -r "(.$2 // 0) | tonumber? // 0" "$work/results/$1.stats"
}

# failures SUITE.MODE.ROUND: names of cases that failed in any of their runs.
failures() {
	awk -F'\t' '$1 == "failed" { print $2 }' "$work/results/$1.cases" | sort -u
}

# What did not pass although plain TCP did not fail it: failed, or never came. Of
# a run that was out of time only that counts: what came last never came.
worse() {
	local suite=$1 mode=$2 round=$3
	comm -13 <(failures "$suite.plain.$round") <({
		failures "$suite.$mode.$round"
		grep -q '^failed	the suite ran out' "$work/results/$suite.$mode.$round.cases" ||
			comm -23 <(cut -f2 "$work/results/$suite.plain.$round.cases" | sort -u) \
				<(cut -f2 "$work/results/$suite.$mode.$round.cases" | sort -u)
	} | sort -u)
}

# The explanation of a difference, if there is one.
known() {
	local suite mode pattern explanation
	while IFS='|' read -r suite mode pattern explanation; do
		# shellcheck disable=SC2053 # a pattern is meant
		if [[ $suite == "$1" && $2 == $mode && $3 == $pattern ]]; then
			echo "$explanation"
			return
		fi
	done < <(grep -vE '^(#|$)' scripts/conformance/known)
	return 1
}

unknown() {
	local case
	worse "$@" | while IFS= read -r case; do
		known "$1" "$2" "$case" >/dev/null || echo "$case"
	done
}

# confirm SUITE MODE: two more rounds when there is something to explain. Prints
# "case|plain failures/rounds|accelerated failures/rounds".
confirm() {
	local suite=$1 mode=$2 case rounds=1 plain fast round
	if [[ -n $(unknown "$suite" "$mode" 1) ]]; then
		for round in 2 3; do
			[[ -e $work/results/$suite.plain.$round.cases ]] || run "$suite" plain "$round"
			run "$suite" "$mode" "$round"
		done
		rounds=3
	fi
	for ((round = 1; round <= rounds; round++)); do
		worse "$suite" "$mode" "$round"
	done | sort -u | while IFS= read -r case; do
		plain=0 fast=0
		for ((round = 1; round <= rounds; round++)); do
			! failures "$suite.plain.$round" | grep -qxF -e "$case" || plain=$((plain + 1))
			! worse "$suite" "$mode" "$round" | grep -qxF -e "$case" || fast=$((fast + 1))
		done
		printf '%s|%s/%s|%s/%s\n' "$case" "$plain" "$rounds" "$fast" "$rounds"
	done
}

row='%-10s %-10s %6s %6s %8s %8s %6s %16s %16s\n'
table=$work/table
# shellcheck disable=SC2059 # the format is one of two
header() {
	printf "$row" suite blocking cases failed failed differ- seconds redirected stack
	printf "$row" '' readers '' plain accel. ences '' bytes bytes
}
header >"$table"
unexplained=0
for suite in "${suites[@]}"; do
	mkdir "$work/setup-$suite"
	chmod 755 "$work/setup-$suite"
	echo "$suite: preparing"
	SETUP=$work/setup-$suite bash "$PWD/scripts/conformance/$suite.sh" prepare \
		>"$work/prepare.log" 2>&1 || die "$suite: $(tail -n 20 "$work/prepare.log")"
	echo "$suite: plain TCP"
	run "$suite" plain 1
	proven=
	for mode in "${modes[@]}"; do
		if [[ ${#modes[@]} == 2 && $mode == accelerate && $(stat_of "$suite.skip.1" skipped.blocking_reader) == 0 &&
			$(stat_of "$suite.skip.1" ejected.blocking_reader) == 0 ]]; then
			continue
		fi
		echo "$suite: --blocking-readers $mode"
		run "$suite" "$mode" 1
		confirm "$suite" "$mode" >"$work/differences"
		count=0
		while IFS='|' read -r case plain fast; do
			if [[ $plain != 0/* ]]; then
				echo "  unsteady: $case (failed plain $plain, accelerated $fast)"
			elif why=$(known "$suite" "$mode" "$case"); then
				count=$((count + 1))
				echo "  explained: $case (failed accelerated $fast):$why"
			else
				count=$((count + 1)) unexplained=$((unexplained + 1))
				echo "  DIFFERENT: $case (failed plain $plain, accelerated $fast)"
			fi
		done <"$work/differences"
		redirected=$(stat_of "$suite.$mode.1" redirected_bytes)
		stack=$(stat_of "$suite.$mode.1" stack_bytes)
		if ((redirected == 0)); then
			redirected="none: no proof"
		else
			proven=yes
		fi
		# shellcheck disable=SC2059 # as above
		printf "$row" "$suite" "$mode" "$(cut -f2 "$work/results/$suite.$mode.1.cases" | sort -u | wc -l)" \
			"$(failures "$suite.plain.1" | wc -l)" "$(failures "$suite.$mode.1" | wc -l)" "$count" \
			"$(<"$work/results/$suite.$mode.1.seconds")" "$redirected" "$stack" | tee -a "$table"
	done
	if [[ -z $proven ]]; then
		echo "  nothing was redirected: $(jq -c '{skipped, ejected} | map_values(map_values(select(tonumber > 0)))' \
			"$work/results/$suite.$mode.1.stats")"
		unexplained=$((unexplained + 1))
	fi
	rm -rf "$work/setup-$suite"
done
echo
cat "$table"
cp "$table" "$work/results/table"
((unexplained == 0)) || die "$unexplained things to explain; --keep DIR keeps the logs"

#!/bin/bash
# The root tests under the kernels of Debian stable and oldstable, in virtual
# machines: sudo scripts/vmtest.sh [options] [test file or test name]...
#
#   --kernel 6.1|6.12|all   which (all)
#   --quick                 loads every program and runs a few tests, instead of
#                           all: two minutes a kernel, emulated
#   --rest                  only tests that have no result yet
#   --minutes N             ends each machine after N minutes: what has ended by
#                           then counts
#   --docs                  no run: writes the last result of each test into
#                           docs/kernels, docs/kernels.md and the manual
#
# The machine has no disk and no network: its root is a memory file system with
# the tests and the few programs that they run. Nothing is installed into /boot;
# kernels are kept below target/vm.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

trap 'exit 130' INT
trap 'exit 143' TERM

# Programs that the tests and the first process run.
tools=(bash sh mount umount mkdir ln ls cat cp mv rm rmdir chmod chown echo printf timeout sleep sed
	grep dmesg ip nft sysctl unshare nsenter setpriv strace haproxy modprobe kmod true false test
	env id head tail sort tr touch mktemp stat uname readlink dirname basename mknod kill ps
	bpftool ss script flock awk openssl tc)
# Kernel modules that they need.
modules=(veth dummy nf_tables nft_chain_nat nft_nat nft_masq nft_ct nft_redir nft_reject
	nft_reject_inet nft_tproxy nf_conntrack nf_nat tls gcm ctr ghash-generic aes-generic inet_diag tcp_diag
	udp_diag xt_mark overlay sch_ingress cls_u32)
# A hang guard: the slowest takes ten minutes of it, emulated on a busy machine.
test_seconds=1800
# Every program loads, messages are redirected, nothing is lost, the observer sees.
quick_tests=(all_of_the_instance the_walks_of_adopt the_textbook_program
	unread_redirected_bytes_survive_disable a_relay_that_splices
	refused_where_messages_are_redirected)
memory=3072

kernels=(6.1 6.12)
quick='' rest='' minutes='' docs=''
wanted=()
while (($#)); do
	case $1 in
	--kernel)
		case ${2:-} in
		6.1 | 6.12) kernels=("$2") ;;
		all) ;;
		*) die "--kernel takes 6.1, 6.12 or all" ;;
		esac
		shift
		;;
	--quick) quick=yes ;;
	--rest) rest=yes ;;
	--minutes)
		minutes=${2:-}
		[[ $minutes =~ ^[1-9][0-9]*$ ]] || die "--minutes takes a number"
		shift
		;;
	--docs) docs=yes ;;
	-*) die "no such option: $1" ;;
	*) wanted+=("$1") ;;
	esac
	shift
done

need_root
[[ $(uname -m) == x86_64 ]] || die "only for x86-64"
install_packages qemu-system-x86 cpio kmod binutils jq clang libelf-dev zlib1g-dev pkg-config \
	linux-libc-dev iproute2 nftables haproxy strace procps golang-go
need_cargo

cache=${CARGO_TARGET_DIR:-target}/vm
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d)
machine='' alarm=''
cleanup() {
	[[ -z $machine ]] || kill "$machine" "$alarm" 2>/dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT

# --- Kernels

# apt as this machine has it; where that does not offer the kernel, Debian 12's
# archives in an apt of our own.
apt_options=()
newest_kernel() {
	apt-cache "${apt_options[@]}" search --names-only "^linux-image-$1\.[0-9].*-cloud-amd64\$" |
		awk '{ print $1 }' | sort -V | tail -n 1
}
use_own_apt() {
	local apt=$cache/apt keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	((${#apt_options[@]} == 0)) || return 0
	install_packages debian-archive-keyring
	mkdir -p "$apt"/{lists/partial,archives/partial,empty}
	printf 'deb [signed-by=%s] http://deb.debian.org/%s main\n' \
		"$keyring" "debian bookworm" "$keyring" "debian-security bookworm-security" >"$apt/sources"
	apt_options=(-o "Dir::Etc::sourcelist=$apt/sources" -o "Dir::Etc::sourceparts=$apt/empty"
		-o "Dir::State::lists=$apt/lists" -o "Dir::Cache::archives=$apt/archives"
		-o "APT::Architecture=amd64" -o "APT::Architectures=amd64")
	apt-get "${apt_options[@]}" update -qq
}

# Prints the directory of an extracted kernel.
kernel() {
	local package directory
	package=$(newest_kernel "$1")
	if [[ -z $package ]]; then
		use_own_apt
		package=$(newest_kernel "$1")
	fi
	if [[ -z $package ]]; then
		die "no linux-image-$1*-cloud-amd64 in the package archives"
	fi
	directory=$cache/$package
	if [[ ! -e $directory/ready ]]; then
		rm -rf "$directory"
		mkdir "$work/$package"
		(cd "$work/$package" && apt-get "${apt_options[@]}" download -qq "$package") >&2 ||
			die "cannot download $package"
		dpkg -x "$work/$package"/*.deb "$directory"
		mv "$work/$package"/*.deb "$directory/package.deb"
		depmod -b "$directory" "$(basename "$directory"/lib/modules/*)"
		touch "$directory/ready"
	fi
	echo "$directory"
}

# --- The root file system

root=$work/root
copy() {
	[[ -e $root$1 ]] || install -D "$1" "$root$1"
}
# A program with its libraries.
copy_program() {
	local library
	copy "$1"
	ldd "$1" 2>/dev/null | grep -o '/[^ )]*' | while read -r library; do copy "$library"; done || true
}

build_root() {
	local tool path
	mkdir -p "$root"/{proc,sys,dev,tmp,run,root,etc,vm,var/lib,var/tmp,mnt}
	ln -s usr/bin "$root/bin"
	ln -s usr/sbin "$root/sbin"
	ln -s usr/lib "$root/lib"
	ln -s usr/lib64 "$root/lib64"
	ln -s /run "$root/var/run"
	mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
	for tool in "${tools[@]}"; do
		path=$(PATH=/usr/sbin:/usr/bin:/sbin:/bin type -P "$tool") || continue
		copy_program "$path"
	done
	printf 'root:x:0:0::/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
	for path in /etc/protocols /etc/services /etc/iproute2 /usr/share/iproute2 /usr/lib/iproute2; do
		[[ ! -e $path ]] || cp -a --parents "$path" "$root"
	done
	install scripts/vm/init "$root/init"
}

# Each test program, as lines of its name and path, and sockaccel.
programs=() sockaccel=
build_tests() {
	builder cargo test --no-run --message-format=json >"$work/built" 2>"$work/log" ||
		die "cargo: $(tail -n 20 "$work/log")"
	executables() {
		jq -r --arg kind "$1" 'select(.reason == "compiler-artifact" and .executable)
			| select(.profile.test == ($kind == "test") and .target.kind == [$kind])
			| "\(.target.name) \(.executable)"' "$work/built"
	}
	mapfile -t programs < <(executables test | grep ^root_ | sort)
	sockaccel=$(executables bin | awk '$1 == "sockaccel" { print $2 }')
	((${#programs[@]})) || die "cargo built no tests"
	[[ -x $sockaccel ]] || die "cargo built no sockaccel"
}

# What the plan runs, where the tests look for it, and what they read of the build.
add_tests() {
	local path
	for path in "$sockaccel" $(grep -o ' /[^ ]*/root_[^ ]*' "$work/plan" | sort -u); do
		copy_program "$path"
		strip --strip-debug "$root$path"
	done
	while read -r path; do copy "$path"; done < <(
		jq -r 'select(.reason == "build-script-executed" and (.package_id | test("sockaccel")))
			| .out_dir + ("/decide_test", "/sockaccel", "/adopt") + ".bpf.o"' "$work/built"
	)
	CGO_ENABLED=0 GOPROXY=off GOCACHE=$work/go-cache GOPATH=$work/go \
		go build -o "$root/vm/relay" tests/go/relay.go
	printf 'export %s\n' SOCKACCEL_TEST_GO_RELAY=/vm/relay SOCKACCEL_TEST_KTLS=required \
		SOCKACCEL_TEST_PATIENCE=5 >"$root/vm/environment"
}

# The program itself, as it is used.
first_steps() {
	echo "300 load $sockaccel enable --cgroup /sys/fs/cgroup --instance load --allow fionread"
	echo "300 status $sockaccel status --instance load --json"
	echo "300 unload $sockaccel disable --instance load"
	[[ -n $quick ]] || echo "300 doctor $sockaccel doctor --timeout 240 --allow fionread"
}
# Every test that was asked for, in the order asked for, a line each: its time
# limit in seconds, its name, the command. A process for each, so that one that
# hangs is only itself.
plan() {
	local want program
	for program in "${programs[@]}"; do
		# shellcheck disable=SC2086 # a name and a path
		steps_of $program
	done | awk 'FNR == NR { not_run[$1]; next }
		{ split($2, part, "/") } !(part[1] in not_run) && !($2 in not_run)' scripts/vm/not-run - >"$work/steps"
	if ((${#wanted[@]} == 0)); then
		cat "$work/steps"
		return
	fi
	for want in "${wanted[@]}"; do
		awk -v want="$want" '
			{ name = $2; sub(/@[^\/]*/, "", name); split(name, part, "/") }
			want == part[1] || want == part[2] || want == name' "$work/steps"
	done | awk '!seen[$0]++'
}
# The tests of a program that are not ignored.
steps_of() {
	local name=$1 path=$2 case command
	while read -r case; do
		command="$path --exact $case --test-threads=1"
		case $name in
		# A limit of the whole machine, which is ours here: init runs them alone.
		root_shortage)
			echo "$test_seconds $name@tcp_mem/$case env SOCKACCEL_TEST_SHORTAGE=tcp_mem $command"
			continue
			;;
		# `enable` chooses the other form on these kernels.
		root_splice)
			echo "$test_seconds $name@tracepoint/$case env SOCKACCEL_TEST_OBSERVER=tracepoint $command"
			;;
		esac
		echo "$test_seconds $name/$case $command"
	done < <(comm -23 <(test_names "$path") <(test_names "$path" --ignored))
}
test_names() {
	"$@" --list --format terse | sed -n 's/: test$//p' | sort
}

# --- The machine

pack() {
	(cd "$1" && find . -print0 | cpio --null --create --format=newc --quiet --owner=0:0)
}

# Modules and configuration of a kernel, packed, as a second part of the root file
# system.
pack_modules() {
	local version module file tree
	tree=$work/modules-$(basename "$1")
	version=$(basename "$1"/lib/modules/*)
	for module in "${modules[@]}"; do
		{ modprobe -d "$1" -S "$version" --show-depends "$module" 2>/dev/null || true; } |
			awk '$1 == "insmod" { print $2 }' |
			while read -r file; do
				[[ -e $tree/usr${file#"$1"} ]] || install -D -m 644 "$file" "$tree/usr${file#"$1"}"
			done
	done
	mkdir -p "$tree/usr/lib/modules/$version"
	cp "$1/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "$tree/usr/lib/modules/$version" 2>/dev/null || true
	depmod -b "$tree/usr" "$version"
	install -D -m 644 "$1/boot/config-$version" "$tree/boot/config-$version"
	pack "$tree"
}

# KVM may be there and not work: so see whether a kernel starts to talk. Emulated,
# one processor runs at a time: QEMU 7.2 with a thread for each now and then goes on
# running the int3 of a patched instruction (ftrace's) for ever, on all of them.
accelerator() {
	local image=$1
	if [[ -w /dev/kvm ]]; then
		timeout -k 1 10 qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none \
			-m 512 -accel kvm -kernel "$image" -append "console=ttyS0 panic=-1" \
			-serial "file:$work/kvm" 2>/dev/null || true
		if grep -qs "Linux version" "$work/kvm"; then
			echo kvm
			return
		fi
	fi
	echo tcg,thread=single
}

run_kernel() {
	local directory image log=$cache/console-$1.log limit=$2 status=0
	directory=$(kernel "$1")
	image=$(echo "$directory"/boot/vmlinuz-*)
	[[ -n ${accel:-} ]] || accel=$(accelerator "$image")
	echo "Linux $(basename "$directory"/lib/modules/*), $accel"
	dpkg-deb -f "$directory/package.deb" Version >"$work/version"
	recall_results "$1"
	if ! cmp -s "$work/version" "$cache/version-$1"; then
		rm -f "$cache/results-$1"
	fi
	mv "$work/version" "$cache/version-$1"
	touch "$cache/results-$1"
	rm -rf "$work/planned"
	mkdir -p "$work/planned/vm"
	awk -v rest="$rest" 'FILENAME != ARGV[2] { known[$2]; next } !rest || !($2 in known)' \
		"$cache/results-$1" "$work/plan" >"$work/planned/vm/plan"
	echo "$(cat "$root/vm/first" "$work/planned/vm/plan" | wc -l) steps"
	cat "$work/root.cpio" <(pack_modules "$directory") <(pack "$work/planned") >"$work/initrd"
	: >"$log"
	rm -f "$work/monitor" "$work/late" "$work/over"
	mkfifo "$work/monitor"
	exec 8<>"$work/monitor"
	qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none \
		-smp 2 -m "$memory" -accel "$accel" -kernel "$image" -initrd "$work/initrd" \
		-append "console=ttyS0 quiet panic=-1 mitigations=off unknown_nmi_panic panic_print=0x60" \
		-serial "file:$log" -monitor stdio <"$work/monitor" >"$work/monitor.log" 8>&- &
	machine=$!
	end_late "$limit" "$log" &
	alarm=$!
	wait "$machine" || status=$?
	kill "$alarm" 2>/dev/null || true
	machine='' alarm=''
	exec 8>&-
	if ! grep -q '^@start' "$log"; then
		echo "the machine did not start (qemu's exit status: $status)"
	elif [[ -e $work/late ]]; then
		echo "the machine was ended after $limit s; where its processors were:"
		tr -d '\r' <"$log" | awk '/INFO: |BUG: |rcu:.*stall|Kernel panic/ { on = 1 }
			on && n++ < 200 { print "    " $0 }'
	fi
}
# A machine that is late may have locked up: a non-maskable interrupt makes its
# kernel say where each processor is, and repeat what it had to say (0x40, 0x20).
end_late() {
	local pause
	sleep "$1" &
	pause=$!
	trap 'kill "$pause"; exit' TERM
	wait "$pause"
	trap - TERM
	if [[ -n $minutes ]] && grep -q '^@start' "$2" && ! grep -q 'Kernel panic' "$2"; then
		touch "$work/over"
	else
		touch "$work/late"
		echo nmi >&8
		sleep 20
	fi
	echo quit >&8
	sleep 10
	kill -KILL "$machine" 2>/dev/null || true
}

# --- The results

# From the console: a line each, "ok", "failed", "timeout" or "unfinished", then
# the name. A test program that ran no test has failed.
results() {
	tr -d '\r' <"$1" | awk '
		$1 == "@start" { open[$2] = 1 }
		$1 == "@begin" { name = $2; ran = 0; next }
		/^test result: .* 1 passed; 0 failed/ { ran = 1 }
		$1 == "@end" {
			if ($3 == 124 || $3 == 137) print "timeout", name
			else if ($3 == 0 && (ran || name !~ "/")) print "ok", name
			else print "failed", name
			delete open[name]
		}
		$1 == "@kernel" { print "failed", "kernel:", $0 }
		$1 == "@done" { done = 1 }
		END { for (name in open) print "unfinished", name; if (!done) print "failed", "machine" }'
}

# Adds the results of a run to those of earlier ones, with the commit: of each test
# that there is, the last that came to an end counts.
keep_results() {
	awk -v commit="$commit" '$1 == "unfinished" || $2 == "machine" || $2 == "kernel:" { next }
		!seen[$2]++ { print $1, $2, $3 ? $3 : commit }' "$1" "$2" >"$work/all"
	awk 'NR == FNR { there[$2]; next } $2 in there' "$work/names" "$work/all" | sort -k 2 >"$2"
}
# The results that the project keeps, where this machine has none.
recall_results() {
	local record=docs/kernels/$1.txt
	[[ -e $record && ! -e $cache/results-$1 ]] || return 0
	sed -n '1s/^# //p' "$record" >"$cache/version-$1"
	sed 1d "$record" >"$cache/results-$1"
}
record_results() {
	mkdir -p docs/kernels
	{ sed 's/^/# /' "$cache/version-$1" && cat "$cache/results-$1"; } >"$work/record"
	cat "$work/record" >"docs/kernels/$1.txt"
}

# What is known to fail, and why: kernel, name, reason.
known() {
	awk -v kernel="$1" -v name="$2" \
		'$1 == kernel && $2 == name { found = 1 } END { exit !found }' scripts/vm/known-failures
}

# Prints a table, and every failure that is not known; fails if there is one.
report() {
	local kernel=$1 results=$2 status name bad=0
	awk '{
			split($2, part, "/")
			if (!(part[1] in all)) order[++n] = part[1]
			all[part[1]]++
			if ($1 == "ok") good[part[1]]++
		}
		END { for (i = 1; i <= n; i++) printf "  %-28s %3d of %3d\n", order[i], good[order[i]], all[order[i]] }' "$results"
	if ((${#wanted[@]} == 0)); then
		awk '!/^#/ { name = $1; sub(/^[^ ]* */, ""); print "  not run: " name ": " $0 }' scripts/vm/not-run
	fi
	while read -r status name; do
		[[ $status != ok ]] || continue
		if known "$kernel" "$name"; then
			echo "  as known: $name"
		else
			echo "  $status: $name"
			bad=1
		fi
	done <"$results"
	return $bad
}

# How many results are of a commit that has this one.
results_since() {
	local number commit all=0
	while read -r number commit; do
		if git merge-base --is-ancestor "$2" "$commit"; then all=$((all + number)); fi
	done < <(awk '{ print $3 }' "$cache/results-$1" | sort | uniq -c)
	echo "$all"
}

# The table of docs/kernels.md: a row for each file of tests, with how many of its
# tests passed, and how many of all results the present data path has.
table() {
	local kernel data_path
	data_path=$(git log -1 --format=%h -- src/bpf)
	printf '| tests |'
	for kernel in 6.1 6.12; do printf ' %s (%s) |' "$kernel" "$(cat "$cache/version-$kernel")"; done
	printf '\n|---|---|---|\n'
	awk '{
			split($2, part, "/")
			row = part[1]
			if (!(row in rows)) { rows[row]; order[++n] = row }
			all[row, FILENAME]++
			if ($1 == "ok") good[row, FILENAME]++
		}
		function cell(row, file) {
			return (row, file) in all ? sprintf("%d of %d", good[row, file], all[row, file]) : "not run"
		}
		END {
			for (i = 1; i <= n; i++)
				printf "| %s | %s | %s |\n", order[i], cell(order[i], ARGV[1]), cell(order[i], ARGV[2])
		}' "$cache/results-6.1" "$cache/results-6.12"
	printf '| all of these, of any age |'
	for kernel in 6.1 6.12; do printf ' %s |' "$(wc -l <"$cache/results-$kernel")"; done
	printf '\n| since %s, the last change of `src/bpf` |' "$data_path"
	for kernel in 6.1 6.12; do printf ' %s |' "$(results_since "$kernel" "$data_path")"; done
	printf '\n'
}
# That of the manual: a row for each kernel, with its root tests.
manual_table() {
	local kernel
	echo '.Bl -column "6.12.117-1~deb12u1" "passed"'
	echo '.It Sy "Debian\(aqs kernel" Ta Sy run Ta Sy passed'
	for kernel in 6.1 6.12; do
		awk -v version="$(cat "$cache/version-$kernel")" '
			$2 ~ /\// { all++; good += $1 == "ok" }
			END { printf ".It %s Ta %d Ta %d\n", version, all, good }' "$cache/results-$kernel"
	done
	echo .El
}
# Puts the standard input between two marks of a file.
between() {
	local file=$1 begin=$2 end=$3
	cat >"$work/table"
	awk -v table="$work/table" -v begin="$begin" -v end="$end" '
		$0 == end { within = 0 }
		!within
		$0 == begin { within = 1; while ((getline line <table) > 0) print line }' "$file" >"$work/page"
	cat "$work/page" >"$file"
}
write_docs() {
	local kernel
	for kernel in 6.1 6.12; do
		recall_results "$kernel"
		record_results "$kernel"
	done
	table | between docs/kernels.md '<!-- results -->' '<!-- end of results -->'
	manual_table | between man/sockaccel.8 '.\\" results' '.\\" end of results'
}

if [[ -n $docs ]]; then
	write_docs
	exit
fi
[[ -z $quick ]] || wanted+=("${quick_tests[@]}")
build_root
build_tests
first_steps >"$root/vm/first"
plan >"$work/plan"
{ cat "$root/vm/first" "$work/steps" && echo "0 doctor"; } >"$work/names"
[[ -s $work/plan ]] || die "no such test: ${wanted[*]}"
add_tests
pack "$root" >"$work/root.cpio"
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
seconds=21600
[[ -z $quick ]] || seconds=900
[[ -z $minutes ]] || seconds=$((minutes * 60))
failed=()
for kernel in "${kernels[@]}"; do
	run_kernel "$kernel" "$seconds"
	results "$cache/console-$kernel.log" >"$work/results"
	[[ ! -e $work/over ]] || sed -i '/^unfinished /d; /^failed machine$/d' "$work/results"
	keep_results "$work/results" "$cache/results-$kernel"
	# With --rest those that failed earlier are not run, and have failed still.
	cp "$work/results" "$work/reported"
	[[ -z $rest ]] || awk 'NR == FNR { new[$2]; next } !($2 in new) { print $1, $2 }' \
		"$work/results" "$cache/results-$kernel" >>"$work/reported"
	report "$kernel" "$work/reported" || failed+=("$kernel")
done
((${#failed[@]} == 0)) || die "failed under ${failed[*]}: see $cache/console-*.log"

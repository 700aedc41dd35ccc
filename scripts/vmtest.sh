#!/bin/bash
# The root tests under the kernels of Debian stable and oldstable, in virtual
# machines: sudo scripts/vmtest.sh [options] [test file or test name]...
#
#   --kernel 6.1|6.12|all   which (all)
#   --quick                 load and a few tests, instead of all
#   --docs                  no run: writes the results of the last runs into
#                           docs/kernels.md
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
	bpftool ss)
# Kernel modules that they need.
modules=(veth dummy nf_tables nft_chain_nat nft_nat nft_masq nft_ct nft_redir nft_reject
	nft_reject_inet nf_conntrack nf_nat tls inet_diag tcp_diag udp_diag xt_mark overlay)
# A hang guard: the slowest takes two minutes of it, emulated on a busy machine.
test_seconds=600
quick_tests=(root_support root_lifecycle a_relay_that_splices)
memory=3072

kernels=(6.1 6.12)
quick=
docs=
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
machine=
cleanup() {
	[[ -z $machine ]] || kill "$machine" 2>/dev/null || true
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
		(cd "$work/$package" && apt-get "${apt_options[@]}" download -qq "$package") >&2
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

# Each test program, and sockaccel, where the tests look for them.
tests=()
add_tests() {
	local artifact kind name path
	builder cargo test --no-run --message-format=json >"$work/built" 2>"$work/log" ||
		die "cargo: $(tail -n 20 "$work/log")"
	while read -r kind name path; do
		case $kind in
		bin) ;;
		test) [[ $name == root_* ]] || continue ;;
		*) continue ;;
		esac
		copy_program "$path"
		strip --strip-debug "$root$path"
		[[ $kind == bin ]] || tests+=("$name $path")
	done < <(jq -r 'select(.reason == "compiler-artifact" and .executable)
		| select(.profile.test == (.target.kind[0] == "test"))
		| "\(.target.kind[0]) \(.target.name) \(.executable)"' "$work/built")
	((${#tests[@]})) || die "cargo built no tests"
	mapfile -t tests < <(printf '%s\n' "${tests[@]}" | sort)
	# What the tests read of the build.
	while read -r artifact; do copy "$artifact"; done < <(
		jq -r 'select(.reason == "build-script-executed" and (.package_id | test("sockaccel")))
			| .out_dir + "/decide_test.bpf.o"' "$work/built"
	)
	CGO_ENABLED=0 GOPROXY=off GOCACHE=$work/go-cache GOPATH=$work/go \
		go build -o "$root/vm/relay" tests/go/relay.go
	echo 'export SOCKACCEL_TEST_GO_RELAY=/vm/relay' >"$root/vm/environment"
}

# Every test that was asked for, a line each: its time limit in seconds, its
# name, the command. A process for each, so that one that hangs is only itself.
plan() {
	local test name path case
	[[ -z $quick ]] || wanted+=("${quick_tests[@]}")
	echo "120 load $sockaccel enable --cgroup /sys/fs/cgroup --instance load"
	echo "60 status $sockaccel status --instance load --json"
	echo "60 unload $sockaccel disable --instance load"
	for test in "${tests[@]}"; do
		read -r name path <<<"$test"
		while read -r case; do
			((${#wanted[@]} == 0)) || [[ " ${wanted[*]} " =~ " "($name|$case)" " ]] || continue
			echo "$test_seconds $name/$case $path --exact $case --test-threads=1"
			# `enable` chooses the other form on these kernels.
			[[ $name != root_splice ]] ||
				echo "$test_seconds $name@tracepoint/$case env SOCKACCEL_TEST_OBSERVER=tracepoint" \
					"$path --exact $case --test-threads=1"
		done < <(comm -23 <(test_names "$path") <(test_names "$path" --ignored))
	done
}
test_names() {
	"$@" --list --format terse | sed -n 's/: test$//p' | sort
}

# --- The machine

pack() {
	(cd "$1" && find . -print0 | cpio --null --create --format=newc --quiet --owner=0:0)
}

# The modules of a kernel, packed, as a second part of the root file system.
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
	pack "$tree"
}

# KVM may be there and not work: so see whether a kernel starts to talk.
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
	echo tcg,thread=multi
}

run_kernel() {
	local directory image log=$cache/console-$1.log limit=$2
	directory=$(kernel "$1")
	image=$(echo "$directory"/boot/vmlinuz-*)
	cat "$work/root.cpio" <(pack_modules "$directory") >"$work/initrd"
	[[ -n ${accel:-} ]] || accel=$(accelerator "$image")
	echo "Linux $(basename "$directory"/lib/modules/*), $accel"
	dpkg-deb -f "$directory/package.deb" Version >"$cache/version-$1"
	: >"$log"
	timeout -k 5 "$limit" qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none \
		-smp 2 -m "$memory" -accel "$accel" -kernel "$image" -initrd "$work/initrd" \
		-append "console=ttyS0 quiet panic=-1 mitigations=off" -serial "file:$log" &
	machine=$!
	wait "$machine" || true
	machine=
}

# --- The results

# From the console: a line each, "ok", "failed", "timeout" or "unfinished", then
# the name. A test program that ran no test has failed.
results() {
	tr -d '\r' <"$1" | awk '
		$1 == "@begin" { name = $2; ran = 0; next }
		/^test result: .* 1 passed; 0 failed/ { ran = 1 }
		$1 == "@end" {
			if ($3 == 124 || $3 == 137) print "timeout", name
			else if ($3 == 0 && (ran || name !~ "/")) print "ok", name
			else print "failed", name
			name = ""
		}
		$1 == "@kernel" { print "failed", "kernel:", $0 }
		$1 == "@done" { done = 1 }
		END { if (name != "") print "unfinished", name; if (!done) print "failed", "machine" }'
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

# The table of docs/kernels.md, between its two marks: a row for each file of
# tests, with how many of its tests passed.
write_docs() {
	local table=$work/table kernel
	{
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
	} >"$table"
	awk -v table="$table" '
		/^<!-- end of results -->/ { within = 0 }
		!within
		/^<!-- results -->/ { within = 1; while ((getline line <table) > 0) print line }
		' docs/kernels.md >"$work/kernels.md"
	cat "$work/kernels.md" >docs/kernels.md
}

if [[ -n $docs ]]; then
	write_docs
	exit
fi
build_root
add_tests
sockaccel=$(find "$root" -name sockaccel -type f -printf '/%P\n' | head -n 1)
plan >"$root/vm/plan"
echo "$(wc -l <"$root/vm/plan") steps for each kernel"
pack "$root" >"$work/root.cpio"
failed=()
for kernel in "${kernels[@]}"; do
	run_kernel "$kernel" "$([[ -n $quick ]] && echo 240 || echo 7200)"
	results "$cache/console-$kernel.log" >"$cache/results-$kernel"
	report "$kernel" "$cache/results-$kernel" || failed+=("$kernel")
done
((${#failed[@]} == 0)) || die "failed under ${failed[*]}: see $cache/console-*.log"

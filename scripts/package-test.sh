#!/bin/bash
# Installs the packages in a clean root of this Debian or Ubuntu and runs them there:
#
#     sudo scripts/package-test.sh target/packages/sockaccel_*.deb [target/packages/sockaccel-*.rpm]
#
# The root's systemd runs in namespaces, a cgroup and a bpffs of its own, which are
# removed again however it ends; the unit is started, reloaded and stopped there,
# with a connection that is accelerated and outlives the stop.
#
# The .rpm is installed there too, without its dependencies: that shows that its
# files, unit and scripts do the same, not that an RPM system takes it. All this
# takes some minutes and a mirror, so scripts/test.sh does not run it.
set -euo pipefail
# Mounts of a namespace of our own: nobody else sees them, and they go with it.
if [[ ${1:-} != --inside ]]; then
	exec unshare --mount --propagation private "$0" --inside "$@"
fi
shift
deb=$(realpath "${1:?usage: package-test.sh FILE.deb [FILE.rpm]}")
rpm=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

need_root
install_packages debootstrap util-linux
for file in "$deb" ${rpm:+"$rpm"}; do
	[[ -f $file ]] || die "$file: no such file"
done

work=$(mktemp -d)
root=$work/root
cgroup=$(cgroup2)/sockaccel-test-package-$$-0
booter=
cleanup() {
	local dir
	if [[ $booter ]]; then
		# With it go the first process of its pid namespace, and all others.
		kill -KILL "$booter" 2>/dev/null || true
		wait "$booter" 2>/dev/null || true
	fi
	if [[ -d $cgroup ]]; then
		find "$cgroup" -depth -type d | while read -r dir; do remove_cgroup "$dir"; done
	fi
	rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The distribution that the package was built on: its dependencies are from there.
suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
echo "a clean root: $suite"
debootstrap --variant=minbase --include=man-db,systemd "$suite" "$root" >"$work/log" 2>&1 ||
	die "debootstrap failed: $(tail -n 5 "$work/log")"

echo "installing $(basename "$deb")"
cp "$deb" "$root/tmp/package.deb"
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
	/tmp/package.deb >"$work/log" 2>&1 || die "apt-get install: $(cat "$work/log")"
# Everything of this source tree that belongs into a package, each below usr/share
# where that is the same for both kinds.
shipped() {
	local file
	echo usr/bin/sockaccel
	echo etc/sockaccel/sockaccel.toml
	echo usr/lib/systemd/system/sockaccel.service
	echo usr/share/bash-completion/completions/sockaccel
	echo usr/share/fish/vendor_completions.d/sockaccel.fish
	for file in man/*.8; do echo "usr/share/man/man8/${file#man/}"; done
	for file in README.md CHANGELOG.md LICENSE-* LICENSES/*.txt docs/*.md docs/schema/*.json; do
		echo "usr/share/doc/sockaccel/$file"
	done
}
expect_shipped() {
	local file
	while read -r file; do
		[[ -s $root/$file || -s $root/$file.gz ]] || die "the $1 has no /$file"
	done < <(shipped)
}
expect_shipped .deb
[[ -s $root/usr/share/zsh/vendor-completions/_sockaccel ]] || die "the .deb has no completions for zsh"
chroot "$root" bash -c 'source /usr/share/bash-completion/completions/sockaccel && complete -p sockaccel' >/dev/null
for page in sockaccel sockaccel-apply; do
	chroot "$root" man --where "$page" >/dev/null || die "man $page finds no page"
done
# shellcheck disable=SC2016 # dpkg-query's
[[ $(chroot "$root" dpkg-query -W -f '${Conffiles}' sockaccel) == *sockaccel.toml* ]] ||
	die "/etc/sockaccel/sockaccel.toml is no configuration file of the package"

echo "the unit"
# Also what it does not understand is on its output only.
chroot "$root" systemd-analyze verify --man=yes sockaccel.service >"$work/verify" 2>&1 ||
	die "systemd-analyze verify: $(cat "$work/verify")"
! grep sockaccel "$work/verify" || die "systemd-analyze complains of the unit"

echo "booting it"
mkdir "$cgroup"
(
	echo "$BASHPID" >"$cgroup/cgroup.procs"
	# shellcheck disable=SC2016 # of that bash
	exec unshare --fork --kill-child --mount --propagation private --cgroup --pid --uts --ipc --net \
		bash -euc '
			mount --bind "$1" "$1"
			mount -t proc proc "$1/proc"
			# Read-only, so that it changes nothing outside.
			mount --bind -o ro "$1/proc/sys" "$1/proc/sys"
			mount -t sysfs -o ro sysfs "$1/sys"
			mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
			mount -t bpf bpf "$1/sys/fs/bpf"
			mount -t tmpfs tmpfs "$1/run"
			exec env -i container=other PATH=/usr/sbin:/usr/bin chroot "$1" \
				/lib/systemd/systemd --unit=sysinit.target --show-status=yes
		' boot "$root"
) >"$work/console" 2>&1 &
booter=$!
init=
inside() {
	nsenter --target "$init" --mount --pid --cgroup --net --uts --ipc --root env --chdir=/ "$@"
}
state=
for _ in {1..600}; do
	read -r init <"/proc/$booter/task/$booter/children" || true
	if [[ $init ]]; then
		state=$(inside systemctl is-system-running 2>/dev/null) || true
		[[ $state != running && $state != degraded ]] || break
	fi
	sleep 0.1
done
[[ $state == running || $state == degraded ]] ||
	die "systemd does not come up: ${state:-no answer}, $(tail -n 5 "$work/console")"

# As a user types it: a failure tells what the unit said.
unit() {
	inside systemctl "$1" sockaccel ||
		die "systemctl $1 sockaccel: $(inside journalctl --no-pager --lines 20 --unit sockaccel)"
}
expect_off() {
	local code=0
	inside sockaccel status >/dev/null 2>&1 || code=$?
	((code == 4)) || die "$1 (status exits $code)"
}

echo "starting the unit with the configuration of the package, which enables nothing"
unit start
expect_off "the default configuration enabled something"
unit stop
unit start
mkdir "$cgroup/web"
cat >"$root/etc/sockaccel/sockaccel.toml" <<EOF
cgroups = ["/sys/fs/cgroup/web"]
allow = ["fionread", "known-bad-kernel"]
EOF
unit reload
inside sockaccel status
unit stop
expect_off "still enabled after the stop"
unit start

echo "a connection in that cgroup, before and after the stop"
# Sends messages to and fro; then waits for a line, and does so again.
# shellcheck disable=SC2016 # Perl's
coproc talk {
	echo "$BASHPID" >"$cgroup/web/cgroup.procs"
	inside perl -MIO::Socket::INET -MIO::Select -e '
		use strict;
		$| = 1;
		my $listener = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1", Blocking => 0) or die $!;
		my $client = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $listener->sockport, Blocking => 0) or die $!;
		IO::Select->new($listener)->can_read(30) or die "nobody connects";
		my $server = $listener->accept or die $!;
		$_->blocking(0) for $client, $server;
		sub pass {
			my ($from, $to, $message) = @_;
			syswrite($from, $message) == length $message or die "send: $!";
			my $got = "";
			while (length $got < length $message) {
				IO::Select->new($to)->can_read(30) or die "nothing arrives";
				sysread($to, $got, 100, length $got) or die "receive: $!";
			}
			$got eq $message or die "other bytes arrive";
		}
		for my $time (1, 2) {
			for my $n (1 .. 200) {
				pass($client, $server, "request $time $n");
				pass($server, $client, "response $time $n");
			}
			print "talked\n";
			<STDIN>;
		}'
}
# What coproc sets goes when it ends.
# shellcheck disable=SC2154
talker=$talk_PID
exec {from}<&"${talk[0]}" {to}>&"${talk[1]}"
read -r -t 60 said <&"$from" || die "the connection broke while accelerated"
[[ $said == talked ]]
inside sockaccel assert --redirected-messages '>=300' --redirected-share '>0.7'
unit stop
expect_off "still enabled after the stop"
echo >&"$to"
read -r -t 60 said <&"$from" || die "the connection broke at the stop"
[[ $said == talked ]]
echo >&"$to"
wait "$talker" || die "the connection did not survive the stop"

echo "removing the package while its unit is active"
unit enable
unit start
inside sockaccel status >/dev/null
gone() {
	local left
	left=$(find "$root/etc" "$root/usr" "$root/var/lib" -name '*sockaccel*' ! -type d)
	[[ -z $left ]] || die "the $1 left $left"
	! inside test -e /sys/fs/bpf/sockaccel/default || die "removing the $1 left the instance enabled"
}
inside dpkg --purge sockaccel >"$work/log" 2>&1 || die "dpkg --purge: $(cat "$work/log")"
gone .deb

if [[ $rpm ]]; then
	echo "installing $(basename "$rpm"), and removing it"
	chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends rpm \
		>"$work/log" 2>&1 || die "apt-get install rpm: $(cat "$work/log")"
	cp "$rpm" "$root/root/package.rpm"
	inside rpm --install --nodeps /root/package.rpm
	expect_shipped .rpm
	[[ -s $root/usr/share/zsh/site-functions/_sockaccel ]] || die "the .rpm has no completions for zsh"
	[[ $(inside rpm -q --configfiles sockaccel) == /etc/sockaccel/sockaccel.toml ]] ||
		die "/etc/sockaccel/sockaccel.toml is no configuration file of the .rpm"
	cat >"$root/etc/sockaccel/sockaccel.toml" <<-EOF
		cgroups = ["/sys/fs/cgroup/web"]
		allow = ["fionread", "known-bad-kernel"]
	EOF
	inside systemctl daemon-reload
	unit enable
	unit start
	inside sockaccel status >/dev/null
	inside rpm --erase sockaccel
	rm -f "$root/etc/sockaccel/sockaccel.toml.rpmsave"
	gone .rpm
fi
echo "the packages install, run and go"

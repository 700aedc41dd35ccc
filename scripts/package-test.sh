#!/bin/bash
# Installs the packages in a clean root of this Debian or Ubuntu and runs them there;
# the static binary in a root with nothing else in it:
#
#     sudo scripts/package-test.sh target/packages/sockaccel*
#
# The root's systemd runs in namespaces, a cgroup and a bpffs of its own, which are
# removed again however it ends; the unit is started, reloaded and stopped there,
# with a connection that is accelerated and outlives an upgrade and the stop.
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
deb=
rpm=
static=
for file; do
	case $file in
	*.deb) deb=$(realpath "$file") ;;
	*.rpm) rpm=$(realpath "$file") ;;
	*) static=$(realpath "$file") ;;
	esac
done
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

need_root
[[ $deb ]] || die "which packages? scripts/package.sh, then: $0 target/packages/sockaccel*"
for file in "$deb" ${rpm:+"$rpm"} ${static:+"$static"}; do
	[[ -f $file ]] || die "$file: no such file"
done
install_packages debootstrap util-linux jq

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
	for dir in sys proc; do
		umount --recursive "$work/bare/$dir" 2>/dev/null || true
	done
	rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In a cgroup, by a command before it: sends messages to and fro without end. A line
# ends one of its three parts, and is answered with how many messages that had.
start_talking() {
	local cgroup=$1
	shift
	# shellcheck disable=SC2016 # Perl's
	coproc talk {
		echo "$BASHPID" >"$cgroup/cgroup.procs"
		exec "$@" perl -MIO::Socket::INET -MIO::Select -e '
			use strict;
			$| = 1;
			my $listener = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1", Blocking => 0) or die $!;
			my $client = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $listener->sockport, Blocking => 0) or die $!;
			IO::Select->new($listener)->can_read(30) or die "nobody connects";
			my $server = $listener->accept or die $!;
			$_->blocking(0) for $client, $server;
			my $messages = 0;
			sub pass {
				my ($from, $to, $message) = @_;
				syswrite($from, $message) == length $message or die "send: $!";
				my $got = "";
				while (length $got < length $message) {
					IO::Select->new($to)->can_read(30) or die "nothing arrives";
					sysread($to, $got, 100, length $got) or die "receive: $!";
				}
				$got eq $message or die "other bytes arrive";
				$messages++;
			}
			my $told = IO::Select->new(\*STDIN);
			for my $part (1 .. 3) {
				for (my $n = 1; $n <= 200 || !$told->can_read(0.001); $n++) {
					pass($client, $server, "request $part $n");
					pass($server, $client, "response $part $n");
				}
				sysread(STDIN, my $line, 1) or die "nobody is there";
				print "$messages\n";
				$messages = 0;
			}'
	}
	# What coproc sets goes when it ends.
	# shellcheck disable=SC2154
	talker=$talk_PID
	exec {from}<&"${talk[0]}" {to}>&"${talk[1]}"
}
# Sets $said to the messages of the part that ends with it.
end_part() {
	echo -n . >&"$to"
	read -r -t 60 said <&"$from" || die "the connection broke $1"
	((said >= 400)) || die "only $said messages were sent $1"
}
stop_talking() {
	wait "$talker" || die "the connection did not survive"
	exec {from}<&- {to}>&-
}

if [[ $static ]]; then
	echo "the static binary, in a root with nothing else in it"
	bare=$work/bare
	mkdir -p "$bare"/{proc,sys,tmp} "$cgroup/bare"
	cp "$static" "$bare/sockaccel"
	mount -t proc proc "$bare/proc"
	mount -t sysfs sysfs "$bare/sys"
	mount -t cgroup2 cgroup2 "$bare/sys/fs/cgroup"
	mount -t bpf bpf "$bare/sys/fs/bpf"
	bare() {
		chroot "$bare" /sockaccel "$@"
	}
	bare --version
	bare man enable | grep -q sockaccel-enable || die "the static binary has no manual"
	bare run -- /sockaccel --version
	path=/sys/fs/cgroup${cgroup#"$(cgroup2)"}/bare
	bare enable --cgroup "$path" --allow fionread --allow known-bad-kernel
	start_talking "$cgroup/bare"
	end_part "while the static binary accelerates it"
	bare assert --redirected-messages '>=300' --redirected-share '>0.7'
	bare upgrade
	end_part "while accelerated still"
	bare disable
	code=0
	bare status >/dev/null 2>&1 || code=$?
	((code == 4)) || die "the static binary does not disable (status exits $code)"
	end_part "after the static binary disabled"
	stop_talking
fi

# The distribution that the package was built on: its dependencies are from there.
suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
components=main
# Where Ubuntu has rpm.
! grep -q '^ID=ubuntu' /etc/os-release || components=main,universe
echo "a clean root: $suite"
debootstrap --variant=minbase --components="$components" --include=man-db,systemd "$suite" "$root" >"$work/log" 2>&1 ||
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

# In a root with an instance and no /sys of its own: who would be called writes that
# down and does not come back.
echo "the script after installing, where systemd does not run, and where an upgrade hangs"
shim=$root/tmp/shim
mkdir -p "$shim" "$root"/sys/fs/bpf/sockaccel/{web,run-1-2,_new-web}
cat >"$shim/sockaccel" <<-'EOF'
	#!/bin/sh
	echo "$@" >>/tmp/shim/called
	exec sleep 1000
EOF
# Sooner.
cat >"$shim/timeout" <<-'EOF'
	#!/bin/sh
	shift
	exec /usr/bin/timeout 1 "$@"
EOF
chmod +x "$shim"/{sockaccel,timeout}
postinst() {
	timeout 60 chroot "$root" env PATH=/tmp/shim:/usr/sbin:/usr/bin:/sbin:/bin sh -s configure 0.0 \
		<packaging/deb/postinst >"$work/log" 2>&1 || die "the script after installing: $? $(cat "$work/log")"
}
postinst
[[ ! -e $shim/called ]] || die "without systemd it calls: $(cat "$shim/called")"
mkdir -p "$root/run/systemd/system"
postinst
[[ $(cat "$shim/called") == "upgrade --instance web" ]] || die "it calls: $(cat "$shim/called")"
grep -q "instance web goes on" "$work/log" || die "an upgrade that hangs is not told of: $(cat "$work/log")"
rm -r "$shim" "$root/run/systemd" "$root/sys/fs"

echo "booting it"
mkdir -p "$cgroup"
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

echo "a connection in that cgroup, under an upgrade of the package and the stop"
start_talking "$cgroup/web" nsenter --target "$init" --mount --pid --net --root
end_part "while accelerated"
inside sockaccel assert --redirected-messages '>=300' --redirected-share '>0.7'
# The same package under a newer version, over two instances as another one would have
# made them: the default one of other programs, the second one of another layout.
newer=$work/newer
dpkg-deb --raw-extract "$deb" "$newer"
sed -i 's/^Version: .*/&+newer/' "$newer/DEBIAN/control"
dpkg-deb --root-owner-group --build "$newer" "$root/tmp/newer.deb" >/dev/null
inside sockaccel enable --instance other --cgroup /sys/fs/cgroup/web --allow fionread --allow known-bad-kernel
# The instance's struct sa_config, after so many bytes of it have been overwritten by
# these; and the id of its program. That root has no bpftool, but Perl.
# shellcheck disable=SC2016 # Perl's
bpf='
	use strict;
	use POSIX;
	my ($instance, $first, @bytes) = @ARGV;
	my $number = (POSIX::uname)[4] eq "x86_64" ? 321 : 280;
	sub bpf {
		my ($command, $attributes) = @_;
		my $got = syscall($number, $command, $attributes, length $attributes);
		$got >= 0 or die "bpf($command): $!";
		return $got;
	}
	sub pinned {
		return bpf(7, pack("pLL", "/sys/fs/bpf/sockaccel/$instance/$_[0]", 0, 0));
	}
	my ($map, $key, $value) = (pinned("sa_config"), pack("L", 0), "\0" x 256);
	sub element {
		return pack("LLppQ", $map, 0, $key, $value, 0);
	}
	bpf(1, element());
	substr($value, $first, @bytes) = pack("C*", @bytes);
	bpf(2, element()) if @bytes;
	print join(" ", unpack("C*", $value)), "\n";
	open(my $info, "<", "/proc/self/fdinfo/" . pinned("sa_verdict")) or die $!;
	print grep(/^prog_id:/, <$info>);'
poke() {
	inside perl -e "$bpf" "$@" >/dev/null
}
verdict_program() {
	inside perl -e "$bpf" default 0 | sed -n 2p
}
programs() {
	inside sockaccel status --json | jq -r .programs
}
build_at=64 layout_at=0
poke default "$build_at" 1 2 3 4 5 6 7 8
[[ $(programs) == other ]] || die "struct sa_config has changed: see $0"
poke other "$layout_at" 99
before=$(verdict_program)
inside env DEBIAN_FRONTEND=noninteractive apt-get install -y /tmp/newer.deb >"$work/log" 2>&1 ||
	die "the upgrade of the package failed: $(cat "$work/log")"
inside dpkg --status sockaccel | grep -q '^Version: .*+newer$' || die "the newer version is not installed"
[[ $(programs) == current && $(verdict_program) != "$before" ]] ||
	die "the upgrade of the package did not upgrade the instance: $(cat "$work/log")"
[[ $(inside systemctl is-active sockaccel) == active ]] || die "the upgrade of the package stopped the unit"
[[ $(inside systemctl show -P NeedDaemonReload sockaccel) == no ]] || die "systemd does not know the new unit"
grep -q "instance other goes on" "$work/log" ||
	die "it is not told that an instance could not be upgraded: $(cat "$work/log")"
grep -q "sockaccel disable --instance other, then enable it again" "$work/log" ||
	die "it is not told how to change over: $(cat "$work/log")"
inside sockaccel disable --instance other
! inside test -e /sys/fs/bpf/sockaccel/other || die "the instance of another layout is still there"
counted=$(inside sockaccel stats --json | jq -r .redirected_messages)
end_part "under the upgrade"
end=$(inside sockaccel stats --json | jq -r .redirected_messages)
((end > counted)) || die "nothing is redirected after the upgrade ($counted messages before, $end now)"
unit stop
expect_off "still enabled after the stop"
end_part "at the stop"
stop_talking

echo "a connection, while the unit changes over from an instance of another layout"
unit start
start_talking "$cgroup/web" nsenter --target "$init" --mount --pid --net --root
end_part "while accelerated"
inside sockaccel assert --redirected-messages '>=300' --redirected-share '>0.7'
poke default "$layout_at" 99
! inside sockaccel status >/dev/null 2>&1 || die "struct sa_config has changed: see $0"
unit restart
[[ $(programs) == current ]] || die "the unit did not change over"
end_part "when the unit changed over"
unit stop
end_part "at the stop"
stop_talking

echo "removing the package while its unit is active, with an instance of another layout"
unit enable
unit start
inside sockaccel status >/dev/null
poke default "$layout_at" 99
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
	# Its script after installing, as rpm calls it for a newer version.
	[[ $(inside rpm -q --scripts sockaccel) == *upgrade_instances* ]] || die "the .rpm does not upgrade"
	poke default "$build_at" 1 2 3 4 5 6 7 8
	[[ $(programs) == other ]]
	inside sh -s 2 <packaging/deb/postinst
	[[ $(programs) == current ]] || die "a newer .rpm would not upgrade the instance"
	inside rpm --erase sockaccel
	rm -f "$root/etc/sockaccel/sockaccel.toml.rpmsave"
	gone .rpm
fi
echo "the packages install, run and go"

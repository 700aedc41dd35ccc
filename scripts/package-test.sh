#!/bin/bash
# Installs a .deb in a clean Debian root and runs what it installed there:
#
#     sudo scripts/package-test.sh target/packages/sockaccel_*.deb
#
# Takes some minutes and a Debian mirror, so scripts/test.sh does not run it. The
# root, a cgroup and a bpffs of its own are removed again however it ends.
set -euo pipefail
# Mounts of a namespace of our own: nobody else sees them, and they go with it.
if [[ ${1:-} != --inside ]]; then
	exec unshare --mount --propagation private "$0" --inside "$@"
fi
shift
deb=$(realpath "${1:?usage: package-test.sh FILE.deb}")
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

need_root
install_packages debootstrap systemd util-linux
[[ -f $deb ]] || die "$deb: no such file"

work=$(mktemp -d)
root=$work/root
cgroup=$(cgroup2)/sockaccel-test-package-$$-0
cleanup() {
	umount --recursive --lazy "$root" 2>/dev/null || true
	remove_cgroup "$cgroup"
	rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
echo "a clean root of Debian $suite"
debootstrap --variant=minbase --include=libelf1,zlib1g,man-db "$suite" "$root" >"$work/log" 2>&1 ||
	die "debootstrap failed: $(tail -n 5 "$work/log")"

echo "installing $(basename "$deb")"
cp "$deb" "$root/tmp/package.deb"
chroot "$root" dpkg -i /tmp/package.deb >"$work/log" 2>&1 || die "dpkg -i: $(cat "$work/log")"
for file in usr/bin/sockaccel etc/sockaccel/sockaccel.toml usr/share/man/man8/sockaccel.8.gz \
	usr/share/man/man8/sockaccel-policy-add.8.gz usr/lib/systemd/system/sockaccel.service \
	usr/share/bash-completion/completions/sockaccel usr/share/zsh/vendor-completions/_sockaccel \
	usr/share/fish/vendor_completions.d/sockaccel.fish; do
	[[ -s $root/$file ]] || die "the package has no /$file"
done
[[ $(chroot "$root" dpkg-query -W -f '${Conffiles}' sockaccel) == *sockaccel.toml* ]] ||
	die "/etc/sockaccel/sockaccel.toml is no configuration file of the package"

echo "the unit"
systemd-analyze verify --root="$root" --man=no sockaccel.service 2>&1 | tee "$work/verify"
! grep -q sockaccel "$work/verify" || die "systemd-analyze complains of the unit"

echo "what the unit runs, as the unit runs it"
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mkdir "$root/bpf"
mount -t bpf bpf "$root/bpf"
mkdir "$cgroup"
capabilities=$(sed -n 's/^CapabilityBoundingSet=//p' packaging/sockaccel.service)
bounding=-all
for capability in $capabilities; do
	bounding+=,+$(tr '[:upper:]' '[:lower:]' <<<"${capability#CAP_}")
done
# The pins go where nobody else's are; everything else is as in the unit.
run() {
	unshare --mount --propagation private bash -euc '
		root=$1 bounding=$2
		shift 2
		# ProtectControlGroups, ProtectSystem
		awk "\$3 ~ /^cgroup/ { print \$2 }" /proc/mounts | grep "^$root/" | while read -r at; do
			mount -o remount,bind,ro "$at"
		done
		exec chroot "$root" setpriv --bounding-set "$bounding" --no-new-privs /usr/bin/sockaccel --bpffs /bpf "$@"
	' run "$root" "$bounding" "$@"
}
command=$(sed -n 's/^ExecStart=\/usr\/bin\/sockaccel //p' packaging/sockaccel.service)
read -ra start <<<"$command"
[[ -z $(run "${start[@]}") ]] || die "the default configuration changes something"
code=0
run status 2>/dev/null || code=$?
((code == 4)) || die "the default configuration enabled something (status exits $code)"
cat >"$root/etc/sockaccel/sockaccel.toml" <<EOF
cgroups = ["$cgroup"]
allow = ["fionread", "known-bad-kernel"]
EOF
run "${start[@]}"
run status
[[ $(run "${start[@]}" 2>&1) == "Nothing to change." ]] || die "a second start changes something"
run disable
code=0
run status 2>/dev/null || code=$?
((code == 4)) || die "still enabled after the stop (status exits $code)"

echo "removing the package"
chroot "$root" dpkg --purge sockaccel >"$work/log" 2>&1 || die "dpkg --purge: $(cat "$work/log")"
[[ ! -e $root/usr/bin/sockaccel && ! -e $root/etc/sockaccel ]] || die "the package left files"
echo "the package installs, runs and goes"

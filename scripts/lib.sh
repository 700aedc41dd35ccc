# shellcheck shell=bash
# What the scripts share. To be sourced, from the top directory.

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

need_root() {
	[[ $EUID -eq 0 ]] || die "needs root: sudo $0"
}

# Cargo runs as the user who called sudo, so that it finds that user's toolchain
# and target/ stays that user's. Already root: as root.
builder() {
	local home
	if [[ -z ${SUDO_USER:-} || $SUDO_USER == root ]]; then
		PATH=$PATH:${HOME:-/root}/.cargo/bin "$@"
		return
	fi
	home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
	runuser -u "$SUDO_USER" -- \
		env HOME="$home" PATH="$home/.cargo/bin:$PATH" "$@"
}

need_cargo() {
	builder cargo --version >/dev/null 2>&1 ||
		die "cargo not found: install Rust first (https://rustup.rs)"
}

# Sets SOCKACCEL, where the caller has not: a release build of this tree. jq is there.
need_sockaccel() {
	[[ -z ${SOCKACCEL:-} ]] || return 0
	need_cargo
	echo "building: some minutes the first time"
	builder cargo build --release --quiet
	SOCKACCEL=$(builder cargo metadata --format-version 1 --no-deps | jq -r .target_directory)/release/sockaccel
}

# Installs the missing ones of these packages; no service is started by it, now
# or at the next boot.
install_packages() {
	local package missing=()
	for package in "$@"; do
		[[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
			missing+=("$package")
	done
	((${#missing[@]})) || return 0
	command -v apt-get >/dev/null || die "please install: ${missing[*]}"
	echo "installing ${missing[*]}"
	# A subshell, for a trap of its own.
	(
		policy=/usr/sbin/policy-rc.d
		saved=$policy.sockaccel-$$
		# shellcheck disable=SC2317 # called by the trap
		restore() {
			rm -f "$policy"
			[[ ! -e $saved ]] || mv "$saved" "$policy"
		}
		trap restore EXIT
		trap 'exit 130' INT
		trap 'exit 143' TERM
		[[ ! -e $policy ]] || mv "$policy" "$saved"
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -qq
		apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
	)
	for package in "${missing[@]}"; do
		case $package in
		redis-server | haproxy) disable_at_boot "$package" ;;
		nginx-light) disable_at_boot nginx ;;
		esac
	done
}

disable_at_boot() {
	if command -v systemctl >/dev/null; then
		systemctl --quiet disable "$1" 2>/dev/null || true
	fi
}

# Where cgroup2 is mounted.
cgroup2() {
	local path
	path=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
	[[ -n $path ]] || die "no cgroup2 file system is mounted"
	echo "$path"
}

# A process that has just ended may still be counted for a moment.
remove_cgroup() {
	local try
	for try in {1..50}; do
		[[ -d $1 ]] || return 0
		if rmdir "$1" 2>/dev/null; then
			return 0
		fi
		sleep 0.02
	done
	echo "${0##*/}: could not remove $1 (tried $try times)" >&2
}

# shellcheck shell=bash
# What the suites share. A suite is a file beside this one that defines
#
#   packages    the Debian packages it needs
#   enabling    options of `sockaccel enable` that it needs, if any
#   prepare     once, in $SETUP: sources, builds, test data
#   run         in an empty $WORK, in a network namespace that has only lo:
#               runs the suite and says the result of each case
#
# and ends with `suite "$@"`.

set -euo pipefail

packages=() enabling=()

suite() {
	case $1 in
	packages) printf '%s\n' "${packages[@]}" ;;
	enabling) ((${#enabling[@]} == 0)) || printf '%s\n' "${enabling[@]}" ;;
	prepare) (cd "$SETUP" && prepare) ;;
	run) (cd "$WORK" && run) ;;
	esac
}

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# The package that a package of Debian's default version depends on:
# default_version python3 'python3\.[0-9]+'
default_version() {
	apt-cache depends "$1" | sed -nE "s/^ *Depends: ($2)\$/\1/p" | head -n 1
}

# result ok|failed|skipped CASE
result() {
	printf '%s\t%s\n' "$1" "$2" >>"$RESULTS"
}

# check CASE COMMAND...: the case passes if the command does.
check() {
	local name=$1
	shift
	echo "== $name"
	if "$@"; then
		result ok "$name"
	else
		echo "== $name: failed, status $?"
		result failed "$name"
	fi
}

# Until a command succeeds; not for ever.
wait_for() {
	local try
	for try in {1..300}; do
		if "$@" >/dev/null 2>&1; then
			return
		fi
		sleep 0.05
	done
	die "not ready after $try tries: $*"
}

listening() {
	ss -Hltn "sport = :$1" | grep -q .
}

# Source packages, from an apt state of our own: the machine's lists of sources
# need not have them. A version whose files are gone from the mirror gives way to
# an older one.
debian_source() {
	local package=$1 tarball version
	local release options
	release=$(. /etc/os-release && echo "$VERSION_CODENAME")
	mkdir -p "$PWD/apt/lists/partial"
	printf 'deb-src http://deb.debian.org/debian%s main\n' " $release" "-security $release-security" \
		>"$PWD/apt/sources.list"
	options=(-qq -o "Dir::Etc::sourcelist=$PWD/apt/sources.list" -o Dir::Etc::sourceparts=-
		-o "Dir::State::lists=$PWD/apt/lists" -o APT::Sandbox::User=root)
	apt-get "${options[@]}" update
	for version in $(apt-cache "${options[@]}" showsrc "$package" |
		awk '$1 == "Version:" { print $2 }' | sort -rVu); do
		if apt-get "${options[@]}" source --download-only --tar-only "$package=$version"; then
			break
		fi
	done
	tarball=$(find . -maxdepth 1 -name "${package}_*.orig.tar.*" | head -n 1)
	[[ -n $tarball ]] || die "no source of $package could be fetched"
	mkdir "$package"
	tar -xf "$tarball" -C "$package" --strip-components=1
}

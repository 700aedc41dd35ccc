#!/bin/bash
# Lists the licences of everything that is linked into the binary or builds it,
# and fails where one is not among those that deny.toml allows.
#
# An expression is taken as alternatives (OR, /) that are joined by AND, which is
# all that occurs; another one would fail, or be too strict.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

need_cargo
command -v jq >/dev/null || die "jq not found: install it first"
allowed=$(sed -n '/^allow = \[/,/^\]/s/^ *"\(.*\)",$/\1/p' deny.toml | jq -R . | jq -s .)
[[ $allowed != '[]' ]] || die "deny.toml allows no licence"
targets=()
for target in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu; do
	targets+=(--target "$target")
done
# Without dev-dependencies, which nobody is given.
packages=$(builder cargo tree --locked --all-features "${targets[@]}" --edges normal,build \
	--prefix none --format '{p}	{l}' | sed 's/ (\*)$//; /^$/d' | sort -u)
# shellcheck disable=SC2016 # jq's
jq -rnR --argjson allowed "$allowed" '
	[inputs | split("\t") | {package: .[0], licence: (.[1] // "")}] as $all
	| [$all[] | select(
		.licence | gsub("[()]"; "") | split(" AND ")
		| all(gsub(" */ *"; " OR ") | split(" OR ") | any(. as $one | $allowed | index($one)))
		| not)] as $not
	| ($all | group_by(.licence)[] | "\(length)\t\(.[0].licence)"),
	if $not == [] then empty else
		($not[] | "not allowed: \(.package): \(.licence)"), "" | halt_error
	end' <<<"$packages"

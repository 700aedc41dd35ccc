#!/bin/bash
# PostgreSQL's regression tests, every session through TCP, and pgbench with its
# books checked.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"

# shellcheck disable=SC2034 # common.sh has their readers
source=$(default_version postgresql 'postgresql-[0-9]+')
postgres=/usr/lib/postgresql/${source#*-}
packages=(postgresql "postgresql-server-dev-${source#*-}" gcc libc6-dev dpkg-dev)

# The server refuses to run as root.
unprivileged() {
	setpriv --reuid nobody --regid nogroup --clear-groups -- "$@"
}

prepare() {
	debian_source "$source"
	local tests=$source/src/test/regress
	# shellcheck disable=SC2046 # several words are meant
	gcc -O1 -w -fPIC -shared -I "$("$postgres/bin/pg_config" --includedir-server)" \
		-o "$tests/regress.so" "$tests/regress.c"
}

sql() {
	unprivileged "$postgres/bin/psql" -h 127.0.0.1 -X -A -t -v ON_ERROR_STOP=1 "$@"
}

balanced() {
	[[ $(sql -d postgres -c 'select (select sum(abalance) from pgbench_accounts) =
		(select sum(delta) from pgbench_history) and (select sum(tbalance) from pgbench_tellers) =
		(select sum(bbalance) from pgbench_branches)') == t ]]
}

run() {
	local tests=$SETUP/$source/src/test/regress bin=$postgres/bin method
	chown nobody:nogroup .
	unprivileged "$bin/initdb" -D data -U nobody --no-locale -E UTF8 -A trust --no-sync >initdb.log
	cat >>data/postgresql.conf <<-END
		listen_addresses = '127.0.0.1'
		unix_socket_directories = ''
		fsync = off
	END
	unprivileged "$bin/pg_ctl" -D data -w -l server.log start
	unprivileged mkdir out
	(cd "$WORK" && unprivileged "$postgres/lib/pgxs/src/test/regress/pg_regress" \
		--host 127.0.0.1 --user nobody --bindir "$bin" --dlpath "$tests" --inputdir "$tests" \
		--outputdir "$WORK/out" --schedule "$tests/parallel_schedule" --max-concurrent-tests 20 2>&1) |
		tee /dev/stderr |
		sed -u -nE 's/^(test|    ) +([a-z0-9_.]+) +\.\.\. ok .*/ok\t\2/p
			s/^(test|    ) +([a-z0-9_.]+) +\.\.\. FAILED.*/failed\t\2/p
			s/^ok [0-9]+ +[-+] ([a-z0-9_.]+) .*/ok\t\1/p
			s/^not ok [0-9]+ +[-+] ([a-z0-9_.]+) .*/failed\t\1/p' >>"$RESULTS" || true
	# For whoever reads the log.
	[[ ! -e out/regression.diffs ]] || head -c 100000 out/regression.diffs
	check "pgbench: make its tables" unprivileged "$bin/pgbench" -h 127.0.0.1 -q -i -s 2 postgres
	for method in simple extended prepared; do
		check "pgbench: $method" unprivileged "$bin/pgbench" -h 127.0.0.1 -n -c 8 -j 2 -T 3 -M "$method" postgres
	done
	check "pgbench: the books balance" balanced
	check "COPY of 20 MB out and in" copied
}

copied() {
	sql -d postgres -c "create table wide as select i, repeat(md5(i::text), 20) t from generate_series(1, 30000) i" &&
		sql -d postgres -c 'copy wide to stdout' >wide &&
		sql -d postgres -c 'create table again (like wide)' &&
		sql -d postgres -c 'copy again from stdin' <wide &&
		sql -d postgres -c 'copy again to stdout' >again &&
		cmp wide again
}

suite "$@"

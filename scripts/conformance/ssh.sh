#!/bin/bash
# An sshd with keys of its own: commands, sftp, forwarding, rsync; and rsync's
# own daemon.
# shellcheck source=scripts/conformance/common.sh
. "${0%/*}/common.sh"

# shellcheck disable=SC2034 # common.sh has their readers
packages=(openssh-server openssh-client rsync)

prepare() {
	local i
	mkdir tree
	for i in {1..200}; do
		head -c $((i * i * 37)) /dev/urandom >"tree/$i"
	done
	head -c 33554432 /dev/urandom >tree/large
}

same() {
	diff -r "$SETUP/tree" "$1"
}

run() {
	local ssh
	# sshd wants /run/sshd; this mount is seen in no other namespace.
	mount -t tmpfs -o mode=755 tmpfs /run
	mkdir -m 755 /run/sshd
	ssh-keygen -q -t ed25519 -N '' -f host
	ssh-keygen -q -t ed25519 -N '' -f user
	cp user.pub authorized
	cat >sshd_config <<-END
		ListenAddress 127.0.0.1:2222
		HostKey $WORK/host
		AuthorizedKeysFile $WORK/authorized
		PidFile none
		UsePAM no
		StrictModes no
		PermitRootLogin prohibit-password
		Subsystem sftp internal-sftp
		MaxStartups 100
	END
	cat >ssh_config <<-END
		Host test
			HostName 127.0.0.1
			Port 2222
			User root
			IdentityFile $WORK/user
			IdentitiesOnly yes
			StrictHostKeyChecking no
			UserKnownHostsFile /dev/null
			LogLevel ERROR
			BatchMode yes
	END
	cat >rsyncd.conf <<-END
		use chroot = no
		uid = root
		gid = root
		address = 127.0.0.1
		port = 8730
		[tree]
		path = $SETUP/tree
		[in]
		path = $WORK/in
		read only = no
	END
	mkdir in
	/usr/sbin/sshd -D -e -f "$WORK/sshd_config" &
	rsync --daemon --no-detach --config "$WORK/rsyncd.conf" &
	wait_for listening 2222
	wait_for listening 8730
	ssh="ssh -F $WORK/ssh_config"

	check "a command" commands
	check "bytes through a pipe, both ways" both_ways
	check "32 sessions at once" many_sessions
	check "sftp" sftp_tree
	check "rsync over ssh: to" rsync -a -e "$ssh" "$SETUP/tree/" "test:$WORK/to/"
	check "rsync over ssh: to, compared" same to
	check "rsync over ssh: from" rsync -a -z -e "$ssh" "test:$SETUP/tree/" from/
	check "rsync over ssh: from, compared" same from
	check "rsync daemon: from" rsync -a rsync://127.0.0.1:8730/tree/ daemon-from/
	check "rsync daemon: from, compared" same daemon-from
	check "rsync daemon: to" rsync -a "$SETUP/tree/" rsync://127.0.0.1:8730/in/
	check "rsync daemon: to, compared" same in
	check "rsync daemon: nothing to do" rsync -a --checksum "$SETUP/tree/" rsync://127.0.0.1:8730/in/
	check "rsync daemon through a forwarded port" forwarded
}

commands() {
	local i
	for i in {1..10}; do
		[[ $($ssh test echo "$i") == "$i" ]] || return
	done
	# The command's own status comes through.
	$ssh test exit 7 && return 1
	(($? == 7))
}

both_ways() {
	$ssh test cat <"$SETUP/tree/large" >large && cmp large "$SETUP/tree/large"
}

many_sessions() {
	local i pid pids=()
	for i in {1..32}; do
		$ssh test "head -c 100000 '$SETUP/tree/large'" >"session-$i" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do
		wait "$pid" || return
	done
	for i in {1..32}; do
		cmp <(head -c 100000 "$SETUP/tree/large") "session-$i" || return
	done
}

sftp_tree() {
	sftp -q -F "$WORK/ssh_config" -b - test <<-END && same sftp
		get -r $SETUP/tree $WORK/sftp
	END
}

forwarded() {
	$ssh -N -L 8731:127.0.0.1:8730 test &
	local tunnel=$!
	wait_for listening 8731
	rsync -a rsync://127.0.0.1:8731/tree/ forwarded/ && same forwarded
	local status=$?
	kill "$tunnel"
	return "$status"
}

suite "$@"

#!/usr/bin/env bash
# sshd (OpenSSH 9.2) exits with status 0 although its port is taken: it becomes a daemon first, and binds then.
#
# Other daemons, like nginx and QEMU with -daemonize, report to the process that started them whether they listen.
# sshd writes "Cannot bind any address." to its log (-E FILE, or syslog) and ends, and the status of the start tells
# only whether its configuration and its keys are right. What tells that it listens is its PidFile, which it writes
# after that.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"; kill "$holder" 2>/dev/null || true' EXIT
cd "$work"
# apt drops its privileges only where the directory is open to it.
chmod 755 .
version=1:9.2p1-2+deb12u10
apt-get download -q -q openssh-server="$version" libwrap0 openssh-client="$version"
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu

python3 -c '
import socket, time
taken = socket.create_server(("127.0.0.1", 0))
print(taken.getsockname()[1], flush=True)
time.sleep(60)' >port &
holder=$!
until [ -s port ]; do sleep 0.1; done
root/usr/bin/ssh-keygen -q -t ed25519 -N '' -f key
printf '%s\n' "HostKey $work/key" "PidFile $work/pid" "ListenAddress 127.0.0.1" >config
touch log
# As root, sshd needs an account of its own; any other user can run it.
run=()
if [ "$(id -u)" = 0 ]; then
	chown -R 65534:65534 .
	run=(setpriv --reuid 65534 --regid 65534 --clear-groups)
fi
status=0
"${run[@]}" "$work/root/usr/sbin/sshd" -f config -p "$(cat port)" -E log || status=$?
for _ in $(seq 100); do
	if grep -q "Cannot bind" log; then break; fi
	sleep 0.1
done
cat log
echo "status $status"
[ "$status" = 0 ] && grep -q "Cannot bind any address" log && [ ! -e pid ]

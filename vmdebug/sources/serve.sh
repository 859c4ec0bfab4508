#!/run/vmdebug/busybox sh
# Runs in the root file system of a guest: `serve agent`; `serve console` or `serve login`; or the agent and a shell
# on the console, as init: `serve init`.
# It uses vmdebug's busybox, which is beside it: the root file system may have no such programs.

here=/run/vmdebug
busybox=$here/busybox
export HOME=/root
directory=$HOME
# What a container image wants.
. $here/environment

agent() {
	cd "$directory" 2>/dev/null || cd /
	while [ -x $here/vmdebug-agent ]; do
		$here/vmdebug-agent $($busybox cat $here/agent-tty)
		$busybox sleep 1 || exit
	done </dev/null >/dev/null 2>&1
}

console() {
	exec </dev/console >/dev/console 2>&1
	cd "$directory" 2>/dev/null || cd /
	while :; do
		# Pause, so that a shell that cannot start does not fill the log.
		$busybox setsid $busybox cttyhack /bin/sh -i || $busybox sleep 1 || exit
	done
}

login() {
	tty=$($busybox cat /sys/class/tty/console/active)
	tty=${tty##* }
	getty="$busybox getty"
	for each in /sbin/agetty /sbin/getty; do
		[ ! -x $each ] || getty=$each
	done
	while :; do
		$busybox setsid $getty -L 115200 "$tty" vt100
		$busybox sleep 1 || exit
	done
}

init() {
	trap '$busybox reboot -f' TERM
	if [ -d /sys/firmware/acpi ]; then
		trap '$busybox poweroff -f' USR2
	else
		trap '$busybox reboot -f' USR2
	fi
	agent &
	# A process that does not ignore SIGINT, unlike a background command of this shell.
	$busybox start-stop-daemon -S -b -x $here/serve -- console
	while :; do
		$busybox sleep 1000000 &
		wait $!
	done
}

"$1"

#!/bin/sh
# The first process of vmdebug's initramfs. It serves kernels of every
# configuration, so what a kernel lacks is passed over quietly. The kernel hands
# on the parameters that it doesn't know ("nokaslr") as arguments: none is looked at.
# The shells are in /etc/console; this process takes care of the end.

export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb ENV=/etc/shell
# Colours are escape sequences, and a program at the other end would have to strip them.
export LS_COLORS=none

mount_quietly() { # TYPE DIRECTORY [OPTIONS]
	mount -t "$1" ${3:+-o "$3"} "$1" "$2" 2>/dev/null
}

mount_quietly proc /proc
mount_quietly sysfs /sys
# Without devtmpfs the nodes that came with the archive stay.
mount_quietly devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount_quietly devpts /dev/pts
mount_quietly tmpfs /dev/shm
mount_quietly tmpfs /tmp mode=1777
mount_quietly tmpfs /run mode=755
mount_quietly debugfs /sys/kernel/debug
mount_quietly tracefs /sys/kernel/tracing

hostname vmdebug
ip link set lo up 2>/dev/null

echo "vmdebug: guest ready"

# What busybox's reboot and poweroff send to the first process. Without ACPI there is
# nothing that turns the machine off, and a reset ends QEMU when it has -no-reboot.
trap 'reboot -f' TERM
if [ -d /sys/firmware/acpi ]; then trap 'poweroff -f' USR2; else trap 'reboot -f' USR2; fi

# What runs commands for the host; it sets its commands' signals itself. Killed, it comes back.
if [ -x /bin/vmdebug-agent ]; then
	(
		cd "$HOME" || exit
		while :; do
			vmdebug-agent $(cat /etc/agent-tty)
			sleep 1
		done
	) </dev/null >/dev/null 2>&1 &
fi

# A background command of a shell has SIGINT ignored, and so has everything below it.
# This makes a background process that hasn't.
start-stop-daemon -S -b -x /etc/console

# A trap waits for a command in the foreground, but not for `wait`.
while :; do
	sleep 1000000 &
	wait $!
done

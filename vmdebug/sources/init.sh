#!/bin/sh
# The first process of vmdebug's initramfs. It serves kernels of every
# configuration, so what a kernel lacks is passed over quietly. The kernel hands
# on the parameters that it doesn't know ("nokaslr") as arguments: none is looked at.

export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb
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
cd "$HOME"

echo "vmdebug: guest ready"

# cttyhack makes the console the controlling terminal, so that ^C reaches the
# command in the foreground. The shell gets the terminal as a script and not as its
# standard input: reading that, busybox edits lines itself and sends the terminal
# "where is the cursor" (ESC[6n), which lands in the middle of a program's input.
export ENV=/etc/shell
while :; do
	# A shell that cannot start must not fill the log.
	setsid cttyhack sh -i /dev/tty || sleep 1
done

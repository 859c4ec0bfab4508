#!/bin/sh
# The init process of vmdebug's initramfs. It must work with any kernel configuration, so it ignores
# mounts that fail. It ignores its arguments: the kernel passes unknown parameters ("nokaslr") to init.
# /etc/console runs the shells; this process handles poweroff and reboot.

export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb ENV=/etc/shell
# No colours: programs on the host would have to strip the escape sequences.
export LS_COLORS=none

mount_quietly() { # TYPE DIRECTORY [OPTIONS]
	mount -t "$1" ${3:+-o "$3"} "$1" "$2" 2>/dev/null
}

mount_quietly proc /proc
mount_quietly sysfs /sys
# Without devtmpfs, the device nodes of the archive stay in use.
mount_quietly devtmpfs /dev
mkdir -p /dev/pts /dev/shm
# udev makes these links elsewhere.
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
	ln -s "${link#*:}" "/dev/${link%%:*}" 2>/dev/null
done
mount_quietly devpts /dev/pts
mount_quietly tmpfs /dev/shm
mount_quietly tmpfs /tmp mode=1777
mount_quietly tmpfs /run mode=755
mount_quietly debugfs /sys/kernel/debug
mount_quietly tracefs /sys/kernel/tracing

# Print the block device that QEMU gives this serial number, once its partitions are there.
disk() { # SERIAL [PARTITION]
	n=0
	while [ $n -lt 50 ]; do
		for each in /sys/block/vd*; do
			name=${each##*/}
			if [ "$(cat "$each/serial" 2>/dev/null)" = "$1" ] && [ -b "/dev/$name$2" ]; then
				echo "/dev/$name$2"
				return
			fi
		done
		n=$((n + 1))
		sleep 0.1
	done
}

[ ! -r /etc/modules ] || . /etc/load-modules
[ ! -r /etc/share ] || . /etc/share
ip link set lo up 2>/dev/null
. /etc/net

[ ! -r /etc/root ] || . /etc/switch
[ ! -r /etc/modules ] || load_modules
[ ! -r /etc/share ] || mount_shares ""

hostname vmdebug

echo "vmdebug: guest ready"

# busybox's reboot and poweroff send these signals to init. Without ACPI the kernel cannot power the machine
# off, so reset it: this ends a QEMU with -no-reboot.
trap 'reboot -f' TERM
if [ -d /sys/firmware/acpi ]; then trap 'poweroff -f' USR2; else trap 'reboot -f' USR2; fi

# The agent runs commands for the host, and resets their signals. Restart it if it is killed.
if [ -x /bin/vmdebug-agent ]; then
	(
		cd "$HOME" || exit
		while :; do
			vmdebug-agent $(cat /etc/agent-tty)
			sleep 1
		done
	) </dev/null >/dev/null 2>&1 &
fi

# A shell's background command and its children ignore SIGINT. start-stop-daemon starts a background process
# that does not.
start-stop-daemon -S -b -x /etc/console

# The shell runs a trap only after a foreground command has ended, but at once during `wait`.
while :; do
	sleep 1000000 &
	wait $!
done

# Part of the init process of vmdebug's initramfs, for a guest with a root file system: mounts it and starts its
# init, or only a shell. /etc/root says which. The agent and a shell on the console run beside its init.

. /etc/root

fail() {
	echo "vmdebug: no root file system: $*" >&2
	echo "vmdebug: this is a shell in the initramfs" >&2
	exec setsid cttyhack sh
}

# Print the block device that QEMU names vmdebug-root, once its partitions are there.
disk() {
	n=0
	while [ $n -lt 50 ]; do
		for each in /sys/block/vd*; do
			name=${each##*/}
			if [ "$(cat "$each/serial" 2>/dev/null)" = vmdebug-root ] && [ -b "/dev/$name$root_partition" ]; then
				echo "/dev/$name$root_partition"
				return
			fi
		done
		n=$((n + 1))
		sleep 0.1
	done
}

mkdir -p /lower /writes /newroot
if [ "$root_type" = 9p ]; then
	mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose vmdebug-root /lower ||
		fail "the directory cannot be mounted over 9p"
else
	device=$(disk)
	[ "$device" ] || fail "there is no disk with partition '$root_partition'"
	if [ "$root_keep" ]; then
		mount -t "$root_type" -o rw "$device" /newroot || fail "$device cannot be mounted"
	else
		# The journal of a file system that was not unmounted cannot be replayed on a read-only disk.
		mount -t "$root_type" -o ro "$device" /lower 2>/dev/null ||
			mount -t "$root_type" -o ro,noload "$device" /lower 2>/dev/null ||
			mount -t "$root_type" -o ro,norecovery "$device" /lower || fail "$device cannot be mounted"
	fi
fi
if [ ! "$root_keep" ]; then
	mount -t tmpfs -o mode=755 tmpfs /writes
	mkdir /writes/upper /writes/work
	mount -t overlay -o lowerdir=/lower,upperdir=/writes/upper,workdir=/writes/work overlay /newroot ||
		fail "a layer for writes cannot be mounted"
fi

if [ "$root_init" = auto ]; then
	root_init=none
	for each in /sbin/init /etc/init /bin/init /lib/systemd/systemd; do
		# In the root file system, where absolute links lead.
		if chroot /newroot /bin/sh -c "test -x $each" 2>/dev/null; then
			root_init=$each
			break
		fi
	done
fi

# The modules of this kernel, for modprobe.
if [ -d /lib/modules ] && [ ! "$root_keep" ]; then
	mkdir -p /newroot/lib/modules
	cp -r /lib/modules/* /newroot/lib/modules
fi

# What runs beside init, on a file system that init keeps.
mkdir /run/vmdebug
cp /bin/busybox /etc/serve /run/vmdebug
[ ! -x /bin/vmdebug-agent ] || cp /bin/vmdebug-agent /etc/agent-tty /run/vmdebug
for each in dev proc sys run; do
	mkdir -p /newroot/$each 2>/dev/null
	mount --move /$each /newroot/$each
done
unset ENV LS_COLORS
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
echo "vmdebug: guest ready"
if [ "$root_init" = none ]; then
	hostname vmdebug
	ip link set lo up 2>/dev/null
	exec switch_root /newroot /run/vmdebug/serve init
fi
chroot /newroot /run/vmdebug/serve agent &
chroot /newroot /run/vmdebug/busybox start-stop-daemon -S -b -x /run/vmdebug/serve -- console
exec switch_root /newroot "$root_init"

# Part of the init process of vmdebug's initramfs, for a guest with a root file system: mounts it and starts its
# init, or only a shell. /etc/root says which. The agent and a shell on the console run beside its init.

. /etc/root

fail() {
	echo "vmdebug: no root file system: $*" >&2
	echo "vmdebug: this is a shell in the initramfs" >&2
	exec setsid cttyhack sh
}

mkdir -p /lower /writes /newroot
if [ "$root_type" = 9p ]; then
	mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose vmdebug-root /lower ||
		fail "the directory cannot be mounted over 9p"
elif [ "$root_type" = virtiofs ]; then
	mount -t virtiofs -o ro vmdebug-root /lower || fail "the directory cannot be mounted over virtiofs"
else
	device=$(disk vmdebug-root "$root_partition")
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

# The name servers of the network cards, unless the guest writes to the image itself.
if [ -r /etc/resolv.conf ] && [ ! "$root_keep" ]; then
	rm -f /newroot/etc/resolv.conf
	cp /etc/resolv.conf /newroot/etc/resolv.conf
fi

# What runs beside init, on a file system of its own: Debian's init scripts for sysvinit mount /run with noexec.
mkdir -p /run/vmdebug
mount -t tmpfs -o mode=755 tmpfs /run/vmdebug
cp /bin/busybox /etc/serve /etc/dhcp /etc/environment /run/vmdebug
[ ! -x /bin/vmdebug-agent ] || cp /bin/vmdebug-agent /etc/agent-tty /run/vmdebug
[ -d /newroot/tmp ] || mkdir -m 1777 /newroot/tmp 2>/dev/null
[ ! -r /etc/modules ] || pack_modules
for each in dev proc sys run; do
	mkdir -p /newroot/$each 2>/dev/null
	mount --move /$each /newroot/$each
done
if [ -r /etc/modules ]; then
	bring_modules chroot /newroot /run/vmdebug/busybox
	load_modules chroot /newroot /run/vmdebug/busybox
fi
[ ! -r /etc/share ] || mount_shares /newroot
unset ENV LS_COLORS
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
echo "vmdebug: guest ready"
if [ "$root_init" = none ]; then
	hostname vmdebug
	exec switch_root /newroot /run/vmdebug/serve init
fi
case $(chroot /newroot /run/vmdebug/busybox readlink -f "$root_init") in
*/systemd) : >/newroot/run/vmdebug/systemd ;;
esac
chroot /newroot /run/vmdebug/serve agent &
# systemd finds the console by itself, and an inittab may name it: then init starts the login.
console=console
if [ "$root_login" ]; then
	console=login
	[ ! -e /newroot/run/vmdebug/systemd ] || console=
	! grep -Eqs '^[^#].*(ttyS0|console|ttyAMA0)' /newroot/etc/inittab || console=
fi
[ ! "$console" ] ||
	chroot /newroot /run/vmdebug/busybox start-stop-daemon -S -b -x /run/vmdebug/serve -- $console
exec switch_root /newroot "$root_init"

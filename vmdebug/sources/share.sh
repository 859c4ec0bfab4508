# Part of the init process of vmdebug's initramfs: mounts the directories of the host that /etc/shares lists, one
# in a line: TAG TYPE MODE PLACE.

mount_shared() { # TAG TYPE MODE DIRECTORY
	mkdir -p "$4"
	if [ "$2" = 9p ]; then
		mount -t 9p -o "$3,trans=virtio,version=9p2000.L,msize=262144,cache=mmap" "$1" "$4"
	else
		mount -t virtiofs -o "$3" "$1" "$4"
	fi
}

mount_overlay() { # TAG TYPE DIRECTORY TOP
	layers=$4/run/vmdebug/$1
	mkdir -p "$3" $layers
	mount -t tmpfs -o mode=755 tmpfs $layers && mkdir $layers/upper $layers/work &&
		mount_shared "$1" "$2" ro $layers/lower &&
		mount -t overlay -o "lowerdir=$layers/lower,upperdir=$layers/upper,workdir=$layers/work" overlay "$3"
}

mount_shares() { # TOP: the root file system, or nothing
	while read -r tag type mode place; do
		if [ "$mode" = overlay ]; then
			mount_overlay "$tag" "$type" "$1$place" "$1"
		else
			mount_shared "$tag" "$type" "$mode" "$1$place"
		fi || echo "vmdebug: a shared directory cannot be mounted at $place" >&2
	done </etc/shares
}

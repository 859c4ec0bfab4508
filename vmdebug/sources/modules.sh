# Part of the init process of vmdebug's initramfs, for a guest with modules: /etc/modules says which.
# /lib/first-modules has those that its init needs, in the order in which to load them. The others are in
# /lib/modules, or on a disk that is mounted there.

. /etc/modules
modules_here=/lib/modules/$modules_release

for each in /lib/first-modules/*; do
	# A driver of a CPU that this is not refuses to load.
	[ ! -e "$each" ] || insmod "$each" 2>/dev/null
done
rm -rf /lib/first-modules

if [ "$modules_image" ]; then
	modules_device=$(disk vmdebug-modules)
	mount -t "$modules_image" -o ro "$modules_device" "$modules_here/.image" ||
		echo "vmdebug: the disk with the modules cannot be mounted" >&2
fi

# Load the modules that the user has named; the arguments are a command before modprobe.
load_modules() {
	for each in $modules_load; do
		"$@" modprobe "$each" || echo "vmdebug: the module $each cannot be loaded" >&2
	done
}

# Put the modules on a file system of their own, in /run, which becomes that of the new root.
pack_modules() {
	mkdir -p /run/vmdebug/modules
	mount -t tmpfs -o mode=755 tmpfs /run/vmdebug/modules
	[ ! "$modules_image" ] || umount "$modules_here/.image"
	cp -r "$modules_here/." /run/vmdebug/modules
	[ ! "$modules_image" ] || mount -t "$modules_image" -o ro "$modules_device" /run/vmdebug/modules/.image
}

# Move them to /lib/modules of the new root, which may be read-only, or have other modules of that release. The
# arguments are a command that runs busybox there: only there do the links of its directories lead to the right place.
bring_modules() {
	"$@" mkdir -p "$modules_here" && "$@" mount --move /run/vmdebug/modules "$modules_here"
}

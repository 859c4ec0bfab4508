# Receives a file or a directory on standard input; vmdebug/channel/files/put.py adds the call.
#
# The script writes into a directory beside the final place, and renames the copy when it is complete.

export LC_ALL=C
set -e
part=

fail() {
	echo "vmdebug: $*" >&2
	exit 9
}

clean() {
	[ -z "$part" ] || rm -rf "$part"
}
trap clean EXIT
trap 'exit 143' HUP INT TERM
# If the host is gone, the shell must not die of SIGPIPE when it prints, before it has cleaned up.
trap '' PIPE

# Set `to` to the path of the copy. NAME: the source's name; INTO: not empty if TO must be a directory.
# Set `slash` if TO was named as a directory.
destination() { # TO NAME INTO
	to=$1
	if [ -d "$to" ]; then
		[ -z "$2" ] || to=${to%/}/$2
	elif [ -n "$3" ]; then
		fail "$to is not a directory"
	fi
	slash=
	case $to in
	?*/)
		slash=yes
		to=${to%/}
		;;
	esac
}

# Wait until a systemd that boots has emptied /tmp: see systemd-tmpfiles(8), --remove --boot.
await_cleaning() { # DIRECTORY
	case $(readlink -f "$1") in
	/tmp | /tmp/*) ;;
	*) return 0 ;;
	esac
	# vmdebug's init leaves the first file, since it starts the agent before systemd runs.
	[ -e /run/vmdebug/systemd ] || [ -d /run/systemd/system ] || return 0
	command -v systemctl >/dev/null || return 0
	until systemctl -q is-active systemd-tmpfiles-setup.service 2>/dev/null; do
		case $(systemctl is-system-running 2>/dev/null) in
		running | degraded | maintenance | stopping) return 0 ;;
		esac
		sleep 0.2
	done
}

# Make the directory `part`, on the same file system as `to`.
prepare() {
	case $to in
	*/*) above=${to%/*} ;;
	*) above=. ;;
	esac
	[ -d "$above/" ] || fail "there is no directory ${above:-/}"
	await_cleaning "$above/"
	part=$(mktemp -d "$above/.vmdebug-cp.XXXXXX")
}

put_file() { # SIZE MODE TIME, each empty if it is not known
	mode=$2
	[ ! -d "$to" ] || fail "$to is a directory"
	# As cp(1): a file does not become a new name that ends in a slash; a directory does.
	[ -z "$slash" ] || fail "there is no directory $to/"
	if [ -e "$to" ]; then
		to=$(readlink -f "$to")
		mode=${mode:-$(stat -c %a "$to")}
		special=
		[ -f "$to" ] || special=yes
		case $to in /proc/* | /sys/*) special=yes ;; esac
		if [ -n "$special" ]; then
			# A device, a pipe, a setting of the kernel: write to it, do not replace it.
			exec cat >"$to"
		fi
	fi
	prepare
	receive "$part/file"
	[ -z "$1" ] || [ "$(stat -c %s "$part/file")" = "$1" ] || fail "$to is incomplete: not all data arrived"
	chmod "${mode:-644}" "$part/file"
	[ -z "$3" ] || touch -d "@$3" "$part/file"
	mv -f "$part/file" "$to"
}

put_tree() { # MODE TIME
	if [ -e "$to" ] && [ ! -d "$to" ]; then fail "$to exists, and is not a directory"; fi
	prepare
	mkdir "$part/tree"
	receive "$part/tree"
	tar -x -o -f - -C "$part/tree"
	# busybox's tar does not set mode and time of the archive's top directory.
	chmod "$1" "$part/tree"
	touch -d "@$2" "$part/tree"
	if [ -d "$to" ]; then
		merge "$part/tree" "$to"
	else
		mv "$part/tree" "$to"
	fi
}

# Move everything in FROM into TO, which exists. The parentheses make the variables local.
merge() ( # FROM TO
	mode=$(stat -c %a "$1")
	time=$(stat -c %Y "$1")
	for path in "$1"/* "$1"/.[!.]* "$1"/..?*; do
		[ -e "$path" ] || [ -L "$path" ] || continue
		name=${path##*/}
		if [ -d "$path" ] && [ ! -L "$path" ] && [ -d "$2/$name" ]; then
			merge "$path" "$2/$name"
		else
			[ ! -d "$2/$name" ] || fail "$2/$name is a directory"
			[ ! -d "$path" ] || [ -L "$path" ] || [ ! -e "$2/$name" ] ||
				fail "$2/$name exists, and is not a directory"
			mv -f "$path" "$2/$name"
		fi
	done
	chmod "$mode" "$2"
	touch -d "@$time" "$2"
)

# A file with holes arrives in pieces of whole blocks; `hole_end` cuts the padding, and sets mode and time.
hole_begin() { # FILE
	file=$1
	mkdir -p "${file%/*}"
	: >"$file"
}

hole_piece() { # FIRST COUNT, in blocks
	dd of="$file" bs=65536 iflag=fullblock conv=notrunc status=none seek="$1" count="$2"
}

hole_end() { # SIZE MODE TIME
	truncate -s "$1" "$file"
	chmod "$2" "$file"
	touch -d "@$3" "$file"
}


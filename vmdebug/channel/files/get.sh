# Sends a file or a directory on standard output; vmdebug/channel/files/get.py adds the call.
#
# The first line has the type; for a file, also mode, time and size. The size is used only to show progress:
# files in /proc have size 0.

export LC_ALL=C

fail() {
	echo "vmdebug: $*" >&2
	exit 9
}

get() { # FROM
	from=$1
	case $from in
	-*) from=./$from ;;
	esac
	[ -e "$from" ] || fail "$from does not exist"
	if [ ! -d "$from" ]; then
		stat -L -c 'file %a %Y %s' "$from" || exit 9
		exec cat "$from"
	fi
	echo directory
	sparse=
	case $(tar --version 2>/dev/null) in
	*"GNU tar"*) sparse=--sparse ;;
	esac
	tar -c $sparse -f - -C "$from" .
	status=$?
	# GNU tar exits with 1 if a file changed while tar read it.
	[ -n "$sparse" ] && [ $status = 1 ] && exit 0
	exit $status
}


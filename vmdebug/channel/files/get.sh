# Sends a file or a directory on standard output; vmdebug/channel/files/get.py adds the call.
#
# The first line has the type, and of a file the mode, the time and the size: the size is only for progress,
# because files in /proc have none.

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
	# GNU tar: a file has changed meanwhile.
	[ -n "$sparse" ] && [ $status = 1 ] && exit 0
	exit $status
}


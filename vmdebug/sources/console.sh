#!/bin/sh
# Shells on the console of vmdebug's initramfs, one after the other; started by init.
#
# cttyhack makes the console the controlling terminal, so that ^C reaches the
# command in the foreground. The shell gets the terminal as a script and not as its
# standard input: reading that, busybox edits lines itself and sends the terminal
# "where is the cursor" (ESC[6n), which lands in the middle of a program's input.

# Where there is no sysfs, cttyhack looks for the terminal at its own descriptors.
exec </dev/console >/dev/console 2>&1
cd "$HOME" || exit

while :; do
	# A shell that cannot start must not fill the log.
	setsid cttyhack sh -i /dev/tty || sleep 1
done

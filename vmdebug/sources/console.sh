#!/bin/sh
# Runs a shell on the console of vmdebug's initramfs, and starts a new one when it ends; init starts this.
#
# cttyhack makes the console the controlling terminal, so that ^C reaches the foreground command. The shell
# reads the terminal as a script, not as its standard input: with the latter, busybox would edit lines and
# query the cursor position (ESC[6n), and the terminal's answer would become input of a program.

# Without sysfs, cttyhack uses the terminal of its own descriptors.
exec </dev/console >/dev/console 2>&1
cd "$HOME" || exit

while :; do
	# Pause, so that a shell that cannot start does not fill the log.
	setsid cttyhack sh -i /dev/tty || sleep 1
done

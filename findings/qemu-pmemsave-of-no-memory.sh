#!/usr/bin/env bash
# QMP's pmemsave (QEMU 7.2) of addresses without memory succeeds, and writes zeros; memsave and the monitor's xp refuse.
#
# A 64 MiB guest is asked for 4096 bytes at 64 GiB. pmemsave answers as for RAM and the file has 4096 zeros; a file with
# the end of RAM and what follows it does not tell where RAM ends. memsave of the same number as a virtual address, with
# paging off, says "Invalid addr", and xp "Cannot access memory".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# apt drops its privileges only where the directory is open to it.
chmod 755 .
options=(--recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances)
mapfile -t packages < <(apt-cache depends "${options[@]}" qemu-system-x86 | grep -E '^(lib|seabios|qemu-system-(common|data))' | grep -vE '^(libc6|libc-bin|libperl.*)$' | sort -u)
apt-get download -q -q qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 "${packages[@]}"
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu:$work/root/usr/lib/x86_64-linux-gnu/pulseaudio

{
	echo '{"execute": "qmp_capabilities"}'
	echo '{"execute": "pmemsave", "arguments": {"val": 68719476736, "size": 4096, "filename": "saved"}}'
	echo '{"execute": "memsave", "arguments": {"val": 68719476736, "size": 4096, "filename": "virtual"}}'
	echo '{"execute": "human-monitor-command", "arguments": {"command-line": "xp /1xb 0x1000000000"}}'
	echo '{"execute": "quit"}'
} | root/usr/bin/qemu-system-x86_64 -S -accel tcg -m 64 -nodefaults -display none -qmp stdio \
	-L root/usr/share/qemu -L root/usr/share/seabios | tr -d '\r' | tee seen
cmp saved <(head -c 4096 /dev/zero)
[ "$(sed -n 3p seen)" = '{"return": {}}' ]
sed -n 4p seen | grep -q '"Invalid addr 0x0000001000000000/size 4096 specified"'
sed -n 5p seen | grep -q 'Cannot access memory'

#!/usr/bin/env bash
# `qemu-img snapshot -a X` (QEMU 7.2) takes X for an ID first, `-d X` for a name only: the same X is two snapshots.
#
# Each internal snapshot has an ID, which qcow2 counts from 1, and a name. Where a name is a number (a build, a step of a
# script), a guess is that all commands find the same snapshot. Here the first snapshot, ID 1, is named "2", and the
# second, ID 2, is named "1". `-a 1` restores the one with the ID 1, `convert -l 1` reads that one too, and `-d 1` deletes
# the one with the name 1. `convert -l snapshot.name=1` is exact.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# apt drops its privileges only where the directory is open to it.
chmod 755 .
version=1:7.2+dfsg-7+deb12u18+b3
mapfile -t libraries < <(apt-cache depends qemu-utils="$version" | sed -n 's/^ *Depends: //p' | grep -v '^libc6$')
apt-get download -q -q qemu-utils="$version" "${libraries[@]}"
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu
PATH=$work/root/usr/bin:$PATH

qemu-img create -q -f qcow2 disk 1M
for name in 2 1; do
	qemu-io -c "write -q -P 0x4$name 0 64k" disk # the letter A or B
	qemu-img snapshot -c "$name" disk
done
qemu-img snapshot -l disk
holds() { qemu-img convert -O raw "$@" part && head -c 1 part; }
named=$(holds -l snapshot.name=1 disk)
numbered=$(holds -l 1 disk)
cp disk applied && qemu-img snapshot -a 1 applied
cp disk deleted && qemu-img snapshot -d 1 deleted
restored=$(holds applied)
left=$(holds -l snapshot.name=2 deleted)
echo "name 1 holds $named; convert -l 1: $numbered; after -a 1: $restored; left by -d 1: $left"
[ "$named $numbered $restored $left" = "A B B B" ]
! qemu-img snapshot -l deleted | grep -q '^2 '

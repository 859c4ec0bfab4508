#!/usr/bin/env bash
# `count=` of `qemu-img dd` (QEMU 7.2) includes the blocks that `skip=` leaves out, unlike that of dd(1).
#
# dd(1) skips SKIP blocks, and then copies COUNT blocks. qemu-img cuts the image off after COUNT blocks first, and then
# skips SKIP of them: `skip=1 count=3` copies two blocks, and with `skip=4 count=1` it prints "cannot skip to specified
# offset", writes an empty file, and exits with status 0. `qemu-img convert --image-opts` with the raw driver's
# `offset=` and `size=` copies any part.
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
lib=root/usr/lib/x86_64-linux-gnu:root/lib/x86_64-linux-gnu
img() { LD_LIBRARY_PATH=$lib root/usr/bin/qemu-img "$@"; }

img --version | head -n 1
head -c 8M /dev/zero >image
plain=$(dd if=image bs=1M skip=1 count=3 status=none | wc -c)
img dd -f raw -O raw bs=1M skip=1 count=3 if=image of=part
some=$(wc -c <part)
status=0
img dd -f raw -O raw bs=1M skip=4 count=1 if=image of=part || status=$?
none=$(wc -c <part)
img convert --image-opts -O raw driver=raw,offset=4194304,size=1048576,file.filename=image part
other=$(wc -c <part)
echo "skip=1 count=3: dd copies $plain bytes, qemu-img dd $some"
echo "skip=4 count=1: qemu-img dd copies $none bytes, status $status; convert with offset= and size= copies $other"
[ "$plain $some $none $status $other" = "3145728 2097152 0 0 1048576" ]

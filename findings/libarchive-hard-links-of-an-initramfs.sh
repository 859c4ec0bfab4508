#!/usr/bin/env bash
# libarchive 3.6.2 gives the first name of a hard-linked file in an initramfs as an empty file, the last as a link with data.
#
# In a tar archive the first name has the data and the others are links to it. In cpio's newc, as GNU cpio 2.13 writes it
# for a kernel, each name is a file with the same inode, and only the last has the data; the kernel puts it into the file that
# the first has made. libarchive (here through libarchive-c 5.3) passes that on: the data of `sh` is an entry that
# says it is a link to `busybox`, and what a program reads for `busybox` is nothing. Extracting the archive is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# apt drops its privileges only where the directory is open to it.
chmod 755 .
version=3.6.2-1+deb12u5
mapfile -t libraries < <(apt-cache depends libarchive13=$version | sed -n 's/^ *Depends: //p' | grep -v '^libc6$')
apt-get download -q -q cpio=2.13+dfsg-7.1 libarchive13=$version "${libraries[@]}"
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check libarchive-c==5.3
mkdir files
echo program >files/busybox
ln files/busybox files/sh
(cd files && printf '%s\n' busybox sh | ../root/bin/cpio -o -H newc --quiet) >initramfs
tar -C files -cf tar busybox sh
cat > script.py <<'EOF'
import os

import libarchive

for path in ("tar", "initramfs"):
    with libarchive.file_reader(path) as archive:
        for entry in archive:
            link = f"a link to {entry.linkpath}" if entry.linkpath else "a file"
            print(f"{path}: {entry.pathname} is {link}, data", b"".join(entry.get_blocks()))
with open("initramfs", "rb") as packed:
    content = packed.read()
os.mkdir("out")
os.chdir("out")
libarchive.extract_memory(content)
print("extracted:", *(open(name).read().strip() for name in ("busybox", "sh")))
EOF
LIBARCHIVE=$work/root/usr/lib/x86_64-linux-gnu/libarchive.so.13 env/bin/python script.py | tee seen
cat > expected <<'EOF'
tar: busybox is a file, data b'program\n'
tar: sh is a link to busybox, data b''
initramfs: busybox is a file, data b''
initramfs: sh is a link to busybox, data b'program\n'
extracted: program program
EOF
diff expected seen

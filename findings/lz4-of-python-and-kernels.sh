#!/usr/bin/env bash
# Python's package lz4 4.4.5 does not read what `lz4 -l` writes, the format of kernel images and initramfs archives with LZ4.
#
# The kernel's decompressor, and so its build, uses lz4's legacy frames (magic 0x184C2102). lz4(1) reads both kinds. From
# lz4.frame each function gives RuntimeError "ERROR_frameType_unknown", although the LZ4 library is the same. lz4.block
# can read the blocks of 8 MiB one by one: their size is in front of each.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# apt drops its privileges only where the directory is open to it.
chmod 755 .
apt-get download -q -q lz4=1.9.4-1 liblz4-1=1.9.4-1
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check lz4==4.4.5
seq 100000 >numbers
root/usr/bin/lz4 -q -l numbers legacy.lz4
root/usr/bin/lz4 -q numbers frame.lz4
for name in legacy frame; do root/usr/bin/lz4 -q -d -c $name.lz4 | cmp - numbers; done
cat > script.py <<'EOF'
from pathlib import Path

import lz4.block
import lz4.frame

numbers = Path("numbers").read_bytes()
for name in ("frame", "legacy"):
    packed = Path(f"{name}.lz4").read_bytes()
    try:
        print(name, lz4.frame.decompress(packed) == numbers)
    except RuntimeError as error:
        print(name, str(error).split()[-1])
size = int.from_bytes(packed[4:8], "little")
print("block", lz4.block.decompress(packed[8 : 8 + size], uncompressed_size=8 << 20) == numbers)
EOF
env/bin/python script.py | tee seen
printf '%s\n' 'frame True' 'legacy ERROR_frameType_unknown' 'block True' | diff seen -

#!/usr/bin/env bash
# pyelftools 0.33 says that a file has DWARF, and then cannot read it, where the sections are compressed with zstd.
#
# ELFCOMPRESS_ZSTD (type 2) is in the gABI since 2022; binutils 2.40, GDB 13 and drgn read it, and
# CONFIG_DEBUG_INFO_COMPRESSED_ZSTD of Linux 6.2 makes vmlinux and modules so. has_dwarf_info() returns True and
# get_dwarf_info() raises ELFCompressionError ("Unknown compression type: 0x2"), whatever Python package for zstd
# is installed beside it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check pyelftools==0.33 zstandard==0.25.0
cat > t.c <<'EOF'
struct sample { unsigned bits : 3; int more : 5; char *name; long long big; double real; enum { ONE = 1, TWO } which; int list[4]; };
struct sample sample = { 5, -3, "hello", -7, 1.5, TWO, { 1, 2, 3, 4 } };
int main(void) { return sample.more; }
EOF
cc -g t.c -o plain # large enough that compression pays: objcopy leaves a section as it is where it does not
objcopy --compress-debug-sections=zlib plain zlib
objcopy --compress-debug-sections=zstd plain zstd
readelf -tW zstd | grep -A3 debug_info | grep -q COMPRESSED
venv/bin/python - <<'EOF'
import sys

from elftools.common.exceptions import ELFCompressionError
from elftools.elf.elffile import ELFFile


def outcome(path):
    with open(path, "rb") as file:
        elf = ELFFile(file)
        has = elf.has_dwarf_info()
        try:
            units = list(elf.get_dwarf_info().iter_CUs())
            return f"has_dwarf_info {has}, units read: {bool(units)}"
        except ELFCompressionError as error:
            return f"has_dwarf_info {has}, ELFCompressionError: {error}"


seen = {path: outcome(path) for path in ("plain", "zlib", "zstd")}
print(*(f"{path}: {text}" for path, text in seen.items()), sep="\n")
sys.exit(
    seen
    != {
        "plain": "has_dwarf_info True, units read: True",
        "zlib": "has_dwarf_info True, units read: True",
        "zstd": "has_dwarf_info True, ELFCompressionError: Unknown compression type: 0x2",
    }
)
EOF

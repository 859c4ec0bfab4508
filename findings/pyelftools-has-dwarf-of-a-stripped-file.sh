#!/usr/bin/env bash
# pyelftools 0.33: has_dwarf_info() of a stripped program is True, and get_dwarf_info() works; it just has no units.
#
# The unwind tables in .eh_frame, which nearly every x86-64 file has, count as DWARF. So a test whether a vmlinux or a program
# still has its debugging information has to be has_dwarf_info(strict=True), or get_dwarf_info().has_debug_info.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check pyelftools==0.33
printf 'int main(void) { return 0; }\n' > t.c
cc -g t.c -o whole
strip -o stripped whole
cat > script.py <<'EOF'
from elftools.elf.elffile import ELFFile

for path in ("whole", "stripped"):
    with open(path, "rb") as file:
        elf = ELFFile(file)
        dwarf = elf.get_dwarf_info()
        units = bool(list(dwarf.iter_CUs()))
        print(path, elf.has_dwarf_info(), elf.has_dwarf_info(strict=True), dwarf.has_debug_info, "units:", units)
EOF
env/bin/python script.py | tee seen
printf '%s\n' 'whole True True True units: True' 'stripped True False False units: False' | diff seen -

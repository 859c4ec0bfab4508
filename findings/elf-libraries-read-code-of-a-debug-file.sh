#!/usr/bin/env bash
# A file of `objcopy --only-keep-debug` has no code. pyelftools 0.33 returns zeros as the code, LIEF 1.0.0 other sections.
#
# In such a file (vmlinux.debug, /usr/lib/debug) .text is there with its address and size, but of type SHT_NOBITS, without
# bytes in the file. readelf -x says "has no data to dump". Both libraries return as many bytes as the section's size:
# pyelftools zeros, LIEF those at the section's file offset, where the debugging information is. Neither raises
# an error; only the section's type tells.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check pyelftools==0.33 lief==1.0.0
{
	echo 'int total;'
	for number in $(seq 200); do echo "int function_$number(int value) { return total += value * $number; }"; done
} > code.c
cc -g -shared -fPIC code.c -o whole
objcopy --only-keep-debug whole debug
readelf -x .text debug 2>&1 | tee seen
cat > script.py <<'EOF'
import lief
from elftools.elf.elffile import ELFFile

with open("whole", "rb") as whole, open("debug", "rb") as debug:
    code = ELFFile(whole).get_section_by_name(".text").data()
    section = ELFFile(debug).get_section_by_name(".text")
    zeros = section.data()
    there = bytes(lief.parse("debug").get_section(".text").content)
    debug.seek(section["sh_offset"])
    print(section["sh_type"], "same size:", len(zeros) == len(there) == len(code))
    print("pyelftools: zeros:", not any(zeros), "LIEF: at the offset:", there == debug.read(len(there)) and any(there), "code:", code in (zeros, there))
EOF
env/bin/python script.py | tee -a seen
cat > expected <<'EOF'
Section '.text' has no data to dump.
SHT_NOBITS same size: True
pyelftools: zeros: True LIEF: at the offset: True code: False
EOF
diff expected <(grep -v -e '^readelf:' -e '^$' seen)

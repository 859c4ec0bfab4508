#!/usr/bin/env bash
# dump-guest-memory of an x86-64 guest at its reset vector (QEMU 7.2) writes an ELF file of class ELF64 for the machine 80386.
#
# A guess is that qemu-system-x86_64 writes dumps of an x86-64. QEMU takes the machine and the notes from the mode that the
# CPU is in: before long mode (firmware, the start of the kernel, a guest under -S) they are those of an i386, and only the
# class is that of 64 bits. pyelftools 0.33 takes it for a file of x86, not x64.
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
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check pyelftools==0.33 qemu.qmp==0.0.6
cat > dump.py <<'EOF'
import asyncio
import os

from elftools.elf.elffile import ELFFile
from qemu.qmp import QMPClient


async def main():
    parts = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio")
    libraries = [os.path.abspath(f"root/{part}") for part in parts]
    qmp = QMPClient("probe")
    await qmp.start_server("qmp.sock")
    guest = await asyncio.create_subprocess_exec(
        "root/usr/bin/qemu-system-x86_64", "-S", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none",
        "-qmp", "unix:qmp.sock", "-L", "root/usr/share/qemu", "-L", "root/usr/share/seabios",
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)},
    )
    try:
        await asyncio.wait_for(qmp.accept(), 60)
        path = os.path.abspath("core")
        await qmp.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{path}"})
        target = await qmp.execute("query-target")
        await qmp.disconnect()
    finally:
        guest.kill()
        await guest.wait()
    with open("core", "rb") as file:
        elf = ELFFile(file)
        print(target["arch"], elf.elfclass, elf["e_machine"], elf.get_machine_arch())


asyncio.run(main())
EOF
env/bin/python dump.py | tee seen
[ "$(cat seen)" = "x86_64 64 EM_386 x86" ]

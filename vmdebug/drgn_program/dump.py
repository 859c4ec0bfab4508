"""A program of a crash dump: one of `vmdebug dump`, QEMU or virsh, or a vmcore of kdump on a real machine."""

from __future__ import annotations

import re
from pathlib import Path

import drgn

from vmdebug.errors import HostError, UsageError

_FIELD = r"^{}=(.*)$"

_WHY = (
    "it has no vmcoreinfo: take it with `vmdebug dump`, or start the guest with -device vmcoreinfo, and a"
    " kernel with CONFIG_FW_CFG_SYSFS"
)


class DumpFile:
    """A dump, as a program without symbols.

    Args:
        path: The file: ELF, or compressed by QEMU, makedumpfile or the kernel.

    Attributes:
        path: The file.
        program: The program; `symbols.load` loads its symbols.
        release: `uname -r` of the kernel.
        build_id: Its build-id in hex; "" if vmcoreinfo does not have it: before Linux 5.9.

    Raises:
        UsageError: it is no dump of a kernel, or is damaged.
        HostError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # drgn cannot tell the architecture of a dump whose header lacks the kernel's name, as those of QEMU.
        self.program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        try:
            self.program.set_core_dump(path)
        except FileNotFoundError:
            raise UsageError(f"there is no dump {path}", hint="is the path right?") from None
        except OSError as error:
            raise HostError(f"{path} cannot be read: {error.strerror}", hint="run as its owner") from error
        except Exception as error:
            raise UsageError(
                f"{path} is not a dump of a kernel: {error}", hint="take one with `vmdebug dump`"
            ) from error
        if not self.program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
            raise UsageError(f"{path} is not a dump of a Linux kernel, or cannot be read as one", hint=_WHY)
        info = self.program["VMCOREINFO"].string_().decode(errors="replace")
        self.release = _field(info, "OSRELEASE")
        self.build_id = _field(info, "BUILD-ID")


def _field(info: str, name: str) -> str:
    found = re.search(_FIELD.format(name), info, re.MULTILINE)
    return found[1] if found else ""

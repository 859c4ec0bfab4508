"""The modules of a kernel that replaces a NixOS guest's own, and those of the option `module`.

The guest's initrd and store have the modules of its own kernel. vmdebug puts those of the kernel that runs
before the initrd, where the initrd's modprobe finds them. The system gets them as a disk, which systemd (254
or newer) mounts over the store's: see systemd.mount-extra in systemd-fstab-generator(8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel
from vmdebug.guest_options import GuestOptions
from vmdebug.paths import absolute, module_name, or_false
from vmdebug.progress import Report
from vmdebug.sources import userland
from vmdebug.sources.configuration import requirements
from vmdebug.sources.guest_modules import bundle
from vmdebug.sources.guest_modules.bundle import Wanted

_INITRD = re.compile(r"\s-initrd\s+[\"']?(/[^\s\"'$]+)")

_DISK = "/dev/disk/by-id/virtio-vmdebug-modules"
"""The disk with the modules: udev's 60-persistent-storage.rules name it by its serial number."""


@dataclass(frozen=True, slots=True)
class Brought:
    """The modules that a guest gets.

    Args:
        initrd: The initrd with them, or None.
        image: The disk with them, or None.
        parameters: Kernel parameters that mount and load them.
        notes: Notes for the user.
    """

    initrd: Path | None = None
    image: Path | None = None
    parameters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def bring(
    kernel: Kernel,
    text: str,
    options: GuestOptions,
    replaced: Path | None,
    *,
    report: Report,
    deadline: Deadline,
) -> tuple[Kernel, Brought]:
    """Return the kernel with the symbols of the user's modules, and what brings its modules into the guest.

    Args:
        kernel: The kernel that runs.
        text: The text of the runner.
        options: The user's options.
        replaced: The directory with the modules of the guest's own kernel, or None.
        report: Called with each long step.
        deadline: When to give up.

    Raises:
        UsageError: there is no such module.
        MismatchError: a module is built for another kernel.
        HostError: a module cannot be read, or this machine lacks something.
    """
    if options.kernel is None and options.modules is None and not options.module:
        return kernel, Brought()
    kernel, found = userland.kernel_with_modules(kernel, options)
    if found is None:
        return kernel, Brought()
    script = _INITRD.search(text)
    if script is None or not or_false(Path(script[1]).is_file):
        return kernel, Brought(notes=("no modules: the runner has no -initrd that could get them",))
    extra = tuple(absolute(each) for each in options.module)
    first = tuple(need.module for need in requirements.RUNNER if need.module)
    wanted = Wanted(modules=found, extra=extra, load=options.load_modules, first=first, foreign=True)
    made = bundle.make(kernel, wanted, report=report, deadline=deadline)
    words = [f"modules_load={module_name(each)}" for each in extra] if options.load_modules else []
    place = replaced.resolve() if replaced is not None else Path("/lib/modules")
    if made.image is not None:
        words.append(f"systemd.mount-extra={_DISK}:{place}:{made.format}:ro,nofail")
    where = "the initrd"
    if made.image is not None:
        where = f"the initrd, and as a disk in {place} (systemd 254 or newer)"
    note = (
        f"modules: {made.count} of {found.directory}, {made.size / 2**20:.0f} MiB, in {where}{made.lacking}"
    )
    initrd = bundle.before(made.archive, Path(script[1]))
    return kernel, Brought(initrd, made.image, tuple(words), (note,))

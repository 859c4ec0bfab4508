"""What a guest with vmdebug's QEMU command line boots into: its initramfs and its root file system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmdebug import roots
from vmdebug.arch import Arch
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel, Root
from vmdebug.guest_options import NO_INIT, GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.progress import Report
from vmdebug.sources.configuration import dotconfig, requirements
from vmdebug.spelling import option


def root(
    options: GuestOptions, kernel: Kernel, report: Report, deadline: Deadline
) -> tuple[Root | None, tuple[str, ...]]:
    """Return the root file system, and a note if it is unknown whether the kernel can mount it.

    Raises:
        UsageError: the kernel cannot mount it.
    """
    if options.root is not None and options.initrd is not None:
        raise UsageError(
            f"{option('root', options.root)} needs vmdebug's initramfs, which mounts it, and"
            f" {option('initrd', options.initrd)} replaces that",
            hint="give one of them",
        )

    def supports(name: str) -> bool | None:
        configuration = dotconfig.of(kernel)
        return None if configuration is None else configuration.value(name) == "y"

    root = roots.resolve(options, supports=supports, report=report, deadline=deadline)
    if root is None or options.force:
        return root, ()
    needs, what = requirements.of_root(root), option("root", root.words)
    unknown = requirements.check_own(kernel, needs, options.source, what=what)
    return root, (unknown,) if unknown else ()


def for_init(root: Root | None, row: Arch) -> tuple[str, ...]:
    """Return the kernel parameters for the init of a root file system; others ignore those of systemd.

    The shell on the console is vmdebug's, and an fstab may name disks that this guest does not have.
    See kernel-command-line(7) of systemd.
    """
    if root is None or root.init == NO_INIT:
        return ()
    return (f"systemd.mask=serial-getty@{row.console}.service", "fstab=no")


def initrd(options: GuestOptions, kernel: Kernel) -> tuple[Path | None, tuple[str, ...]]:
    """Return an initramfs that replaces vmdebug's, and notes about it.

    Raises:
        UsageError: there is no such file, it is no initramfs, or the kernel cannot unpack it.
    """
    if options.initrd is None:
        return None, ()
    file = absolute(options.initrd)
    what = option("initrd", options.initrd)
    if not or_false(file.is_file):
        raise UsageError(f"{what}: there is no file {file}", hint="give an initramfs: a cpio archive")
    unknown = ""
    if not options.force:
        if not requirements.is_initramfs(file):
            raise UsageError(
                f"{what}: {file} is not an initramfs", hint="give a cpio archive, as it is or compressed"
            )
        needs = requirements.of_initrd(file)
        unknown = requirements.check_own(kernel, needs, options.source, what=what)
    note = f"the initramfs is {file}: exec works if its init starts an agent, or a shell on the console"
    return file, (note, *((unknown,) if unknown else ()))


def unmounted(options: GuestOptions, words: Sequence[str], *, ours: bool) -> tuple[str, ...]:
    """Return notes about an initramfs that QEMU's arguments replace, and a `root=` that nobody reads.

    Args:
        options: The user's options.
        words: The kernel parameters.
        ours: Whether the initramfs is vmdebug's, whose init mounts only `--root`.
    """
    replaced = [word for word in options.qemu_args if word in ("-initrd", "--initrd")]
    if replaced:
        note = (
            f"the QEMU argument {replaced[0]} replaces vmdebug's initramfs, and with it the agent and the"
            f" shell on the console; {option('initrd', 'FILE')} does the same, and checks the file"
        )
        return (note,)
    asked = [word for word in words if word.startswith("root=")]
    if asked and ours:
        note = (
            f"{asked[-1]} has no effect: vmdebug's initramfs mounts no such file system; use"
            f" {option('root', 'IMAGE')}, or an initramfs that mounts it: {option('initrd', 'FILE')}"
        )
        return (note,)
    return ()

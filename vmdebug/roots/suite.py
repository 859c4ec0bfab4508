"""Debian as a root: mmdebstrap makes it once, and the cache keeps it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from vmdebug import cache, process
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest import AUTO_INIT, Root
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import Report, Step
from vmdebug.roots import packed, refusal
from vmdebug.roots.packed import Making
from vmdebug.spelling import option

PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "kmod", "iproute2", "procps", "ca-certificates"),
    *("openssh-server", "less", "strace"),
)
"""Packages in addition to the essential ones and apt: an init, and common tools."""

MAKE_SECONDS = 3600.0
"""How long mmdebstrap may take."""

NEEDED = 1.2e9
"""Bytes of disk space that mmdebstrap and the image need; the image takes a third of it."""

_SUITE = re.compile(r"[a-z][a-z0-9._-]*")
_STEP = re.compile(r"^I: (.+?)\.*$")


def resolve(distribution: str, suite: str, options: GuestOptions, making: Making) -> Root:
    """Return a suite of Debian as a root; make it unless the cache has it.

    Args:
        distribution: The word before the colon.
        suite: The suite: "bookworm".
        options: The options of the guest.
        making: For which guest.

    Raises:
        UsageError: it is not a suite of Debian, or an option does not apply to it.
        HostError: a program or disk space is missing.
        BuildError: mmdebstrap failed.
        DeadlineError: it took too long.
    """
    words = f"{distribution}:{suite}"
    if distribution != "debian" or not _SUITE.fullmatch(suite):
        raise UsageError(
            f"{option('root', words)}: vmdebug cannot make this distribution",
            hint="give debian:SUITE, such as debian:bookworm, or a directory, or an image;"
            f" docker://{words} is the container image of that name",
        )
    refusal.refuse(
        options,
        refusal.OF_DISK_IMAGES,
        f"is for your own disk images, and vmdebug makes that of {words}",
        hint="leave it out",
    )
    key = hashlib.sha256(" ".join((suite, *PACKAGES)).encode()).hexdigest()[:8]
    what = f"making {words}"

    def write(archive: Path) -> None:
        cache.check_space(archive.parent, NEEDED)
        try:
            process.run(
                argv(suite, archive),
                deadline=making.deadline.at_most(MAKE_SECONDS),
                on_line=lambda line: _progress(line, what, making.report),
            )
        except BuildError as error:
            raise BuildError(
                f"{what}: {error.message}",
                hint="is the suite's name right, and does apt reach a mirror that has it?",
                detail=error.detail,
            ) from error

    return packed.of_archive(
        f"debian-{suite}-{key}",
        write,
        options,
        making,
        words=words,
        what=what,
        init=options.init or AUTO_INIT,
        systemd=options.init is None,
    )


def argv(suite: str, archive: Path) -> tuple[str, ...]:
    """Return the command that makes a suite as a tar archive."""
    program = process.find("mmdebstrap", package="mmdebstrap")
    return (
        str(program),
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        # Lets root log in on the console without a password; sshd refuses empty passwords.
        '--customize-hook=chroot "$1" passwd --delete root',
        '--customize-hook=echo vmdebug >"$1/etc/hostname"',
        "--format=tar",
        suite,
        str(archive),
    )


def _progress(line: str, what: str, report: Report) -> None:
    if found := _STEP.match(line):
        report(Step(what, note=found[1]))

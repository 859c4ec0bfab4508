"""Chooses a VM's accelerator, and gives the reason.

KVM may not work although /dev/kvm opens and creates virtual machines: under a nested hypervisor without VMX
or SVM, a Linux guest can hang before its first message, while QMP and the gdbstub answer as usual. So vmdebug
boots the kernel to its first message, once for each boot of the host, QEMU and kernel.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from vmdebug import arch as arches
from vmdebug import process
from vmdebug.arch import Arch
from vmdebug.deadline import Deadline, wait_ready
from vmdebug.errors import HostError
from vmdebug.filecache import cached
from vmdebug.guest_options import Accel
from vmdebug.progress import Report, Step
from vmdebug.spelling import option
from vmdebug.vm import argv
from vmdebug.vm.argv import RealAccel

FIRST_LINE_SECONDS = 10.0
"""How long a kernel may take until its first message under KVM; 0.2 s is usual."""

FIRST_LINE_SECONDS_IF_ASKED = 60.0
"""The same if the user asks for KVM, which may be nested KVM on a busy host, and slow."""

FIRST_LINE = b"Linux version "
"""The start of a kernel's first line; see linux_banner in its init/version.c."""

_CANNOT_RUN = re.compile(
    rb"^(KVM: entry failed|KVM: unknown exit|KVM internal error|error: kvm run failed)[^\r\n]*(?=\r?\n)",
    re.MULTILINE,
)
"""What QEMU prints when KVM gives up a guest, whose state is then internal-error: QEMU does not end. See
accel/kvm/kvm-all.c and `kvm_arch_handle_exit` in QEMU's target/i386/kvm/kvm.c."""


def _instead() -> str:
    return f"or emulate: {option('accel', 'tcg')}"


def _look() -> str:
    return f"look at the host's kernel log: dmesg | grep -i kvm; {_instead()}"


class Choice(msgspec.Struct, frozen=True):
    """An accelerator, with the reason in words."""

    accel: RealAccel
    reason: str


class Host(msgspec.Struct, frozen=True):
    """The files in which the host describes KVM; tests use others."""

    device: Path = Path("/dev/kvm")
    cpuinfo: Path = Path("/proc/cpuinfo")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")
    machine: str = os.uname().machine


HOST = Host()


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """The result of booting a kernel to its first message.

    Args:
        seconds: How long it took; None if the message did not come.
        failure: QEMU's message that KVM cannot run the guest; "" if there was none.
    """

    seconds: float | None
    failure: str = ""


class Subject(msgspec.Struct, frozen=True):
    """What to accelerate.

    Args:
        qemu: The emulator.
        arch: The kernel's architecture.
        image: The kernel's boot image.
    """

    qemu: Path
    arch: Arch
    image: Path


def choose(
    asked: Accel, subject: Subject, *, report: Report, deadline: Deadline, host: Host = HOST
) -> Choice:
    """Choose an accelerator.

    Args:
        asked: The user's choice; `auto` is KVM if the kernel boots with it, else TCG.
        subject: What to accelerate.
        report: Called when the kernel is booted to test KVM.
        deadline: When to give up that boot. It waits at most `FIRST_LINE_SECONDS…` anyway.
        host: The files in which the host describes KVM.

    Raises:
        HostError: KVM was asked for and does not work here; the hint says how to make it work.
    """
    if asked == "tcg":
        return Choice("tcg", "asked for")
    try:
        limit = FIRST_LINE_SECONDS_IF_ASKED if asked == "kvm" else FIRST_LINE_SECONDS
        return Choice("kvm", _proof(subject, report, deadline, host, limit))
    except HostError as problem:
        if asked == "kvm":
            raise
        return Choice("tcg", problem.message)


def kvm_state(host: Host = HOST) -> str:
    """Return why KVM may work here, without booting a kernel.

    Raises:
        HostError: it cannot work; the hint says how to make it work.
    """
    problem = obstacle(arches.native(), host)
    if problem is not None:
        raise problem
    return f"{host.device} opens and the CPU supports it; the first start tests it by booting the kernel"


def obstacle(arch: Arch, host: Host = HOST) -> HostError | None:
    """Return why KVM cannot work, or None if only a boot can tell."""
    if arch.name != host.machine:
        return HostError(
            f"no KVM: the guest's kernel is {arch.name}, and this host is {host.machine}",
            hint=f"run it on a host of its own architecture, {_instead()}",
        )
    if not host.device.exists():
        module = " (or ".join(arch.kvm_modules) + ")" * (len(arch.kvm_modules) - 1)
        load = f"load the module: modprobe {module}; if that fails, " if module else ""
        return HostError(
            f"no KVM: {host.device} does not exist",
            hint=f"{load}enable virtualisation in the firmware, or nested virtualisation in the host;"
            f" {_instead()}",
        )
    if not os.access(host.device, os.R_OK | os.W_OK):
        return HostError(
            f"no KVM: this user may not open {host.device}",
            hint=f'join its group: sudo usermod -aG kvm "$USER", then log in again; {_instead()}',
        )
    if arch.kvm_flags and not _cpu_flags(host) & set(arch.kvm_flags):
        wanted = " nor ".join(arch.kvm_flags)
        return HostError(
            f"no KVM: {host.device} opens, but the CPU has neither {wanted}, so a guest would hang",
            hint=f"this is a VM without nested virtualisation: enable it in the host; {_instead()}",
        )
    return None


def boot(command: Sequence[str], deadline: Deadline) -> Boot:
    """Run a command until it writes a kernel's first message to stdout.

    Args:
        command: The command line of `argv.probe`; it is always ended.
        deadline: When to give up.

    Raises:
        HostError: it ended before that message. The result is not cached, because another hypervisor may use
            the CPU at this time.
    """
    started = time.monotonic()
    reading, writing = os.pipe()
    try:
        with process.spawn(command, stdout=writing, stderr=writing):
            os.close(writing)
            writing = -1
            said = _read(reading, deadline)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if FIRST_LINE in said:
        return Boot(seconds=round(time.monotonic() - started, 2))
    failure = _CANNOT_RUN.search(said)
    if failure is not None:
        return Boot(seconds=None, failure=failure[0].decode(errors="replace"))
    if deadline.passed:
        return Boot(seconds=None)
    last = process.tail(said.decode(errors="replace"), 1)
    raise HostError(f"no KVM: QEMU ended before the kernel's first message: {last}", hint=_look())


def _proof(subject: Subject, report: Report, deadline: Deadline, host: Host, limit: float) -> str:
    """Return in words how well KVM works, from booting the kernel or from its cached result."""

    def booting() -> Boot:
        report(Step("trying KVM", note=f"up to {limit:g} s"))
        command = argv.probe(qemu=subject.qemu, arch=subject.arch, accel="kvm", image=subject.image)
        found = boot(command, deadline.at_most(limit))
        deadline.left("the kernel's first message under KVM")  # a boot that was cut short is no result
        return found

    problem = obstacle(subject.arch, host)
    if problem is not None:
        raise problem
    found = _remembered(subject, host, limit, booting)
    if found.failure:
        raise HostError(f"no KVM: it opens, but cannot run a guest: {found.failure}", hint=_look())
    if found.seconds is None:
        raise HostError(f"no KVM: with KVM the kernel printed nothing for {limit:g} s", hint=_look())
    return f"the kernel printed its first message after {found.seconds:g} s"


def _remembered(subject: Subject, host: Host, limit: float, booting: Callable[[], Boot]) -> Boot:
    """Return the result of the boot for this kernel, QEMU, time limit and boot of the host."""
    try:
        changed = subject.qemu.stat().st_mtime_ns
        this_boot = host.boot_id.read_text().strip()
        return cached(
            subject.image, f"kvm-boot {this_boot} {subject.qemu} {changed} {limit:g}", Boot, booting
        )
    except OSError as error:
        raise HostError(f"cannot read {error.filename}: {error.strerror}") from error


def _cpu_flags(host: Host) -> set[str]:
    try:
        with host.cpuinfo.open() as lines:
            for line in lines:
                if line.startswith("flags"):
                    return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def _read(fd: int, deadline: Deadline) -> bytes:
    """Read until a kernel's first line, a failure of KVM, the end of the file, or the deadline."""
    said = b""
    while not (FIRST_LINE in said or _CANNOT_RUN.search(said) or deadline.passed):
        if wait_ready(fd, seconds=deadline.remaining):
            data = os.read(fd, 65536)
            if not data:
                break
            said += data
    return said

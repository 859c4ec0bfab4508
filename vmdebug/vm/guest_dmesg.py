"""Reads the kernel's messages with dmesg(1), in a guest whose memory cannot be read for lack of a vmlinux."""

from __future__ import annotations

from vmdebug.channel.log.trouble import Scanner, Trouble
from vmdebug.deadline import Deadline
from vmdebug.vm.machine import Vm

_ALL = "LC_ALL=C dmesg"
_FROM = _ALL + " | sed -n '/^\\[ *{time}\\]/,$p'"


class GuestDmesg:
    """Reads the messages incrementally, and finds trouble in them.

    Args:
        vm: The VM.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._scanner = Scanner(stamped=True)
        self._time = ""
        self._known = 0

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """The trouble in the messages read so far."""
        return self._scanner.troubles

    def look(self, *, deadline: Deadline) -> None:
        """Read the new messages; none without an agent in the guest, because nothing is typed on its console.

        Raises:
            StateError: the guest does not run.
            GuestDiedError: it has died.
            DeadlineError: it took too long.
        """
        self._vm.check_running("dmesg")
        found = self._vm.shell.found
        if found is None or found.kind == "serial":
            return
        lines = self._lines(_FROM.format(time=self._time), deadline) if self._time else []
        if lines:
            new = lines[self._known :]
        else:  # the kernel has dropped the last message of the previous call
            new = lines = self._lines(_ALL, deadline)
        self._scanner.feed("".join(f"{line}\n" for line in new).encode(errors="surrogateescape"))
        times = [_time(line) for line in lines]
        if times:
            self._time, self._known = times[-1], times.count(times[-1])

    def _lines(self, command: str, deadline: Deadline) -> list[str]:
        return self._vm.exec(command, timeout=deadline.left("dmesg in the guest")).stdout.splitlines()


def _time(line: str) -> str:
    """Return the time stamp of a line: "12.345678"."""
    return line.partition("]")[0].removeprefix("[").strip()

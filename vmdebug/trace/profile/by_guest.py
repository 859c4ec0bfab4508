"""Collects a profile with the perf events of the guest's kernel."""

from __future__ import annotations

import contextlib
import re
import time

from vmdebug.deadline import Deadline
from vmdebug.errors import GuestDiedError, StateError, UsageError, VmdebugError
from vmdebug.trace.guest.stream import Begin, CommandError, Reader
from vmdebug.trace.profile.mappings import Mappings, learn
from vmdebug.trace.profile.perf import Records
from vmdebug.trace.profile.raw import Collected

EVENTS = ("auto", "cycles", "cpu-clock")
"""The events that can be sampled; `auto` is `cycles` where the CPU counts them."""

NO_SAMPLES = "none"
"""Samples nothing, but tells about processes: for a profile that others take."""

LARGEST_FILE = 64 << 20
"""The most bytes of a program that is read from the guest for its symbols."""

_DENIED = (1, 13)
_NO_CALL = (38, 2, 19, 95)
_NO_MEMORY = 12


class GuestSampler:
    """Samples the CPUs of a guest.

    Args:
        begin: Starts the sampler in the guest.
        vm: The VM's name, for errors.
        event: See `EVENTS` and `NO_SAMPLES`.
        rate: Samples of each CPU a second.
        idle: Whether to sample idle CPUs, too.
        all_symbols: Whether to bring all of the guest's kallsyms, and not only those of modules.
        timeout: Seconds for the profile to begin, and to end.
    """

    name = "the guest's kernel"

    def __init__(
        self, begin: Begin, vm: str, *, event: str, rate: int, idle: bool, all_symbols: bool, timeout: float
    ) -> None:
        if event not in (*EVENTS, NO_SAMPLES):
            raise UsageError(f"there is no event {event!r}", hint=f"the events are {', '.join(EVENTS)}")
        self._begin = begin
        self._vm = vm
        self._event = event
        self._rate = rate
        self._idle = idle
        self._symbols = "" if all_symbols else "\t["
        self._timeout = timeout
        self._mappings = Mappings()
        self._reader: Reader | None = None
        self.ours: tuple[int, ...] = ()
        """The processes of vmdebug in the guest."""

    def start(self) -> None:
        """Begin.

        Raises:
            StateError: the guest's kernel has no perf events, or does not allow them.
            VmdebugError: the guest cannot run the sampler.
        """
        deadline = Deadline.after(self._timeout)
        reader = Reader(self._begin, service="the guest's perf events")
        try:
            self.ours = reader.greet(deadline)
            (event,) = self._ask_begin(reader, deadline)
            self._event = event.decode()
            self._started = time.monotonic()
            (maps,) = reader.ask("maps", deadline=deadline)
            self._names = learn(self._mappings, maps.decode(errors="replace"))
        except BaseException:
            with contextlib.suppress(VmdebugError):
                reader.finish()
            raise
        self._reader = reader

    def _ask_begin(self, reader: Reader, deadline: Deadline) -> list[bytes]:
        command = f"begin {self._event} {self._rate} {int(self._idle)}"
        try:
            return reader.ask(command, deadline=deadline)
        except CommandError as error:
            raise self._unable(error) from error

    def _unable(self, error: CommandError) -> StateError:
        if error.number in _DENIED:
            why = "its kernel is locked down, or vmdebug's agent is not root"
            return StateError(
                f"the guest {self._vm} does not allow perf events: {why}", hint="boot it without lockdown="
            )
        if error.number in _NO_CALL:
            why = "has no CONFIG_PERF_EVENTS" if self._event != "cycles" else "has no counter of CPU cycles"
            hint = "" if self._event != "cycles" else "sample its clock: --event cpu-clock"
            return StateError(f"the guest {self._vm} {why}", hint=hint)
        if error.number == _NO_MEMORY:
            return StateError(
                f"the guest {self._vm} has too little memory for perf events", hint="start it with more"
            )
        return StateError(f"the guest {self._vm} refuses perf events: {error.message.rpartition(': ')[2]}")

    def stop(self) -> Collected:
        """End the profile, and return it; `Collected.read_file` works until `close`.

        Raises:
            VmdebugError: the guest has died, or does not answer.
        """
        if self._reader is None:
            raise StateError("the profile is not running")
        reader, deadline = self._reader, Deadline.after(self._timeout)
        reader.ask("end", deadline=deadline)
        seconds = time.monotonic() - self._started
        (symbols,) = reader.ask(f"symbols {self._symbols}", deadline=deadline)
        rings: dict[int, bytearray] = {}
        for cpu, data in reader.take(last=True).pages:
            rings.setdefault(cpu, bytearray()).extend(data)
        records = Records(self._mappings, self._names)
        records.add({cpu: bytes(data) for cpu, data in rings.items()})
        samples = [each for each in records.samples if each.pid not in self.ours]
        hardware = self._event == "cycles"
        return Collected(
            samples=samples,
            unit="cycles" if hardware else "ns",
            period=0 if hardware else 1_000_000_000 // self._rate,
            seconds=seconds,
            kallsyms=symbols.decode(errors="replace"),
            mapping=self._mappings.find,
            read_file=self._read_file,
            notes=tuple(self._notes(records, len(records.samples) - len(samples))),
        )

    def _notes(self, records: Records, ours: int) -> list[str]:
        notes = []
        if records.lost:
            notes.append(f"{records.lost} records were lost: they came faster than vmdebug could read them")
        if records.throttled:
            notes.append(f"the guest's kernel has sampled less often for a while ({records.throttled} times)")
        if ours:
            notes.append(f"{ours} samples of vmdebug's own programs in the guest are left out")
        return notes

    def _read_file(self, pid: int, path: str) -> bytes | None:
        """Return a file as a process sees it; from the guest's root if the process has ended."""
        if self._reader is None or not re.match("/[^\n]*$", path):
            return None
        deadline = Deadline.after(self._timeout)
        commands = [f"read {LARGEST_FILE} {root}{path}" for root in (f"/proc/{pid}/root", "")]
        for command in commands:
            (found,) = self._reader.answers(command, deadline=deadline)
            if isinstance(found, bytes):
                return found
        return None

    def close(self) -> None:
        """End the sampler in the guest."""
        reader, self._reader = self._reader, None
        if reader is not None:
            try:
                reader.finish()
            except GuestDiedError:
                reader.abandon()

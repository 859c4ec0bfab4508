"""The events of one trace in the guest's tracefs: defined, filtered, described and armed."""

from __future__ import annotations

from collections.abc import Sequence

from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, UsageError, VmdebugError
from vmdebug.trace.guest import events, files, formats
from vmdebug.trace.guest.events import DEFINITIONS, FPROBE_DEFINITIONS, Event
from vmdebug.trace.guest.formats import Format
from vmdebug.trace.guest.stream import CommandError, Reader
from vmdebug.trace.probe import Wanted

FRAGMENT = "build its kernel with the fragment `trace`: vmdebug kernel config -f trace"

_FPROBES = b"<func-name>[%return]"
"""What tracefs' own help says of fprobe events; see `readme_msg` of kernel/trace/trace.c."""

_NO_ENTRY, _NO_DEVICE = 2, 19
_DENIED = (1, 13)


class EventGroup:
    """The events of one trace.

    Args:
        reader: The reader in the guest.
        vm: The VM's name, for errors.
        wanted: The trace.
        traced: Its events.
        mark: What tells their names from those of other traces.
        directory: The tracefs instance that records them.
    """

    def __init__(
        self, reader: Reader, vm: str, wanted: Wanted, traced: Sequence[Event], *, mark: str, directory: str
    ) -> None:
        self._reader = reader
        self._vm = vm
        self._wanted = wanted
        self._events = tuple(traced)
        self._mark = mark
        self._group = f"vmdebug_{mark}"
        self._directory = directory

    def define(self, deadline: Deadline) -> None:
        """Define the events: as fprobe events where the kernel can, otherwise as kprobe events.

        Raises:
            StateError: the kernel refuses one.
        """
        fast = self._define_fprobes(deadline)
        defined = [each for each in self._events if each.definition and each not in fast]
        answers = self._reader.answers(
            *(self._definition(each, DEFINITIONS, each.definition) for each in defined), deadline=deadline
        )
        for event, found in zip(defined, answers, strict=True):
            if isinstance(found, CommandError):
                missing = found.number == _NO_ENTRY
                raise unable(found, self._vm) if missing else self._refused(event, found, deadline)

    def _define_fprobes(self, deadline: Deadline) -> list[Event]:
        """Define what can be fprobe events, and return it: nothing on kernels before Linux 6.5.

        They are enabled at once, in the instance, which does not record yet: the kernel accepts definitions
        for functions that ftrace does not know, and refuses to enable them.
        """
        able = [each for each in self._events if each.fprobe]
        if not able:
            return []
        (help_text,) = self._reader.answers("read README", deadline=deadline)
        if not isinstance(help_text, bytes) or _FPROBES not in help_text:
            return []
        commands = [self._definition(each, FPROBE_DEFINITIONS, each.fprobe) for each in able]
        answers = self._reader.answers(*commands, deadline=deadline)
        made = [each for each, found in zip(able, answers, strict=True) if isinstance(found, bytes)]
        answers = self._reader.answers(*map(self._enabling, made), deadline=deadline)
        fast = [each for each, found in zip(made, answers, strict=True) if isinstance(found, bytes)]
        unknown = [f"write {FPROBE_DEFINITIONS} -:{self._path(each)}" for each in made if each not in fast]
        self._reader.answers(*unknown, deadline=deadline)
        return fast

    def _enabling(self, event: Event) -> str:
        return f"write {self._directory}/events/{self._path(event)}/enable 1"

    def _definition(self, event: Event, file: str, text: str) -> str:
        name = f"{self._group}/{self.name(event)}"
        return f"probe {file} {name} {text.format(name=name)}"

    def name(self, event: Event) -> str:
        """Return the name of an event: kprobe_profile has it without its group."""
        return f"{event.name}_{self._mark}" if event.definition else event.name

    def _refused(self, event: Event, error: CommandError, deadline: Deadline) -> VmdebugError:
        """Return the error for an event that the kernel refuses."""
        where = self._wanted.probes[event.probe].where
        (found,) = self._reader.answers("debug kprobes/blacklist", deadline=deadline)
        if isinstance(found, bytes) and any(
            low <= event.address < high for low, high in files.blacklist(found.decode(errors="replace"))
        ):
            return StateError(
                f"the guest's kernel does not allow kprobes in {where}: it is on its list of functions that"
                " kprobes themselves need (NOKPROBE_SYMBOL)",
                hint="let QEMU's plugin or GDB collect it",
            )
        return StateError(
            f"the guest's kernel refuses a kprobe in {where}: {error.message.rpartition(': ')[2]}",
            hint="let QEMU's plugin or GDB collect it",
            detail=error.detail,
        )

    def filter(self, deadline: Deadline) -> bool:
        """Set the filters; return whether the kernel has accepted all of them.

        Raises:
            UsageError: it has not accepted that of a tracepoint, which nothing else can check.
        """
        commands = [
            f"write {self._directory}/events/{self._path(each)}/filter {each.filter}"
            for each in self._events
            if each.filter
        ]
        answers = self._reader.answers(*commands, deadline=deadline)
        refused = [each for each in answers if isinstance(each, CommandError)]
        if refused and any(not each.definition for each in self._events):
            raise UsageError(
                f"tracefs refuses the condition {self._wanted.when} of a tracepoint",
                hint='compare its fields with numbers or strings: next_pid == 1 && prev_comm == "sh"',
                detail=refused[0].detail,
            )
        return not refused

    def _path(self, event: Event) -> str:
        return f"{self._group}/{self.name(event)}" if event.definition else event.name.replace(":", "/")

    def formats(self, deadline: Deadline) -> list[tuple[Event, Format]]:
        """Return the events with their formats; tracepoints with the fields to read.

        Raises:
            UsageError: there is no such tracepoint, or it has no such field.
        """
        return [self._described(each, deadline) for each in self._events]

    def _described(self, event: Event, deadline: Deadline) -> tuple[Event, Format]:
        try:
            form = read_format(self._reader, self._path(event), deadline)
        except CommandError as error:
            if event.definition or error.number != _NO_ENTRY:
                raise
            raise UsageError(
                f"the guest's kernel has no tracepoint {event.name}",
                hint="`ls /sys/kernel/tracing/events` in the guest lists the groups",
            ) from error
        texts = self._wanted.probes[event.probe].args
        return (event if event.definition else events.with_fields(event, texts, form)), form

    def enable(self, deadline: Deadline) -> None:
        """Arm the probes; returns first, so that no entry lacks its return."""
        order = sorted(self._events, key=lambda event: not event.returns)
        answers = self._reader.answers(*map(self._enabling, order), deadline=deadline)
        for event, found in zip(order, answers, strict=True):
            if isinstance(found, CommandError):
                raise self._refused(event, found, deadline)


def read_format(reader: Reader, path: str, deadline: Deadline) -> Format:
    """Return the format of the records of an event, GROUP/EVENT."""
    (text,) = reader.ask(f"read events/{path}/format", deadline=deadline)
    return formats.parse(text.decode())


def unable(error: CommandError, vm: str) -> VmdebugError:
    """Return the error for a guest without tracefs or kprobe events."""
    if error.number in _DENIED:
        return StateError(
            f"the guest {vm} does not give access to tracefs: its kernel is locked down, or the"
            " agent is not root",
            hint="boot it without lockdown=",
        )
    option = "CONFIG_KPROBE_EVENTS" if error.number == _NO_ENTRY else "CONFIG_FTRACE"
    return StateError(f"the kernel of {vm} has no {option}, which its own traces need", hint=FRAGMENT)

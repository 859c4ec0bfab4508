"""Finds the trouble of a VM's kernel: on the console, in the kernel's log, in QEMU's state."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from vmdebug.channel.log.trouble import Trouble, as_logged, unseen
from vmdebug.channel.log.watcher import Watcher
from vmdebug.deadline import Deadline
from vmdebug.errors import StateError, VmdebugError
from vmdebug.vm.guest_dmesg import GuestDmesg
from vmdebug.vm.hidden_death import LOOK_SECONDS
from vmdebug.vm.kernel_log import KernelLog
from vmdebug.vm.machine import Vm

SETTLE_SECONDS = 1.0
"""How long the kernel may take to print the rest of a splat."""

_FAILED = ("internal-error", "io-error")
"""QEMU's run states for a guest that it cannot continue; see `RunState` of qemu-qmp-ref."""


class KernelTrouble:
    """The trouble of one VM's kernel; a context manager.

    Args:
        vm: The VM.
    """

    def __init__(self, vm: Vm) -> None:
        self.console = Watcher(vm.rundir.console_log)
        """Follows the console's log; the rest is only read by `look`."""
        self.hidden: list[Trouble] = []
        """The trouble that the console did not show."""
        self.stopped_by = ""
        """QEMU's run state, if QEMU cannot continue the guest."""
        self._vm = vm
        self._log = KernelLog(vm)
        self._dmesg = GuestDmesg(vm)
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start to follow the console's log.

        Raises:
            FileNotFoundError: the VM has ended.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(self.console)
            held.enter_context(self._log)
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @property
    def known(self) -> tuple[Trouble, ...]:
        """All trouble found so far; the last splats may be incomplete."""
        return (*self.console.troubles, *self.hidden)

    def all(self) -> tuple[Trouble, ...]:
        """Wait for the end of splats, `look`, and return all trouble with the texts of the kernel's log."""
        self.console.settle(Deadline.after(SETTLE_SECONDS))
        self.look()
        return as_logged(self.known, self._logged)

    def look(self) -> None:
        """Look for trouble that the console does not show, in the kernel's log and with QMP."""
        self.console.poll()
        deadline = Deadline.after(LOOK_SECONDS)
        with contextlib.suppress(VmdebugError):  # QEMU has ended
            try:
                state = self._log.look(deadline=deadline)
            except StateError:
                # The log cannot be found in memory, but QEMU knows whether the guest has panicked.
                state = self._vm.qmp("query-status", timeout=LOOK_SECONDS)["status"]
                with contextlib.suppress(VmdebugError):  # the guest is stopped, or does not answer
                    self._dmesg.look(deadline=deadline)
            self.hidden += unseen(self._logged, self.known)
            self._take_state(state)

    @property
    def _logged(self) -> tuple[Trouble, ...]:
        """The trouble in the kernel's log so far."""
        return (*self._log.troubles, *self._dmesg.troubles)

    def _take_state(self, state: str) -> None:
        """Record QEMU's run state: a panic may not have reached the console or the log."""
        self.stopped_by = state if state in _FAILED else ""
        if state == "guest-panicked" and not any(each.kind == "panic" for each in self.known):
            words = "the guest has panicked: QEMU's state is guest-panicked"
            self.hidden.append(Trouble(kind="panic", headline=words, text=words, complete=True))


class NewTrouble:
    """The trouble of one VM's kernel since the last look; a context manager.

    Args:
        vm: The VM.
        earlier: Whether trouble from before the block counts as new.
    """

    def __init__(self, vm: Vm, *, earlier: bool = False) -> None:
        self._kernel = KernelTrouble(vm)
        self._earlier = earlier
        self._shown = self._hidden = 0

    def __enter__(self) -> Self:
        """Start to follow the console's log.

        Raises:
            FileNotFoundError: the VM has ended.
        """
        self._kernel.__enter__()
        if not self._earlier:
            self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kernel.__exit__(kind, error, trace)

    def take(self) -> tuple[Trouble, ...]:
        """Look for trouble, and return what is new, with the texts of the kernel's log."""
        now = self._kernel.all()
        shown = len(self._kernel.console.troubles)
        new = (*now[self._shown : shown], *now[shown + self._hidden :])
        self._shown, self._hidden = shown, len(self._kernel.hidden)
        return new

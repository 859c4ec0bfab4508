"""`drgn`, `stack_trace`, `task_stacks` of a session; drgn, which is optional, is imported at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmdebug import extras
from vmdebug.vm import Vm

if TYPE_CHECKING:
    from vmdebug.drgn_program.live import Opened
    from vmdebug.drgn_program.task_stacks import TaskStacks
    from vmdebug.drgn_program.types import Object, Program, StackTrace


class DrgnAccess:
    """drgn on a session's guest."""

    vm: Vm

    attach_timeout: float

    _force: bool

    _drgn: Opened | None
    """The program and its notes; None until its first use, and after the guest has become another one."""

    _listing: tuple[Program, TaskStacks] | None = None
    """What prints the tasks of a program."""

    @property
    def drgn(self) -> Program:
        """A `drgn.Program` of the guest's kernel, which reads guest memory and does not stop the guest.

        The symbols are those of vmlinux and of the modules that are loaded at the first use, and are proven
        to be those in memory.

        Raises:
            HostError: drgn is not installed.
            UsageError: there is no vmlinux with debugging information.
            MismatchError: the symbols do not belong to the kernel in guest memory.
            StateError: the kernel has not started.
            DeadlineError: QEMU did not answer within `attach_timeout`.
        """
        if self._drgn is None:
            extras.DRGN.need("session.drgn")
            from vmdebug.drgn_program import live  # noqa: PLC0415 - drgn is optional

            self._drgn = live.open_program(self.vm, force=self._force, timeout=self.attach_timeout)
        return self._drgn.program

    def stack_trace(self, task: Object | int) -> StackTrace:
        """Return the stack of a task by drgn, also of one that a CPU of the stopped guest runs.

        Args:
            task: A `struct task_struct *` of `drgn`, or a pid.

        Raises:
            StateError: the task runs now.
            UsageError: there is no task with that pid.
            VmdebugError: see `drgn`.
        """
        program = self.drgn
        from vmdebug.drgn_program.stacks import Stacks  # noqa: PLC0415 - drgn is optional

        return Stacks(program, self.vm)(task)

    def task_stacks(self) -> str:
        """Return all tasks with their pids, names and stacks, by drgn, as text.

        It takes a few milliseconds, after the first time. The tasks that the CPUs of a running guest run have
        no stacks.

        Raises:
            VmdebugError: see `drgn`.
        """
        program = self.drgn
        if self._listing is None or self._listing[0] is not program:
            from vmdebug.drgn_program.stacks import Stacks  # noqa: PLC0415 - drgn is optional
            from vmdebug.drgn_program.task_stacks import TaskStacks  # noqa: PLC0415

            of_cpu = Stacks(program, self.vm).of_cpu
            self._listing = program, TaskStacks(program, self.vm.state.spec.kernel, of_cpu)
        return self._listing[1]()

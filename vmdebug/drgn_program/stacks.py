"""Stacks of tasks, also of those that a CPU of a stopped VM runs; drgn itself has those of sleeping tasks."""

from __future__ import annotations

import re

import drgn
from drgn.helpers.linux.pid import find_task
from drgn.helpers.linux.sched import cpu_curr, task_cpu

from vmdebug import arch
from vmdebug.errors import StateError, UsageError
from vmdebug.vm import Vm, kernel_address

_REGISTER = re.compile(r"\b([A-Z][A-Z0-9]+) *=([0-9a-f]+)\b")
_CPU = re.compile(r"^CPU#", re.MULTILINE)
_OTHERWISE = {"eflags": "rfl"}
"""QEMU's names of registers in x86_cpu_dump_state of target/i386/cpu-dump.c, where they are not GDB's."""

_WORD = 8


class Stacks:
    """Returns the stacks of a VM's tasks.

    Args:
        program: A program of the VM.
        vm: The VM.
    """

    def __init__(self, program: drgn.Program, vm: Vm) -> None:
        self._program = program
        self._vm = vm

    def __call__(self, task: drgn.Object | int) -> drgn.StackTrace:
        """Return the stack of a task: a `struct task_struct *`, or a pid.

        Raises:
            StateError: a CPU of the running guest runs the task.
            UsageError: there is no task with that pid.
        """
        where = find_task(self._program, task) if isinstance(task, int) else task
        if not where:
            raise UsageError(f"there is no task with pid {task}", hint="list them: for_each_task()")
        cpu = self._cpu(where)
        return self._program.stack_trace(where) if cpu is None else self.of_cpu(cpu)

    def of_cpu(self, cpu: int) -> drgn.StackTrace:
        """Return the stack of a CPU of the stopped guest.

        Raises:
            StateError: the guest runs.
            UsageError: there is no such CPU.
        """
        if self._vm.status() == "running":
            raise StateError(
                f"the stack of CPU {cpu} changes while {self._vm.name} runs",
                hint="stop it first: attach GDB, or call session.vm.pause()",
            )
        return self._program.stack_trace(self._registers(cpu))

    def _cpu(self, task: drgn.Object) -> int | None:
        """Return the CPU that runs a task; None if none does."""
        cpu = int(task_cpu(task))
        return cpu if cpu_curr(self._program, cpu).value_() == task.value_() else None

    def _registers(self, cpu: int) -> drgn.Object:
        """Return the registers of a CPU as a `struct pt_regs`."""
        blocks = _CPU.split(kernel_address.registers(self._vm.qmp))[1:]
        if not 0 <= cpu < len(blocks):
            raise UsageError(f"there is no CPU {cpu}", hint=f"the guest has {len(blocks)}")
        said = {name.lower(): int(value, 16) for name, value in _REGISTER.findall(blocks[cpu])}
        facts = arch.by_name(self._vm.state.spec.kernel.arch).debug
        values = [said.get(_OTHERWISE.get(name, name), 0) for name in facts.pt_regs]
        data = b"".join(value.to_bytes(_WORD, "little") for value in values)
        return drgn.Object.from_bytes_(self._program, "struct pt_regs", data)

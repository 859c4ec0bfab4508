"""What the scheduler and the interrupts of a guest do beside the hits of a trace."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Activity(msgspec.Struct, frozen=True):
    """One event of a CPU's scheduler or interrupts: a record of a tracepoint.

    Args:
        event: The name of the tracepoint: "sched_switch", "irq_handler_entry".
        time: Seconds since the trace started.
        cpu: Number of the CPU, from 0.
        pid: The task that the CPU ran (`task->pid`).
        fields: The fields of the tracepoint, see `TRACEPOINTS`.
    """

    event: str
    time: float
    cpu: int
    pid: int
    fields: dict[str, int | str]


TRACEPOINTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sched": {
        "sched:sched_switch": (
            *("prev_comm", "prev_pid", "prev_prio", "prev_state"),
            *("next_comm", "next_pid", "next_prio"),
        ),
        "sched:sched_waking": ("comm", "pid", "prio", "target_cpu"),
    },
    "irqs": {
        "irq:irq_handler_entry": ("irq", "name"),
        "irq:irq_handler_exit": ("irq", "ret"),
        "irq:softirq_entry": ("vec",),
        "irq:softirq_exit": ("vec",),
        # x86's timer interrupt has no handler; others have an irq_handler for it.
        "irq_vectors:local_timer_entry": ("vector",),
        "irq_vectors:local_timer_exit": ("vector",),
    },
}
"""The tracepoints of each option of a trace, and the fields that are recorded; a kernel need not have all.

See include/trace/events/{sched,irq}.h and arch/x86/include/asm/trace/irq_vectors.h of the kernel.
"""

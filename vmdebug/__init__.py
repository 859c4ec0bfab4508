"""Start a Linux guest in QEMU under GDB: the public API.

Each name is imported when it is first used, so that `vmdebug --help` imports none of them. This module itself
imports nothing: until `cli.status_of` runs, Ctrl-C prints Python's traceback.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as `typing` defines it, whose import takes half of the time until then
if TYPE_CHECKING:
    from typing import Any

    from vmdebug.channel.serial.console import Console
    from vmdebug.channel.shell import ExecResult, Job
    from vmdebug.covering import Coverage
    from vmdebug.debugger.breakpoint import Breakpoint
    from vmdebug.debugger.gdb import Gdb
    from vmdebug.debugger.stop import Frame, Stop, Thread
    from vmdebug.debugger.value import Value
    from vmdebug.errors import (
        BuildError,
        DeadlineError,
        GdbError,
        GuestDiedError,
        HostError,
        LaunchError,
        MismatchError,
        QmpError,
        StateError,
        UsageError,
        VmdebugError,
        VmError,
    )
    from vmdebug.guest_options import GuestOptions, StartOptions
    from vmdebug.ktests.results import KernelTestPoint, KernelTestResults
    from vmdebug.nixos_test import start_node
    from vmdebug.profiling import ProfileOptions, Profiling
    from vmdebug.recording.positions import Position
    from vmdebug.session import DebugSession, attach, replay, start
    from vmdebug.trace.activity import Activity
    from vmdebug.trace.coverage.mapping import Lines
    from vmdebug.trace.hit import Call, Hit, Task
    from vmdebug.trace.probe import Probe, TraceOptions
    from vmdebug.trace.profile.profile import Profile, ProfileFrame, ProfileSample, ProfileTask
    from vmdebug.trace.trace import Trace
    from vmdebug.vm.machine import Vm
    from vmdebug.vm.snapshot import Snapshot

_HOMES = {
    "vmdebug.session": ("DebugSession", "attach", "replay", "start"),
    "vmdebug.nixos_test": ("start_node",),
    "vmdebug.ktests.results": ("KernelTestPoint", "KernelTestResults"),
    "vmdebug.channel.shell": ("ExecResult", "Job"),
    "vmdebug.recording.positions": ("Position",),
    "vmdebug.vm.machine": ("Vm",),
    "vmdebug.channel.serial.console": ("Console",),
    "vmdebug.vm.snapshot": ("Snapshot",),
    "vmdebug.guest_options": ("GuestOptions", "StartOptions"),
    "vmdebug.trace.activity": ("Activity",),
    "vmdebug.trace.hit": ("Call", "Hit", "Task"),
    "vmdebug.trace.probe": ("Probe", "TraceOptions"),
    "vmdebug.covering": ("Coverage",),
    "vmdebug.trace.coverage.mapping": ("Lines",),
    "vmdebug.trace.trace": ("Trace",),
    "vmdebug.trace.profile.profile": ("Profile", "ProfileFrame", "ProfileSample", "ProfileTask"),
    "vmdebug.profiling": ("ProfileOptions", "Profiling"),
    "vmdebug.debugger.gdb": ("Gdb",),
    "vmdebug.debugger.breakpoint": ("Breakpoint",),
    "vmdebug.debugger.stop": ("Frame", "Stop", "Thread"),
    "vmdebug.debugger.value": ("Value",),
    "vmdebug.errors": (
        "BuildError",
        "DeadlineError",
        "GdbError",
        "GuestDiedError",
        "HostError",
        "LaunchError",
        "MismatchError",
        "QmpError",
        "StateError",
        "UsageError",
        "VmError",
        "VmdebugError",
    ),
}

_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Activity",
    "Breakpoint",
    "BuildError",
    "Call",
    "Console",
    "Coverage",
    "DeadlineError",
    "DebugSession",
    "ExecResult",
    "Frame",
    "Gdb",
    "GdbError",
    "GuestDiedError",
    "GuestOptions",
    "Hit",
    "HostError",
    "Job",
    "KernelTestPoint",
    "KernelTestResults",
    "LaunchError",
    "Lines",
    "MismatchError",
    "Position",
    "Probe",
    "Profile",
    "ProfileFrame",
    "ProfileOptions",
    "ProfileSample",
    "ProfileTask",
    "Profiling",
    "QmpError",
    "Snapshot",
    "StartOptions",
    "StateError",
    "Stop",
    "Task",
    "Thread",
    "Trace",
    "TraceOptions",
    "UsageError",
    "Value",
    "Vm",
    "VmError",
    "VmdebugError",
    "attach",
    "replay",
    "start",
    "start_node",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vmdebug' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - see the module

    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__

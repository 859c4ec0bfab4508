"""The public API: what `import vmdebug` offers, and what it costs."""

from __future__ import annotations

import inspect
import sys
import typing

import pytest

import vmdebug
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.guest_options import StartOptions


@pytest.mark.parametrize("name", vmdebug.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(vmdebug, name)
    assert found.__name__ == name
    assert inspect.getdoc(found)


def test_what_scripts_annotate_with_is_public() -> None:
    wanted = {"Trace", "Hit", "Snapshot", "Stop", "Frame", "Value", "GuestOptions", "StartOptions"}
    assert wanted <= {*vmdebug.__all__}


def test_importing_it_imports_none_of_them() -> None:
    script = "import sys, vmdebug; print([name for name in sys.modules if name.startswith('vmdebug.')])"
    done = process.run([sys.executable, "-c", script], deadline=Deadline.after(60))
    assert done.stdout.strip() == "[]"


def test_start_takes_the_options_by_type() -> None:
    hints = typing.get_type_hints(vmdebug.start)
    assert hints["options"] == typing.Unpack[StartOptions]


def test_an_unknown_option_is_named_before_anything_starts() -> None:
    with pytest.raises(vmdebug.UsageError, match="there is no option kernal=") as raised:
        vmdebug.start("builtin", kernal="/k")  # type: ignore[call-arg]
    assert raised.value.hint == "did you mean kernel=?"


ANSWERED_AT_ONCE = {
    "Console": {"tail"},
    "Coverage": {"clear", "detach", "lines", "resume", "save"},
    "DebugSession": {"check_running", "exchanges", "stack_trace", "task_stacks"},
    "Gdb": {"check_stop", "exchanges", "fileno", "replaced", "resume", "runs"},
    "GuestOptions": {"speller"},
    "KernelTestPoint": {"explained"},
    "KernelTestResults": {"allowing", "failures", "judged", "troubles"},
    "Job": {"cancel", "result_by", "settle"},
    "Profile": {"by_task", "check", "encode", "folded", "functions", "load"},
    "Position": {"describe"},
    "Thread": {"of"},
    "Lines": {"merged"},
    "Trace": {"count", "index", "take"},
    "Value": {
        "cast_",
        "container_of_",
        "deref_",
        "enumerator_",
        "per_cpu_ptr_",
        "string_",
        "to_python_",
    },
    "Vm": {"cause_of_death", "check_alive", "check_running", "console", "keep"},
}
"""The methods that neither wait for the guest nor for more than one answer of GDB or QEMU."""


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in vmdebug.__all__
        if not (name.endswith("Error") or typing.is_typeddict(getattr(vmdebug, name)))
    ],
)
def test_every_other_call_takes_a_timeout_in_seconds(name: str) -> None:
    found = getattr(vmdebug, name)
    calls = {name: found} if inspect.isfunction(found) else dict(inspect.getmembers(found, callable))
    without = {
        called
        for called, call in calls.items()
        if not called.startswith("_") and "timeout" not in inspect.signature(call).parameters
    }
    assert without == ANSWERED_AT_ONCE.get(name, set())
    for called in calls.keys() - without:
        if not called.startswith("_"):
            assert inspect.signature(calls[called]).parameters["timeout"].annotation == "float"

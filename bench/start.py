"""`start --halt` and `attach --until start_kernel` against `qemu -S` and `gdb -ex` by hand.

The baseline uses the same QEMU, machine, kernel, initramfs and parameters, and a plain GDB. vmdebug does
more in its time (build-id check, run directory, QMP, kernel scripts). It uses GDB's index cache, which
`attach` turns on; the warm-up run fills it.
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from pathlib import Path

from bench import first_function
from bench.figure import VMDEBUG, Figure, in_turn
from vmdebug import process
from vmdebug.deadline import Deadline

GOAL = 1.15
ROUNDS = 7
SECONDS = 300.0
NAME = "bench-start"


def figures() -> list[Figure]:
    """Time both under TCG: under KVM the baseline would need another kind of breakpoint."""
    spec = json.loads(_run(VMDEBUG, "start", "builtin", "--accel", "tcg", "--dry-run", "--json"))
    ours, baseline = in_turn(_ours, lambda: _by_hand(spec), rounds=ROUNDS)
    return [Figure("start", ours, baseline, GOAL, "s", "qemu -S, gdb -ex")]


def _ours() -> float:
    return sum(first_function.times("builtin", name=NAME))


def _by_hand(spec: dict[str, object]) -> float:
    with tempfile.TemporaryDirectory(prefix="vmd-") as directory:
        socket = f"{directory}/gdb.sock"
        begin = time.perf_counter()
        # With `-daemonize` the command returns when QEMU listens, as for somebody at a shell prompt.
        _run(*_qemu(spec, socket), "-daemonize", "-pidfile", f"{directory}/pid")
        try:
            trace = _run(*_gdb(spec, socket))
            took = time.perf_counter() - begin
        finally:
            _kill(int(Path(directory, "pid").read_text()))
    assert f"#0  {first_function.SYMBOL}" in trace, trace
    return took


def _qemu(spec: dict[str, object], socket: str) -> list[str]:
    kernel, machine = spec["kernel"], spec["machine"]
    assert isinstance(kernel, dict)
    assert isinstance(machine, dict)
    parameters = spec["parameters"]
    assert isinstance(parameters, list)
    options = {
        "-machine": "q35",
        "-accel": "tcg",
        "-cpu": "max",
        "-m": str(spec["memory"] or 512),
        "-kernel": kernel["image"],
        "-initrd": machine["initrd"],
        "-append": " ".join(parameters),
        "-chardev": f"socket,id=gdb0,path={socket},server=on,wait=off",
        "-gdb": "chardev:gdb0",
        "-display": "none",
        "-serial": "null",
    }
    return ["qemu-system-x86_64", *(word for pair in options.items() for word in pair), "-no-reboot", "-S"]


def _gdb(spec: dict[str, object], socket: str) -> list[str]:
    kernel = spec["kernel"]
    assert isinstance(kernel, dict)
    commands = [f"target remote {socket}", f"break {first_function.SYMBOL}", "continue", "bt"]
    arguments = [word for command in commands for word in ("-ex", command)]
    return ["gdb", "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", *arguments, kernel["vmlinux"]]


def _kill(pid: int) -> None:
    running = process.ProcessRef.of(pid)
    if running is not None:
        running.signal(signal.SIGKILL)
        running.wait(10)


def _run(*argv: str | Path) -> str:
    return process.run(argv, deadline=Deadline.after(SECONDS)).stdout

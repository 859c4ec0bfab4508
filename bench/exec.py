"""`exec` by the agent in the guest against the serial line: 8 MiB out, 8 MiB in, and one short command.

Both transfers alternate in the same guest. The figures are rates, because the serial line gets less data:
8 MiB into the guest would take an hour. The short command is `vmdebug exec NAME -- true`, against the last
commit that typed commands into the console, which the benchmark takes from this checkout's history and
installs in a temporary directory; each build has its own guest.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figure import Figure, in_turn
from vmdebug import process, sources
from vmdebug.channel.serial.serial_shell import SerialShell
from vmdebug.channel.shell import Shell, Streams, command_line
from vmdebug.deadline import Deadline
from vmdebug.guest_options import GuestOptions
from vmdebug.progress import silent
from vmdebug.vm import Vm, launch

MIB = 1 << 20
BYTES = 8 << 20
SERIAL_OUT = 1 << 20
SERIAL_IN = 1 << 15
FASTER = 8.0
SHORT_GOAL = 0.75
BEFORE = "29a9777"
"""The last commit whose `exec` typed into the console."""

ROUNDS = 2
SHORT_ROUNDS = 9
SECONDS = 900.0


def figures() -> list[Figure]:
    """Time all three."""
    spec = sources.resolve(GuestOptions(source="builtin", accel="tcg"), report=silent, deadline=_soon())
    with launch(spec, bound=True, exact_name=False, timeout=SECONDS) as vm:
        found = _megabytes(vm)
    return [*found, _short()]


def _megabytes(vm: Vm) -> list[Figure]:
    """Time 8 MiB of random bytes in each direction, and compare what arrives with what was sent."""
    agent = vm.shell.wait(_soon())
    assert vm.shell.found
    assert vm.shell.found.kind == "agent"
    serial = SerialShell(vm.rundir.ways.console, vm.rundir.console_log, owner=vm.shell)
    data = os.urandom(BYTES)
    _into(agent, data, "data")
    less, least = data[:SERIAL_OUT], data[:SERIAL_IN]
    out = in_turn(lambda: _out_of(agent, data), lambda: _out_of(serial, less), rounds=ROUNDS, warm_up=0)
    into = in_turn(lambda: _into(agent, data), lambda: _into(serial, least), rounds=ROUNDS, warm_up=0)
    rates = [
        (BYTES / MIB / ours, sent / MIB / baseline)
        for (ours, baseline), sent in ((out, SERIAL_OUT), (into, SERIAL_IN))
    ]
    return [
        Figure(name, ours, base, FASTER, "MiB/s", "the serial line, the same guest", more=True)
        for name, (ours, base) in zip(("exec-out", "exec-in"), rates, strict=True)
    ]


def _out_of(shell: Shell, data: bytes) -> None:
    line = command_line(f"head -c {len(data)} /run/data")
    done = shell.begin(line, Streams(), deadline=_soon()).result(_soon())
    assert done.stdout == data


def _into(shell: Shell, data: bytes, name: str = "input") -> None:
    line = command_line(f"cat >/run/{name}; md5sum /run/{name}")
    done = shell.begin(line, Streams(stdin=data), deadline=_soon()).result(_soon())
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert done.stdout.split()[:1] == [digest.encode()], done


def _short() -> Figure:
    with (
        tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as directory,
        _guest(Path(directory, "new"), {}) as ours,
        _guest(Path(directory, "old"), {"PYTHONPATH": _installed(Path(directory, "before"))}) as before,
    ):
        found = in_turn(lambda: _exec(ours), lambda: _exec(before), rounds=SHORT_ROUNDS)
    return Figure("exec-short", *found, SHORT_GOAL, "s", f"the same with {BEFORE}")


def _installed(target: Path) -> str:
    """Install the earlier build without its dependencies: it has the same ones as this build."""
    root = Path(__file__).resolve().parent.parent
    tree = target.with_name("tree")
    tree.mkdir()
    archive = target.with_name("before.tar")
    _run("git", "-C", str(root), "archive", "-o", str(archive), BEFORE)
    _run("tar", "-xf", str(archive), "-C", str(tree))
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(tree))
    _run(*pip)
    return str(target)


@contextmanager
def _guest(runtime: Path, changes: dict[str, str]) -> Iterator[dict[str, str]]:
    """Start a guest with one of the builds, and yield the environment in which that build finds it."""
    runtime.mkdir(mode=0o700)
    env = {**os.environ, **changes, "XDG_RUNTIME_DIR": str(runtime)}
    _run(*_vmdebug("start", "builtin", "--accel", "tcg", "--name", "short"), env=env)
    try:
        _exec(env)
        yield env
    finally:
        _run(*_vmdebug("stop", "--all", "--force"), env=env)


def _exec(env: dict[str, str]) -> float:
    begin = time.perf_counter()
    _run(*_vmdebug("exec", "short", "--", "true"), env=env)
    return time.perf_counter() - begin


def _vmdebug(*words: str) -> tuple[str, ...]:
    # Not in the current directory, from which Python would import this build's package.
    return (sys.executable, "-P", "-m", "vmdebug.cli", *words)


def _run(*words: str, env: dict[str, str] | None = None) -> None:
    process.run(words, env=env, deadline=_soon())


def _soon() -> Deadline:
    return Deadline.after(SECONDS)

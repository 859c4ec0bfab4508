"""Kill a verb, QEMU, GDB, pytest or one of its workers at a random moment, and look for what is left."""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from soak.result import Result, Rounds
from soak.world import HUNG, VMDEBUG, Ended, World, aftermath, world
from vmdebug import process
from vmdebug.process import ProcessRef

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
VICTIMS = ("itself", "itself", "qemu", "gdb", "any")
"""Who gets the signal: the verb (twice as often), or a process with this in its name."""

LATEST_SECONDS = 2.0
"""The longest time from the start of the verb to the signal."""

PATIENCE_SECONDS = 3.0
"""How long a verb may go on after another process was killed; then it gets a Ctrl-C."""

END_SECONDS = 60.0
"""How long a verb may take to end after a signal; longer counts as a hang."""

_SWALLOWED = "Failed checking if argv[0] is an import path entry"
"""Python prints this if it ignores a Ctrl-C before it runs the program; only another one ends it then."""

SUITE = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_guest(vm, number):
    assert vm.exec("echo hello").stdout == "hello\\\\n"

def test_breakpoint(gdb):
    assert gdb.breakpoint("do_sys_openat2").number
"""

SCRIPT = """
def main(session):
    session.gdb.breakpoint("do_sys_openat2")
    session.gdb.cont(wait=False)
    session.gdb.wait_stop(timeout=60)
"""


@dataclass(frozen=True, slots=True)
class Action:
    """A verb, or pytest, that gets disturbed.

    Args:
        words: The arguments of vmdebug; of pytest if `suite` is set.
        vm: Whether a VM named "s" must already run.
        suite: Whether it is pytest.
    """

    words: tuple[str, ...]
    vm: bool = True
    suite: bool = False


ACTIONS = (
    Action(("start", "builtin", "--name", "s"), vm=False),
    Action(("start", "builtin", "--name", "s", "--halt"), vm=False),
    Action(("start", "builtin", "--name", "s", "--fg"), vm=False),
    Action(("run", "script.py", "--guest", "builtin"), vm=False),
    Action(("suite.py",), vm=False, suite=True),
    Action(("suite.py", "-n", "2"), vm=False, suite=True),
    Action(("run", "script.py", "--name", "s")),
    Action(("exec", "s", "--", "sleep 1; seq 20000")),
    Action(("attach", "s", "--batch", "-ex", "bt")),
    Action(("attach", "s", "--batch", "--until", "do_sys_openat2", "--timeout", "5")),
    Action(("trace", "s", "vfs_read", "--count", "20")),
    Action(("console", "s")),
    Action(("log", "s", "-f")),
    Action(("dmesg", "s")),
    Action(("status", "s")),
    Action(("snapshot", "save", "s", "one")),
    Action(("clone", "s", "--count", "2")),
    Action(("restart", "s")),
    Action(("stop", "s")),
)


def run(count: int, rng: random.Random) -> Result:
    """Disturb a random action `count` times."""
    rounds = Rounds("kills")
    with world() as here:
        (here.root / "suite.py").write_text(SUITE)
        (here.root / "script.py").write_text(SCRIPT)
        for number in range(count):
            action, which, victim = rng.choice(ACTIONS), rng.choice(SIGNALS), rng.choice(VICTIMS)
            delay = rng.uniform(0, LATEST_SECONDS)
            what = f"kill {number}: {which.name} to {victim} {delay:.2f} s after {' '.join(action.words)}"
            problems = _disturb(here, action, which, delay=delay, victim=victim, rng=rng)
            rounds.add(which.name, what, problems)
            if problems:
                here.end()
    return rounds.result()


def _disturb(
    here: World, action: Action, which: signal.Signals, *, delay: float, victim: str, rng: random.Random
) -> list[str]:
    """Disturb an action once, and return what went wrong."""
    if action.vm and (started := here.run("start", "builtin", "--name", "s")).status:
        return [f"the VM does not start: {started.output[-300:]}"]
    with tempfile.TemporaryFile(dir=here.root) as output:
        child = process.start(
            _program(action), env=here.env, cwd=here.root, stdin=process.PIPE, stdout=output, stderr=output
        )
        try:
            time.sleep(delay)  # the test is about a signal at a random moment
            for ref in _victims(here, victim, child.pid, rng):
                ref.signal(which)
            ended = _end(child, output, forced=victim == "itself")
        finally:
            process.end_group(child)
            if child.stdin is not None:
                child.stdin.close()
    problems = []
    if ended.status == HUNG:
        problems.append(f"it hung: {ended.output[-300:]}")
    if ended.traceback and not action.suite:
        problems.append(f"a traceback: {ended.output[-600:]}")
    return problems + aftermath(here)


def _program(action: Action) -> Sequence[str | Path]:
    if action.suite:
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *action.words]
    return [VMDEBUG, *action.words]


def _victims(here: World, victim: str, pid: int, rng: random.Random) -> list[ProcessRef]:
    """Return the processes to signal; none if no process of that name runs at the moment."""
    if victim == "itself":
        ref = ProcessRef.of(pid)
        return [] if ref is None else [ref]
    found = [ref for ref in here.processes() if victim == "any" or victim in _name(ref.pid)]
    return [rng.choice(found)] if found else []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def _end(child: process.Child, output: IO[bytes], *, forced: bool) -> Ended:
    """Wait until the verb has ended; end one that the signal did not concern with Ctrl-C."""
    ref = ProcessRef.of(child.pid)
    if ref is not None and not ref.wait(END_SECONDS if forced else PATIENCE_SECONDS):
        ref.signal(signal.SIGINT)
        if child.stdin is not None:
            child.stdin.close()
        if (forced and _SWALLOWED not in _text(output)) or not ref.wait(END_SECONDS):
            return Ended(HUNG, _text(output))
    return Ended(child.wait(), _text(output))


def _text(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")

"""Record guests with different work, replay each three times, and compare serial log, icount and memory."""

from __future__ import annotations

import contextlib
import hashlib
import random
import tempfile
from pathlib import Path

import vmdebug
from soak.result import Result, Rounds
from vmdebug.errors import GuestDiedError, VmdebugError
from vmdebug.recording import ending, files

REPLAYS = 3
MEMORY_MIB = 192
SECONDS = 600.0

WORK = {
    "reads": "dd if=/dev/zero of=/dev/null bs=1 count={n}",
    "processes": "i=0; while [ $i -lt {few} ]; do ls / >/dev/null; i=$((i+1)); done",
    "files": "dd if=/dev/urandom of=/tmp/x bs=1k count={few} && sha256sum /tmp/x && gzip /tmp/x",
    "pipes": "seq {n} | sort -r | md5sum",
    "sleep": "sleep 2; date; cat /proc/interrupts",
    "jobs": "for i in 1 2 3 4; do (seq {few} | sha1sum) & done; wait",
    "input": "cat >/dev/null",
    "panic": "echo 1 >/proc/sys/kernel/panic_on_oops; echo c >/proc/sysrq-trigger",
}
"""Commands of a recorded guest; `n` and `few` are random numbers."""


def run(count: int, chance: random.Random) -> Result:
    """Make `count` recordings, and replay each of them."""
    rounds = Rounds("recordings")
    for number in range(count):
        kind = chance.choice([*WORK])
        with tempfile.TemporaryDirectory(prefix="vmd-") as name:
            problems = []
            try:
                problems = _round(Path(name) / "soak.vmdrec", kind, chance)
            except VmdebugError as error:
                problems.append(str(error))
        rounds.add(kind, f"recording {number}, {kind}", problems)
    return rounds.result()


def _round(recording: Path, kind: str, chance: random.Random) -> list[str]:
    _record(recording, kind, chance)
    ended = ending.settle(recording)
    found = [_replay(recording) for _ in range(REPLAYS)]
    problems = [] if ended.complete else ["the log has no end"]
    console = files.console(recording).read_bytes()
    for number, (log, icount, memory) in enumerate(found, 1):
        if log != console:
            problems.append(f"replay {number} has another serial log")
        if icount != ended.icount - 1:
            problems.append(f"replay {number} ends at {icount}, and not at {ended.icount - 1}")
        if memory != found[0][2]:
            problems.append(f"replay {number} has another memory")
    return problems


def _record(recording: Path, kind: str, chance: random.Random) -> None:
    line = WORK[kind].format(n=chance.randrange(1000, 50_000), few=chance.randrange(5, 60))
    data = chance.randbytes(chance.randrange(1, 4000)) if kind == "input" else None
    with vmdebug.start("builtin", memory=MEMORY_MIB, record=recording, timeout=SECONDS) as session:
        with contextlib.suppress(GuestDiedError):
            session.exec(line, stdin=data, timeout=SECONDS)
        if kind != "panic":
            session.console.wait_ready(timeout=SECONDS)
            session.console.sendline("cat /proc/uptime")
            session.console.expect(r"\d+\.\d+ \d+\.\d+", timeout=SECONDS)


def _replay(recording: Path) -> tuple[bytes, int, str]:
    """Return the serial log, the instruction count and a hash of the memory at the end."""
    with vmdebug.replay(recording, to="end", timeout=SECONDS) as session:
        run = session.vm.rundir
        file = run.path / "memory"
        session.vm.qmp("pmemsave", timeout=SECONDS, val=0, size=MEMORY_MIB << 20, filename=str(file))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return run.console_log.read_bytes(), session.position.icount, digest

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.process import ProcessRef
from vmdebug.vm.guardian import Guardian

# It and its child run forever; the end of a pipe does not end them.
STAYS = ["sh", "-c", "sleep 1000 & exec sleep 1001"]


def soon() -> Deadline:
    return Deadline.after(20)


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    one = Guardian.start()
    yield one
    if one.ref.alive():
        one.end(soon())


def spawn(guardian: Guardian, argv: list[str], log: Path) -> tuple[ProcessRef, Any]:
    child = guardian.spawn(argv, env=dict(os.environ), log=log)
    ref = ProcessRef.of(child.pid)
    assert ref is not None
    return ref, child


def group(pgid: int) -> list[int]:
    """Return the pids of the living processes in a group."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == pgid and fields[0] not in "ZX":
            members.append(int(stat.parent.name))
    return members


def descendants(pid: int) -> list[ProcessRef]:
    """Return the children of a process that are shells."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [ProcessRef.of(int(word)) for word in children.read_text().split()]
    return [ref for ref in found if ref is not None]


def test_the_end_kills_all_that_was_started_and_removes_what_it_was_told(
    guardian: Guardian, tmp_path: Path
) -> None:
    for name in ("run dir", "-scratch\\"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        guardian.remove(tmp_path / name)
    ref, child = spawn(guardian, STAYS, tmp_path / "log")
    guardian.end(soon())
    child.wait()
    assert not ref.alive()
    assert group(ref.pid) == []
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_the_end_of_one_that_started_nothing(guardian: Guardian, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    guardian.remove(tmp_path / "run")
    guardian.end(soon())
    assert not (tmp_path / "run").exists()


def test_a_program_that_ignores_sigterm_is_killed(guardian: Guardian, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    ref, child = spawn(guardian, ["sh", "-c", f"trap '' TERM; echo > {ready}; sleep 1000"], tmp_path / "log")
    ready.read_text()
    guardian.end(soon())
    child.wait()
    assert not ref.alive()
    assert group(ref.pid) == []


def test_release_lets_it_live(guardian: Guardian, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    guardian.remove(tmp_path / "run")
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    ref, child = spawn(guardian, ["sh", "-c", f"echo > {ready}; exec sleep 1000"], tmp_path / "log")
    ready.read_text()
    guardian.release()
    assert not guardian.ref.alive()
    assert ref.alive()
    assert (tmp_path / "run").is_dir()
    ref.signal(signal.SIGKILL)
    child.wait()


def test_release_of_one_that_somebody_killed(guardian: Guardian) -> None:
    guardian.ref.signal(signal.SIGKILL)
    assert guardian.ref.wait(10)
    guardian.release()


def test_what_is_started_leads_a_session_of_its_own(guardian: Guardian, tmp_path: Path) -> None:
    ref, child = spawn(guardian, ["sleep", "1000"], tmp_path / "log")
    assert os.getsid(ref.pid) == ref.pid
    assert os.getsid(guardian.ref.pid) == guardian.ref.pid
    guardian.end(soon())
    child.wait()


def test_its_output_is_in_the_log_and_its_status_is_its_own(guardian: Guardian, tmp_path: Path) -> None:
    _, child = spawn(guardian, ["sh", "-c", "echo out; echo err >&2; exit 7"], tmp_path / "log")
    assert child.wait() == 7
    assert (tmp_path / "log").read_text() == "out\nerr\n"
    guardian.end(soon())


def test_arguments_arrive_as_they_are(guardian: Guardian, tmp_path: Path) -> None:
    words = ["a b", "", "$HOME", "*", "'", '"', "-n", "\\"]
    _, child = spawn(guardian, ["printf", "[%s]\\n", *words], tmp_path / "log")
    child.wait()
    assert (tmp_path / "log").read_text() == "".join(f"[{word}]\n" for word in words)
    guardian.end(soon())


def allocated(log: Path) -> int:
    return 512 * log.stat().st_blocks


def fill(log: Path, size: int) -> None:
    with log.open("ab") as stream:
        stream.write(os.urandom(size))


def until_allocated(log: Path, size: int) -> None:
    """Wait until no more than so many bytes of a file are kept, and two blocks for its edges."""
    for _ in soon().pauses(f"{log} to take at most {size} bytes"):
        if allocated(log) <= size + 8192:
            return


def test_a_log_that_grows_keeps_its_end_even_after_release_and_as_long_as_the_program_runs(
    guardian: Guardian, tmp_path: Path
) -> None:
    log = tmp_path / "a log"
    guardian.bound(log, size=100_000, seconds=0.05)
    ref, child = spawn(guardian, ["sleep", "1000"], tmp_path / "out")
    fill(log, 1_000_000)
    until_allocated(log, 100_000)  # now the guardian has read its orders
    keepers = descendants(guardian.ref.pid)
    end = log.read_bytes()[-100_000:]
    guardian.release()
    fill(log, 50_000)
    end = (end + log.read_bytes()[-50_000:])[-100_000:]
    until_allocated(log, 100_000)
    assert log.stat().st_size == 1_050_000
    assert log.read_bytes()[-100_000:] == end
    ref.signal(signal.SIGKILL)
    child.wait()
    assert keepers
    for keeper in keepers:
        assert keeper.wait(20)


def test_a_log_that_is_short_or_absent_is_left_alone(guardian: Guardian, tmp_path: Path) -> None:
    guardian.bound(tmp_path / "absent", size=1, seconds=0.05)
    guardian.bound(tmp_path / "short", size=100_000, seconds=0.05)
    guardian.bound(tmp_path / "long", size=100_000, seconds=0.05)
    ref, child = spawn(guardian, ["sleep", "1000"], tmp_path / "out")
    fill(tmp_path / "short", 99_000)
    before = (tmp_path / "short").read_bytes()
    fill(tmp_path / "long", 1_000_000)
    until_allocated(tmp_path / "long", 100_000)
    assert (tmp_path / "short").read_bytes() == before
    assert not (tmp_path / "absent").exists()
    guardian.end(soon())
    child.wait()
    assert not ref.alive()


OWNER = textwrap.dedent("""\
    import os, sys
    from pathlib import Path
    from vmdebug.vm.guardian import Guardian
    place = Path(sys.argv[1])
    guardian = Guardian.start()
    guardian.remove(place / "run")
    child = guardian.spawn(["sleep", "1000"], env=dict(os.environ), log=place / "log")
    print(child.pid, guardian.ref.pid, flush=True)
    sys.stdin.read()
    """)


def test_an_owner_killed_by_sigkill_takes_it_all_along(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with process.spawn(
        [sys.executable, "-c", OWNER, tmp_path], stdin=process.PIPE, stdout=process.PIPE
    ) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        refs = [ProcessRef.of(pid) for pid in pids]
        owner.kill()
        owner.wait()
        for ref in refs:
            assert ref is not None
            assert ref.wait(20)
    assert not (tmp_path / "run").exists()

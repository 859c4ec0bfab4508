"""Hunts find a race of a kernel module, and the same seed finds it again, also on a dask cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.fixtures import kernelmodule
from vmdebug import DebugSession, process, replay
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel, LaunchSpec
from vmdebug.hunting.guest import HuntedGuest
from vmdebug.hunting.schedule import Schedule

EXAMPLE = Path(__file__).parents[2] / "examples/hunt_race"
STATE = "cat /proc/uptime; grep ctxt /proc/stat; echo $RANDOM$RANDOM"
RACE = "add() { i=0; while [ $i -lt 20 ]; do read n </tmp/n; echo $((n + 1)) >/tmp/n; i=$((i + 1)); done; }"


@pytest.fixture(scope="module")
def race(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kernelmodule.build(kernel, EXAMPLE / "race.c", tmp_path_factory.mktemp("race"))


@pytest.fixture(autouse=True)
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the recordings that hunts make by themselves."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "vmdebug" / "recordings"


def vmdebug(*words: str | Path, status: int) -> process.Completed:
    done = process.run(
        [sys.executable, "-m", "vmdebug.cli", *words], check=False, deadline=Deadline.after(240)
    )
    assert done.status == status, done.stdout + done.stderr
    return done


def test_a_double_free_is_found_recorded_and_its_seed_repeats_it(race: Path, tmp_path: Path) -> None:
    words = ("hunt", EXAMPLE / "double_free.py", "--module", race, "--append", "slub_debug=FZPU", "--json")
    recording = tmp_path / "double_free.vmdrec"
    more = ("--until-failure", "--no-minimise", "--record", recording)
    found = json.loads(vmdebug(*words, *more, status=1).stdout)
    (group,) = found["groups"]
    assert (found["recording"], found["not_recorded"]) == (str(recording), "")
    assert "Object already free" in group["headline"]
    assert "race.c" in group["text"]
    again = json.loads(vmdebug(*words, "--seed", str(group["seeds"][0]), status=1).stdout)
    assert again["groups"] == [group]
    assert again["recording"] is None
    with replay(recording, to="failure") as session:
        assert "put_buffer" in [frame.function for frame in session.gdb.backtrace()]
        write = session.gdb.last_write("buffer")
        assert write is not None
        assert write.function in ("put_buffer", "race_write")
        began = session.goto("start").icount
        assert began > 0
        assert session.status != "running"


def test_a_race_of_two_cpus_is_found_by_holding_one(race: Path) -> None:
    words = ("hunt", EXAMPLE / "two_cpus.py", "--module", race, "--hold", "store_counter", "--json")
    found = json.loads(vmdebug(*words, "--until-failure", "--minutes", "3", "--no-minimise", status=1).stdout)
    (group,) = found["groups"]
    assert group["headline"].startswith("AssertionError: an increment is lost")
    assert "held at store_counter for" in group["holds"][0]
    assert (found["recording"], found["not_recorded"]) == (None, "")


def test_a_place_that_is_not_there_ends_the_hunt(race: Path) -> None:
    words = ("hunt", EXAMPLE / "two_cpus.py", "--module", race, "--hold", "no_such_function")
    done = vmdebug(*words, "--runs", "1", status=2)
    assert 'Function "no_such_function" not defined' in done.stderr
    assert "session.put" not in done.stderr


def test_a_test_of_pytest_is_hunted_recorded_and_its_seed_repeats_it(
    tmp_path: Path, recordings: Path
) -> None:
    tests = tmp_path / "test_hunted_sum.py"
    tests.write_text(
        f"RACE = {RACE!r}\n\n"
        "def test_sum(session):\n"
        "    session.exec('echo 0 >/tmp/n', check=True)\n"
        "    assert int(session.exec(f'{RACE}; add & add & wait; cat /tmp/n').stdout) == 40\n"
    )
    words = ("hunt", f"{tests}::test_sum", "--no-minimise", "--json")
    found = json.loads(vmdebug(*words, "--until-failure", "--minutes", "3", status=1).stdout)
    (group,) = found["groups"]
    assert group["headline"].startswith("AssertionError: assert ")
    assert Path(found["recording"]).parent == recordings
    assert Path(found["recording"]).name.startswith("test_hunted_sum-")
    assert Path(found["recording"], "rr.log").is_file()
    assert f'File "{tests}", line 5, in test_sum' in group["text"]
    again = json.loads(vmdebug(*words, "--seed", str(group["seeds"][0]), status=1).stdout)
    # Its text has addresses of Python's objects, because pytest shows the values in an assert.
    assert again["groups"][0]["headline"] == group["headline"]
    assert again["groups"][0]["schedule"] == group["schedule"]


def test_a_script_that_needs_gdb_ends_the_hunt_and_is_no_failure(tmp_path: Path) -> None:
    script = tmp_path / "needs_gdb.py"
    script.write_text("def main(session):\n    session.exec('true')\n    session.gdb.backtrace()\n")
    done = vmdebug("hunt", script, "--runs", "2", status=2)
    assert "session.gdb cannot be used in a hunt" in done.stderr
    assert f'File "{script}", line 3, in main' in done.stderr
    assert "failed" not in done.stdout


def test_a_schedule_gives_the_same_run_also_under_record_and_another_seed_another(
    builtin: LaunchSpec, tmp_path: Path
) -> None:
    def said(session: DebugSession) -> list[str]:
        return [session.exec(command).stdout for command in (RACE, STATE, f"{RACE}; add & add & wait", STATE)]

    def run(made: Schedule) -> list[str]:
        with guest.session(made) as session:
            return said(session)

    one = Schedule(seed=1, shift=6, gap=1000)
    with HuntedGuest(builtin, lambda session: session.exec("echo 0 >/tmp/n", check=True)) as guest:
        with guest.session(one) as session:
            first = said(session)
        assert run(one) == first
        with guest.recorded(one, session.given, tmp_path / "one.vmdrec") as session:
            assert said(session) == first, "a run under record is another one"
        assert run(Schedule(seed=2, shift=5)) != first
    with HuntedGuest(builtin, lambda session: session.exec("echo 0 >/tmp/n", check=True)) as guest:
        assert run(one) == first, "another template gives another run"


def test_input_and_output_of_any_size_pass(builtin: LaunchSpec) -> None:
    data = "".join(f"{number} ~}}\n" for number in range(20000))
    with HuntedGuest(builtin) as guest, guest.session(Schedule(seed=1)) as session:
        done = session.exec("cat; echo err >&2; exit 3", stdin=data)
        assert (done.stdout, done.stderr, done.status) == (data, "err\n", 3)

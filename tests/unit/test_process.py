import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError, DeadlineError, HostError


def soon() -> Deadline:
    return Deadline.after(20)


def test_output_and_input_pass_unchanged() -> None:
    done = process.run(["cat"], stdin=b"one\ntwo", deadline=soon())
    assert (done.status, done.stdout, done.stderr) == (0, "one\ntwo", "")


def test_lines_of_both_outputs_are_reported_as_they_come() -> None:
    lines: list[str] = []
    process.run(["sh", "-c", "echo out; echo err >&2"], deadline=soon(), on_line=lines.append)
    assert sorted(lines) == ["err", "out"]


def test_a_failure_carries_the_argv_the_status_and_the_last_words() -> None:
    with pytest.raises(BuildError, match="`sh` ended with status 3") as caught:
        process.run(["sh", "-c", "echo no such thing >&2; exit 3"], deadline=soon())
    assert caught.value.detail == "sh -c 'echo no such thing >&2; exit 3'\nno such thing"


def test_a_failure_can_be_taken_as_a_value() -> None:
    assert process.run(["false"], deadline=soon(), check=False).status == 1


def test_the_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 600 & echo $! >{pid_file}; wait"
    with pytest.raises(DeadlineError, match=r"waited 0\.5 s for `sh` to end"):
        process.run(["sh", "-c", script], deadline=Deadline.after(0.5))
    grandchild = process.ProcessRef.of(int(pid_file.read_text()))
    assert grandchild is None or grandchild.wait(5)


def test_a_missing_program_is_the_hosts_fault() -> None:
    with pytest.raises(HostError, match="cannot start /nowhere/qemu: No such file or directory"):
        process.run(["/nowhere/qemu"], deadline=soon())
    with pytest.raises(HostError, match="no-such-program is not on PATH") as caught:
        process.find("no-such-program", package="some-package")
    assert "apt install some-package" in caught.value.hint


def test_a_process_is_told_apart_from_a_later_one_of_its_pid() -> None:
    ours = process.ProcessRef.of(os.getpid())
    assert ours is not None
    assert ours.alive()
    another = process.ProcessRef(ours.pid, ours.started + 1)
    assert not another.alive()
    assert another.wait(0)
    another.signal(signal.SIGKILL)  # or this test would not end


@pytest.mark.parametrize("number", [errno.ESRCH, errno.EINVAL])
def test_a_process_that_is_just_being_reaped_has_ended(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", gone)
    assert process.ProcessRef.me().wait(60)


def test_a_zombie_does_not_count_as_alive() -> None:
    with process.spawn(["sleep", "600"]) as child:
        ref = process.ProcessRef.of(child.pid)
        assert ref is not None
        assert ref.alive()
        assert not ref.wait(0)
        ref.signal(signal.SIGKILL)
        assert ref.wait(5)
        assert not ref.alive()


def test_spawn_reaps_what_it_started_also_after_an_error() -> None:
    def fail(child: subprocess.Popen[bytes]) -> None:
        raise KeyError(child.pid)

    with pytest.raises(KeyError) as caught, process.spawn(["sleep", "600"]) as child:
        fail(child)
    assert process.ProcessRef.of(caught.value.args[0]) is None


def test_the_line_shown_is_the_command_that_runs() -> None:
    argv = ["printf", "%s\\n", "--name", "my vm", "-append", "a='b c' $d", "-S"]
    line = process.shell_line(argv, {"NIX_DISK_IMAGE": "/tmp/my disk"})
    assert line.startswith("NIX_DISK_IMAGE='/tmp/my disk' \\\n  printf")
    assert "-append" in line
    shown = subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True).stdout  # noqa: S607
    assert shown.splitlines() == argv[2:]


def test_replace_becomes_the_program() -> None:
    script = "from vmdebug import process; process.replace(['sh', '-c', 'exit 7'])"
    assert process.run([sys.executable, "-c", script], deadline=soon(), check=False).status == 7


def test_tail_keeps_the_last_lines() -> None:
    assert process.tail("a\nb\nc\n\n", 2) == "b\nc"

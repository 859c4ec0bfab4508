"""`vmdebug decode`: which kernel a text is decoded with, and when it refuses."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from tests.unit import cli_doubles
from vmdebug import cli, process, vm
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError, MismatchError, UsageError
from vmdebug.guest import Kernel

BANNER = "6.1.0 (a@b) (gcc 12) #1 SMP Thu Jan  1 00:00:00 UTC 1970"
SOURCE = """const char linux_banner[] = "Linux version %s\\n";
int start_kernel(void)
{
        return 0;
}
__attribute__((noinline)) int outer(int x)
{
        return x + start_kernel();
}
void _start(void)
{
        outer(2);
}
"""
FRAME = " outer+0x0/0x20\n"
DECODED = " outer+0x0/0x20 (init/main.c:7)\n"
OURS = f"[    0.0] Linux version {BANNER}\n"
OTHER = OURS.replace("#1", "#2")


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    (tree / "init").mkdir()
    (tree / "init/main.c").write_text(SOURCE % BANNER)
    gcc = ("gcc", "-g", "-O2", "-fno-pie", "-no-pie", "-nostdlib", "-Wl,--build-id=sha1")
    words = (*gcc, "-o", str(tree / "vmlinux"), str(tree / "init/main.c"))
    process.run([process.find(words[0], package="gcc"), *words[1:]], deadline=Deadline.after(60))
    return tree / "vmlinux"


def decoded(monkeypatch: pytest.MonkeyPatch, text: str | bytes, *words: str | Path) -> int:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return cli.status_of(["decode", *map(str, words)])


def test_a_text_on_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], vmlinux: Path
) -> None:
    text = (OURS + FRAME).encode() + b"\xff\r\n"
    for words in ([], ["-"]):
        assert decoded(monkeypatch, text, *words, "--vmlinux", vmlinux) == 0
        said = capsysbinary.readouterr()
        assert said.out == (OURS + DECODED).encode() + b"\xff\r\n"
        assert b"note:" not in said.err


def test_a_file_that_does_not_say_its_kernel_gets_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], vmlinux: Path
) -> None:
    (tmp_path / "log").write_text(f"> {FRAME}")
    assert cli.status_of(["decode", str(tmp_path / "log"), "--vmlinux", str(vmlinux)]) == 0
    said = capsys.readouterr()
    assert said.out == f"> {DECODED}"
    assert f"note: the text does not say which kernel it is of; decoded with {vmlinux}" in said.err


def test_another_build_is_refused_unless_forced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vmlinux: Path
) -> None:
    assert decoded(monkeypatch, OTHER + FRAME, "--vmlinux", vmlinux) == MismatchError.exit_status
    refused = capsys.readouterr()
    assert refused.out == ""
    assert f"the text is of another kernel than {vmlinux}: version 6.1.0 " in refused.err
    assert decoded(monkeypatch, OTHER + FRAME, "--vmlinux", vmlinux, "--force") == 0
    forced = capsys.readouterr()
    assert forced.out == OTHER + DECODED
    assert "note: the text also has 6.1.0 #2" in forced.err


def test_the_build_id_in_a_trace_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vmlinux: Path
) -> None:
    notes = process.run(["readelf", "-n", vmlinux], deadline=Deadline.after(60)).stdout
    ours = re.findall(r"Build ID: (\w+)", notes)[0]
    trace = f"CPU: 0 PID: 1 Comm: x Not tainted 6.1.0 #1 {{}}\n{FRAME}"
    assert decoded(monkeypatch, trace.format(ours), "--vmlinux", vmlinux) == 0
    assert DECODED in capsys.readouterr().out
    assert decoded(monkeypatch, trace.format("12" * 20), "--vmlinux", vmlinux) == MismatchError.exit_status
    assert f"build-id {'12' * 20}, not {ours}" in capsys.readouterr().err


def test_of_two_boots_the_one_of_this_build_is_decoded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vmlinux: Path
) -> None:
    assert decoded(monkeypatch, OTHER + FRAME + OURS + FRAME, "--vmlinux", vmlinux) == 0
    said = capsys.readouterr()
    assert said.out == OTHER + FRAME + OURS + DECODED
    assert "note: the text also has 6.1.0 #2" in said.err


def test_the_kernel_of_a_running_vm_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vmlinux: Path, tmp_path: Path
) -> None:
    kernel = Kernel(arch="x86_64", image=vmlinux, origin="a test", vmlinux=vmlinux)
    machine = cli_doubles.machine("one", "running", directory=tmp_path, kernel=kernel)
    monkeypatch.setattr(vm, "names", lambda: ["one"])
    monkeypatch.setattr(vm, "find", lambda _name: machine)
    assert decoded(monkeypatch, OURS + FRAME) == 0
    assert capsys.readouterr().out == OURS + DECODED


def test_the_kernel_of_a_guest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vmlinux: Path, tmp_path: Path
) -> None:
    (tmp_path / "vmdebug.toml").write_text("default = 'x'\n[guest.x]\nsource = 'bzImage'\n")
    monkeypatch.chdir(tmp_path)
    assert decoded(monkeypatch, FRAME) == UsageError.exit_status
    assert "bzImage" in capsys.readouterr().err
    assert decoded(monkeypatch, FRAME, "--guest", "no-such-guest") == UsageError.exit_status
    assert "no-such-guest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["missing"], UsageError, "there is no file missing"),
        (["."], HostError, "cannot read .: Is a directory"),
        (["--vmlinux", "missing"], UsageError, "missing cannot be read"),
        (["--vmlinux", __file__], UsageError, "is not a vmlinux"),
        (["--vmlinux", "x", "--guest", "y"], UsageError, "exclude each other"),
    ],
)
def test_bad_input_has_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: type[UsageError],
    message: str,
) -> None:
    assert decoded(monkeypatch, FRAME, *words) == status.exit_status
    assert message in capsys.readouterr().err


def test_modules_need_a_directory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], vmlinux: Path
) -> None:
    words = ("--vmlinux", vmlinux, "--modules", vmlinux)
    assert decoded(monkeypatch, FRAME, *words) == UsageError.exit_status
    assert f"{vmlinux} is not a directory" in capsys.readouterr().err


def test_without_a_text_and_on_a_terminal_nothing_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert cli.status_of(["decode"]) == UsageError.exit_status
    assert "there is no text to decode" in capsys.readouterr().err

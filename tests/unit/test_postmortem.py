"""Reports: a section says what is missing, and each section becomes a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmdebug import postmortem
from vmdebug.channel.log.trouble import find
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, GdbError, QmpError, StateError, VmdebugError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.postmortem import Report, Section
from vmdebug.session import DebugSession
from vmdebug.vm.rundir import RunDir

PANIC = "[    1.0] Kernel panic - not syncing: x\n[    1.0]  panic+0x1/0x2\n"


@dataclass
class Debugger:
    """A fake GDB for a report."""

    broken: dict[str, VmdebugError] = field(default_factory=dict)
    log: str = "[    0.000000] Linux version"

    def backtraces(self, *, limit: int, modules: Path | None, timeout: float) -> str:
        return self._answer("backtraces", "#0 f () at /src/init/main.c:1")

    def dmesg(self, *, limit: int, timeout: float) -> str:
        return self._answer("dmesg", self.log)

    def _answer(self, what: str, text: str) -> str:
        if what in self.broken:
            raise self.broken[what]
        return text


class Vm:
    """A fake VM for a report."""

    def __init__(self, directory: Path, status: str) -> None:
        self.rundir = RunDir(directory)
        self.status = status
        self.refused: VmdebugError | None = None
        kernel = Kernel(
            arch="x86_64",
            image=Path("bzImage"),
            origin="x",
            build_id="abcd",
            release="6.1",
            source=Path("/src"),
        )
        spec = LaunchSpec(name="it", guest="x", machine=OwnMachine(), kernel=kernel, parameters=("quiet",))
        self.state = SimpleNamespace(spec=spec, accel="tcg")

    def qmp(self, command: str, /, *, timeout: float, **arguments: Any) -> Any:
        if command == "query-dump-guest-memory-capability":
            return {"formats": ["elf", "kdump-zlib"]}
        if command == "query-dump":
            return {"status": "completed", "completed": 3 << 20, "total": 3 << 20}
        assert command == "dump-guest-memory"
        assert arguments["format"] == "kdump-zlib"
        if self.refused is not None:
            raise self.refused
        Path(arguments["protocol"].removeprefix("file:")).write_bytes(bytes(3 << 20))
        return None


class Session:
    """A fake session for a report."""

    name = "it"

    def __init__(self, directory: Path, status: str = "panicked") -> None:
        self.vm = Vm(directory, status)
        self.debugger = Debugger()
        self.said = "1-gdb-version\n1^done"
        self.silent: VmdebugError | None = None
        self.refused: VmdebugError | None = None

    @property
    def status(self) -> str:
        if self.silent is not None:
            raise self.silent
        return self.vm.status

    def exchanges(self) -> str:
        return self.said

    @contextmanager
    def examined(self, *, timeout: float) -> Iterator[Debugger]:
        assert timeout > 0
        if self.refused is not None:
            raise self.refused
        yield self.debugger


@pytest.fixture
def session(tmp_path: Path) -> Session:
    made = Session(tmp_path)
    made.vm.rundir.console_log.write_text("".join(f"line {number}\n" for number in range(500)))
    made.vm.rundir.qemu_log.write_text("qemu: a warning\n")
    return made


def collect(session: Session, *, seconds: float = 60.0, **options: Any) -> dict[str, str]:
    report = postmortem.collect(cast("DebugSession", session), deadline=Deadline.after(seconds), **options)
    return {section.title: section.text for section in report.sections}


def test_what_a_report_of_a_panicked_guest_has(session: Session, tmp_path: Path) -> None:
    found = collect(session, troubles=find(PANIC), dump=tmp_path / "deep/vmcore")
    assert list(found) == ["kernel panic", "guest", "console", "backtraces", "dmesg", "GDB", "vmcore", "QEMU"]
    assert found["kernel panic"] == PANIC.rstrip("\n")
    assert found["guest"] == "it: panicked, tcg\nkernel 6.1, build-id abcd\nparameters quiet"
    assert found["console"].splitlines()[-1] == "line 499"
    assert len(found["console"].splitlines()) == postmortem.CONSOLE_LINES
    assert found["backtraces"] == "#0 f () at init/main.c:1"
    assert found["GDB"] == "1-gdb-version\n1^done"
    vmcore = f"{tmp_path}/deep/vmcore"
    assert found["vmcore"].splitlines() == [
        f"{vmcore}, 3 MiB, kdump-zlib",
        f"vmdebug report {vmcore} --vmlinux VMLINUX",
        f"drgn -c {vmcore} -s VMLINUX",
        f"crash VMLINUX {vmcore}",
    ]
    assert found["QEMU"] == "qemu: a warning"


def test_of_a_guest_that_has_gone_the_logs_are_left(session: Session, tmp_path: Path) -> None:
    session.vm.status = "exited"
    assert list(collect(session, dump=tmp_path / "vmcore")) == ["guest", "console", "QEMU"]


def test_what_the_console_has_twice_is_told_as_the_kernel_logged_it(session: Session) -> None:
    session.debugger.log = f"[    0.5] before\n{PANIC}"
    found = collect(
        session, troubles=find("[    1.0] Kernel ppanic - not syncing: x\n[    1.0]  paanic+0x1/00x2\n")
    )
    assert found["kernel panic"] == PANIC.rstrip("\n")


def test_a_report_shows_the_ends_of_long_logs_and_its_files_have_all(
    session: Session, tmp_path: Path
) -> None:
    session.debugger.log = "\n".join(f"[    {number}.0] x" for number in range(300))
    report = postmortem.collect(cast("DebugSession", session), deadline=Deadline.after(60))
    shown = {section.title: len(section.text.splitlines()) for section in report.sections}
    assert (shown["console"], shown["dmesg"]) == (postmortem.CONSOLE_LINES, postmortem.DMESG_LINES)
    files = {path.name: len(path.read_text().splitlines()) for path in report.write(tmp_path / "files")}
    assert (files["console.txt"], files["dmesg.txt"]) == (500, 300)


def test_trouble_of_one_kind_is_numbered(session: Session) -> None:
    warning = "[    {0}.0] WARNING: CPU: 0 PID: 1 at a.c:{0} f+0x1/0x2\n[    {0}.0] ---[ end trace 0 ]---\n"
    found = collect(session, troubles=find("".join(warning.format(number) for number in (3, 5, 7))))
    assert list(found)[:3] == ["kernel warn", "kernel warn 2", "kernel warn 3"]
    assert "a.c:7" in found["kernel warn 3"]


def test_a_part_that_fails_says_so_and_the_others_are_there(session: Session) -> None:
    session.debugger.broken["backtraces"] = GdbError("the stack cannot be read")
    session.vm.rundir.qemu_log.unlink()
    found = collect(session)
    assert found["backtraces"] == "not available: the stack cannot be read"
    assert found["dmesg"] == "[    0.000000] Linux version"
    assert found["QEMU"].startswith("not available: ")


def test_a_gdb_of_somebody_else_is_left_alone(session: Session) -> None:
    session.said, session.refused = "", StateError("GDB 123 is attached")
    found = collect(session)
    assert found["GDB"] == "not available: GDB 123 is attached"
    assert "backtraces" not in found


def test_a_guest_that_does_not_stop_says_so_beside_what_gdb_said(session: Session) -> None:
    session.refused = DeadlineError("waited 10 s for the guest to stop")
    found = collect(session)
    assert found["stop"] == "not available: waited 10 s for the guest to stop"
    assert found["GDB"] == "1-gdb-version\n1^done"


def test_where_no_gdb_was_attached_there_is_no_exchange(session: Session) -> None:
    session.said = ""
    found = collect(session)
    assert found["GDB"] == "none was attached"
    assert found["dmesg"] == "[    0.000000] Linux version"


def test_a_qemu_that_does_not_answer_is_asked_once(session: Session, tmp_path: Path) -> None:
    session.silent = DeadlineError("waited 10 s for QEMU to answer")
    found = collect(session, dump=tmp_path / "vmcore")
    assert list(found) == ["guest", "console", "GDB", "QEMU"]
    assert found["guest"].startswith("it: its status is unknown: waited 10 s for QEMU to answer, tcg")
    assert found["GDB"] == "not queried: waited 10 s for QEMU to answer"
    assert found["QEMU"] == "qemu: a warning"


def test_a_dump_that_qemu_refuses_says_so(session: Session, tmp_path: Path) -> None:
    session.vm.refused = QmpError("QEMU refused dump-guest-memory: no space")
    assert collect(session, dump=tmp_path / "vmcore")["vmcore"].startswith(
        "not available: QEMU cannot write the dump: QEMU refused"
    )


def test_without_time_each_part_says_so(session: Session) -> None:
    found = collect(session, seconds=0.0, troubles=find(PANIC))
    assert found["kernel panic"].startswith("[    1.0] Kernel panic")
    assert found["console"].startswith("not available: waited 0 s")
    assert found["GDB"].startswith("not available: waited 0 s")
    assert found["QEMU"].startswith("not available: waited 0 s")


def test_each_section_becomes_a_file(tmp_path: Path) -> None:
    report = Report((Section("kernel hung task 2", "a"), Section("QEMU", "b\udcff")))
    paths = report.write(tmp_path / "one/two")
    assert [path.name for path in paths] == ["kernel-hung-task-2.txt", "qemu.txt"]
    assert [path.read_text() for path in paths] == ["a\n", "b\\udcff\n"]
    assert str(report).startswith("--- kernel hung task 2 ---\na\n\n--- QEMU ---\nb")

"""kgdb on a real kernel: the second serial line of a VM replaces the cable to a machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel
from vmdebug.process import Completed

SECONDS = 240.0


def vmdebug(*words: str | Path, status: int = 0, cwd: Path | None = None) -> Completed:
    argv = [sys.executable, "-m", "vmdebug.cli", *words]
    done = process.run(argv, deadline=Deadline.after(SECONDS), check=False, cwd=cwd)
    assert done.status == status, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def cable(kernel: Kernel, runtime: Path) -> Iterator[Path]:
    """The socket of ttyS1 of a VM that waits for GDB during boot, with KASLR."""
    path = runtime / "cable"
    vmdebug(
        *("start", "builtin", "--accel", "tcg", "--cpus", "2", "--kaslr", "--name", "machine"),
        # Breakpoints set before the kernel write-protects its text could never be removed.
        *("--append", "kgdboc=ttyS1,115200 kgdbwait rodata=off"),
        *("--", "-chardev", f"socket,id=cable,path={path},server=on,wait=off", "-serial", "chardev:cable"),
    )
    yield path
    vmdebug("stop", "--all", "--force")


def test_the_machine_is_debugged_and_runs_on(cable: Path, kernel: Kernel) -> None:
    done = vmdebug(
        *("attach", "--kgdb", cable, "--guest", "builtin", "--batch"),
        *(
            "-ex",
            "bt",
            "-ex",
            "output linux_banner",
            "-ex",
            "lx-version",
            "-ex",
            "vmd-status",
            "-ex",
            "vmd-bt-all 1",
        ),
        *("-ex", "tbreak do_sys_openat2", "-ex", "continue", "-ex", "bt 1", "-ex", "info locals"),
    )
    assert "#0  kgdb_breakpoint () at" in done.stdout
    assert "in configure_kgdboc" in done.stdout
    assert done.stdout.count(f"Linux version {kernel.release}") == 2
    assert f"build-id   {kernel.build_id}" in done.stdout
    assert "proven by its build-id note" in done.stdout
    assert "CPU 0: pid" in done.stdout
    assert "CPU 1: pid" in done.stdout
    assert "hit Temporary breakpoint 1, do_sys_openat2 (" in done.stdout
    assert "#0  do_sys_openat2 (" in done.stdout
    # GDB has ended, and has removed its breakpoints.
    assert vmdebug("exec", "machine", "--", "uname", "-r").stdout == f"{kernel.release}\n"


def test_symbols_of_another_kernel(cable: Path, kernel: Kernel, tmp_path: Path) -> None:
    assert kernel.vmlinux is not None
    other = tmp_path / "vmlinux"
    process.run(["strip", "-g", "-o", str(other), str(kernel.vmlinux)], deadline=Deadline.after(SECONDS))
    other.write_bytes(other.read_bytes().replace(bytes.fromhex(kernel.build_id), bytes(20)))
    (tmp_path / "vmdebug.toml").write_text(
        f'[guest.other]\nsource = "builtin"\nvmlinux = "{other}"\nforce = true\n'
    )
    done = vmdebug(
        "attach", "--kgdb", cable, "--guest", "other", "--batch", "-ex", "bt", status=4, cwd=tmp_path
    )
    assert "the vmlinux does not match the running kernel" in done.stderr
    assert "#0" not in done.stdout

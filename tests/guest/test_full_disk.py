"""Real file systems that are full, under each place that vmdebug writes to: what works, and what is said.

A user namespace lets every user mount a tmpfs, see user_namespaces(7).
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.accel import ACCEL, SECONDS
from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.guest import Kernel
from vmdebug.process import Completed

START = f"start builtin --accel {ACCEL} --name v"


@pytest.fixture
def mounted(runtime: Path, tmp_path: Path) -> Path:
    """A directory for a small tmpfs, beside the runtime directory; $TMPDIR is another one."""
    for name in ("small", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path / "small"


def run(mounted: Path, script: str, *, size: str = "3m", **places: Path) -> Completed:
    """Run a shell script with a small tmpfs; `fill` fills it, `vmdebug` runs and prints its exit status."""
    variables = "".join(f"export {name}={path}\n" for name, path in places.items())
    prelude = f"""\
        mount -t tmpfs -o size={size},mode=700 none {mounted} || exit 99
        fill() {{ cat /dev/zero >{mounted}/full 2>/dev/null; }}
        vmdebug() {{ {sys.executable} -m vmdebug.cli "$@" 2>&1; echo "status $?"; }}
        trap 'rm -f {mounted}/full; vmdebug stop --all --force' EXIT
        """
    text = textwrap.dedent(prelude) + variables + textwrap.dedent(script)
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", text]
    done = process.run(words, deadline=Deadline.after(3 * SECONDS), check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def parts(done: Completed) -> Iterator[str]:
    """Yield the output of each command, with its exit status at its end."""
    yield from done.stdout.split("\n--\n")


def test_a_full_runtime_directory(mounted: Path, kernel: Kernel) -> None:
    script = f"""
        vmdebug {START} >/dev/null
        vmdebug exec v -- true; echo --
        fill
        vmdebug start builtin --accel {ACCEL} --name other; echo --
        vmdebug restart v; echo --
        vmdebug clone v; echo --
        vmdebug exec v -- uname; echo --
        vmdebug attach v --batch -ex 'print 40 + 2'; echo --
        vmdebug snapshot save v one; echo --
        vmdebug log v; echo --
        vmdebug status; echo --
        vmdebug stop v
    """
    _, *refused, executed, attached, saved, log, status, stopped = parts(
        run(mounted, script, XDG_RUNTIME_DIR=mounted)
    )
    for said in refused[:3]:
        assert f"{mounted}/vmdebug: No space left on device; the file system {mounted} has 0 of 3 MiB" in said
        assert said.endswith("status 3")
    assert executed == "Linux\nstatus 0"
    assert "$1 = 42" in attached
    assert attached.endswith("status 0")
    assert saved.endswith("status 0")
    assert f"console.log is on a full disk; the file system {mounted} has 0 of 3 MiB free" in log
    assert "running" in status
    assert stopped.startswith("v: stopped\nstatus 0")


def test_a_full_directory_for_snapshots(mounted: Path, kernel: Kernel) -> None:
    script = f"""
        vmdebug {START} >/dev/null
        vmdebug exec v -- true; echo --
        fill
        vmdebug snapshot save v one; echo --
        vmdebug attach v --batch -ex 'print 40 + 2'; echo --
        vmdebug clone v; echo --
        rm {mounted}/full
        vmdebug snapshot save v one; echo --
    """
    _, refused, attached, cloned, again, _ = parts(run(mounted, script, TMPDIR=mounted))
    assert f"{mounted}: No space left on device; the file system {mounted} has 0 of 3 MiB free" in refused
    assert refused.endswith("status 3")
    assert "$1 = 42" in attached
    assert cloned.endswith("status 0")
    assert f"{mounted}: the file system {mounted} has" in again  # it is smaller than the guest's memory
    assert again.endswith("status 1")


def test_a_full_directory_for_artifacts(mounted: Path, kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(vm):\n    raise SystemError\n")
    script = f"""
        fill
        {sys.executable} -m pytest -q -p no:cacheprovider --vmdebug-accel {ACCEL} \\
            --vmdebug-guest builtin --vmdebug-artifacts {mounted} {tmp_path}/test_it.py
    """
    said = run(mounted, script, size="64k").stdout
    assert "SystemError" in said
    assert f"No space left on device: {mounted}/" in said
    assert f"; the file system {mounted} has 0 of 0 MiB free" in said


def test_a_full_cache(mounted: Path, kernel: Kernel) -> None:
    built = kernel.image.parents[4]
    script = f"""
        mkdir {mounted}/vmdebug; ln -s {built} {mounted}/vmdebug/kernel
        fill
        vmdebug {START}
    """
    said = run(mounted, script, XDG_CACHE_HOME=mounted).stdout
    assert f"not enough space for {mounted}/vmdebug/" in said
    assert f"the file system {mounted} has 0 of 3 MiB free" in said
    assert "\nstatus 3\n" in said

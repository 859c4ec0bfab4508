"""Copies by the real agent, whose scripts run with this machine's programs, and with busybox's."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from tests.unit.serial_guest import SerialGuest
from vmdebug.channel.agent.program import AGENT
from vmdebug.channel.agent.shell import AgentShell
from vmdebug.channel.files import arriving, moving
from vmdebug.channel.files.archive import BLOCK, block_runs
from vmdebug.channel.files.get import get
from vmdebug.channel.files.put import Source, put
from vmdebug.channel.guest_shell import GuestShell
from vmdebug.channel.port import PortAddress
from vmdebug.channel.shell import ExecResult, Job, Shell, Streams, command_line
from vmdebug.channel.watch import Watch
from vmdebug.deadline import Deadline
from vmdebug.errors import DeadlineError, HostError, UsageError, VmError
from vmdebug.progress import Step, silent

MIB = 1 << 20
WHEN = 1_000_000_000


def soon() -> Deadline:
    return Deadline.after(60)


class Double:
    """A guest's shell whose way is always the same one."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def wait(self, deadline: Deadline) -> Shell:
        return self._shell

    def run(self, line: str, *, streams: Streams, deadline: Deadline, check: bool = False) -> ExecResult:
        running = self._shell.begin(command_line(line), streams, deadline=deadline)
        return Job(line, running, check=check).result_by(deadline)


@pytest.fixture(scope="module", params=["coreutils", "busybox"])
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentShell]:
    agent = AGENT.find(os.uname().machine, tmp_path_factory.mktemp("agent"), report=silent, deadline=soon())
    path = os.environ["PATH"]
    if request.param == "busybox":
        path = str(tmp_path_factory.mktemp("busybox"))
        busybox = shutil.which("busybox")
        assert busybox
        subprocess.run([busybox, "--install", "-s", path], check=True)
    with (
        tempfile.TemporaryDirectory(prefix="vmd-", dir="/tmp") as name,
        SerialGuest(Path(name), (str(agent), "/dev/tty"), {"PATH": path}, raw=True) as guest,
    ):
        address = PortAddress(guest.directory / "sock", guest.directory / "lock")
        yield AgentShell([address], watch=lambda: Watch(guest.directory / "log"), silent=lambda: None)


@pytest.fixture
def shell(way: AgentShell) -> GuestShell:
    return cast("GuestShell", Double(way))


@pytest.fixture
def pieces(way: AgentShell, monkeypatch: pytest.MonkeyPatch) -> GuestShell:
    """A shell on a way that carries little at once."""
    monkeypatch.setattr(way, "largest", 1000)
    return cast("GuestShell", Double(way))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Path]:
    """A directory of the guest; nothing but the copies is left in it."""
    directory = tmp_path / "there"
    directory.mkdir()
    yield directory
    assert [*directory.rglob(".vmdebug-cp*")] == []


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "here"
    directory.mkdir()
    yield directory
    assert [*directory.rglob(".vmdebug-cp*")] == []


def into(shell: GuestShell, sources: Sequence[Source], to: Path | str) -> None:
    put(shell, sources, str(to), report=silent, deadline=soon())


def out(shell: GuestShell, sources: Sequence[Path | str], to: Path) -> None:
    get(shell, [str(each) for each in sources], to, report=silent, deadline=soon())


def made(path: Path, data: bytes, mode: int = 0o640) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, (WHEN, WHEN))
    return path


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    with path.open("wb") as stream:
        for start, data in pieces:
            stream.seek(start)
            stream.write(data)
        stream.truncate(size)
    os.utime(path, (WHEN, WHEN))
    return path


def described(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything of a tree that a copy keeps."""
    found: dict[bytes, tuple[object, ...]] = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        what: object = str(path.readlink()) if path.is_symlink() else ""
        if stat.S_ISREG(status.st_mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest(), status.st_nlink
        kept = () if path.is_symlink() else (oct(status.st_mode), int(status.st_mtime))
        found[os.fsencode(path.relative_to(top))] = kind, kept, what
    return found


def tree(top: Path) -> Path:
    """Make a tree with all that a tree can have."""
    (top / "empty").mkdir(parents=True)
    (top / "a b\n-ü").mkdir()
    made(top / "a b\n-ü" / "it's", b"\0\xff~}" * 1000, 0o755)
    made(top / "-rf", b"", 0o600)
    made(Path(os.fsdecode(os.fsencode(top) + b"/\xff")), b"no UTF-8")
    made(top / ("long" * 50), b"x")
    made(top / "set", b"user", 0o4755)
    (top / "link").symlink_to("empty")
    (top / "dangling").symlink_to("/nowhere")
    (top / "second").hardlink_to(top / "set")
    sparse(top / "empty" / "holes", 8 * MIB + 5, (3 * MIB + 7, b"middle"), (8 * MIB, b"end"))
    for directory in (top / "empty", top / "a b\n-ü", top):
        directory.chmod(0o751)
        os.utime(directory, (WHEN, WHEN))
    return top


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * MIB + 1])
def test_a_file_goes_in_and_comes_out_exactly(shell: GuestShell, here: Path, there: Path, size: int) -> None:
    source = made(here / "file", os.urandom(size), 0o751)
    into(shell, [source], there)
    out(shell, [there / "file"], here / "back")
    assert described(here / "back") == described(source) == described(there / "file")


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [(0, b"begin")],
        [(9 * MIB - 3, b"end")],
        [(BLOCK - 1, b"across"), (5 * MIB + 1, os.urandom(BLOCK)), (6 * MIB, b"near")],
    ],
)
def test_a_file_with_holes_keeps_them(
    shell: GuestShell, here: Path, there: Path, pieces: list[tuple[int, bytes]]
) -> None:
    source = sparse(here / "file", 9 * MIB, *pieces)
    into(shell, [source], there / "copy")
    out(shell, [there / "copy"], here / "back")
    assert described(here / "back") == described(there / "copy") == described(source)
    assert max(path.stat().st_blocks * 512 for path in (there / "copy", here / "back")) <= MIB + 5 * BLOCK


def test_holes_are_found_by_blocks(here: Path) -> None:
    file = sparse(here / "file", 64 * MIB, (0, b"x"), (BLOCK, b"x"), (40 * MIB + 5, b"x"))
    assert block_runs(file, file.stat()) == [(0, BLOCK + 4096), (40 * MIB, 4096)]
    assert block_runs(made(here / "full", os.urandom(2 * MIB)), (here / "full").stat()) is None


def test_a_tree_goes_in_and_comes_out_exactly(shell: GuestShell, here: Path, there: Path) -> None:
    source = tree(here / "tree")
    into(shell, [source], there)
    assert described(there / "tree") == described(source)
    assert (there / "tree/empty/holes").stat().st_blocks * 512 <= 5 * BLOCK
    out(shell, [there / "tree"], here / "back")
    (source / "set").chmod(0o755)  # its set-user-ID bit stays in the guest
    assert described(here / "back") == described(source)


def test_a_tree_merges_with_one_that_is_there(shell: GuestShell, here: Path, there: Path) -> None:
    source = tree(here / "tree")
    for top in (there, here / "back"):
        (top / "tree/empty/more").mkdir(parents=True)
        made(top / "tree/-rf", b"older")
        made(top / "tree/.kept", b"kept")
    into(shell, [source], there)
    out(shell, [there / "tree"], here / "back")
    for top in (there, here / "back"):
        found = described(top / "tree")
        assert found.pop(b".kept")
        assert found.pop(b"empty/more")
        assert found.keys() == described(source).keys()
        assert found[b"-rf"] == described(source)[b"-rf"]
        assert found[b"."] == described(source)[b"."]


def test_the_content_of_a_directory(shell: GuestShell, here: Path, there: Path) -> None:
    made(here / "file", b"x")
    into(shell, [f"{here}/."], there / "new")
    assert (there / "new/file").read_bytes() == b"x"
    out(shell, [f"{there}/new/."], here)
    assert (here / "file").read_bytes() == b"x"


def test_several_files_need_a_directory(shell: GuestShell, here: Path, there: Path) -> None:
    files = [made(here / "one", b"1"), made(here / "two", b"2")]
    into(shell, files, there)
    assert sorted(path.name for path in there.iterdir()) == ["one", "two"]
    with pytest.raises(VmError, match="new is not a directory"):
        into(shell, files, there / "new")
    with pytest.raises(UsageError, match="new is not a directory"):
        out(shell, [there / "one", there / "two"], here / "new")


def test_links_that_are_named_are_followed(shell: GuestShell, here: Path, there: Path) -> None:
    (here / "link").symlink_to(made(here / "file", b"x"))
    into(shell, [here / "link"], there)
    assert not (there / "link").is_symlink()
    (there / "again").symlink_to("link")
    out(shell, [there / "again"], here / "back")
    assert (here / "back").read_bytes() == b"x"
    assert not (here / "back").is_symlink()
    into(shell, [b"new"], there / "again")
    assert (there / "link").read_bytes() == b"new", "written through the link, which stays"
    assert (there / "again").is_symlink()


def test_bytes_and_descriptors(shell: GuestShell, here: Path, there: Path) -> None:
    made(there / "file", b"older and longer", 0o751)
    into(shell, [b"data"], there / "file")
    assert (there / "file").read_bytes() == b"data"
    assert stat.S_IMODE((there / "file").stat().st_mode) == 0o751, "the mode of the file that it replaces"
    with made(here / "file", os.urandom(MIB)).open("rb") as stream:
        into(shell, [stream.fileno()], there / "new")
    found = bytearray()
    get(shell, [str(there / "new")], found.extend, report=silent, deadline=soon())
    assert found == (here / "file").read_bytes()
    with pytest.raises(VmError, match="is a directory"):
        into(shell, [b"data"], there)
    with pytest.raises(UsageError, match="only a file"):
        get(shell, [str(there)], found.extend, report=silent, deadline=soon())


def test_devices_and_settings_are_written_to_and_read(shell: GuestShell, there: Path) -> None:
    into(shell, [b"data"], "/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(HostError, match="cannot write /dev/full: No space left"):
        out(shell, ["/proc/version"], Path("/dev/full"))
    found = bytearray()
    get(shell, ["/proc/version"], found.extend, report=silent, deadline=soon())
    assert found.decode() == Path("/proc/version").read_text()


def test_what_cannot_be_copied_is_said(shell: GuestShell, here: Path, there: Path) -> None:
    file = made(here / "file", b"x")
    (there / "directory").mkdir()
    made(there / "plain", b"x")
    with pytest.raises(VmError, match=f"there is no directory {there}/none"):
        into(shell, [file], there / "none/file")
    for source in (file, b"x"):
        with pytest.raises(VmError, match=f"there is no directory {there}/new/"):
            into(shell, [source], f"{there}/new/")
    assert not (there / "new").exists()
    with pytest.raises(VmError, match="plain exists, and is not a directory"):
        into(shell, [here], there / "plain")
    with pytest.raises(UsageError, match="gone does not exist"):
        into(shell, [here / "gone"], there)
    with pytest.raises(VmError, match="gone does not exist"):
        out(shell, [there / "gone"], here)
    with pytest.raises(UsageError, match="none"):
        out(shell, [there / "plain"], here / "none/file")
    with pytest.raises(UsageError, match=f"there is no directory {here}/new/"):
        get(shell, [f"{there}/plain"], here / "new", report=silent, deadline=soon(), directory=True)
    with pytest.raises(UsageError, match="file exists and is not a directory"):
        out(shell, [there], file)
    (here / "tree").mkdir()
    (here / "tree/file").mkdir()
    made(there / "file", b"x")
    with pytest.raises(VmError, match="tree"):
        into(shell, [made(here / "directory", b"x")], there / "directory/tree/x")


def test_a_directory_is_not_replaced_by_a_file(shell: GuestShell, here: Path, there: Path) -> None:
    (there / "tree/name").mkdir(parents=True)
    (here / "tree").mkdir()
    made(here / "tree/name", b"x")
    with pytest.raises(VmError, match="tree/name is a directory"):
        into(shell, [here / "tree"], there)
    with pytest.raises(UsageError, match="tree/name exists and is not a directory"):
        out(shell, [there / "tree"], here)
    with pytest.raises(UsageError, match="is a directory, but the source is a file"):
        out(shell, [made(there / "here", b"x")], here.parent)
    (there / "other").mkdir()
    made(there / "other/name", b"x")
    (here / "other/name").mkdir(parents=True)
    with pytest.raises(VmError, match="other/name exists, and is not a directory"):
        into(shell, [here / "other"], there)


def test_a_full_disk_is_said_and_nothing_is_left(shell: GuestShell, here: Path, there: Path) -> None:
    # `cat` cannot write a file of that size; tar neither.
    made(there / "file", b"older")
    file = made(here / "file", os.urandom(MIB))
    limits = cast("Double", shell)
    plain = limits.run

    def limited(line: str, **words: object) -> ExecResult:
        wrapped = line.replace("receive() {", "cat() { command cat >/dev/full; }\nreceive() {")
        return plain(wrapped, **words)  # type: ignore[arg-type]

    limits.run = limited  # type: ignore[method-assign]
    with pytest.raises(VmError, match=f"the guest's file system is full: {there} is not copied"):
        into(shell, [file], there)
    assert (there / "file").read_bytes() == b"older"


def test_a_copy_that_takes_too_long_leaves_nothing(shell: GuestShell, there: Path) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"begun")
        with pytest.raises(DeadlineError):
            put(shell, [reading], str(there / "file"), report=silent, deadline=Deadline.after(1))
    finally:
        os.close(reading)
        os.close(writing)
    assert [*there.iterdir()] == []


def test_a_file_that_becomes_shorter_is_an_error_and_leaves_nothing(
    shell: GuestShell, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = made(here / "file", bytes(MIB))
    monkeypatch.setattr(moving.Progress, "__call__", lambda *_: os.truncate(file, 10))
    with pytest.raises(HostError, match="became shorter"):
        into(shell, [made(file, os.urandom(MIB))], there)
    assert [*there.iterdir()] == []


def test_long_copies_report_their_progress(
    shell: GuestShell, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "QUIET_SECONDS", 0.0)
    steps: list[Step] = []
    put(shell, [made(here / "f", os.urandom(2 * MIB))], str(there), report=steps.append, deadline=soon())
    assert steps[-1] == Step("copying f", done=2, total=2, note="MiB")
    steps.clear()
    get(shell, [str(there / "f")], here / "back", report=steps.append, deadline=soon())
    assert steps[-1] == Step("copying f", done=2, total=2, note="MiB")


def test_short_copies_report_nothing(shell: GuestShell, there: Path) -> None:
    steps: list[Step] = []
    put(shell, [b"x"], str(there / "f"), report=steps.append, deadline=soon())
    assert steps == []


def test_a_way_that_carries_little_at_once_is_exact(pieces: GuestShell, here: Path, there: Path) -> None:
    source = tree(here / "tree")
    (source / "empty/holes").unlink()
    os.utime(source / "empty", (WHEN, WHEN))
    into(pieces, [source], there)
    assert described(there / "tree") == described(source)
    out(pieces, [there / "tree"], here / "back")
    (source / "set").chmod(0o755)
    assert described(here / "back") == described(source)
    with pytest.raises(VmError, match="gone does not exist"):
        out(pieces, [there / "gone"], here)


@pytest.mark.parametrize(
    "member",
    [
        ("../outside", tarfile.REGTYPE, ""),
        ("/outside", tarfile.REGTYPE, ""),
        ("link/outside", tarfile.REGTYPE, ""),
        ("hard", tarfile.LNKTYPE, "../outside"),
    ],
)
def test_a_guest_cannot_write_outside_the_copy(here: Path, member: tuple[str, bytes, str]) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, kind, target in [("link", tarfile.SYMTYPE, ".."), member]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    archive.seek(0)
    made(here / "outside", b"kept")
    with pytest.raises(VmError, match="outside the directory"):
        arriving.unpack(archive, here / "top")
    assert (here / "outside").read_bytes() == b"kept"


def test_an_archive_that_ends_early_is_an_error(here: Path, there: Path) -> None:
    receiver = arriving.Receiver(here / "copy", moving.Progress(silent, "x"))
    with receiver:
        receiver(b"direc")
        receiver(b"tory\n" + b"x" * 700)
        with pytest.raises(VmError, match="did not arrive complete"):
            receiver.finish()
    assert not (here / "copy").exists()

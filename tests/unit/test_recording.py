"""Recordings as files: QEMU's log, positions on the console, the store, packing, and what is refused."""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from pathlib import Path

import msgspec
import pytest

from vmdebug import guest, paths, replaying
from vmdebug.errors import HostError, MismatchError, StateError, UsageError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine, Root, RunnerMachine, Share
from vmdebug.network import Nic
from vmdebug.process import ProcessRef
from vmdebug.recording import ending, event_log, files, manifest, packing, positions, refusal, store
from vmdebug.recording.manifest import Kept, Manifest
from vmdebug.recording.positions import Line

VERSION = 0xE0200C
HEADER = struct.pack(">IQ", VERSION, 0)
END = b"\x27"


def ran(count: int) -> bytes:
    return b"\x00" + struct.pack(">I", count)


def wrote(size: int = 1) -> bytes:
    return b"\x16" + struct.pack(">ii", size, size)


def typed(data: bytes) -> bytes:
    return b"\x07\x00" + struct.pack(">I", len(data)) + data


CLOCK = b"\x1c" + bytes(8)
RANDOM = b"\x1b" + struct.pack(">II", 0, 3) + b"abc"
INTERRUPT, CHECKPOINT = b"\x01", b"\x1f"


class TestLog:
    def test_the_instructions_before_an_event_are_its_position(self) -> None:
        data = (
            HEADER + ran(5) + wrote() + CLOCK + ran(7) + typed(b"ls\n") + RANDOM + INTERRUPT + wrote() + END
        )
        log = event_log.parse(data, "rr.log")
        assert (log.version, log.icount, log.complete, log.events) == (VERSION, 12, True, 9)
        assert list(log.output) == [5, 12]
        assert list(log.input) == [12]
        assert log.size == len(data)

    def test_only_single_bytes_are_a_serial_port_s(self) -> None:
        assert not event_log.parse(HEADER + wrote(2) + END, "rr.log").output

    @pytest.mark.parametrize("lost", range(1, 9))
    def test_a_killed_qemu_loses_its_last_event(self, lost: int) -> None:
        data = bytes(12) + ran(5) + CHECKPOINT + wrote()
        log = event_log.parse(data[:-lost], "rr.log")
        assert not log.complete
        assert (log.icount, log.size) == (5, 12 + 6)

    def test_a_repaired_log_is_complete(self, tmp_path: Path) -> None:
        path = tmp_path / "rr.log"
        path.write_bytes(bytes(12) + ran(5) + wrote()[:4])
        event_log.repair(path, event_log.read(path), VERSION)
        assert path.read_bytes() == HEADER + ran(5) + END
        assert event_log.read(path).complete

    def test_another_version_is_refused(self) -> None:
        with pytest.raises(UsageError, match="log of version 0xe02009"):
            event_log.parse(struct.pack(">IQ", 0xE02009, 0), "rr.log")

    def test_a_damaged_log_is_refused_with_the_place(self) -> None:
        with pytest.raises(UsageError, match="at byte 17 there is no event of a known kind"):
            event_log.parse(HEADER + ran(5) + b"\xff", "rr.log")


CONSOLE = b"[    0.500000] one\r\n[    1.000000] two\r\nno stamp\r\n"


def counts(of: int, start: int = 100) -> array[int]:
    return array("Q", range(start, start + 10 * of, 10))


class TestPositions:
    def test_each_line_is_where_its_first_byte_was_written(self) -> None:
        lines = positions.of_lines(CONSOLE, counts(len(CONSOLE)))
        assert [(line.icount, line.seconds, line.text) for line in lines] == [
            (100, 0.5, "[    0.500000] one"),
            (100 + 10 * 20, 1.0, "[    1.000000] two"),
            (100 + 10 * 40, 1.0, "no stamp"),
        ]
        assert all(line.exact for line in lines)

    def test_a_line_begins_at_its_stamp_and_not_at_the_prompt_before_it(self) -> None:
        console = b"~ # [    0.500000] BUG: unable\r\n"
        (line,) = positions.of_lines(console, counts(len(console)))
        assert (line.icount, line.byte, line.text) == (100 + 10 * 4, 4, "~ # [    0.500000] BUG: unable")

    def test_bytes_of_another_line_leave_a_range(self) -> None:
        one, two, _ = positions.of_lines(CONSOLE, counts(len(CONSOLE) + 3))
        assert (one.icount, one.latest) == (100, 130)
        assert not two.exact

    def test_anchors_make_them_exact(self) -> None:
        # The other line's three bytes came after the first line, before the second.
        output = counts(len(CONSOLE) + 3)
        anchors = [(output[19], 20), (output[22], 20)]
        lines = positions.of_lines(CONSOLE, output, anchors)
        assert [line.icount for line in lines] == [output[0], output[23], output[43]]
        assert all(line.exact for line in lines)

    def test_the_time_between_two_lines_is_interpolated(self) -> None:
        lines = [Line(100, 100, 1.0, "a"), Line(200, 200, 2.0, "b")]
        assert positions.at(lines, 150).seconds == 1.5
        assert positions.at(lines, 150).line == 1
        assert positions.at(lines, 50) == positions.Position(icount=50, seconds=0.0, line=0)
        assert positions.at(lines, 999).text == "b"


LINES = (
    Line(100, 100, 1.0, "[    1.000000] Run /init"),
    Line(300, 300, 2.0, "[    2.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000"),
)


class TestNamed:
    @pytest.mark.parametrize(
        ("to", "icount"), [("start", 0), ("end", 500), ("123", 123), ("1.5s", 200), ("2s", 300)]
    )
    def test_counts_and_times(self, to: str, icount: int) -> None:
        assert replaying.named(LINES, to, bounds=(0, 500), failure=None) == icount

    def test_a_guest_that_has_run_before_starts_later(self) -> None:
        assert replaying.named(LINES, "start", bounds=(90, 500), failure=None) == 90
        with pytest.raises(UsageError, match="no position 89") as caught:
            replaying.named(LINES, "89", bounds=(90, 500), failure=None)
        assert caught.value.hint == "its positions are 90 to 500"

    def test_texts_are_lines(self) -> None:
        assert replaying.named(LINES, "Run /init", bounds=(0, 500), failure=None) == LINES[0]

    def test_a_failure_is_the_first_headline(self) -> None:
        assert replaying.named(LINES, "failure", bounds=(0, 500), failure=LINES[1]) == LINES[1]
        assert replaying.named(LINES, "failure", bounds=(0, 500), failure=None) == 500

    @pytest.mark.parametrize(
        ("to", "message"),
        [
            ("501", "no position 501"),
            ("-1", "no position -1"),
            ("9s", "no time 9s"),
            ("nowhere", "no line of the recorded console"),
        ],
    )
    def test_others_are_refused(self, to: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            replaying.named(LINES, to, bounds=(0, 500), failure=None)


KERNEL = Kernel(image=Path("/k"), origin="a test", arch="x86_64")


def spec(**changes: object) -> LaunchSpec:
    plain = LaunchSpec(name="vm", guest="builtin", machine=OwnMachine(), kernel=KERNEL, record=Path("/r"))
    return msgspec.structs.replace(plain, **changes)


ROOT = Root(words="x", location=Path("/x"), file_system="ext4", format="raw", keep=True)
SHARE = Share(directory=Path("/d"), mount_point="/d", mode="ro", transport="9p", tag="t")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accel": "kvm"}, "needs TCG"),
        ({"cpus": 2}, "records one CPU, and the guest would have 2"),
        ({"shares": (SHARE,)}, "/d is shared over 9p"),
        ({"nics": (Nic(kind="user"),)}, "the network user"),
        ({"qemu_args": ("-device", "edu")}, "devices of your own cannot be recorded: -device edu"),
        ({"machine": OwnMachine(disk=Path("/disk"))}, "the guest writes to /disk"),
        ({"machine": OwnMachine(firmware=Path("/f"))}, "a firmware of its own"),
        ({"root": ROOT}, "a replay would find other contents"),
        ({"root": msgspec.structs.replace(ROOT, keep=False)}, "the root file system is on a disk"),
        ({"machine": RunnerMachine(script=Path("/s"), system_name="n")}, "has a 9p share"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        refusal.check(spec(**changes))
    refusal.check(spec(**changes, record=None))


def test_a_plain_guest_can_be_recorded() -> None:
    refusal.check(spec(accel="tcg", cpus=1, nics=(Nic(kind=None),)))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def recorded(path: Path, *, process: ProcessRef | None = None, complete: bool = True) -> Path:
    """Make a recording of nothing."""
    store.make(path)
    image = path.parent / "image"
    image.write_bytes(b"kernel")
    kept = Kept(original=image, name="", bytes=6, sha256=hashlib.sha256(b"kernel").hexdigest())
    about = Manifest(
        id=path.name,
        created_at=1.0,
        spec=spec(record=path),
        argv=("qemu",),
        run=Path("/run/vm"),
        qemu="7.2.0",
        qemu_file=Path("/usr/bin/qemu-system-x86_64"),
        log_version=VERSION,
        process=process,
        files=(kept,),
    )
    files.manifest(path).write_bytes(guest.encode(about))
    files.console(path).write_bytes(b"[    1.000000] hi\n")
    log = ran(5) + b"".join(ran(1) + wrote() for _ in range(18))
    files.log(path).write_bytes(
        (HEADER if complete else bytes(12)) + log + (END if complete else b"\x16\x00")
    )
    return path


class TestStore:
    def test_a_new_one_is_among_vmdebug_s_or_where_the_user_says(self, home: Path) -> None:
        assert store.place("", "vm").parent == home / "data/vmdebug/recordings"
        assert store.place(str(home / "a"), "vm") == home / "a.vmdrec"
        (home / "a.vmdrec").mkdir()
        with pytest.raises(UsageError, match="there is already"):
            store.place(str(home / "a.vmdrec"), "vm")

    def test_they_are_found_by_name_and_path(self, home: Path) -> None:
        one = recorded(store.directory() / "vm-1.vmdrec")
        two = recorded(store.directory() / "vm-2.vmdrec")
        assert list(store.every()) == [one, two]
        assert store.find("vm-1") == store.find(str(one)) == one
        with pytest.raises(UsageError, match="2 recordings begin with vm"):
            store.find("vm")
        with pytest.raises(UsageError, match="there is no recording x"):
            store.find("x")
        store.delete(one)
        assert list(store.every()) == [two]

    def test_one_that_is_being_recorded_stays(self, home: Path) -> None:
        path = recorded(home / "r.vmdrec", process=ProcessRef.me())
        with pytest.raises(StateError, match="is being recorded"):
            store.delete(path)
        with pytest.raises(StateError, match="is being recorded"):
            ending.settle(path)

    def test_no_space_leaves_nothing(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full:
            f_blocks, f_bavail, f_frsize = 100, 1, 4096

        monkeypatch.setattr(os, "statvfs", lambda _path: Full())
        monkeypatch.setattr(paths, "file_system", lambda _path: "it is full")
        with pytest.raises(HostError, match="no space for a recording"):
            store.make(home / "r.vmdrec")
        assert not (home / "r.vmdrec").exists()


class TestEnd:
    def test_it_is_known_once(self, home: Path) -> None:
        path = recorded(home / "r.vmdrec")
        ended = ending.settle(path)
        assert (ended.icount, ended.seconds, ended.complete, ended.console_bytes) == (23, 1.0, True, 18)
        assert manifest.read_ended(files.ended(path)) == ended
        assert not files.typed(path, "console").exists()

    def test_a_killed_qemu_is_told(self, home: Path) -> None:
        path = recorded(home / "r.vmdrec", complete=False)
        assert not ending.settle(path).complete
        assert event_log.read(files.log(path)).complete

    def test_another_layout_is_refused(self, home: Path) -> None:
        path = recorded(home / "r.vmdrec")
        files.manifest(path).write_bytes(b'{"layout": 99}')
        with pytest.raises(UsageError, match="layout 99"):
            manifest.read(files.manifest(path))


class TestPack:
    def test_what_is_packed_is_opened_with_all_files(self, home: Path) -> None:
        path = recorded(home / "r.vmdrec")
        packed = packing.pack(path, home / "sent.vmdrec")
        (home / "image").unlink()
        there = packing.opened(packed)
        assert there.parent == home / "cache/vmdebug/recordings"
        about = manifest.read(files.manifest(there))
        assert (there / about.files[0].name).read_bytes() == b"kernel"
        assert files.log(there).read_bytes() == files.log(path).read_bytes()
        assert len(packing.verify(there)) == 3
        assert packing.opened(packed) == there

    def test_a_file_of_another_kind_is_refused(self, home: Path) -> None:
        (home / "x").write_bytes(b"no zip")
        with pytest.raises(UsageError, match="is no packed recording"):
            packing.opened(home / "x")

    def test_an_existing_file_is_kept(self, home: Path) -> None:
        path = recorded(home / "r.vmdrec")
        (home / "x").write_bytes(b"mine")
        with pytest.raises(UsageError, match="there is already"):
            packing.pack(path, home / "x")
        assert (home / "x").read_bytes() == b"mine"

    def test_changes_are_found(self, home: Path) -> None:
        path = recorded(home / "r.vmdrec")
        packing.verify(path)
        (home / "image").write_bytes(b"another")
        with pytest.raises(MismatchError, match="has changed since the recording"):
            packing.verify(path)
        files.log(path).write_bytes(HEADER + END)
        with pytest.raises(MismatchError, match=r"rr\.log has changed"):
            packing.verify(path)

import os
import stat

import pytest

from vmdebug import process
from vmdebug.deadline import Deadline
from vmdebug.sources import cpio

INIT = cpio.file("init", b"#!/bin/sh\n", 0o755)
CONSOLE = cpio.node("dev/console", 5, 1)


def test_a_file_byte_for_byte() -> None:
    record = (
        b"070701"
        b"00000001000081ed0000000000000000"  # inode, mode, uid, gid
        b"00000001000000000000000a"  # links, mtime, size
        b"00000000000000000000000000000000"  # device with the file, device number of the node
        b"0000000500000000"  # length of the name, check
        b"init\0\0"
        b"#!/bin/sh\n\0\0"
    )
    trailer = b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000b00000000TRAILER!!!\0\0\0\0"
    assert cpio.archive([INIT]) == record + trailer


def test_the_order_of_the_entries_does_not_matter() -> None:
    assert cpio.archive([INIT, CONSOLE]) == cpio.archive([CONSOLE, INIT])


def test_every_record_begins_at_a_multiple_of_four() -> None:
    files = [cpio.file("f" * length, b"x" * size) for length in range(1, 6) for size in [length]]
    data = cpio.archive(files)
    starts = [at for at in range(len(data)) if data.startswith(b"070701", at)]
    assert len(starts) == len(files) + 1
    assert all(at % 4 == 0 for at in starts)


def test_what_cpio_reads() -> None:
    link = cpio.link("bin/sh", "/bin/busybox")
    listed = process.run(
        ["cpio", "-itv", "--numeric-uid-gid", "--quiet"],
        stdin=cpio.archive([INIT, CONSOLE, link, cpio.directory("tmp", 0o1777)]),
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
        deadline=Deadline.after(10),
    )
    lines = [" ".join(line.split()) for line in listed.stdout.splitlines()]
    assert lines == [
        "drwxr-xr-x 2 0 0 0 Jan 1 1970 bin",
        "lrwxrwxrwx 1 0 0 12 Jan 1 1970 bin/sh -> /bin/busybox",
        "drwxr-xr-x 2 0 0 0 Jan 1 1970 dev",
        "crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
        "-rwxr-xr-x 1 0 0 10 Jan 1 1970 init",
        "drwxrwxrwt 2 0 0 0 Jan 1 1970 tmp",
    ]


def test_a_path_twice() -> None:
    with pytest.raises(ValueError, match="init is twice"):
        cpio.archive([INIT, INIT])


def test_a_directory_given_keeps_its_mode() -> None:
    data = cpio.archive([cpio.file("tmp/x", b""), cpio.directory("tmp", 0o1777)])
    assert b"%08x" % (stat.S_IFDIR | 0o1777) in data

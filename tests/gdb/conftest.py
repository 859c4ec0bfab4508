"""Fixtures for the GDB tests: a guest without a kernel, and a GDB on it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gdb.bareguest import Bare, soon
from tests.gdb.barereplay import BareReplay
from vmdebug import process
from vmdebug.debugger.gdb import Gdb


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the bare guest, an ELF file with debugging information."""
    built = tmp_path_factory.mktemp("bare") / "bare.elf"
    sources = sorted((Path(__file__).parent / "bare").glob("*.[cS]"))
    bare = ("-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie")
    plain = ("-fcf-protection=none", "-fno-stack-protector", "-Wl,-Ttext=0x100000", "-Wl,--build-id=none")
    process.run(["gcc", "-g", "-O2", *bare, *plain, "-o", built, *sources], deadline=soon())
    return built


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, for sockets."""
    made = Path(tempfile.mkdtemp(prefix="vmd-", dir="/tmp"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture
def listener(directory: Path) -> Iterator[socket.socket]:
    """The socket on which a stub waits for GDB, `stub` in the directory."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(directory / "stub"))
        listening.listen()
        yield listening


@pytest.fixture
def bare(program: Path, directory: Path) -> Iterator[Bare]:
    """The bare guest, halted."""
    guest = Bare(program, directory)
    try:
        yield guest
    finally:
        guest.close()


@pytest.fixture
def unconnected(program: Path) -> Iterator[Gdb]:
    """A GDB with the program's symbols."""
    with Gdb.start(program) as gdb:
        yield gdb


@pytest.fixture
def gdb(unconnected: Gdb, bare: Bare) -> Gdb:
    """A GDB connected to the guest, which is halted at its reset vector."""
    unconnected.connect(bare.endpoint)
    return unconnected


@pytest.fixture
def replay(program: Path, directory: Path) -> Iterator[BareReplay]:
    """A replay of the bare guest, at its last instruction."""
    guest = BareReplay(program, directory)
    try:
        yield guest
    finally:
        guest.close()


@pytest.fixture
def past(unconnected: Gdb, replay: BareReplay) -> Gdb:
    """A GDB connected to the replay, with the commands for its prompt."""
    unconnected.connect(replay.endpoint)
    unconnected.console("python import vmd_load; vmd_load.load()")
    return unconnected

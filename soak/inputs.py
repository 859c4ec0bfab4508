"""Give each reader of foreign bytes damaged input; it may refuse it only with a vmdebug error."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import random
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hypothesis
import vmd_module_files
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from soak.result import Result
from vmdebug import config, guest, guest_options, kimage, sources
from vmdebug.channel.agent.frames import Decoder
from vmdebug.channel.log import death, messages, trouble
from vmdebug.channel.serial import ready
from vmdebug.deadline import Deadline
from vmdebug.debugger import mi
from vmdebug.errors import VmdebugError
from vmdebug.guest_options import GuestOptions
from vmdebug.kimage import bzimage, elf, kallsyms, packed, symbols
from vmdebug.progress import silent
from vmdebug.sources.configuration import bases, dotconfig, fragments, reasons
from vmdebug.vm import qemuargs, qmp, state

HANG_SECONDS = 30
"""How many seconds a reader may take for one input; longer counts as a hang."""

LONGEST_EDIT = 24
MOST_EDITS = 8

TOML = b"""default = "mine"

[guest.mine]
source = ".#base-nixos"
kernel = "~/src/linux"
memory = "1G"
cpus = 2
append = "quiet loglevel=7"
kaslr = true
disk = ["a.qcow2"]
"""

SPLAT = b"""[    1.234567][   T77] ------------[ cut here ]------------
[    1.234568][   T77] WARNING: CPU: 0 PID: 77 at kernel/fork.c:1234 copy_process+0x12/0x340
[    1.234569][   T77] Modules linked in: brd lkdtm
[    1.234570][   T77] RIP: 0010:copy_process+0x12/0x340
[    1.234571][   T77] Call Trace:
[    1.234572][   T77]  <TASK>
[    1.234573][   T77]  kernel_clone+0x9d/0x3f0
[    1.234574][   T77]  ? lkdtm_WARNING+0x5/0x10 [lkdtm]
[    1.234575][   T77]  </TASK>
[    1.234576][   T77] ---[ end trace 0000000000000000 ]---
[    2.000000][    C1] Kernel panic - not syncing: Fatal exception in interrupt
[    2.000001][    C1] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---
"""

MI_LINES = (
    rb'12^done,bkpt={number="1",type="breakpoint",addr="0xffffffff81000000",func="f",times="0"}',
    rb'*stopped,reason="breakpoint-hit",thread-id="1",frame={addr="0x1",args=[{name="x",value="\"a\\n\""}]}',
    rb'~"hello \"world\"\n"',
    rb'=thread-created,id="1",group-id="i1"',
    rb'3^error,msg="No symbol \"x\" in current context."',
)

QMP_LINES = (
    b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": []}}',
    b'{"return": {}, "id": "1"}',
    b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}',
)


@dataclass(frozen=True, slots=True)
class Reader:
    """A function that reads foreign bytes.

    Args:
        name: What it reads.
        seeds: Valid inputs, which the test damages.
        read: Reads damaged input.
        share: Its share of the inputs, relative to the other readers'.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    share: int


class _HangError(Exception):
    """An input took longer than HANG_SECONDS."""


def run(count: int, rng: random.Random) -> Result:
    """Give the readers `count` damaged inputs."""
    failures: list[str] = []
    total = 0
    warnings.simplefilter("ignore", HypothesisWarning)  # it warns if a failing input is too large to print
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as name, _timed():
        readers = _readers(Path(name))
        for reader in readers:
            share = max(1, count * reader.share // sum(each.share for each in readers))
            given, failure = _feed(reader, share, rng)
            total += given
            if failure:
                failures.append(f"{reader.name}: {failure}")
            print(f"  {reader.name}: {given} inputs {failure}", file=sys.stderr, flush=True)
    return Result(f"{total} inputs to {len(readers)} readers", tuple(failures))


def _readers(directory: Path) -> tuple[Reader, ...]:
    spec = sources.resolve(
        GuestOptions(source="builtin", accel="tcg"), report=silent, deadline=Deadline.after(60)
    )
    kernel = spec.kernel
    assert kernel.image is not None
    assert kernel.modules is not None
    module = vmd_module_files.index([kernel.modules])["brd"].read_bytes()
    image = kernel.image.read_bytes()
    dot = dotconfig.of(kernel)
    assert dot is not None
    options = "\n".join(f"{key}={value}" for key, value in dot.options.items()).encode()

    def as_file(read: Callable[[Path], object], name: str = "input") -> Callable[[bytes], object]:
        def call(data: bytes) -> object:
            path = directory / name
            path.write_bytes(data)
            return read(path)

        return call

    def as_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
        return lambda data: read(data.decode(errors="surrogateescape"))

    def lines(data: bytes) -> list[object]:
        return [mi.read(line) for line in data.split(b"\n") if line]

    return (
        Reader("vmdebug.toml", (TOML,), as_file(config.read, "vmdebug.toml"), 120),
        Reader("ELF of a module", (module,), as_file(kimage.read_vmlinux), 60),
        Reader(
            "symbols of an ELF file", (module,), as_file(lambda path: symbols.addresses(path, "brd_init")), 30
        ),
        Reader("ELF in GDB", (module,), as_file(_elf_in_gdb), 60),
        Reader("bzImage", (image,), as_file(kimage.read_image), 10),
        Reader("head of a bzImage", (image[:4096],), as_file(kimage.read_image), 80),
        Reader("kallsyms", (_section(kernel.image, ".rodata"),), _kallsyms, 10),
        Reader("packed kernel or initramfs", _packed(_initramfs(spec)[:20000]), _unpack, 60),
        Reader("MI", MI_LINES, lines, 150),
        Reader("QMP", QMP_LINES, _Qmp(directory).read, 20),
        Reader("console", (SPLAT, b"\r\n/ # \x1b[6n"), _console, 120),
        Reader("splat", (SPLAT,), as_text(trouble.find), 120),
        Reader("agent", (b"vmdebug\0O\x05hello\0S\x00\0",), lambda data: list(Decoder().feed(data)), 50),
        Reader(".config", (options[:20000],), as_text(_dotconfig), 50),
        Reader("state.json", (b'{"layout": 1, "name": "x", "pid": 1}',), as_file(state.read), 40),
        Reader(
            "QEMU arguments", (b"-drive file=a.img,if=virtio --device virtio-net,netdev=n -m 1G",), _words, 40
        ),
        Reader("names", (b"builtin", b".#base-nixos", b"debian:bookworm", b"512M"), as_text(_names), 60),
    )


def _feed(reader: Reader, count: int, rng: random.Random) -> tuple[int, str]:
    """Give a reader its inputs; return how many it got, and the failure, or ""."""
    given = 0

    @hypothesis.seed(rng.getrandbits(64))
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(_damaged(reader.seeds))
    def feed(data: bytes) -> None:
        nonlocal given
        given += 1
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            with contextlib.suppress(VmdebugError):
                reader.read(data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    try:
        feed()
    except Exception as error:  # noqa: BLE001 - any other error is the reader's failure
        cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        return given, f"{type(cause).__name__}: {str(cause)[:300]}"
    return given, ""


def _damaged(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Return bytes that are a seed with a few edits: bytes replaced, inserted, removed, repeated, cut off."""
    edit = st.tuples(
        st.sampled_from(("replace", "insert", "remove", "repeat", "cut")),
        st.integers(0, 2**32),
        st.binary(max_size=LONGEST_EDIT),
    )
    edits = st.lists(edit, min_size=1, max_size=MOST_EDITS)
    return st.builds(_edited, st.sampled_from(seeds), edits)


def _edited(seed: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    data = bytearray(seed)
    for kind, where, new in edits:
        at = where % (len(data) + 1)
        match kind:
            case "replace":
                data[at : at + len(new)] = new
            case "insert":
                data[at:at] = new
            case "remove":
                del data[at : at + len(new)]
            case "repeat":
                data[at:at] = data[at : at + 4 * LONGEST_EDIT]
            case "cut":
                del data[max(at, 1) :]
    return bytes(data)


def _elf_in_gdb(path: Path) -> None:
    for read in (vmd_module_files.build_id, vmd_module_files.allocated):
        with contextlib.suppress(ValueError):  # `gdbinit/` reports a damaged file as a ValueError
            read(path)


def _packed(data: bytes) -> tuple[bytes, ...]:
    return (
        gzip.compress(data),
        lzma.compress(data),
        lzma.compress(data, lzma.FORMAT_ALONE),
        bz2.compress(data),
    )


def _unpack(data: bytes) -> None:
    with contextlib.suppress(ValueError):  # UnpackError, which `kimage` reports with the file's name
        unpacked = packed.unpack(data)
        while unpacked.read(1 << 16):
            pass


def _section(image: Path, name: str) -> bytes:
    with image.open("rb") as stream:
        inside = bzimage.FORMAT.unpack(stream)
        data: bytes = elf.parse(image, inside).get_section_by_name(name).data()
    return data


def _kallsyms(data: bytes) -> None:
    address = 0xFFFFFFFF81800000
    kallsyms.symbols(data, address, address - (8 << 20))


def _initramfs(spec: guest.LaunchSpec) -> bytes:
    assert isinstance(spec.machine, guest.OwnMachine)
    assert spec.machine.initrd is not None
    return spec.machine.initrd.read_bytes()


def _console(data: bytes) -> None:
    ready.look(data)
    death.cause_in_log(data)
    filtered = messages.MessageFilter()
    for start in range(0, len(data), 7):
        filtered.feed(data[start : start + 7])
    messages.readable(data)


def _dotconfig(text: str) -> None:
    dotconfig.options(text)
    reasons.read(text)


def _words(data: bytes) -> None:
    qemuargs.parse(data.decode(errors="surrogateescape").split())


def _names(text: str) -> None:
    for read in (
        guest_options.memory_mib,
        bases.parse,
        fragments.load,
        lambda words: config.absolute_guest(words, Path("/")),
    ):
        with contextlib.suppress(VmdebugError):
            read(text)


class _Qmp:
    """A server that answers each client with one damaged line after another."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "qmp.sock"

    def read(self, data: bytes) -> None:
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            listener.listen()
            server = threading.Thread(target=self._serve, args=(listener, data))
            server.start()
            try:
                qmp.connect(self._path, deadline=Deadline.after(2)).close()
            finally:
                server.join()

    @staticmethod
    def _serve(listener: socket.socket, data: bytes) -> None:
        listener.settimeout(HANG_SECONDS)
        with listener.accept()[0] as connection, contextlib.suppress(OSError):
            connection.sendall(data + b"\n")


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    def hang(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the form of a handler
        raise _HangError(f"no answer within {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)

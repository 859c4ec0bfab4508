"""Reads the kernel's log from guest memory, as `dmesg` prints it, even if the guest has crashed.

Since Linux 5.10 (896fbe20b4e2) the layout is that of kernel/printk/printk_ringbuffer.h, before that `struct
printk_log` of kernel/printk/printk.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import gdb
import vmd_guest
import vmd_kernel
import vmd_memory

_COMMITTED = 1
_FINALIZED = 2
"""Values of `enum desc_state` for records that can be read."""

_LONG = 8
_STATE_SHIFT = 62
_ID_MASK = (1 << _STATE_SHIFT) - 1
"""DESC_FLAGS_SHIFT: the two top bits of a descriptor's state_var are its state, the other bits its id."""

_PRB = "'printk.c'::prb"

NANOSECONDS = 1_000_000_000


class Record(NamedTuple):
    """One record of the log.

    Args:
        time: Nanoseconds since boot.
        text: Its text, which can have several lines.
    """

    time: int
    text: bytes


class Dmesg(gdb.Command):
    """Show the kernel's log: vmd-dmesg [LINES].

    Reads it from guest memory, so this works even if the guest has crashed. With LINES, only
    the last ones.

    Example: vmd-dmesg 40
    """

    NAME = "vmd-dmesg"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_DATA)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Print it."""
        vmd_guest.need_connected()
        words = gdb.string_to_argv(argument)
        if len(words) > 1 or not all(word.isdecimal() for word in words):
            raise gdb.GdbError("vmd-dmesg takes a number of lines or nothing: vmd-dmesg [LINES]")
        print("\n".join(lines(int(words[0]) if words else None)))


def lines(limit: int | None = None) -> list[str]:
    """Return the log's lines with their time stamps.

    Args:
        limit: Only this many of the last lines; None: all.

    Raises:
        gdb.GdbError: the log cannot be read, or the vmlinux lacks its types.
    """
    found = [
        f"{_stamp(record.time)} {line}"
        for record in _records()
        for line in record.text.decode(errors="replace").split("\n")
    ]
    return found if limit is None else found[-limit:] if limit else []


def _stamp(nanoseconds: int) -> str:
    """Return a time stamp as print_time of kernel/printk/printk.c formats it."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return f"[{seconds:5d}.{rest // 1000:06d}]"


def _records() -> list[Record]:
    last: gdb.error | gdb.MemoryError | None = None
    for thread in vmd_guest.cpus():
        # With page-table isolation, a CPU in user space does not have the kernel's data mapped.
        thread.switch()
        try:
            return list(_ring() if _exists(_PRB) else _buffer())
        except (gdb.MemoryError, gdb.error) as error:
            last = error
    raise gdb.GdbError(f"the kernel's log cannot be read: {last or 'there is no CPU'}")


def _exists(name: str) -> bool:
    try:
        gdb.parse_and_eval(f"&{name}")
    except gdb.error:
        return False
    return True


def _ring() -> Iterator[Record]:
    """Yield the records of `struct printk_ringbuffer`."""
    prb = gdb.parse_and_eval(_PRB).dereference()
    ring, data = prb["desc_ring"], prb["text_data_ring"]
    count = 1 << int(ring["count_bits"])
    size = 1 << int(data["size_bits"])
    first, last = _word(ring["tail_id"]), _word(ring["head_id"])
    ids = [(first + each) & _ID_MASK for each in range(min(((last - first) & _ID_MASK) + 1, count))]
    descs = _Elements(ring["descs"], ids, count)
    infos = _Elements(ring["infos"], ids, count)
    text = vmd_memory.read(int(data["data"]), size)
    for number, each in enumerate(ids):
        state = descs.field(number, "state_var")
        if state & _ID_MASK == each and state >> _STATE_SHIFT in (_COMMITTED, _FINALIZED):
            begin, end = (descs.field(number, f"text_blk_lpos.{name}") for name in ("begin", "next"))
            length = infos.field(number, "text_len")
            yield Record(infos.field(number, "ts_nsec"), _block(text, begin, end, length))


def _block(text: bytes, begin: int, end: int, length: int) -> bytes:
    """Return the text of the data block between two logical positions."""
    if begin & 1:
        return b""  # a record without data: BLK_DATALESS
    if begin // len(text) != (end - 1) // len(text):
        begin = 0  # a block that does not fit at the end is at the start
    start = begin % len(text) + _LONG  # after the descriptor's id
    return text[start : min(start + length, (end - 1) % len(text) + 1)]


def _buffer() -> Iterator[Record]:
    """Yield the records of `log_buf`, a sequence of `struct printk_log`."""
    kind = vmd_kernel.struct("printk_log")
    size = int(gdb.parse_and_eval("log_buf_len"))
    text = vmd_memory.read(int(gdb.parse_and_eval("log_buf")), size)
    at, end = (int(gdb.parse_and_eval(name)) for name in ("log_first_idx", "log_next_idx"))
    while True:
        record = _Struct(text[at : at + kind.sizeof], kind)
        length = record.field("len") if len(record.data) == kind.sizeof else 0
        if not length:
            if not at:
                return
            at = 0  # the next record did not fit at the end
            continue
        start = at + kind.sizeof
        yield Record(record.field("ts_nsec"), text[start : start + record.field("text_len")])
        at += length
        if at == end:
            return


class _Struct:
    """The bytes of one struct."""

    def __init__(self, data: bytes, kind: gdb.Type) -> None:
        self.data = data
        self._kind = kind

    def field(self, path: str) -> int:
        """Return a field as an unsigned number, also an `atomic_long_t`."""
        kind, at = self._kind, 0
        for name in path.split("."):
            found = kind.strip_typedefs()[name]
            if found.type is None or found.bitpos is None:
                raise gdb.GdbError(f"{path} is not a field with an offset")
            at += found.bitpos // 8
            kind = found.type
        return int.from_bytes(self.data[at : at + kind.sizeof], "little")


class _Elements:
    """Elements of a ring with consecutive ids, read in one go: each read is a round trip."""

    def __init__(self, pointer: gdb.Value, ids: list[int], count: int) -> None:
        self._kind = pointer.type.target()
        size = self._kind.sizeof
        start = ids[0] % count
        whole = min(len(ids), count - start)
        base = int(pointer)
        up_to_the_end = vmd_memory.read(base + start * size, whole * size)
        self._data = up_to_the_end + vmd_memory.read(base, (len(ids) - whole) * size)

    def field(self, number: int, path: str) -> int:
        size = self._kind.sizeof
        return _Struct(self._data[number * size : (number + 1) * size], self._kind).field(path)


def _word(value: gdb.Value) -> int:
    """Return the value of an `atomic_long_t`."""
    return int.from_bytes(vmd_memory.read(vmd_kernel.address_of(value), _LONG), "little")

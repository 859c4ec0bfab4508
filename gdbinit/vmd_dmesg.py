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
import vmd_printk_layout
from vmd_printk_layout import Layout

_COMMITTED = 1
_FINALIZED = 2
"""Values of `enum desc_state` for records that can be read."""

_SHORT, _INT, _LONG = 2, 4, 8
"""Sizes of numbers: `u16`; `unsigned int`; `u64`, `unsigned long`, `atomic_long_t` and pointers."""

_DESC_RING = ("descs", "infos", "head_id", "tail_id")
"""Fields of `struct prb_desc_ring` of that last size."""

_STATE_SHIFT = 62
_ID_MASK = (1 << _STATE_SHIFT) - 1
"""DESC_FLAGS_SHIFT: the two top bits of a descriptor's state_var are its state, the other bits its id."""

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
            layout = vmd_printk_layout.layout()
            ring = layout.ring()
            return list(_buffer(layout) if ring is None else _ring(layout, ring))
        except (gdb.MemoryError, gdb.error) as error:
            last = error
    raise gdb.GdbError(f"the kernel's log cannot be read: {last or 'there is no CPU'}")


def _ring(layout: Layout, ring: int) -> Iterator[Record]:
    """Yield the records of the `struct printk_ringbuffer` at an address."""
    at = ring + layout.offset("printk_ringbuffer", "desc_ring")
    desc_ring = {
        name: _number(at + layout.offset("prb_desc_ring", name), size)
        for name, size in (("count_bits", _INT), *((each, _LONG) for each in _DESC_RING))
    }
    at = ring + layout.offset("printk_ringbuffer", "text_data_ring")
    size = 1 << _number(at + layout.offset("prb_data_ring", "size_bits"), _INT)
    text = vmd_memory.read(_number(at + layout.offset("prb_data_ring", "data"), _LONG), size)
    count = 1 << desc_ring["count_bits"]
    first, last = desc_ring["tail_id"], desc_ring["head_id"]
    ids = [(first + each) & _ID_MASK for each in range(min(((last - first) & _ID_MASK) + 1, count))]
    descs = _elements(desc_ring["descs"], layout.size("prb_desc"), ids, count)
    infos = _elements(desc_ring["infos"], layout.size("printk_info"), ids, count)
    state_at, block_at = (layout.offset("prb_desc", name) for name in ("state_var", "text_blk_lpos"))
    begin_at, end_at = (layout.offset("prb_data_blk_lpos", name) for name in ("begin", "next"))
    time_at, length_at = (layout.offset("printk_info", name) for name in ("ts_nsec", "text_len"))
    for each, desc, info in zip(ids, descs, infos, strict=True):
        state = _field(desc, state_at, _LONG)
        if state & _ID_MASK == each and state >> _STATE_SHIFT in (_COMMITTED, _FINALIZED):
            begin, end = (_field(desc, block_at + at, _LONG) for at in (begin_at, end_at))
            length = _field(info, length_at, _SHORT)
            yield Record(_field(info, time_at, _LONG), _block(text, begin, end, length))


def _block(text: bytes, begin: int, end: int, length: int) -> bytes:
    """Return the text of the data block between two logical positions."""
    if begin & 1:
        return b""  # a record without data: BLK_DATALESS
    if begin // len(text) != (end - 1) // len(text):
        begin = 0  # a block that does not fit at the end is at the start
    start = begin % len(text) + _LONG  # after the descriptor's id
    return text[start : min(start + length, (end - 1) % len(text) + 1)]


def _buffer(layout: Layout) -> Iterator[Record]:
    """Yield the records of `log_buf`, a sequence of `struct printk_log`."""
    whole = layout.size("printk_log")
    length_at, text_length_at, time_at = (
        layout.offset("printk_log", name) for name in ("len", "text_len", "ts_nsec")
    )
    text = vmd_memory.read(_variable("log_buf", "unsigned long"), _variable("log_buf_len", "unsigned int"))
    at, end = (_variable(name, "unsigned int") for name in ("log_first_idx", "log_next_idx"))
    while True:
        record = text[at : at + whole]
        length = _field(record, length_at, _SHORT) if len(record) == whole else 0
        if not length:
            if not at:
                return
            at = 0  # the next record did not fit at the end
            continue
        start = at + whole
        text_length = _field(record, text_length_at, _SHORT)
        yield Record(_field(record, time_at, _LONG), text[start : start + text_length])
        at += length
        if at == end:
            return


def _variable(name: str, kind: str) -> int:
    found = vmd_kernel.number(f"*({kind} *) &{name}")
    if found is None:
        raise gdb.GdbError(f"the vmlinux has no symbol {name}")
    return found


def _elements(base: int, size: int, ids: list[int], count: int) -> list[bytes]:
    """Return the elements of a ring with consecutive ids, read in one go: each read is a round trip."""
    start = ids[0] % count
    whole = min(len(ids), count - start)
    data = vmd_memory.read(base + start * size, whole * size)
    data += vmd_memory.read(base, (len(ids) - whole) * size)
    return [data[at : at + size] for at in range(0, len(data), size)]


def _field(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _number(address: int, size: int) -> int:
    return int.from_bytes(vmd_memory.read(address, size), "little")

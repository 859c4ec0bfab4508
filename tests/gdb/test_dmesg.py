"""The kernel's log, read from memory with the layouts of different kernel versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmdebug import process, shipped
from vmdebug.deadline import Deadline

# Named as in kernel/printk/printk_ringbuffer.h; the ring of descriptors has wrapped.
RING = r"""
#include <string.h>
typedef struct { long counter; } atomic_long_t;
struct prb_data_blk_lpos { unsigned long begin, next; };
struct prb_desc { atomic_long_t state_var; struct prb_data_blk_lpos text_blk_lpos; };
struct printk_info { unsigned long long seq, ts_nsec; unsigned short text_len; unsigned char facility; };
struct prb_desc_ring {
    unsigned int count_bits; struct prb_desc *descs; struct printk_info *infos;
    atomic_long_t head_id, tail_id;
};
struct prb_data_ring { unsigned int size_bits; char *data; };
struct printk_ringbuffer { struct prb_desc_ring desc_ring; struct prb_data_ring text_data_ring; };

enum { RESERVED, COMMITTED, FINALIZED, REUSABLE };
static char data[64];
static struct prb_desc descs[4];
static struct printk_info infos[4];
static struct printk_ringbuffer ring = { { 2, descs, infos }, { 6, data } };
static struct printk_ringbuffer *prb = &ring;

static void put(long id, long state, unsigned long begin, unsigned long next, double time, const char *text)
{
    descs[id % 4] = (struct prb_desc){ { id | state << 62 }, { begin, next } };
    infos[id % 4] = (struct printk_info){ id, time * 1e9, strlen(text) };
    if (!(begin & 1))
        strcpy(data + (begin / 64 == (next - 1) / 64 ? begin % 64 : 0) + 8, text);
}

int main(void)
{
    put(6, FINALIZED, 64, 88, 1.5, "first\nof two");
    put(7, COMMITTED, 1, 1, 2, "");
    put(8, FINALIZED, 88, 112, 12345.678901234, "second");
    put(9, RESERVED, 1, 1, 3, "being written");
    ring.desc_ring.tail_id.counter = 6;
    ring.desc_ring.head_id.counter = 9;
    return prb == 0;
}
"""
# A block that does not fit at the end is at the start as a whole.
WRAPPED = RING.replace("64, 88, 1.5", "88, 120, 1.5").replace("88, 112, 12345", "120, 152, 12345")

# `struct printk_log` of kernel/printk/printk.c until 5.9; an entry of length 0 means: continue at the start.
BUFFER = r"""
#include <string.h>
struct printk_log {
    unsigned long long ts_nsec; unsigned short len, text_len, dict_len; unsigned char facility, flags;
};
static char buffer[128] __attribute__((aligned(8)));
char *log_buf = buffer;
unsigned int log_buf_len = 128, log_first_idx = 64, log_next_idx = 24;

static void put(int at, double time, const char *text)
{
    struct printk_log record = { time * 1e9, 16 + (strlen(text) + 7) / 8 * 8, strlen(text) };
    memcpy(buffer + at, &record, sizeof record);
    memcpy(buffer + at + sizeof record, text, strlen(text));
}

int main(void)
{
    put(64, 1.5, "first\nof two");
    put(96, 2, "");
    put(0, 12345.678901234, "second");
    return 0;
}
"""

EXPECTED = [
    "[    1.500000] first",
    "[    1.500000] of two",
    "[    2.000000] ",
    "[12345.678901] second",
]


@pytest.mark.parametrize("text", [RING, WRAPPED, BUFFER], ids=["ring", "wrapped", "before-5.10"])
def test_each_layout_tells_the_same(text: str, tmp_path: Path) -> None:
    source = tmp_path / "printk.c"
    source.write_text(text)
    process.run(["gcc", "-g", "-o", tmp_path / "printk", source], deadline=Deadline.after(60))
    line = max(number for number, row in enumerate(text.splitlines(), 1) if row.startswith("    return"))
    commands = (
        f"break {line}",
        "run",
        f"source {shipped.gdbinit() / 'vmdebug.gdb'}",
        "vmd-dmesg",
        "vmd-dmesg 1",
        "kill",
    )
    words = [word for command in commands for word in ("-ex", command)]
    argv = ["gdb", "-nx", "-q", "--batch", str(tmp_path / "printk"), *words]
    done = process.run(argv, deadline=Deadline.after(60))
    assert done.stderr == ""
    said = re.findall(r"^\[ *\d+\..*", done.stdout, re.MULTILINE)
    assert said == [*EXPECTED, EXPECTED[-1]]


def test_a_program_without_a_log_says_so(tmp_path: Path) -> None:
    source = tmp_path / "main.c"
    source.write_text("int main(void)\n{\n    return 0;\n}\n")
    process.run(["gcc", "-g", "-o", tmp_path / "main", source], deadline=Deadline.after(60))
    commands = ("break 3", "run", f"source {shipped.gdbinit() / 'vmdebug.gdb'}", "vmd-dmesg", "kill")
    words = [word for command in commands for word in ("-ex", command)]
    argv = ["gdb", "-nx", "-q", "--batch", str(tmp_path / "main"), *words]
    done = process.run(argv, check=False, deadline=Deadline.after(60))
    assert "main has no struct printk_log in its debugging information" in done.stderr

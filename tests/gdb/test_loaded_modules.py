"""The guest's modules, read from memory with the layouts of different kernel versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug import process, shipped
from vmdebug.deadline import Deadline

# The fields that the walk reads, named as in include/linux/module.h and kernel/module/sysfs.c.
PROGRAM = """
struct list_head { struct list_head *next, *prev; };
struct attribute { const char *name; unsigned short mode; };
struct bin_attribute { struct attribute attr; unsigned long size; void *private; };
struct attribute_group { const char *name; struct bin_attribute **bin_attrs; };
#ifdef OLD
struct module_sect_attr { struct bin_attribute battr; unsigned long address; };
struct module_sect_attrs {
    struct attribute_group grp; unsigned int nsections; struct module_sect_attr attrs[2];
};
struct module_layout { void *base; unsigned int size; };
#else
struct module_sect_attrs { struct attribute_group grp; struct bin_attribute attrs[2]; };
enum mod_mem_type { MOD_TEXT, MOD_DATA };
struct module_memory { void *base; unsigned int size; };
#endif
struct module {
    int state;
    struct list_head list;
    char name[56];
    struct module_sect_attrs *sect_attrs;
#ifdef OLD
    struct module_layout core_layout;
#else
    struct module_memory mem[2];
#endif
};
struct list_head modules;

#ifdef OLD
static struct module_sect_attrs attrs = { .nsections = 2, .attrs = {
    { { { ".text" } }, 0x1000 }, { { { ".init.text" } }, 0x9000 } } };
#define BASE .core_layout = { (void *)0x1000 }
#else
static struct module_sect_attrs attrs = { .attrs = {
    { { ".text" }, 0, (void *)0x1000 }, { { ".init.text" }, 0, (void *)0x9000 } } };
static struct bin_attribute *group[] = { &attrs.attrs[0], &attrs.attrs[1], 0 };
#define BASE .mem = { [MOD_TEXT] = { (void *)0x1000 } }
#endif

struct module unformed = { 3, { &modules, 0 }, "unformed" };
struct module bare = { 0, { &unformed.list, 0 }, "bare", 0, BASE };
struct module full = { 1, { &bare.list, 0 }, "full", &attrs, BASE };

int main(void)
{
#ifndef OLD
    attrs.grp.bin_attrs = group;
#endif
    modules.next = &full.list;
    return 0;
}
"""

SHOW = """python
import vmd_loaded_modules
for each in vmd_loaded_modules.loaded():
    print(each.name, hex(each.address), each.sections, each.freed, repr(each.build_id()))
end
"""


@pytest.mark.parametrize("layout", ["-DOLD", "-DNEW"])
def test_both_layouts_tell_the_same(layout: str, tmp_path: Path) -> None:
    source = tmp_path / "modules.c"
    source.write_text(PROGRAM)
    program = tmp_path / "modules"
    process.run(["gcc", "-g", layout, "-o", program, source], deadline=Deadline.after(60))
    show = tmp_path / "show.gdb"
    show.write_text(SHOW)
    line = PROGRAM.splitlines().index("    return 0;") + 1
    commands = (
        f"break {line}",
        "run",
        f"source {shipped.gdbinit() / 'vmdebug.gdb'}",
        f"source {show}",
        "kill",
    )
    argv = ["gdb", "-nx", "-q", "--batch", str(program)]
    words = [word for command in commands for word in ("-ex", command)]
    done = process.run([*argv, *words], deadline=Deadline.after(60))
    assert done.stderr == ""
    assert [row for row in done.stdout.splitlines() if " 0x1000 " in row] == [
        "full 0x1000 {'.text': 4096, '.init.text': 36864} False ''",
        "bare 0x1000 {} True ''",
    ]

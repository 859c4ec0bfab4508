"""Locks that lockdep has recorded, holders of locks, and file names, read from a small program."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmdebug import process, shipped
from vmdebug.deadline import Deadline

SECONDS = 60.0

PROGRAM = """\
struct lock_class { const char *name; };
struct lock_class lock_classes[] = {{0}, {"&f->f_pos_lock"}, {"sb_writers"}};
struct held_lock {
    unsigned long acquire_ip; void *instance;
    unsigned int class_idx : 13, irq_context : 2, trylock : 1, read : 2;
};
struct atomic { long counter; };
struct mutex { struct atomic owner; };
struct rw_semaphore { struct atomic owner; };
struct task_struct {
    int pid; char comm[16]; int lockdep_depth; struct held_lock held_locks[48]; unsigned int __state;
};
int start_kernel(void) { return 0; }
struct mutex a_mutex;
struct task_struct a_task = {.pid = 7, .comm = "cat", .lockdep_depth = 2, .held_locks = {
    {(unsigned long) start_kernel, &a_mutex, 1}, {0, (void *) 0x1000, 2, 0, 0, 1}}, .__state = 2};
char *owner_of_mutex = (char *) &a_task + 3, *owner_of_rwsem = (char *) &a_task + 1;
int main(void) { return start_kernel(); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree") / "init"
    tree.mkdir()
    (tree / "main.c").write_text(PROGRAM)
    built = tree / "program"
    process.run(["gcc", "-g", "-no-pie", "-o", built, tree / "main.c"], deadline=Deadline.after(SECONDS))
    return built


def gdb(program: Path, *lines: str) -> list[str]:
    """Run Python in GDB on the program that is not started, and return what it prints."""
    beside = f"import sys; sys.path.insert(0, {str(shipped.gdbinit())!r})"
    words = [word for line in (beside, *lines) for word in ("-ex", f"python {line}")]
    done = process.run(["gdb", "-nx", "-q", "--batch", program, *words], deadline=Deadline.after(SECONDS))
    assert "Error" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def test_locks_that_lockdep_has_recorded(program: Path) -> None:
    found = gdb(
        program, "import vmd_locks", "print(*vmd_locks.held([gdb.parse_and_eval('a_task')]), sep='\\n')"
    )
    assert found[0] == "pid 7 (cat) holds 2:"
    assert found[1].startswith("  #0 &f->f_pos_lock 0x")
    assert found[1].endswith("<start_kernel>")
    assert found[2] == "  #1 sb_writers 0x1000, for reading, taken at 0x0"


def test_holders_of_locks(program: Path) -> None:
    lock = "{{'owner': {{'counter': gdb.parse_and_eval('(long) {0}')}}}}"
    holder = f"print(vmd_wait.holder({lock}, '{{1}}') or 'nobody')"
    found = gdb(
        program,
        "import vmd_wait",
        holder.format("owner_of_mutex", "mutex"),
        holder.format("owner_of_rwsem", "rw_semaphore"),
        holder.format("0", "mutex"),
        holder.format("1", "rw_semaphore"),
        holder.format("1", "semaphore"),
    )
    assert found == ["pid 7 (cat)", "readers, the last was pid 7 (cat)", "nobody", "readers", "nobody"]


def test_files_are_named_from_the_top_of_the_tree(program: Path) -> None:
    top = program.parents[1]
    found = gdb(
        program,
        "import vmd_frames",
        f"print(vmd_frames.relative('{top}/fs/open.c'))",
        "print(vmd_frames.relative('./arch/x86/include/generated/asm/syscalls_64.h'))",
        "print(vmd_frames.relative('/usr/include/stdio.h'))",
    )
    assert found == ["fs/open.c", "arch/x86/include/generated/asm/syscalls_64.h", "/usr/include/stdio.h"]

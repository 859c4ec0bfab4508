"""A breakpoint on a system call, and the arguments of the program that called it.

`session` has a fresh guest at its shell, its console and its GDB. Touching `session.gdb` attaches GDB, which
stops the guest; `cont` lets it run to the next stop.
"""

from __future__ import annotations

from vmdebug import DebugSession

O_CREAT = 0o100
AT_FDCWD = -100


def test_openat_gets_the_path_that_was_typed(session: DebugSession) -> None:
    gdb = session.gdb
    gdb.breakpoint("do_sys_openat2", when='$_streq(filename, "/etc/passwd")')
    session.console.sendline("cat /etc/passwd")
    stop = gdb.cont(timeout=60)

    frame = stop.frame
    assert int(frame.arg("dfd")) == AT_FDCWD
    assert frame.arg("filename").string_() == "/etc/passwd"
    assert not int(frame.arg("how").flags) & O_CREAT
    # Who calls? The kernel's own GDB scripts are there too: $lx_current() is the task on this CPU.
    assert frame.evaluate("$lx_current().comm").string_() == "cat"


# For many calls: a trace collects them inside GDB, without a round trip for each.
def test_touch_creates_exactly_one_file(session: DebugSession) -> None:
    with session.gdb.trace("do_sys_openat2", args=["filename"], when=f"how->flags & {O_CREAT}") as created:
        session.exec("touch /etc/new", check=True)
    assert [hit.args["filename"] for hit in created].count("/etc/new") == 1

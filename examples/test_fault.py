"""Inject faults: the debugger changes what a kernel function returns, and the program's error path is tested.

The kernel needs no fault injection support for it.
"""

from __future__ import annotations

import errno

from vmdebug import DebugSession


def test_a_read_error_reaches_the_program(session: DebugSession) -> None:
    gdb = session.gdb
    reading = gdb.breakpoint("vfs_read", when='$_streq(file->f_path.dentry->d_name.name, "passwd")')
    session.console.sendline("dd if=/etc/passwd of=/dev/null")
    gdb.cont(timeout=60)
    reading.delete()

    returned = gdb.finish(timeout=60)  # vfs_read is done: its return value is in RAX
    assert int(returned.details["return-value"]) > 0
    gdb.console(f"set $rax = -{errno.EIO}")

    gdb.cont(wait=False)
    session.console.expect("dd: .*Input/output error", timeout=60)


def test_no_inode_is_no_space(session: DebugSession) -> None:
    gdb = session.gdb
    # A function that only other files call is not inlined, so that GDB can return from it.
    gdb.breakpoint("new_inode", when="sb->s_op == &shmem_ops", temporary=True)
    session.console.sendline("mkdir /tmp/new")
    stop = gdb.cont(timeout=60)
    assert "shmem_mkdir" in [frame.function for frame in stop.backtrace()]

    gdb.console("return (struct inode *) 0")  # leaves the function at once: it allocates nothing

    gdb.cont(wait=False)
    session.console.expect("mkdir: .*No space left on device", timeout=60)
    assert session.exec("ls -d /tmp/new").status != 0

"""Faults that no disk and no allocator has at hand: the debugger changes what a kernel function returns.

The program in the guest then shows whether its error path works. Nothing is built into the kernel for it.
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

    returned = gdb.finish(timeout=60)  # vfs_read has done its work: what it returns is in RAX
    assert int(returned.details["return-value"]) > 0
    gdb.console(f"set $rax = -{errno.EIO}")

    gdb.cont(wait=False)
    session.console.expect("dd: .*Input/output error", timeout=60)


def test_no_inode_is_no_space(session: DebugSession) -> None:
    gdb = session.gdb
    # What only other files call is inlined nowhere, so that it can be returned from.
    gdb.breakpoint("new_inode", when="sb->s_op == &shmem_ops", temporary=True)
    session.console.sendline("mkdir /tmp/new")
    stop = gdb.cont(timeout=60)
    assert "shmem_mkdir" in [frame.function for frame in stop.backtrace()]

    gdb.console("return (struct inode *) 0")  # the function is left at once: it allocates nothing

    gdb.cont(wait=False)
    session.console.expect("mkdir: .*No space left on device", timeout=60)
    assert session.exec("ls -d /tmp/new").status != 0

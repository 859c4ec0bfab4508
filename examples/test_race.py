"""Provoke a race every time: hold one CPU in the middle of it while the other one runs.

Two programs increment the number in a file without a lock: read it, add one, write it. Normally they lose an
update now and then. Here the debugger holds CPU 0 between its read and its write while CPU 1 runs.
"""

from __future__ import annotations

import pytest

from vmdebug import DebugSession

ADD = "read n </tmp/n; echo $((n + 1)) >/tmp/n"
UPDATES = 20
O_TRUNC = 0o1000


@pytest.mark.vmdebug(cpus=2)
def test_an_update_is_lost(session: DebugSession) -> None:
    session.exec("echo 0 >/tmp/n", check=True)
    gdb = session.gdb

    # CPU 0 has read the number, and is about to open the file to write it: hold it there.
    writing = f'$_streq(filename, "/tmp/n") && how->flags & {O_TRUNC}'
    held = gdb.breakpoint("do_sys_openat2", when=writing, cpu=0)
    many = f"i=0; while [ $i -lt {UPDATES} ]; do {ADD}; i=$((i + 1)); done"
    session.console.sendline(f"taskset 2 sh -c 'until [ -e /tmp/go ]; do :; done; {many}' &")
    session.console.sendline(f"taskset 1 sh -c ': >/tmp/go; {ADD}'; wait; echo total $(cat /tmp/n)")
    assert gdb.cont(timeout=60).thread.cpu == 0
    held.delete()

    # Now only CPU 1 runs, until its program ends.
    gdb.breakpoint("do_exit", cpu=1, temporary=True)
    gdb.console("set scheduler-locking on")
    gdb.select(cpu=1)
    assert gdb.cont(timeout=60).thread.cpu == 1
    gdb.console("set scheduler-locking off")

    # CPU 0 writes a stale number.
    gdb.cont(wait=False)
    said = session.console.expect(r"total (\d+)\r?\n", timeout=60)
    assert int(said[1]) < UPDATES + 1

#!/usr/bin/env bash
# The end of file on one interpreter of `new-ui` quits all of GDB 18.1; a hangup of its terminal only removes it.
#
# GDB's manual says of `new-ui` that a program can share a GDB with the person at its prompt. When the program hangs
# up, GDB deletes that interpreter, prints "warning: Error detected on fd N", keeps N open, and goes on. When GDB
# reads an end of file there instead (here Ctrl-D on a terminal in its default mode), it exits with status 0, and
# the person's session is gone without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check gdb-for-pwndbg==18.1.0.post1 pexpect==4.9.0
cat > client.py <<'EOF'
import os
import sys

import pexpect

gdb = pexpect.spawn("env/bin/gdb -nx -q", encoding="utf-8", timeout=30, env={**os.environ, "TERM": "dumb"})
gdb.expect_exact("(gdb) ")


def join() -> int:
    """Return the other end of a terminal on which GDB now speaks MI."""
    ours, theirs = os.openpty()
    gdb.sendline(f"new-ui mi4 {os.ttyname(theirs)}")
    gdb.expect_exact("(gdb) ")
    os.close(theirs)
    return ours


os.close(join())
gdb.expect("Error detected on fd ([0-9]+)")
left = os.readlink(f"/proc/{gdb.pid}/fd/{gdb.match[1]}")
gdb.sendline("print 40 + 2")
gdb.expect_exact("= 42")
gdb.expect_exact("(gdb) ")
print("hangup: GDB goes on; still open:", "deleted" in left)

ours = join()
os.write(ours, b"\x04")
gdb.expect(pexpect.EOF)
gdb.close()
print("end of file: GDB exits with", gdb.exitstatus, gdb.signalstatus)
EOF
timeout 120 env/bin/python client.py | tee seen
grep -q '^hangup: GDB goes on; still open: True$' seen
grep -q '^end of file: GDB exits with 0 None$' seen

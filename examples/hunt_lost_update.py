"""A lost update between two programs, for `vmdebug hunt`: both add to a number in a file, without a lock."""

from __future__ import annotations

from vmdebug import DebugSession

UPDATES = 10
ADD = "add() { i=0; while [ $i -lt 10 ]; do read n </tmp/n; echo $((n + 1)) >/tmp/n; i=$((i + 1)); done; }"


def prepare(session: DebugSession) -> None:
    """Run once, before the guest is copied."""
    session.exec("echo 0 >/tmp/n", check=True)


def main(session: DebugSession) -> None:
    """Run under each schedule."""
    total = session.exec(f"{ADD}; add & add & wait; cat /tmp/n", check=True).stdout
    assert int(total) == 2 * UPDATES, f"an update is lost: {int(total)} of {2 * UPDATES}"

"""Hunt the lost update of race.c: two programs add to its counter.

Build it and hunt:

    make -C ~/.cache/vmdebug/kernel/*/ M=$PWD/examples/hunt_race modules
    vmdebug hunt examples/hunt_race/lost_update.py --module examples/hunt_race/race.ko
"""

from __future__ import annotations

from vmdebug import DebugSession

TIMES = 200
ADD = f"add() {{ i=0; while [ $i -lt {TIMES} ]; do echo add; i=$((i + 1)); done >/proc/race; }}"


def main(session: DebugSession) -> None:
    """Run under each schedule."""
    total = session.exec(f"{ADD}; add & add & wait; cat /proc/race", check=True).stdout
    assert int(total) == 2 * TIMES, f"an update is lost: {int(total)} of {2 * TIMES}"

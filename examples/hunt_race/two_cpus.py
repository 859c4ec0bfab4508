"""Hunt the race of two CPUs in race.c: its increments are not preempted, so one CPU cannot lose one.

vmdebug hunt examples/hunt_race/two_cpus.py --module examples/hunt_race/race.ko --hold store_counter
"""

from __future__ import annotations

from vmdebug import DebugSession

TIMES = 3
LOOP = f"loop() {{ i=0; while [ $i -lt {TIMES} ]; do sleep 0.02; echo inc >/proc/race; i=$((i + 1)); done; }}"


def main(session: DebugSession) -> None:
    """Run under each schedule."""
    total = session.exec(f"{LOOP}; loop & loop & wait; cat /proc/race", check=True).stdout
    assert int(total) == 2 * TIMES, f"an increment is lost: {int(total)} of {2 * TIMES}"

"""Hunt the double free of race.c: two programs put its buffer. SLUB reports it with slub_debug=FZ.

vmdebug hunt examples/hunt_race/double_free.py --module examples/hunt_race/race.ko --append slub_debug=FZPU
"""

from __future__ import annotations

from vmdebug import DebugSession

TIMES = 40
LOOP = f"loop() {{ i=0; while [ $i -lt {TIMES} ]; do echo get; echo put; i=$((i + 1)); done >/proc/race; }}"


def main(session: DebugSession) -> None:
    """Run under each schedule."""
    session.exec(f"{LOOP}; loop & loop & wait", check=True)
    log = session.exec("dmesg", check=True).stdout
    assert "already free" not in log, next(line for line in log.splitlines() if "already free" in line)

"""Run vmdebug for a long time under kills, cycles, bad inputs and faults of the machine, and print figures.

Use `python -m soak.run [PART…] [--PART N]… [--seed N]`. Each part is a module with a function that returns a
`Result`; without names all parts run. The exit status is 1 if anything was left behind, hung, grew, or ended
with a traceback.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time

from soak import cycles, faults, inputs, kills, recordings
from soak.result import Result
from vmdebug import process

INSIDE = "VMDEBUG_SOAK_INSIDE"
"""The environment variable that is set inside the mount namespace of a run with `faults`."""

PARTS = {
    "inputs": inputs.run,
    "cycles": cycles.run,
    "kills": kills.run,
    "recordings": recordings.run,
    "faults": faults.run,
}
COUNTS = {"inputs": 20_000, "cycles": 500, "kills": 500, "recordings": 30, "faults": 200}


def main(words: list[str]) -> int:
    """Run the named parts; see the module."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; by default all")
    for part, count in COUNTS.items():
        parser.add_argument(f"--{part}", type=int, default=count, metavar="N", help=f"how many ({count})")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 1_000_000, help="repeat the run that printed this seed"
    )
    given = parser.parse_args(words)
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    if INSIDE not in os.environ and (not given.parts or "faults" in given.parts):
        # In a mount namespace, the file system that `faults` fills disappears with this process.
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        again = ["unshare", *user, "--mount", sys.executable, "-m", "soak.run", *words]
        process.replace(again, env={**os.environ, INSIDE: "1"})
    # A shell starts a background job with SIGINT ignored; the processes under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"seed {given.seed}", flush=True)
    results: list[Result] = []
    for part in given.parts or PARTS:
        begin = time.monotonic()
        result = PARTS[part](getattr(given, part), random.Random(given.seed))
        results.append(result)
        print(f"{part}: {result.figures}; {time.monotonic() - begin:.0f} s", flush=True)
        for failure in result.failures:
            print(f"  FAILED {failure}", flush=True)
    return int(any(result.failures for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

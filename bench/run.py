"""Run the benchmarks, print a table, and write bench/out/latest.json.

Use `python -m bench.run [NAME]`. A benchmark is a module in this directory with a function `figures()`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from bench.figure import Figure

BENCHMARKS = (
    "attach",
    "back",
    "clone",
    "coverage",
    "drgn",
    "exec",
    "guesttrace",
    "help",
    "kaslr",
    "mi",
    "plugin",
    "record",
    "root",
    "start",
    "suite",
    "trace",
    "trouble",
    "value",
)
OUT = Path(__file__).parent / "out" / "latest.json"


def main(names: list[str]) -> int:
    """Run the named benchmarks; all without names."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    # An installed program has bytecode. In a checkout the warm-up runs write it, for GDB's Python too, unless
    # this variable forbids it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    found: list[Figure] = []
    for name in names or BENCHMARKS:
        print(f"running {name} …", file=sys.stderr, flush=True)
        found += importlib.import_module(f"bench.{name}").figures()
    _table(found)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({each.name: _entry(each) for each in found}, indent=2) + "\n")
    return 0


def _entry(figure: Figure) -> dict[str, object]:
    entry = asdict(figure) | {"ratio": round(figure.ratio, 4), "met": figure.met}
    del entry["name"]
    return entry


def _table(figures: list[Figure]) -> None:
    head = ("benchmark", "ours", "baseline", "unit", "ratio", "goal", "met", "against")
    rows = [
        (
            each.name,
            f"{each.ours:.3g}",
            f"{each.baseline:.3g}",
            each.unit,
            f"{each.ratio:.3f}",
            f"{'≥' if each.more else '≤'} {each.goal:g}",
            "yes" if each.met else "NO",
            each.against,
        )
        for each in figures
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

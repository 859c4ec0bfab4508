"""What `kselftest` and `kunit` have in common: how they print test points, and their time limit."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from vmdebug.cli import render

if TYPE_CHECKING:
    from vmdebug.guest import Kernel
    from vmdebug.ktests.results import KernelTestPoint, KernelTestResults

TIMEOUT_SECONDS = 3600.0

Timeout = Annotated[float, typer.Option(metavar="S", min=0, help="Exit with status 5 after S seconds.")]

_SHOWN = 40
"""How many lines of a failed point's diagnostics are printed, the last ones."""


def put_point(above: str, point: KernelTestPoint, allow: Collection[str]) -> None:
    """Print a test, or a suite, as soon as it has ended: a line, and its points that failed.

    Args:
        above: The path of the group that it belongs to; "" for none.
        point: The test.
        allow: Kinds of kernel trouble that are no failure.
    """
    from vmdebug.ktests.results import SEPARATOR, KernelTestResults

    path = f"{above}{SEPARATOR}{point.name}" if above else point.name
    results = KernelTestResults(framework="", points=(point,)).allowing(allow)
    (point,) = results.points
    took = "" if point.duration is None else f"{point.duration:.1f} s"
    counts = str(results.counts) if point.points else ""
    good = "ok" if point.status == "passed" else point.status
    word = good if point.ok else "FAILED"
    reason = f"  # {point.directive}" if point.directive else ""
    render.put(f"{path:<44} {word:<8} {took:>8}  {counts}{reason}".rstrip())
    for inner, failed in results.failures():
        for line in _told(inner.removeprefix(point.name).removeprefix(SEPARATOR), failed):
            render.put(f"    {line}")
    render.flush()


def _told(name: str, point: KernelTestPoint) -> Iterator[str]:
    place = f"  at {point.place}" if point.place else ""
    reason = f"  # {point.directive}" if point.directive and name else ""
    if name or place:
        yield f"{point.status if point.status != 'passed' else 'failed'}: {name}{place}{reason}"
    for trouble in point.troubles:
        yield f"kernel {trouble.kind}: {trouble.headline}"
    yield from (f"| {line}" for line in point.diagnostics[-_SHOWN:])


def finish(results: KernelTestResults, kernel: Kernel, *, as_json: bool) -> None:
    """Print the decoded splats, the counts and the notes; exit with status 1 if a point failed."""
    import msgspec

    from vmdebug import postmortem

    for note in results.notes:
        render.tell(f"note: {note}")
    for section in postmortem.splats(results.troubles(), kernel):
        render.tell(f"--- {section.title} ---\n{section.text}")
    if as_json:
        facts = {
            "framework": results.framework,
            "ok": results.ok,
            "counts": msgspec.to_builtins(results.counts),
            "notes": results.notes,
            "points": [json_point(point) for point in results.points],
        }
        render.put_json(facts)
    else:
        render.put(str(results.counts))
    if results.troubles():
        kinds = dict.fromkeys(trouble.kind for trouble in results.troubles())
        render.tell(
            f"if the tests cause this trouble on purpose: {' '.join(f'--allow {each}' for each in kinds)}"
        )
    if not results.ok:
        raise typer.Exit(1)


def json_point(point: KernelTestPoint) -> dict[str, object]:
    """Return a point as `--json` prints it."""
    import msgspec

    facts: dict[str, object] = msgspec.to_builtins(point)
    return {
        **facts,
        "ok": point.ok,
        "place": point.place,
        "points": [json_point(each) for each in point.points],
    }

"""Records examples/demo in a terminal of a fixed size, and draws what it shows as two animated SVG images.

    python docs/_ext/cast.py

writes docs/_build/demo.cast (asciicast v2, with the real times: `asciinema play` shows it), and
docs/_static/demo-{dark,light}.svg, which the README and the front page show. The images show the lines as the
terminal had them in the end, at an even pace, so they do not depend on this machine's speed. They are written
only if more has changed than pids, addresses, build-ids and the like.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import pexpect

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.fixtures.transcripts import differs  # noqa: E402 - of the checkout

COLUMNS, ROWS = 112, 26
SECONDS = 300.0
RUNTIME = Path("/tmp/vmdebug-cast")  # noqa: S108 - 0700; its name is in the picture, and your VMs are not
_EVENT = re.compile(
    r"\x1b\[(?P<numbers>[0-9;?]*)(?P<code>[a-zA-Z])|(?P<control>[\r\n\t\b])|(?P<char>[^\x1b])"
)


class Cell(NamedTuple):
    """A character on the screen, and its SGR attributes: "1" is bold, "2" dim, "32" green."""

    char: str
    style: str


class Screen:
    """The lines that a terminal has shown, those above its top included.

    Knows what vmdebug and GDB send: text, SGR, and what a progress line needs. See ECMA-48.
    """

    def __init__(self, columns: int) -> None:
        self.lines: list[list[Cell]] = [[]]
        self._columns = columns
        self._row = self._column = 0
        self._style = ""

    def feed(self, text: str) -> None:
        """Show the text."""
        for event in _EVENT.finditer(text):
            if event["char"]:
                self._put(event["char"])
            elif event["control"]:
                self._move(event["control"])
            else:
                self._execute(event["code"], event["numbers"])

    def _put(self, char: str) -> None:
        if self._column == self._columns:
            self._move("\r")
            self._move("\n")
        line = self.lines[self._row]
        line.extend(Cell(" ", "") for _ in range(self._column - len(line)))
        line[self._column : self._column + 1] = [Cell(char, self._style)]
        self._column += 1

    def _move(self, control: str) -> None:
        if control == "\r":
            self._column = 0
        elif control == "\b":
            self._column = max(0, self._column - 1)
        elif control == "\t":
            self._column = min(self._columns - 1, self._column // 8 * 8 + 8)
        else:
            self._row += 1
            if self._row == len(self.lines):
                self.lines.append([])

    def _execute(self, code: str, numbers: str) -> None:
        count = int(numbers) if numbers.isdigit() else 1
        if code == "m":
            self._style = "" if numbers in ("", "0") else numbers
        elif code == "A":
            self._row = max(0, self._row - count)
        elif code == "K":
            # 2 is the whole line, 0 the rest of it.
            self.lines[self._row][0 if numbers == "2" else self._column :] = []

    def text(self) -> str:
        """Return the lines as text."""
        return "".join("".join(cell.char for cell in line).rstrip() + "\n" for line in self.lines)


def record(argv: Sequence[str]) -> list[tuple[float, str]]:
    """Run a command in a terminal, and return what it has written, with the seconds since its start."""
    RUNTIME.mkdir(mode=0o700, exist_ok=True)
    env = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "XDG_RUNTIME_DIR": str(RUNTIME)}
    child: pexpect.spawn[str] = pexpect.spawn(
        argv[0],
        list(argv[1:]),
        cwd=str(ROOT),
        env=env,
        encoding="utf-8",
        timeout=SECONDS,
        dimensions=(ROWS, COLUMNS),
    )
    start, events = time.monotonic(), []
    with child:
        try:
            while True:
                text = child.read_nonblocking(4096, SECONDS)
                events.append((round(time.monotonic() - start, 3), text))
        except pexpect.EOF:
            pass
    if child.exitstatus:
        raise SystemExit(f"{argv[0]} failed:\n{''.join(text for _, text in events)}")
    return events


def asciicast(events: Sequence[tuple[float, str]]) -> str:
    """Return the recording as asciicast v2; see docs.asciinema.org/manual/asciicast/v2."""
    head = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "vmdebug"}
    return "".join(json.dumps(each) + "\n" for each in (head, *([at, "o", text] for at, text in events)))


class Theme(NamedTuple):
    """Colours of a terminal."""

    back: str
    border: str
    text: str
    dim: str
    prompt: str


THEMES = {
    "dark": Theme("#0d1117", "#30363d", "#d1d7e0", "#8b949e", "#7ee787"),
    "light": Theme("#ffffff", "#d0d7de", "#1f2328", "#656d76", "#116329"),
}

FONT = 13.0
WIDTH, HEIGHT = 7.8, 18.0
"""Of a character and a line, in pixels."""

MARGIN, BAR = 16.0, 30.0

PAUSES = {"# ": 1.5, "$ ": 0.9}
"""Seconds before a line that begins so; the first line of output comes as late after a command."""

PACE, END = 0.06, 6.0
"""Seconds between lines of output, and at the end."""


def times(lines: Sequence[str]) -> tuple[list[float], float]:
    """Return when each line appears, and how long the whole takes."""
    at, appear, before = 0.0, [], ""
    for line in lines:
        start = line[:2]
        at += PAUSES.get(start, PAUSES["$ "] if before == "$ " else PACE)
        appear.append(at)
        before = start
    return appear, at + END


def svg(lines: Sequence[Sequence[Cell]], theme: Theme) -> str:
    """Return the animation.

    Each line is shown at its time by a CSS animation, and the column of lines moves up when the window is
    full. Without animations (`prefers-reduced-motion`) the last lines are shown.
    """
    return "".join(_svg(lines, theme))


def _svg(lines: Sequence[Sequence[Cell]], theme: Theme) -> Iterator[str]:
    appear, whole = times(["".join(cell.char for cell in line) for line in lines])
    width, height = COLUMNS * WIDTH + 2 * MARGIN, ROWS * HEIGHT + BAR + MARGIN
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
        f' width="{width:g}" height="{height:g}" role="img"><title>vmdebug: a demo</title><style>'
        f"text{{font:{FONT:g}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"fill:{theme.text};white-space:pre}}.b{{font-weight:700}}.d{{fill:{theme.dim}}}"
        f".p{{fill:{theme.prompt};font-weight:700}}"
        f".l{{animation:{whole:.2f}s step-end infinite}}"
        "@media(prefers-reduced-motion:reduce){.l{animation:none!important}}"
    )
    for number, at in enumerate(appear):
        yield f"@keyframes a{number}{{0%{{visibility:hidden}}{at / whole:.3%}{{visibility:visible}}}}"
    moves = [(at, index - ROWS + 1) for index, at in enumerate(appear) if index >= ROWS]
    yield "@keyframes s{0%{transform:translateY(0)}"
    yield from (f"{at / whole:.3%}{{transform:translateY({-up * HEIGHT:g}px)}}" for at, up in moves)
    last = max(0, len(lines) - ROWS) * HEIGHT
    yield (
        "}</style>"
        f'<rect x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" rx="8" fill="{theme.back}"'
        f' stroke="{theme.border}"/>'
        + "".join(f'<circle cx="{18 + 18 * n}" cy="16" r="5" fill="{theme.border}"/>' for n in range(3))
        + f'<svg x="{MARGIN:g}" y="{BAR:g}" width="{COLUMNS * WIDTH:g}" height="{ROWS * HEIGHT:g}">'
        f'<g class="l" style="animation-name:s;transform:translateY({-last:g}px)">'
    )
    for number, line in enumerate(lines):
        if line:
            yield (
                f'<text class="l" style="animation-name:a{number}" y="{number * HEIGHT + FONT:g}"'
                f' textLength="{len(line) * WIDTH:g}" lengthAdjust="spacingAndGlyphs" xml:space="preserve">'
                f"{''.join(_spans(line))}</text>"
            )
    yield "</g></svg></svg>\n"


def _spans(line: Sequence[Cell]) -> Iterator[str]:
    text = "".join(cell.char for cell in line)
    if text.startswith(("# ", "$ ")):
        yield f'<tspan class="{"d" if text.startswith("#") else "p"}">{escape(text, quote=False)}</tspan>'
        return
    start = 0
    for end in range(1, len(line) + 1):
        if end == len(line) or line[end].style != line[start].style:
            kind = {"1": "b", "2": "d"}.get(line[start].style)
            part = escape(text[start:end], quote=False)
            yield f'<tspan class="{kind}">{part}</tspan>' if kind else part
            start = end


def _shown(image: str) -> str:
    """Return the text in an image."""
    return "".join(
        re.sub(r"<[^>]*>", "", line) + "\n" for line in re.findall(r"<text.*?</text>", image, re.DOTALL)
    )


def main() -> None:
    """Record the demo, and write the images if they would show something else."""
    try:
        events = record(["examples/demo"])
    finally:
        shutil.rmtree(RUNTIME, ignore_errors=True)
    build = ROOT / "docs" / "_build"
    build.mkdir(exist_ok=True)
    (build / "demo.cast").write_text(asciicast(events))
    screen = Screen(COLUMNS)
    screen.feed("".join(text for _, text in events))
    lines = list(screen.lines)
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    for name, theme in THEMES.items():
        path = ROOT / "docs" / "_static" / f"demo-{name}.svg"
        image = svg(lines, theme)
        if not path.is_file() or differs(_shown(path.read_text()), _shown(image)):
            path.write_text(image)
            print(f"docs: wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

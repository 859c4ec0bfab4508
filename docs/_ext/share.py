"""Makes what a package puts into share/: man pages, and the completions of bash, zsh and fish.

python docs/_ext/share.py DIRECTORY
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vmdebug import process  # noqa: E402 - of the checkout
from vmdebug.deadline import Deadline  # noqa: E402

SECONDS = 300.0

COMPLETIONS = {
    "bash": "bash-completion/completions/vmdebug",
    "zsh": "zsh/site-functions/_vmdebug",
    "fish": "fish/vendor_completions.d/vmdebug.fish",
}
"""Where each shell looks for completions, below share/."""


def completion(shell: str) -> str:
    """Return the completion script of a shell."""
    done = process.run(
        [sys.executable, "-c", "from vmdebug.cli import main; main([])"],
        env={**os.environ, "_VMDEBUG_COMPLETE": f"source_{shell}", "PYTHONPATH": str(ROOT)},
        deadline=Deadline.after(SECONDS),
    )
    script = done.stdout.strip() + "\n"
    # zsh loads the file as the function itself at the first completion; typer's script only defines another.
    return script + '\n_vmdebug_completion "$@"\n' if shell == "zsh" else script


def man_pages(directory: Path) -> None:
    """Write the man pages into man1 and man5 of a directory."""
    with tempfile.TemporaryDirectory(prefix="vmdebug-man-") as built:
        process.run(
            [sys.executable, "-m", "sphinx", "-q", "-W", "-t", "man", "-b", "man", ROOT / "docs", built],
            deadline=Deadline.after(SECONDS),
        )
        for page in Path(built).glob("*.[1-9]"):
            section = directory / f"man{page.suffix[1:]}"
            section.mkdir(parents=True, exist_ok=True)
            (section / page.name).write_text(page.read_text())


def make(directory: Path) -> None:
    """Write everything into a directory that becomes share/."""
    man_pages(directory / "man")
    for shell, place in COMPLETIONS.items():
        path = directory / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(completion(shell))


if __name__ == "__main__":
    make(Path(sys.argv[1]))

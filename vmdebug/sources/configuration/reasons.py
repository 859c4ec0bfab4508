"""Why an option of a configuration is what it is, by the words of the kernel's own Kconfig.

A small C program (`kconfigs/why/kconfig-why.c`) is linked with the parser that the kernel brings, the
objects of scripts/kconfig: each kernel's Kconfig language is its own, and libraries that read it stand
still (kconfiglib 14.1.0, the newest there is, fails at the first `modules` of 6.1). It runs where `make
config` runs its program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmdebug import process, shipped
from vmdebug.deadline import Deadline
from vmdebug.errors import BuildError
from vmdebug.sources import kbuild

_PROGRAM = "vmdebug-why"
_NAME = re.compile(r"\w+")


@dataclass(slots=True)
class Facts:
    """What Kconfig has on one option.

    Args:
        known: Whether this kernel has it.
        limits: What keeps it below y: the value that is left, "n" or "m", and the expression, as menuconfig
            writes it: "NET_9P [=n]".
        selected: What selects it.
        chosen: The option that a choice has taken in its place; "" where it is in none.
        promptless: Whether no one but other options can set it.
    """

    known: bool = True
    limits: dict[str, str] = field(default_factory=dict)
    selected: list[str] = field(default_factory=list)
    chosen: str = ""
    promptless: bool = False


def ask(
    options: Iterable[str], *, source: Path, directory: Path, env: Mapping[str, str], deadline: Deadline
) -> dict[str, Facts]:
    """Return what the kernel's Kconfig has on options.

    Args:
        options: Their names, with CONFIG_.
        source: The kernel's source.
        directory: The build directory, with a `.config` made by `make`.
        env: The environment of make.
        deadline: When it is given up.

    Returns:
        The facts by name; none where the program cannot be built with this kernel's parser.

    Raises:
        DeadlineError: it took too long.
    """
    names = [option.removeprefix("CONFIG_") for option in options]
    if not names:
        return {}
    try:
        process.run(_link_argv(source, directory), deadline=deadline)
        said = process.run(
            kbuild.argv(source, directory, "-s", *_in_place_of_its_own(source, directory)),
            env={**env, "KCONFIG_WHY": " ".join(names)},
            deadline=deadline,
        )
    except BuildError:
        return {}
    finally:
        (directory / "scripts/kconfig" / _PROGRAM).unlink(missing_ok=True)
    return read(said.stdout)


def _in_place_of_its_own(source: Path, directory: Path) -> tuple[str, ...]:
    """Return the words by which make runs our program where it would run one of its own."""
    rules = (source / "scripts/kconfig/Makefile").read_text(errors="replace")
    if "config-prog" in rules:
        return (f"config-prog={_PROGRAM}", "config")
    # Linux 5.10: of what its rules run, Python alone goes by a name that can be given.
    return (f"PYTHON3={directory / 'scripts/kconfig' / _PROGRAM}", "testconfig")


def read(text: str) -> dict[str, Facts]:
    """Return the facts that the program wrote."""
    found: dict[str, Facts] = {}
    for line in text.splitlines():
        name, kind, value = [*line.split("\t", 2), "", ""][:3]
        if not _NAME.fullmatch(name) or not kind:
            continue  # make says something
        facts = found.setdefault(f"CONFIG_{name}", Facts())
        match kind:
            case "unknown":
                facts.known = False
            case "depends" | "visible":
                left, _, expression = value.partition(" ")
                facts.limits[expression] = left
            case "selected":
                facts.selected.append(value)
            case "chosen":
                facts.chosen = value
            case "promptless":
                facts.promptless = True
    return found


def in_words(facts: Facts | None, wanted: str, found: str) -> str:
    """Return why an option is not as wanted.

    Args:
        facts: What Kconfig has on it; None where it could not be asked.
        wanted: The value wanted, as in a .config.
        found: The value that it has.
    """
    if facts is None:
        return "something that it depends on, or that selects it, decides: see menuconfig's search, `/`"
    if not facts.known:
        return "this kernel has no such option"
    if wanted == "n" and facts.selected:
        return f"selected by {', '.join(facts.selected)}"
    return _limit(facts, wanted, found) or _choice(facts, wanted)


def _limit(facts: Facts, wanted: str, found: str) -> str:
    """Return the dependency that keeps an option from a value; "" where none does."""
    blocking = [_operand(text) for text, left in facts.limits.items() if left == "n"]
    if blocking:
        setter = "depends on" if found in ("n", "m") and wanted != "n" else "it can only be changed with"
        return f"{setter} {' and '.join(blocking)}"
    halfway = [text for text, left in facts.limits.items() if left == "m"]
    if wanted != "y" or not halfway:
        return ""
    others = [_operand(text) for text in halfway if text not in ("m", "m [=m]")]
    return f"depends on {' and '.join(others)}" if others else "depends on m: a module or nothing"


def _choice(facts: Facts, wanted: str) -> str:
    if facts.chosen and wanted == "y":
        return f"its choice has taken {facts.chosen}"
    if facts.promptless:
        return "it has no prompt: only other options set it"
    return "out of its range, or another option of its choice came later"


def _operand(expression: str) -> str:
    return f"({expression})" if re.search(r" (?:&&|\|\|) ", expression) else expression


def _link_argv(source: Path, directory: Path) -> tuple[str, ...]:
    made = directory / "scripts/kconfig"
    ours = {"conf.o", "mconf.o", "nconf.o", "nconf.gui.o", "gconf.o", "qconf.o", "qconf-moc.o", "images.o"}
    objects = sorted(path for path in made.glob("*.o") if path.name not in ours)
    # scripts/include: lists and hashes, outside of scripts/kconfig since Linux 6.12.
    include = (source / "scripts/kconfig", source / "scripts/include", made)
    return (
        *("gcc", "-O1", "-w"),
        *(f"-I{path}" for path in include),
        *("-o", str(made / _PROGRAM)),
        str(shipped.kconfigs() / "why/kconfig-why.c"),
        *map(str, objects),
    )

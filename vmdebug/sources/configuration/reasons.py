"""Why an option does not have the requested value, according to the kernel's own Kconfig.

This links a small C program (`kconfigs/why/kconfig-why.c`) with the kernel's own parser, the objects of
scripts/kconfig, because the Kconfig language changes between kernels, and the libraries for it are no longer
maintained (kconfiglib 14.1.0, the latest, fails at `modules` in Linux 6.1). make runs the program in place
of its own.
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
    """What Kconfig says about an option.

    Args:
        known: Whether this kernel has the option.
        limits: The expressions that keep it below y, as in menuconfig ("NET_9P [=n]"), and the highest value
            that each allows, "n" or "m".
        selected: The expressions that select it.
        chosen: The option that is set instead in its choice; "" if it is in no choice.
        promptless: Whether only other options can set it.
    """

    known: bool = True
    limits: dict[str, str] = field(default_factory=dict)
    selected: list[str] = field(default_factory=list)
    chosen: str = ""
    promptless: bool = False


def ask(
    options: Iterable[str], *, source: Path, directory: Path, env: Mapping[str, str], deadline: Deadline
) -> dict[str, Facts]:
    """Return what the kernel's Kconfig says about options.

    Args:
        options: Their names, with CONFIG_.
        source: The kernel's source.
        directory: The build directory, with a `.config` made by `make`.
        env: The environment of make.
        deadline: When to stop.

    Returns:
        The facts by name; empty if the program cannot be built with this kernel's parser.

    Raises:
        DeadlineError: it took too long.
    """
    names = [option.removeprefix("CONFIG_") for option in options]
    if not names:
        return {}
    try:
        process.run(_link_argv(source, directory), deadline=deadline)
        said = process.run(
            kbuild.argv(source, directory, "-s", *_program_argument(source, directory)),
            env={**env, "KCONFIG_WHY": " ".join(names)},
            deadline=deadline,
        )
    except BuildError:
        return {}
    finally:
        (directory / "scripts/kconfig" / _PROGRAM).unlink(missing_ok=True)
    return read(said.stdout)


def _program_argument(source: Path, directory: Path) -> tuple[str, ...]:
    """Return the arguments with which make runs our program instead of one of its own."""
    rules = (source / "scripts/kconfig/Makefile").read_text(errors="replace")
    if "config-prog" in rules:
        return (f"config-prog={_PROGRAM}", "config")
    # Linux 5.10: of the programs in its rules, only the name of Python is a variable.
    return (f"PYTHON3={directory / 'scripts/kconfig' / _PROGRAM}", "testconfig")


def read(text: str) -> dict[str, Facts]:
    """Parse the output of the program."""
    found: dict[str, Facts] = {}
    for line in text.splitlines():
        name, kind, value = [*line.split("\t", 2), "", ""][:3]
        if not _NAME.fullmatch(name) or not kind:
            continue  # a message of make
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
    """Return why an option does not have the requested value.

    Args:
        facts: What Kconfig says about it; None if that is unknown.
        wanted: The requested value, as in a .config.
        found: The value that it has.
    """
    if facts is None:
        return "a dependency or a select decides: search for it in menuconfig with `/`"
    if not facts.known:
        return "this kernel has no such option"
    if wanted == "n" and facts.selected:
        return f"selected by {', '.join(facts.selected)}"
    return _limit(facts, wanted, found) or _choice(facts, wanted)


def _limit(facts: Facts, wanted: str, found: str) -> str:
    """Return the dependency that prevents a value of an option; "" if there is none."""
    blocking = [_operand(text) for text, left in facts.limits.items() if left == "n"]
    if blocking:
        setter = "depends on" if found in ("n", "m") and wanted != "n" else "it can only be changed with"
        return f"{setter} {' and '.join(blocking)}"
    halfway = [text for text, left in facts.limits.items() if left == "m"]
    if wanted != "y" or not halfway:
        return ""
    others = [_operand(text) for text in halfway if text not in ("m", "m [=m]")]
    return f"depends on {' and '.join(others)}" if others else "depends on m: it can only be a module"


def _choice(facts: Facts, wanted: str) -> str:
    if facts.chosen and wanted == "y":
        return f"its choice is set to {facts.chosen}"
    if facts.promptless:
        return "it has no prompt: only other options set it"
    return "the value is out of range, or a later option of its choice overrides it"


def _operand(expression: str) -> str:
    return f"({expression})" if re.search(r" (?:&&|\|\|) ", expression) else expression


def _link_argv(source: Path, directory: Path) -> tuple[str, ...]:
    made = directory / "scripts/kconfig"
    ours = {"conf.o", "mconf.o", "nconf.o", "nconf.gui.o", "gconf.o", "qconf.o", "qconf-moc.o", "images.o"}
    objects = sorted(path for path in made.glob("*.o") if path.name not in ours)
    # Linux 6.12 moved lists and hashes from scripts/kconfig to scripts/include.
    include = (source / "scripts/kconfig", source / "scripts/include", made)
    return (
        *("gcc", "-O1", "-w"),
        *(f"-I{path}" for path in include),
        *("-o", str(made / _PROGRAM)),
        str(shipped.kconfigs() / "why/kconfig-why.c"),
        *map(str, objects),
    )

"""Sources the kernel's own GDB scripts (`lx-…`), and keeps those that work if some do not."""

from __future__ import annotations

import functools
import importlib
import re
import sys
import warnings
from pathlib import Path

import gdb
import vmd_batch
import vmd_debuginfo
import vmd_lazy_scripts
import vmd_script_errors

LOADER = "vmlinux-gdb.py"

_LAZY = "--lazy "

_CONSTANTS = "linux.constants"


def imports(loader: str) -> list[str]:
    """Return the modules that a `vmlinux-gdb.py` imports, in order."""
    return re.findall(r"^\s*import (linux\.\w+)", loader, re.MULTILINE)


class Scripts(gdb.Command):
    """Source the kernel's own GDB scripts: vmd-scripts [--lazy] DIRECTORY.

    DIRECTORY has vmlinux-gdb.py and scripts/gdb in it. Commands that do not work with this
    kernel are listed with the reason; the others are available.

    With --lazy, the scripts are loaded at the first use of one of their commands or functions,
    and what does not work is listed then.

    Example: vmd-scripts /src/linux
    """

    NAME = "vmd-scripts"

    def __init__(self) -> None:
        super().__init__(self.NAME, gdb.COMMAND_SUPPORT, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, _from_tty: bool) -> None:
        """Import the scripts, now or later."""
        directory = Path(argument.removeprefix(_LAZY)).absolute()
        try:
            parts = imports((directory / LOADER).read_text())
        except OSError as error:
            vmd_batch.say(f"no kernel GDB scripts: {error}")
            return
        if vmd_debuginfo.missing():
            vmd_batch.say("no kernel GDB scripts: they need the types of debugging information")
            return
        # vmlinux-gdb.py does the same: it imports the scripts in scripts/gdb beside it.
        scripts = directory / "scripts" / "gdb"
        sys.path.insert(0, str(scripts))
        texts = {part: _text(scripts / f"{part.replace('.', '/')}.py") for part in parts}
        load = functools.partial(_load, scripts / "linux" / "constants.py", texts)
        own = {part: text for part, text in texts.items() if part != _CONSTANTS}
        if not argument.startswith(_LAZY) or not vmd_lazy_scripts.Scripts(load).define(own):
            load()


def _load(constants: Path, texts: dict[str, str]) -> None:
    """Import each script on its own.

    Args:
        constants: The file with the generated constants.
        texts: The scripts, by module name.
    """
    with warnings.catch_warnings():
        # Their regular expressions are not raw strings, for which Python warns since 3.12.
        warnings.simplefilter("ignore", SyntaxWarning)
        if _constants(constants, texts):
            for reason, broken in _failures(texts).items():
                vmd_batch.say(f"kernel GDB scripts without {', '.join(broken)}: {reason}")


def _constants(file: Path, texts: dict[str, str]) -> bool:
    """Import the generated constants; return whether the scripts can be used at all."""
    if _CONSTANTS not in texts:
        return True
    del texts[_CONSTANTS]
    try:
        missing = vmd_script_errors.constants(file)
    except (OSError, ImportError, SyntaxError) as error:
        vmd_batch.say(f"kernel GDB scripts without linux.constants: {error}")
        return True
    for name, reason in missing.items():
        users = [command for text in texts.values() for command in vmd_script_errors.users(name, text)]
        if users:
            vmd_batch.say(f"kernel GDB scripts: {', '.join(users)} may not work without {name}: {reason}")
    # vmlinux-gdb.py stops here as well.
    reduced = vars(sys.modules[_CONSTANTS]).get("LX_CONFIG_DEBUG_INFO_REDUCED", 0)
    if reduced:
        vmd_batch.say(
            "no kernel GDB scripts: they need all types, and CONFIG_DEBUG_INFO_REDUCED=y omits some"
        )
    return not reduced


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _failures(texts: dict[str, str]) -> dict[str, list[str]]:
    """Import each script; return the commands that are missing because a script failed, by reason."""
    failures: dict[str, list[str]] = {}
    for part, text in texts.items():
        try:
            importlib.import_module(part)
        except Exception as error:  # noqa: BLE001 - a kernel script can fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            lost = [
                command
                for command in vmd_script_errors.commands(text).values()
                if not vmd_script_errors.exists(command)
            ]
            failures.setdefault(reason, []).extend(lost or [part])
        else:
            vmd_script_errors.guard(sys.modules[part], text)
    return failures

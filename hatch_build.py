"""Puts the guest's agent and QEMU's trace plugin into the wheel, for users without a C compiler."""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))

from vmdebug.channel.agent import program
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.progress import silent
from vmdebug.trace.plugin import binary as plugin


class CompiledHook(BuildHookInterface):  # type: ignore[misc] # hatchling is there while it builds only
    """Compiles both. Without a compiler the wheel has neither, and vmdebug compiles them when needed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the programs to the wheel."""
        if version == "editable":
            return
        arch = platform.machine()
        self._directory = tempfile.TemporaryDirectory(prefix="vmdebug-agent-")
        try:
            where = Path(self._directory.name)
            deadline = Deadline.after(program.COMPILE_SECONDS)
            built = {
                program.SHIPPED / arch / program.NAME: program.find(
                    arch, where, report=silent, deadline=deadline
                )
            }
            for api in plugin.VERSIONS:
                made = plugin.compile_into(where, api, report=silent, deadline=deadline)
                built[plugin.shipped(arch, api)] = made
        except HostError as error:
            self.app.display_warning(f"the wheel has no compiled programs: {error}")
            return
        for inside, made in built.items():
            build_data["force_include"][str(made)] = str(inside.relative_to(Path(self.root).resolve()))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was compiled."""
        if version != "editable":
            self._directory.cleanup()

"""Puts the guest's agent into the wheel, compiled for this machine, for users without a C compiler."""

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


class AgentHook(BuildHookInterface):  # type: ignore[misc] # hatchling is there while it builds only
    """Compiles the agent; without a compiler the wheel has none, and vmdebug compiles it at its first use."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the program to the wheel."""
        if version == "editable":
            return
        arch = platform.machine()
        self._directory = tempfile.TemporaryDirectory(prefix="vmdebug-agent-")
        try:
            where = Path(self._directory.name)
            built = program.find(arch, where, report=silent, deadline=Deadline.after(program.COMPILE_SECONDS))
        except HostError as error:
            self.app.display_warning(f"the wheel has no agent: {error}")
            return
        inside = program.SHIPPED.relative_to(Path(self.root).resolve()) / arch / program.NAME
        build_data["force_include"][str(built)] = str(inside)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was compiled."""
        if version != "editable":
            self._directory.cleanup()

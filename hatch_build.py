"""Puts vmdebug's programs into the wheel: the guest's agent, reader and sampler, and QEMU's trace plugin.

Users without a C compiler need them.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))

from vmdebug.channel.agent.program import AGENT
from vmdebug.compiler import COMPILE_SECONDS
from vmdebug.deadline import Deadline
from vmdebug.errors import HostError
from vmdebug.progress import silent
from vmdebug.trace.guest.program import READER
from vmdebug.trace.plugin import binary as plugin
from vmdebug.trace.profile.program import SAMPLER


class CompiledHook(BuildHookInterface):  # type: ignore[misc] # hatchling is there while it builds only
    """Compiles them. Without a compiler the wheel has none, and vmdebug compiles them when needed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the programs to the wheel."""
        if version == "editable":
            return
        share = Path(self.root) / "share"  # in an sdist: see hatch_sdist.py
        if share.is_dir():
            build_data["shared_data"][str(share)] = "share"
        else:
            self.app.display_warning("the wheel has no man pages and completions: build it from the sdist")
        arch = platform.machine()
        self._directory = tempfile.TemporaryDirectory(prefix="vmdebug-agent-")
        try:
            where = Path(self._directory.name)
            deadline = Deadline.after(COMPILE_SECONDS)
            built = {
                each.shipped(arch): each.find(arch, where, report=silent, deadline=deadline)
                for each in (AGENT, READER, SAMPLER)
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

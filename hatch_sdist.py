"""Puts man pages and completions into the sdist, from which wheels are built: no other build needs Sphinx."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SHARE = "share"
"""Their directory in the sdist."""


class ShareHook(BuildHookInterface):  # type: ignore[misc] # hatchling is there while it builds only
    """Makes them; in an sdist that has them already, there is nothing to do."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Add them to the sdist."""
        self._directory = tempfile.TemporaryDirectory(prefix="vmdebug-share-")
        ready = ROOT / SHARE
        if not ready.is_dir():
            sys.path.insert(0, str(ROOT / "docs" / "_ext"))
            import share  # noqa: PLC0415 - in docs/_ext

            ready = Path(self._directory.name)
            share.make(ready)
        build_data["force_include"][str(ready)] = SHARE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was made."""
        self._directory.cleanup()

"""The transcripts of the documentation are what vmdebug prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.transcriptrun import Page
from tests.fixtures.transcripts import ROOT

PAGES = (
    "docs/tutorial/first-session.md",
    "docs/tutorial/first-test.md",
)
"""Each page starts and stops its guest."""


@pytest.mark.parametrize("page", PAGES)
def test_transcripts(page: str, tmp_path: Path) -> None:
    failures = Page(ROOT / page, tmp_path).failures()
    assert not failures, "\n\n".join(failures)

"""The transcripts that `make test` leaves out, because they take long: `make test-docs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.transcriptrun import Page
from tests.fixtures.transcripts import ROOT, blocks, pages

SLOW = [page for page in pages() if any(block.mark == "make test-docs" for block in blocks(page))]


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("page", SLOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_transcripts(page: Path, tmp_path: Path) -> None:
    failures = Page(page, tmp_path, slow=True).failures()
    assert not failures, "\n\n".join(failures)

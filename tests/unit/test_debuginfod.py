"""Symbols from a debuginfod server, which is an HTTP server with one file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.unit import kernelfiles
from tests.unit.kernelfiles import ID, OTHER_ID
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import Kernel, LaunchSpec, OwnMachine
from vmdebug.progress import silent
from vmdebug.sources.kernels import debuginfod, image


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image, "_ROOT", tmp_path / "root")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a server at the second address has for the build-id; the first is no server."""
    root = tmp_path / "served"
    file = root / "buildid" / ID / "debuginfo"
    kernelfiles.vmlinux(file)
    handler = partial(Quiet, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("DEBUGINFOD_URLS", f"ftp://nowhere http://127.0.0.1:{server.server_port}/")
        yield file
        server.shutdown()
        thread.join()


@pytest.fixture
def spec(tmp_path: Path) -> LaunchSpec:
    """A guest without symbols."""
    built = kernelfiles.vmlinux(tmp_path / "build/vmlinux")
    bzimage = kernelfiles.image(tmp_path / "boot/bzImage", built)
    kernel = Kernel(image=bzimage, origin="the image", arch="x86_64", build_id=ID)
    return LaunchSpec(name="vm", guest="bzImage", machine=OwnMachine(), kernel=kernel, notes=("a note",))


def filled(spec: LaunchSpec) -> LaunchSpec:
    return debuginfod.with_symbols(spec, report=silent, deadline=Deadline.after(60))


def test_they_are_fetched_once(served: Path, spec: LaunchSpec) -> None:
    found = filled(spec)
    assert found.kernel.vmlinux is not None
    assert found.kernel.vmlinux.read_bytes() == served.read_bytes()
    assert found.notes == ("a note",)
    served.unlink()
    assert filled(spec).kernel.vmlinux == found.kernel.vmlinux
    assert [each.suffix for each in found.kernel.vmlinux.parent.iterdir()].count(".debug") == 1


def test_a_server_without_them(served: Path, spec: LaunchSpec) -> None:
    served.unlink()
    found = filled(spec)
    assert found.kernel.vmlinux is None
    assert "HTTP Error 404" in found.notes[-1]
    assert "ftp://nowhere: the address has to start with http://" in found.notes[-1]


def test_an_answer_that_is_something_else(served: Path, spec: LaunchSpec) -> None:
    for make, words in (
        (lambda: kernelfiles.vmlinux(served, OTHER_ID), f"has the build-id {OTHER_ID}"),
        (lambda: served.write_text("<html>"), "is not a vmlinux"),
    ):
        make()
        found = filled(spec)
        assert found.kernel.vmlinux is None
        assert words in found.notes[-1]
    kept = list((served.parents[2].parent / "cache/vmdebug/debuginfod").iterdir())
    assert [each.suffix for each in kept] == [".lock"], "nothing of it stays in the cache"


def test_nobody_is_asked_without_an_address(spec: LaunchSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
    with pytest.raises(UsageError, match="DEBUGINFOD_URLS is not set"):
        filled(spec)

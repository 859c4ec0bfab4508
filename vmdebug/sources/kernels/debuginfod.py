"""Fetches symbols from debuginfod servers by the kernel's build-id, if the user asks for it.

See "Fetching Symbols" in debuginfod(8): `GET URL/buildid/BUILDID/debuginfo`. Fetched files stay in the
user's cache.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path

import msgspec

from vmdebug import cache, kimage
from vmdebug.deadline import Deadline
from vmdebug.errors import UsageError
from vmdebug.guest import LaunchSpec
from vmdebug.progress import Report, Step
from vmdebug.sources.kernels import image, replacements
from vmdebug.spelling import option

URLS = "DEBUGINFOD_URLS"
"""The variable with the servers' addresses, separated by blanks, as for all clients of debuginfod."""

_WHAT = "fetching the kernel's symbols"
_ANSWER_SECONDS = 90.0
"""How long a server may be silent while it unpacks a package; debuginfod-find has the same default."""

_CHUNK = 1 << 20
_KEPT = 4


def with_symbols(spec: LaunchSpec, *, report: Report, deadline: Deadline) -> LaunchSpec:
    """Return the guest with symbols from debuginfod, if it has none.

    If no server has them, add a note that says so.

    Raises:
        UsageError: no server is set, or the kernel has no build-id.
        HostError: the cache cannot be written.
        DeadlineError: it took too long.
    """
    kernel = spec.kernel
    if kernel.vmlinux is not None:
        return spec
    urls = os.environ.get(URLS, "").split()
    if not urls:
        raise UsageError(
            f"{option('debuginfod', True)}: no server is known, {URLS} is not set",
            hint=f"for example on Debian: export {URLS}=https://debuginfod.debian.net",
        )
    if not kernel.build_id:
        raise UsageError(
            f"{option('debuginfod', True)}: {kernel.image} has no build-id to ask for",
            hint=f"give its vmlinux: {option('vmlinux', 'FILE')}",
        )
    file, refusals = _file(kernel.build_id, urls, report, deadline)
    if file is None:
        return msgspec.structs.replace(spec, notes=(*spec.notes, f"debuginfod: {'; '.join(refusals)}"))
    stale = replacements.notes(kernel)
    with_symbols = image.with_symbols(kernel, file)
    notes = (*replacements.notes(with_symbols), *(each for each in spec.notes if each not in stale))
    return msgspec.structs.replace(spec, kernel=with_symbols, notes=notes)


def _file(
    build_id: str, urls: list[str], report: Report, deadline: Deadline
) -> tuple[Path | None, list[str]]:
    """Return the file with the symbols of a build-id; if no server has it, each server's answer."""
    target = cache.directory("debuginfod") / f"{build_id}.debug"
    refusals = []
    with cache.lock(target, _WHAT, report, deadline):
        if cache.used(target):
            return target, []
        for url in urls:
            try:
                _fetch(f"{url.rstrip('/')}/buildid/{build_id}/debuginfo", build_id, target, report, deadline)
            except (OSError, http.client.HTTPException, ValueError) as error:
                refusals.append(f"{url}: {error}")
            else:
                cache.keep_newest(target.parent, f"*{target.suffix}", _KEPT)
                return target, []
    return None, refusals


def _fetch(url: str, build_id: str, target: Path, report: Report, deadline: Deadline) -> None:
    """Fetch a file into the cache.

    Raises:
        OSError: the server does not answer, or does not have the file.
        HTTPException: the answer is not HTTP, or is incomplete.
        ValueError: the address is invalid, or the file has another build-id.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError("the address has to start with http:// or https://")
    seconds = deadline.at_most(_ANSWER_SECONDS).left(_WHAT)
    with urllib.request.urlopen(url, timeout=seconds) as answer, contextlib.ExitStack() as held:  # noqa: S310
        with cache.writing(target.parent):
            part = held.enter_context(tempfile.NamedTemporaryFile(dir=target.parent, delete=False))
        held.callback(Path(part.name).unlink, missing_ok=True)
        total = int(answer.headers.get("Content-Length") or 0)
        while data := answer.read(_CHUNK):
            deadline.left(_WHAT)
            with cache.writing(target.parent, total):
                part.write(data)
            report(Step(_WHAT, part.tell() >> 20, total >> 20 or None, note=f"{url} (MiB)"))
        with cache.writing(target.parent, total):
            part.flush()
        _check(Path(part.name), build_id)
        Path(part.name).replace(target)


def _check(file: Path, build_id: str) -> None:
    try:
        found = kimage.build_id(file)
    except UsageError as error:
        raise ValueError("the answer is not a vmlinux") from error
    if found != build_id:
        raise ValueError(f"the answer has the build-id {found or 'none'}")

"""Reads container images: OCI layouts and archives, and what `docker save` writes.

See image-layout.md, manifest.md and config.md of the OCI image specification; for `manifest.json` of
`docker save`, spec.md in moby's image/spec. Nothing is unpacked: only members that the image names are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import shlex
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, TypeVar

import msgspec

from vmdebug.errors import UsageError

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
"""The architectures of kernels, as images name them: GOARCH."""

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_REF_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = "oci-layout"
_SAVED = "manifest.json"
_DAMAGED = "the image is damaged: pull or save it again"
_UNREADABLE = (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)
"""What tarfile raises for an archive that is damaged, or compressed and cut off; OSError for bzip2."""

_CHUNK = 1 << 20
_JSON_BYTES = 16 << 20
"""The longest manifest or configuration that is read."""

Open = Callable[[], IO[bytes]]
"""Opens a layer."""

_Read = Callable[[str], IO[bytes]]
"""Opens a file of an image by its name there; raises KeyError if there is none."""

T = TypeVar("T")


class Process(msgspec.Struct, frozen=True, rename="pascal"):
    """What an image says about its processes: `config` of its configuration.

    Args:
        env: Variables, as NAME=VALUE.
        working_dir: The working directory; "" for `/`.
        user: The user; "" for root.
        entrypoint: The program, and its first arguments.
        cmd: More arguments, or the program if there is no entrypoint.
    """

    env: tuple[str, ...] | None = None
    working_dir: str = ""
    user: str = ""
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None

    @property
    def line(self) -> str:
        """What a container would run, as a line for a shell; "" if nothing."""
        return shlex.join((*(self.entrypoint or ()), *(self.cmd or ())))


@dataclass(frozen=True, slots=True)
class Container:
    """A container image.

    Args:
        identity: The digests of its layers, as one.
        process: What it says about its processes.
        layers: Opens each layer, the lowest first.
        contents: The digest of each layer without compression.
    """

    identity: str
    process: Process
    layers: tuple[Open, ...]
    contents: tuple[str, ...]


class _Platform(msgspec.Struct):
    architecture: str = ""
    os: str = "linux"


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: Annotated[str, msgspec.Meta(pattern=r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")]
    media_type: str = ""
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None

    @property
    def file(self) -> str:
        algorithm, _, digest = self.digest.partition(":")
        return f"blobs/{algorithm}/{digest}"

    @property
    def name(self) -> str:
        return (self.annotations or {}).get(_REF_NAME, "")


class _Index(msgspec.Struct):
    manifests: list[_Descriptor]


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _Saved(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _FileSystem(msgspec.Struct):
    diff_ids: tuple[str, ...] = ()


class _Configuration(msgspec.Struct):
    architecture: str = ""
    config: Process | None = None
    rootfs: _FileSystem = msgspec.field(default_factory=_FileSystem)


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar archive with something in it, whole or cut off."""
    # A disk image may begin with zeros, which are the end of an archive.
    with contextlib.suppress(OSError, *_UNREADABLE), tarfile.open(path) as archive:
        return archive.next() is not None
    return False


def is_image(path: Path) -> bool:
    """Return whether a directory or an archive is a container image."""
    with contextlib.suppress(OSError, *_UNREADABLE), _opened(path) as read:
        return _has(read, _LAYOUT) or _has(read, _SAVED)
    return False


@contextlib.contextmanager
def read(path: Path, tag: str, architecture: str) -> Iterator[Container]:
    """Read an image; its layers can be opened during the block.

    Args:
        path: The directory or the archive.
        tag: Its name there; "" if there is only one.
        architecture: That of the kernel, as in `Kernel.arch`.

    Raises:
        UsageError: it is damaged, has no image with that name, or none for the architecture.
        OSError: it cannot be read.
    """
    wanted = ARCHITECTURES.get(architecture, architecture)
    try:
        with _opened(path) as store:
            if _has(store, _LAYOUT):
                about, files = _of_layout(store, path, tag, wanted)
            else:
                about, files = _of_saved(store, path, tag)
            if about.architecture not in ("", wanted):
                raise _other_architecture(path, wanted, about.architecture)
            yield _container(store, path, about, files)
    except (KeyError, *_UNREADABLE) as error:
        raise UsageError(f"{path} is not a whole container image: {error}", hint=_DAMAGED) from error


def copy(layer: Open, content: str, target: Path) -> None:
    """Write a layer without compression, and check its digest.

    Args:
        layer: Opens it.
        content: The digest that it must have, with its algorithm.
        target: The file to write.

    Raises:
        UsageError: it is damaged, or compressed in an unknown way.
        OSError: it cannot be written.
    """
    import zstandard  # noqa: PLC0415 - few runs unpack a layer

    found = hashlib.sha256()
    with layer() as stream, target.open("wb") as written:
        try:
            for chunk in _plain(stream):
                found.update(chunk)
                written.write(chunk)
        except (zlib.error, EOFError, zstandard.ZstdError) as error:
            raise UsageError(f"a layer cannot be unpacked: {error}", hint=_DAMAGED) from error
    if content != f"sha256:{found.hexdigest()}":
        raise UsageError(f"the layer {content} has other contents than its digest says", hint=_DAMAGED)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Read]:
    if path.is_dir():

        def from_directory(name: str) -> IO[bytes]:
            file = path / name
            if not file.is_file():
                raise KeyError(name)
            return file.open("rb")

        yield from_directory
        return
    with tarfile.open(path) as archive:
        members = {member.name.removeprefix("./"): member for member in archive.getmembers()}

        def from_archive(name: str) -> IO[bytes]:
            # A layer can be a link to another; extractfile follows it inside the archive.
            stream = archive.extractfile(members[name])
            if stream is None:
                raise KeyError(name)
            return stream

        yield from_archive


def _has(store: _Read, name: str) -> bool:
    try:
        store(name).close()
    except KeyError:
        return False
    return True


def _json(store: _Read, name: str, kind: type[T]) -> T:
    with store(name) as stream:
        data = stream.read(_JSON_BYTES)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise UsageError(f"{name} of the image is not as it should be: {error}", hint=_DAMAGED) from error


def _blob(store: _Read, about: _Descriptor, kind: type[T]) -> T:
    """Return a file whose digest is given: without this check, an index could contain itself.

    Raises:
        UsageError: it has another digest, or is not as it should be.
    """
    algorithm, _, digest = about.digest.partition(":")
    with store(about.file) as stream:
        found = hashlib.new(algorithm, stream.read(_JSON_BYTES)).hexdigest()
    if found != digest:
        raise UsageError(f"{about.file} of the image has other contents than its digest says", hint=_DAMAGED)
    return _json(store, about.file, kind)


def _of_layout(store: _Read, path: Path, tag: str, wanted: str) -> tuple[_Configuration, list[str]]:
    """Return the configuration of an image in an OCI layout, and the files of its layers."""
    found = _json(store, "index.json", _Index).manifests
    names = [each.name for each in found if each.name]
    manifest = _choose([each for each in found if tag in ("", each.name)], names, path, tag, wanted)
    while manifest.media_type in _INDEXES:
        found = _blob(store, manifest, _Index).manifests
        manifest = _choose(found, names, path, tag, wanted)
    about = _blob(store, manifest, _Manifest)
    return _blob(store, about.config, _Configuration), [layer.file for layer in about.layers]


def _choose(
    found: Sequence[_Descriptor], names: Sequence[str], path: Path, tag: str, wanted: str
) -> _Descriptor:
    """Return the manifest for the kernel's architecture."""
    known = f"it has: {', '.join(names)}" if names else "none of its images has a name"
    if not found:
        raise UsageError(f"{path} has no image {tag!r}" if tag else f"{path} has no image", hint=known)
    fit = [
        each
        for each in found
        if each.platform is None or (each.platform.architecture, each.platform.os) == (wanted, "linux")
    ]
    if not fit:
        there = sorted({each.platform.architecture for each in found if each.platform is not None})
        raise _other_architecture(path, wanted, ", ".join(there))
    if len(fit) > 1:
        raise UsageError(f"{path} has several images", hint=f"choose one, oci:{path}:NAME; {known}")
    return fit[0]


def _of_saved(store: _Read, path: Path, tag: str) -> tuple[_Configuration, list[str]]:
    """Return the configuration of an image that `docker save` has written, and the files of its layers."""
    found = _json(store, _SAVED, list[_Saved])
    names = ", ".join(name for each in found for name in each.repo_tags or ()) or "no names"
    fit = [each for each in found if not tag or tag in (each.repo_tags or ())]
    if len(fit) != 1:
        what = "several images" if fit else f"no image {tag!r}"
        raise UsageError(
            f"{path} has {what}", hint=f"choose one, docker-archive:{path}:NAME; it has: {names}"
        )
    return _json(store, fit[0].config, _Configuration), fit[0].layers


def _other_architecture(path: Path, wanted: str, there: str) -> UsageError:
    return UsageError(
        f"{path} is for {there or 'another system'}, and the kernel for linux/{wanted}",
        hint=f"get the other one: skopeo copy --override-os linux --override-arch {wanted} …",
    )


def _container(store: _Read, path: Path, about: _Configuration, files: Sequence[str]) -> Container:
    contents = about.rootfs.diff_ids
    if len(contents) != len(files):
        raise UsageError(
            f"{path} has {len(files)} layers, and its configuration names {len(contents)}", hint=_DAMAGED
        )
    digest = hashlib.sha256("\n".join(contents).encode())

    def opener(name: str) -> Open:
        return lambda: store(name)

    return Container(
        identity=digest.hexdigest()[:16],
        process=about.config or Process(),
        layers=tuple(map(opener, files)),
        contents=contents,
    )


def _plain(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield what a layer contains, without its compression."""
    head = stream.read(_CHUNK)
    if head.startswith(b"\x1f\x8b"):
        yield from _gunzipped(head, stream)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard  # noqa: PLC0415 - few runs unpack a layer

        unpacking = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
        while head:
            yield unpacking.decompress(head)
            head = stream.read(_CHUNK)
    else:
        while head:
            yield head
            head = stream.read(_CHUNK)


def _gunzipped(head: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield what gzip's members contain; some builders write several, so that they can be read in parts."""
    unpacking = zlib.decompressobj(wbits=31)
    while head:
        yield unpacking.decompress(head)
        if unpacking.eof:
            head = unpacking.unused_data or stream.read(_CHUNK)
            unpacking = zlib.decompressobj(wbits=31)
        else:
            head = stream.read(_CHUNK)
            if not head:
                raise EOFError("it ends too early")

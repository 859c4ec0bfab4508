"""Container images as roots: an OCI layout or archive, what `docker save` writes, or a name for skopeo.

The words are skopeo's: see containers-transports(5). `oci:DIR:TAG`, `oci-archive:FILE:TAG` and
`docker-archive:FILE:NAME` choose one of several images; a path alone does for one image. Other transports,
such as `docker://debian:bookworm`, are copied into the cache by skopeo.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import msgspec

from vmdebug import cache, process
from vmdebug.errors import BuildError, UsageError
from vmdebug.guest import AUTO_INIT, Root
from vmdebug.guest_options import CONTAINER_FILES, CONTAINER_STORES, GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.progress import Step
from vmdebug.roots import container, layers, packed, refusal
from vmdebug.roots.container import Container, Process
from vmdebug.roots.packed import Making
from vmdebug.spelling import option

FETCH_SECONDS = 1800.0
"""How long skopeo may take."""


def is_named(words: str) -> bool:
    """Return whether the option `root` begins with a transport of skopeo."""
    transport, colon, _ = words.partition(":")
    return bool(colon) and transport in (*CONTAINER_FILES, *CONTAINER_STORES)


def resolve(words: str, options: GuestOptions, making: Making) -> Root:
    """Return a container image as a root: packed as an image, or unpacked in a directory of the cache.

    Args:
        words: The option: a transport and its words, or a path.
        options: The options of the guest.
        making: For which guest.

    Raises:
        UsageError: there is no such image, it is damaged, or an option does not apply to it.
        HostError: a program or disk space is missing.
        BuildError: a program failed.
        DeadlineError: it took too long.
    """
    refusal.refuse(
        options,
        refusal.OF_DISK_IMAGES,
        f"is for disk images, and {option('root', words)} is a container image",
        hint="leave it out: the guest's writes are discarded with the VM",
    )
    path, tag = _place(words, making)
    if making.dry_run and not or_false(path.exists):
        return Root(words=words, location=path, file_system="", note=f"{words}, which is not fetched yet")
    with cache.writing(path), container.read(path, tag, making.architecture) as found:
        return _root(found, options, making, words)


def _place(words: str, making: Making) -> tuple[Path, str]:
    """Return where an image is, and its name there."""
    transport, _, rest = words.partition(":")
    if transport in CONTAINER_FILES:
        where, _, tag = rest.partition(":")
        path = absolute(where)
        if not or_false(path.exists):
            raise UsageError(
                f"{option('root', words)}: {path} does not exist", hint=f"write {transport}:PATH"
            )
        if not container.is_image(path):
            raise UsageError(
                f"{option('root', words)}: {path} is not a container image", hint="skopeo copy … makes one"
            )
        return path, tag
    if transport in CONTAINER_STORES:
        return _fetched(words, making), ""
    return absolute(words), ""


def _fetched(words: str, making: Making) -> Path:
    """Return the copy of an image that skopeo reads from a registry or another store."""
    wanted = container.ARCHITECTURES.get(making.architecture, making.architecture)
    key = hashlib.sha256(f"{words} {wanted}".encode()).hexdigest()[:16]
    what = f"fetching {words}"

    def fetch(target: Path) -> None:
        try:
            process.run(
                fetch_argv(words, wanted, target),
                deadline=making.deadline.at_most(FETCH_SECONDS),
                on_line=lambda line: making.report(Step(what, note=line.strip()[:60])),
            )
        except BuildError as error:
            raise BuildError(
                f"{what}: {error.message}",
                hint="is the name right, and does skopeo reach it: skopeo inspect " + words,
                detail=error.detail,
            ) from error

    return making.make(cache.directory("root") / f"{key}.oci", fetch, what)


def fetch_argv(words: str, architecture: str, target: Path) -> tuple[str, ...]:
    """Return the command that copies an image into an OCI layout.

    Args:
        words: The image, as skopeo takes it.
        architecture: GOARCH.
        target: The directory.
    """
    program = str(process.find("skopeo", package="skopeo"))
    return (program, "copy", "--override-os=linux", f"--override-arch={architecture}", words, f"oci:{target}")


def _root(found: Container, options: GuestOptions, making: Making, words: str) -> Root:
    what = f"unpacking {words}"

    def write(archive: Path) -> None:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f"{archive.name}.layers.") as name:
            plain = []
            for number, (layer, content) in enumerate(zip(found.layers, found.contents, strict=True), 1):
                making.report(Step(what, note=f"layer {number} of {len(found.layers)}"))
                plain.append(Path(name, str(number)))
                container.copy(layer, content, plain[-1])
            making.report(Step(what, note="merging the layers"))
            layers.merge(plain, archive)

    root = packed.of_archive(
        f"oci-{found.identity}",
        write,
        options,
        making,
        words=words,
        what=what,
        init=options.init or AUTO_INIT,
    )
    return msgspec.structs.replace(
        root,
        environment=found.process.env or (),
        directory=found.process.working_dir,
        note="; ".join((root.note, *_about(found.process))),
    )


def _about(wishes: Process) -> tuple[str, ...]:
    """Return what becomes of the image's own wishes, in words."""
    said = []
    if wishes.env or wishes.working_dir:
        said.append("commands and the console get its ENV and WORKDIR")
    if wishes.user not in ("", "0", "root", "0:0", "root:root"):
        said.append(f"its USER {wishes.user} is not used: commands run as root")
    if wishes.line:
        said.append(f"its ENTRYPOINT and CMD are not started: {wishes.line}")
    return tuple(said)

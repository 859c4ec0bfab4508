"""What GUEST names, and the name of its VM.

GUEST is a flake's attribute, a build tree, a NixOS VM runner, a boot image, or `builtin`. `vmdebug.config`
has already looked up names from vmdebug.toml.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import msgspec

from vmdebug import arch, config, kimage
from vmdebug.errors import UsageError, VmdebugError
from vmdebug.guest import Guest, GuestKind
from vmdebug.guest_options import NO_MODULES, UEFI, GuestOptions
from vmdebug.paths import absolute, or_false
from vmdebug.sources.kernels import tree
from vmdebug.spelling import nearest, option

_FORMS = "FLAKEREF#NAME, a kernel build tree, a run-*-vm script, a bzImage, `builtin`, or a [guest.NAME]"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_LONGEST_NAME = 40
"""The VM's name is part of the path of its sockets, which the kernel limits to 107 bytes."""

_URL = re.compile(r"[a-z][a-z+]*:")
_RUNNER = re.compile(r"run-(.+)-vm")
_RUNNER_DIRECTORY = "bin"
# Parts of an attribute path that do not identify the guest.
_GENERIC_ATTRIBUTES = frozenset(
    {"config", "system", "build", "vm", "vmWithBootLoader", "driver", "nixosConfigurations"}
)


def parse(words: str, cwd: Path | None = None) -> Guest:
    """Return what GUEST names.

    Args:
        words: GUEST, in any form except a name from vmdebug.toml.
        cwd: Where relative paths start; None is the current directory.

    Raises:
        UsageError: it names nothing, or something that is not a guest.
        HostError: the file that it names cannot be read.
    """
    if words == "builtin":
        return Guest(kind="builtin", words=words)
    if not words:
        raise UsageError("GUEST is empty", hint=f"give {_FORMS}")
    here = cwd or Path.cwd()
    anchored = config.absolute_guest(words, here)
    path = Path(anchored)
    if or_false(path.exists):
        return _directory(words, path) if or_false(path.is_dir) else _file(words, path)
    if "#" in words:
        return _flake(words, anchored)
    raise _nothing(words, path, here)


def absolute_paths(options: GuestOptions) -> GuestOptions:
    """Return the options with absolute paths."""
    paths = {
        name: str(absolute(words))
        for name in ("kernel", "vmlinux", "gdb_scripts", "disk", "initrd")
        if (words := getattr(options, name)) is not None
    }
    if options.firmware not in (None, UEFI):
        paths["firmware"] = str(absolute(options.firmware))
    if options.modules not in (None, NO_MODULES):
        paths["modules"] = str(absolute(options.modules))
    if options.root is not None:
        paths["root"] = config.absolute_root(options.root, Path.cwd())
    return msgspec.structs.replace(
        options,
        source=config.absolute_guest(options.source, Path.cwd()),
        share=tuple(config.absolute_share(words, Path.cwd()) for words in options.share),
        module=tuple(str(absolute(each)) for each in options.module),
        **paths,
    )


def vm_name(guest: Guest, options: GuestOptions) -> str:
    """Return the name of the VM: from the user, or else from its table in vmdebug.toml, or else from GUEST.

    Raises:
        UsageError: the user's name is not valid as a directory name.
    """
    if options.name is None:
        return _sanitised(options.table or _name_of(guest))
    if not _NAME.fullmatch(options.name):
        raise UsageError(
            f"a VM cannot be called {options.name!r}: letters, digits and . _ - are allowed",
            hint=f"for example {option('name', _sanitised(options.name))}",
        )
    return options.name


def _name_of(guest: Guest) -> str:
    last = Path(guest.location).name
    match guest.kind:
        case "builtin":
            return "builtin"
        case "tree" | "image":
            return last
        case "runner":
            found = _RUNNER.fullmatch(last)
            return found[1] if found else last
        case "flake":
            quoted_or_plain = re.findall(r'"([^"]*)"|([^."]+)', guest.attribute)
            words = [quoted or plain for quoted, plain in quoted_or_plain]
            return next((word for word in reversed(words) if word not in _GENERIC_ATTRIBUTES), last)


def _sanitised(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:_LONGEST_NAME].strip(".-") or "guest"


def _flake(words: str, anchored: str) -> Guest:
    reference, _, attribute = anchored.partition("#")
    directory = reference.partition("?")[0]
    if reference.startswith("/") and not or_false(Path(directory).exists):
        raise UsageError(
            f"{words!r} names a flake in {directory}, which does not exist",
            hint="is the path right? it ends before the `#`",
        )
    return Guest(kind="flake", words=words, location=reference, attribute=attribute)


def _directory(words: str, path: Path) -> Guest:
    runners = sorted(path.glob(f"{_RUNNER_DIRECTORY}/run-*-vm"))
    match runners:
        case [script]:
            return Guest(kind="runner", words=words, location=str(script))
        case [_, _, *_]:
            raise UsageError(
                f"{path} has several runners: {', '.join(script.name for script in runners)}",
                hint=f"name one: {runners[0]}",
            )
    if tree.is_tree(path):
        return Guest(kind="tree", words=words, location=str(path))
    if or_false((path / "flake.nix").is_file):
        raise UsageError(f"{path} is a flake; add the name of a system", hint=f"write {words}#NAME")
    names = (*(Path(row.image).name for row in arch.rows()), "vmlinuz")
    images = [name for name in names if or_false((path / name).is_file)]
    raise UsageError(
        f"{path} is a directory, but not a guest",
        hint=f"give the image in it: {path / images[0]}" if images else f"GUEST is {_FORMS}",
        detail=f"a NixOS VM runner: it has no {_RUNNER_DIRECTORY}/run-NAME-vm\n"
        f"a kernel build tree: it has none of {', '.join(tree.marks())}\n"
        "a flake: it has no flake.nix",
    )


def _file(words: str, path: Path) -> Guest:
    kind: GuestKind
    if _RUNNER.fullmatch(path.name):
        kind = "runner"
    elif kimage.is_image(path):
        kind = "image"
    elif kimage.is_elf(path):
        raise UsageError(
            f"{path} is an ELF file, not a boot image",
            hint=f"give the boot image made from it, and this as {option('vmlinux', str(path))}",
        )
    else:
        raise UsageError(
            f"{path} is not a guest",
            hint=f"GUEST is {_FORMS}",
            detail=f"a boot image: {kimage.unknown_format()}\n"
            "a NixOS VM runner: its name is not run-NAME-vm\n"
            "a vmlinux: not an ELF file",
        )
    return Guest(kind=kind, words=words, location=str(path))


def _nothing(words: str, path: Path, cwd: Path) -> UsageError:
    names: tuple[str, ...] = ()
    # `vmdebug.config` has already reported errors in vmdebug.toml.
    with contextlib.suppress(VmdebugError):
        names = config.names(cwd)
    near = nearest(words, [*names, "builtin"])
    file = config.find(cwd)
    missing = f"{path} does not exist"
    if or_false(path.is_symlink):
        missing = f"{path} is a link to {path.readlink()}, which does not exist"
    listed = (
        f"{file} has {', '.join(names) or 'none'}"
        if file
        else "there is no vmdebug.toml in this directory or above"
    )
    if near:
        hint = f"did you mean {near!r}?"
    else:
        hint = f"write {words}#NAME" if _URL.match(words) else f"GUEST is {_FORMS}"
    return UsageError(
        f"{words!r} names no guest: {missing}",
        hint=hint,
        detail=f"a flake's system: it has no `#`\na file or directory: {missing}\na name: {listed}",
    )

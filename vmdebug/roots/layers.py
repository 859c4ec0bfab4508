"""Merges the layers of a container image into one tar archive, without unpacking them.

A layer is a tar archive of what it changes. A file `.wh.NAME` in it removes NAME of the layers below, and
`.wh..wh..opq` everything that they have in its directory; see layer.md of the OCI image specification. The
tree is merged in memory, so the owners, modes and device nodes need no root, and no name can lead out of it.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmdebug.errors import UsageError

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_LINKS = 40
"""Symbolic links that one path may follow, as MAXSYMLINKS of Linux."""

_XATTR = "SCHILY.xattr."
"""The records in a tar header with extended attributes: capabilities of files."""


@dataclass(slots=True, eq=False)
class Node:
    """A file or directory of the merged tree; all hard links of a file are the same node.

    Args:
        member: Its header; None for a directory that no layer describes.
        layer: The number of the layer with its data.
        children: What a directory contains, by name; None for other files.
    """

    member: tarfile.TarInfo | None = None
    layer: int = 0
    children: dict[str, Node] | None = None


@dataclass(slots=True)
class Tree:
    """The merged tree of the layers that were added, the lowest first."""

    top: Node = field(default_factory=lambda: Node(children={}))

    def add(self, members: Sequence[tarfile.TarInfo], layer: int) -> None:
        """Add a layer.

        Args:
            members: Its headers, in order.
            layer: Its number.

        Raises:
            UsageError: a name leads out of the root, or a hard link refers to no file.
        """
        split = [(parts(member.name), member) for member in members]
        for names, _ in split:
            if names and names[-1].startswith(_WHITEOUT):
                self._remove(names)
        for names, member in split:
            if not (names and names[-1].startswith(_WHITEOUT)):
                self._put(names, member, layer)

    def find(self, name: str) -> Node | None:
        """Return the file or directory with a path, and follow links; None if there is none."""
        return self._followed(parts(name))

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Yield the path of each file and its node, each directory before what it contains."""

        def below(prefix: str, node: Node) -> Iterator[tuple[str, Node]]:
            for name, child in sorted((node.children or {}).items()):
                yield prefix + name, child
                yield from below(f"{prefix}{name}/", child)

        yield from below("", self.top)

    def _remove(self, names: tuple[str, ...]) -> None:
        parent = self._directory(names[:-1])
        if parent is None or parent.children is None:
            return
        if names[-1] == _OPAQUE:
            parent.children.clear()
        else:
            parent.children.pop(names[-1].removeprefix(_WHITEOUT), None)

    def _put(self, names: tuple[str, ...], member: tarfile.TarInfo, layer: int) -> None:
        if not names:
            self.top.member = member
            return
        children = self._made(names[:-1])
        if member.islnk():
            target = self._followed(parts(member.linkname), last=False)
            if target is None or target.children is not None:
                raise UsageError(
                    f"a layer has a hard link {member.name!r} to {member.linkname!r}, which is no file",
                    hint="the image is damaged: pull or save it again",
                )
            children[names[-1]] = target
            return
        old = children.get(names[-1])
        kept = (old.children if old is not None else None) or {}
        children[names[-1]] = Node(member, layer, kept if member.isdir() else None)

    def _made(self, names: tuple[str, ...]) -> dict[str, Node]:
        """Return the children of a directory, and make it if no layer has it."""
        found = self._directory(names)
        if found is not None and found.children is not None:
            return found.children
        if not names:
            return self.top.children or {}
        children = self._made(names[:-1])
        made: dict[str, Node] = {}
        children[names[-1]] = Node(children=made)
        return made

    def _directory(self, names: tuple[str, ...]) -> Node | None:
        node = self._followed(names)
        return node if node is not None and node.children is not None else None

    def _followed(self, names: tuple[str, ...], *, last: bool = True) -> Node | None:
        """Return the node of a path inside the tree; symbolic links start at its top, as after chroot(2).

        Args:
            names: The path.
            last: Whether to follow a link at its end.
        """
        path: list[Node] = [self.top]
        rest, links = list(reversed(names)), 0
        while rest:
            name = rest.pop()
            if name in ("", "."):
                continue
            if name == "..":
                path[1:] = path[1:-1]
                continue
            child = (path[-1].children or {}).get(name)
            if child is None:
                return None
            if child.member is not None and child.member.issym() and (rest or last):
                links += 1
                if links > _LINKS:
                    return None
                target = child.member.linkname
                if target.startswith("/"):
                    del path[1:]
                rest += reversed(target.split("/"))
                continue
            path.append(child)
        return path[-1]


def parts(name: str) -> tuple[str, ...]:
    """Return the components of a name in a layer.

    Raises:
        UsageError: it leads out of the root.
    """
    found = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in found:
        raise UsageError(
            f"a layer has the name {name!r}, which could lead out of the root file system",
            hint="no builder makes such a name: do not use this image",
        )
    return found


def merge(layers: Sequence[Path], archive: Path) -> Tree:
    """Write a tar archive with the files that a container of some layers sees.

    Args:
        layers: The layers, as tar archives without compression, the lowest first.
        archive: The archive to write.

    Returns:
        Its tree.

    Raises:
        UsageError: a layer is no tar archive, or see `Tree.add`.
        OSError: the archive cannot be written.
    """
    tree = Tree()
    with contextlib.ExitStack() as opened:
        tars = []
        for number, layer in enumerate(layers):
            try:
                tar = opened.enter_context(tarfile.open(layer, "r:"))
                members = tar.getmembers()
            except tarfile.TarError as error:
                raise UsageError(
                    f"layer {number + 1} of {len(layers)} is not a tar archive: {error}",
                    hint="the image is damaged: pull or save it again",
                ) from error
            tars.append(tar)
            tree.add(members, number)
        target = opened.enter_context(tarfile.open(archive, "w:", format=tarfile.PAX_FORMAT))
        _write(tree, tars, target)
    return tree


def _write(tree: Tree, layers: Sequence[tarfile.TarFile], target: tarfile.TarFile) -> None:
    first: dict[Node, str] = {}
    if tree.top.member is not None:
        target.addfile(_header("./", tree.top))
    for name, node in tree.walk():
        header = _header(f"./{name}", node)
        if node in first:
            header.type, header.linkname, header.size = tarfile.LNKTYPE, f"./{first[node]}", 0
            target.addfile(header)
            continue
        first[node] = name
        if node.member is not None and node.member.isreg():
            target.addfile(header, layers[node.layer].extractfile(node.member))
        else:
            target.addfile(header)


def _header(name: str, node: Node) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    member = node.member
    if member is None:
        header.type, header.mode = tarfile.DIRTYPE, 0o755
        return header
    header.type = tarfile.REGTYPE if member.isreg() else member.type
    header.size = member.size if member.isreg() else 0
    header.mode, header.mtime = member.mode, member.mtime
    header.uid, header.gid = member.uid, member.gid
    header.linkname = member.linkname if member.issym() else ""
    header.devmajor, header.devminor = member.devmajor, member.devminor
    header.pax_headers = {key: value for key, value in member.pax_headers.items() if key.startswith(_XATTR)}
    return header

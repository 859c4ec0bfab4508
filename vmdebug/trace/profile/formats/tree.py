"""The tree of calls of a profile, or of two that are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vmdebug.trace.profile.profile import Profile, ProfileFrame

ALL = ProfileFrame("all", "", "user")

Folded = Mapping[tuple[ProfileFrame, ...], int]


@dataclass(slots=True)
class Node:
    """A function where it was called.

    Attributes:
        frame: The function.
        weight: The weight of the samples in it and in what it called.
        before: The same in the profile that is compared with; scaled to the same total.
        children: What it called, by function.
    """

    frame: ProfileFrame
    weight: float = 0
    before: float = 0
    children: dict[ProfileFrame, Node] = field(default_factory=dict)

    def child(self, frame: ProfileFrame) -> Node:
        """Return the node of a function that it called; a new one if there is none."""
        return self.children.setdefault(frame, Node(frame))


@dataclass(frozen=True, slots=True)
class Placed:
    """A node of a graph: at a level, from `start` to `end` of the whole width, which is 1."""

    node: Node
    level: int
    start: float
    end: float


def tree(profile: Profile, before: Profile | None = None) -> Node:
    """Return the tree of a profile, compared with another one if it is given."""
    root = Node(ALL)
    for stack, weight in profile.folded().items():
        for node in _path(root, stack):
            node.weight += weight
    if before is not None and before.total:
        scale = profile.total / before.total
        for stack, weight in before.folded().items():
            for node in _path(root, stack):
                node.before += weight * scale
    return root


def _path(root: Node, stack: tuple[ProfileFrame, ...]) -> Iterator[Node]:
    node = root
    yield node
    for frame in stack:
        node = node.child(frame)
        yield node


def placed(root: Node, least: float) -> Iterator[Placed]:
    """Yield the nodes of a graph whose width is the weight, those that are called beside each other by name.

    Args:
        root: The tree.
        least: The least share of the whole of a node that is drawn.
    """
    whole = root.weight or 1
    waiting = [(root, 0, 0.0)]
    while waiting:
        node, level, start = waiting.pop()
        yield Placed(node, level, start, start + node.weight / whole)
        for child in sorted(node.children.values(), key=lambda each: (each.frame.name, each.frame.where)):
            if child.weight / whole >= least:
                waiting.append((child, level + 1, start))
            start += child.weight / whole

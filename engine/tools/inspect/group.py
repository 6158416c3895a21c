"""Groups identical layers, so that each group is described once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from .step import Node


@dataclass
class Group:
    """Parts of a step whose nodes differ only in their times: the embedding alone, or all layers."""

    parts: list[str]  # "layer 0", "layer 1", ...
    members: list[list[Node]]  # the nodes of each part

    @property
    def first(self) -> list[Node]:
        """The nodes of the first part, which represents all."""
        return self.members[0]

    @property
    def name(self) -> str:
        """The name of the group: "embed", or "layers 0 to 29"."""
        if len(self.parts) == 1:
            return self.parts[0]
        kind, first = self.parts[0].rsplit(" ", 1)
        numbers = [int(part.rsplit(" ", 1)[1]) for part in self.parts]
        run = numbers == list(range(int(first), int(first) + len(numbers)))
        return f"{kind}s {first} to {numbers[-1]}" if run else f"{len(numbers)} {kind}s: {', '.join(map(str, numbers))}"

    def mean(self) -> list[Node]:
        """The nodes of one part with mean times over all parts."""
        rows = zip(*self.members, strict=True)
        return [replace(row[0], us=sum(node.us for node in row) / len(row)) for row in rows]


def groups(nodes: list[Node]) -> list[Group]:
    """The parts of a step in order, identical ones grouped."""
    found: dict[tuple, Group] = {}
    for part, run in groupby(nodes, lambda node: (node.part, node.graph)):
        members = list(run)
        key = part[0].split(" ")[0], *(node.same for node in members)
        group = found.setdefault(key, Group([], []))
        group.parts.append(part[0])
        group.members.append(members)
    return list(found.values())


def by_operation(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """Nodes by operation, in order of first occurrence."""
    found: dict[str, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.operation, []).append(node)
    return found

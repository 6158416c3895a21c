"""A step as graphviz text: one cluster per part, programmatic edges dashed."""

from __future__ import annotations

from itertools import groupby

from .step import Node, Step
from .table import by


def dot(step: Step) -> str:
    """The whole step in the dot language."""
    lines = ["digraph step {", "  node [shape=box, fontname=monospace];", "  edge [arrowsize=0.6];"]
    numbered = list(enumerate(step.nodes))
    for i, (part, members) in enumerate(groupby(numbered, lambda item: item[1].part)):
        lines += [f"  subgraph cluster_{i} {{", f"    label={_quoted(part)};"]
        lines += [f"    n{index} [label={_quoted(*label(node))}];" for index, node in members]
        lines.append("  }")
    style = {True: ' [style=dashed, label="early"]', False: ""}
    lines += [f"  n{e.source} -> n{e.target}{style[e.programmatic]};" for e in step.edges]
    return "\n".join([*lines, "}"]) + "\n"


def label(node: Node) -> list[str]:
    """The lines of a node's label: operation and time, then kernel and launch sizes if there is a kernel."""
    launch = [node.name.split("<")[0]] if node.kind != "call" else []
    if node.grid:
        launch.append(f"{by(node.grid)} blocks of {by(node.block)}")
    return [f"{node.operation}, {node.us:.2f} us", *([", ".join(launch)] if launch else [])]


def _quoted(*rows: str) -> str:
    """A multi-line string of the dot language."""
    return '"' + "\\n".join(row.replace("\\", "\\\\").replace('"', '\\"') for row in rows) + '"'

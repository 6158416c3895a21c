"""A step as tables on stdout, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ..bench.report import stdout
from .group import Group, by_operation, groups
from .step import Node, Step
from .timing import WITHIN, balanced

_EDGE = {True: "early", False: "end", None: ""}


def print_tables(step: Step) -> None:
    """Print one layer in full, identical layers by operation, the operations of the step, and the sum of the times."""
    console = stdout()
    console.print(_nodes(step))
    console.print(_operations(step))
    for line in lines(step):
        console.print(line, highlight=False)


def lines(step: Step) -> Iterator[str]:
    """The lines about the whole step."""
    early = sum(edge.programmatic for edge in step.edges)
    what = "graph" if step.about.get("captured") else "recording"
    yield (f"{step.graphs} {what}{'s' * (step.graphs > 1)} with {len(step.nodes)} nodes and {len(step.edges)} edges, "
           f"{early} of them programmatic: the node may begin before its predecessor has ended; "
           f"{step.bytes / 1e6:.1f} MB of device memory")  # fmt: skip
    yield "us: from the end of the previous node to the end of this one; overlapping time is counted once"
    yield (f"sum of the node times {step.total_us:.1f} us, time of a replay {step.replay_us:.1f} us: "
           f"{step.apart:.1%} apart, {'within' if balanced(step) else 'which is MORE than'} {WITHIN:.0%}")  # fmt: skip


def _nodes(step: Step) -> Any:
    from rich.table import Table

    about = step.about
    table = Table(title=f"{about['model']} on {about['device']}, {about['backend']}, batch {about['batch']}, "
                        f"graph {about['graph']}")  # fmt: skip
    captured = bool(about.get("captured"))
    shape = ["grid", "block", "shared B", "regs", "starts"] if captured else ["arrays"]
    heads = ["part", "operation", "node", *shape]
    for i, head in enumerate([*heads, "us", "%"]):
        left = i < 3 or head in ("arrays", "starts")
        table.add_column(head, justify="left" if left else "right", no_wrap=head not in ("node", "arrays"))
    before = {edge.target: edge.programmatic for edge in step.edges}
    index = {id(node): i for i, node in enumerate(step.nodes)}
    for group in groups(step.nodes):
        for i, node in enumerate(group.first):
            start = _EDGE[before.get(index[id(node)])]
            part = group.parts[0] if not i else ""
            table.add_row(part, node.operation, node.name, *_shape(node, start, captured), *_time(node.us, step))
        table.add_section()
        for row in _others(group, step):
            table.add_row(*row[:2], "", *[""] * (len(heads) - 3), *row[2:])
        table.add_section()
    return table


def _shape(node: Node, start: str, captured: bool) -> list[str]:
    if not captured:
        return [node.arrays]
    shared, registers = (str(v) if v else "" for v in (node.shared, node.registers))
    return [by(node.grid), by(node.block), shared, registers, start]


def _others(group: Group, step: Step) -> Iterator[tuple[str, str, str, str]]:
    """Rows for the parts that are identical to the first: the mean of each operation."""
    rest = Group(group.parts[1:], group.members[1:])
    if not rest.parts:
        return
    for i, (name, nodes) in enumerate(by_operation(rest.mean()).items()):
        us = sum(node.us for node in nodes)
        mean, share = _time(us, step)
        yield f"{rest.name}, each" if not i else "", name, mean, share


def _operations(step: Step) -> Any:
    from rich.table import Table

    table = Table(title="time by operation")
    for i, head in enumerate(("operation", "nodes", "us/node", "us/step", "%")):
        table.add_column(head, justify="left" if not i else "right", no_wrap=True)
    found = by_operation(step.nodes)
    for name, nodes in sorted(found.items(), key=lambda item: -sum(n.us for n in item[1])):
        us = sum(node.us for node in nodes)
        table.add_row(name, str(len(nodes)), f"{us / len(nodes):.2f}", *_time(us, step))
    return table


def _time(us: float, step: Step) -> tuple[str, str]:
    return f"{us:.2f}", f"{100 * us / step.total_us:.1f}"


def by(dims: tuple[int, ...]) -> str:
    """Format (9, 3, 1) as "9 x 3"."""
    while len(dims) > 1 and dims[-1] == 1:
        dims = dims[:-1]
    return " x ".join(map(str, dims))


def record(step: Step) -> dict[str, Any]:
    """All results, for JSON."""
    return {
        **step.about,
        "graphs": step.graphs,
        "graph_bytes": step.bytes,
        "replay_us": step.replay_us,
        "nodes_us": step.total_us,
        "apart": step.apart,
        "nodes": [asdict(node) for node in step.nodes],
        "edges": [asdict(edge) for edge in step.edges],
    }

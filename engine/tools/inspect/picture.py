"""A drawing of one layer of a step, beside the time of the whole step by operation. Needs matplotlib."""

from __future__ import annotations

from typing import Any

from ..bench.report import writing
from .dot import label
from .group import Group, by_operation, groups
from .step import Step

WIDTH, BOX, GAP = 9.0, 0.48, 0.3  # inches: width of the picture, height of a node, distance between nodes
DARK, LIGHT, BAR = "#31538f", "#eef3fb", "#7a9bd1"
EARLY = "dashed: a programmatic edge; the lower node\nmay begin before the upper one has ended"


def draw(step: Step, file: str) -> None:
    """Write the picture: .png, .svg or .pdf."""
    with writing(file):
        painted(step).savefig(file, dpi=200)


def painted(step: Step) -> Any:
    """A matplotlib figure: the nodes of the most frequent layer, beside bars of time by operation."""
    from matplotlib.figure import Figure

    layer = max(groups(step.nodes), key=lambda group: (len(group.members), len(group.first)))
    rows = max(len(layer.first), len(by_operation(step.nodes)) // 2, 3)
    figure = Figure(figsize=(WIDTH, 1.5 + rows * (BOX + GAP)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    about = step.about
    figure.suptitle(f"{about['model']} on {about['device']}: {about['backend']}, batch {about['batch']}, "
                    f"graph {about['graph']}, {len(step.nodes)} nodes, {step.replay_us:.0f} us per step")  # fmt: skip
    _layer(left, step, layer)
    _bars(right, step)
    return figure


def _layer(axes: Any, step: Step, group: Group) -> None:
    """Draw the nodes of one part as boxes with their mean times, and the edges inside the part."""
    from matplotlib.patches import Rectangle

    place = {id(node): i for i, node in enumerate(step.nodes)}
    where = {place[id(node)]: -i * (BOX + GAP) for i, node in enumerate(group.first)}
    for node, mean in zip(group.first, group.mean(), strict=True):
        y = where[place[id(node)]]
        axes.add_patch(Rectangle((0, y), 1, BOX, facecolor=LIGHT, edgecolor=DARK))
        axes.text(0.5, y + BOX / 2, "\n".join(label(mean)), ha="center", va="center", fontsize=9)
    early = False
    for edge in step.edges:
        if edge.source in where and edge.target in where:
            skips = edge.target - edge.source > 1  # drawn around the boxes in between
            x = 0.97 if skips else 0.5
            ends = (x, where[edge.target] + BOX), (x, where[edge.source])
            arrow = {"arrowstyle": "->", "linestyle": "--" if edge.programmatic else "-", "color": DARK}
            axes.annotate("", *ends, arrowprops={**arrow, "connectionstyle": f"arc3,rad={-0.5 * skips}"})
            early |= edge.programmatic
    bottom = min(where.values()) - GAP
    if early:
        axes.text(0.5, bottom, EARLY, ha="center", va="top", fontsize=8)
    axes.set_title(f"{group.name}{', mean times' * (len(group.parts) > 1)}", fontsize=10)
    axes.set(xlim=(-0.02, 1.02), ylim=(bottom - BOX * early, BOX + 0.05))
    axes.axis("off")


def _bars(axes: Any, step: Step) -> None:
    """Draw us per step by operation, the largest on top."""
    found = by_operation(step.nodes)
    totals = {name: sum(node.us for node in nodes) for name, nodes in found.items()}
    names = sorted(totals, key=totals.__getitem__)
    bars = axes.barh([f"{len(found[n])} x {n}" for n in names], [totals[n] for n in names], color=BAR)
    shares = [f"{totals[n]:.1f} us, {100 * totals[n] / step.total_us:.0f} %" for n in names]
    axes.bar_label(bars, shares, padding=3, fontsize=9)
    axes.set_title("time by operation", fontsize=10)
    axes.set(xlabel="us per step")
    axes.margins(x=0.35)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)

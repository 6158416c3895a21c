"""One layer of an opened step as a picture, and where the time of the whole step goes. Needs matplotlib."""

from __future__ import annotations

from typing import Any

from .dot import label
from .group import by_operation, groups
from .step import Step

WIDTH, HEIGHT, GAP = 1.0, 0.62, 0.38  # of a node's box, and between two


def draw(step: Step, file: str) -> None:
    """A picture: the nodes of the layer that stands for most others, top down, beside bars of time by operation."""
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    layer = max(groups(step.nodes), key=lambda group: len(group.members))
    height = max(4.5, 0.4 + 0.85 * len(layer.first))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, height), width_ratios=(1, 1.3), layout="constrained")
    about = step.about
    figure.suptitle(f"{about['model']} on {about['device']}: {about['backend']}, batch {about['batch']}, "
                    f"graph {about['graph']}, {len(step.nodes)} nodes, {step.replay_us:.0f} us a step")  # fmt: skip
    _layer(left, step, layer)
    _bars(right, step)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _layer(axes: Any, step: Step, group: Any) -> None:
    """The nodes of a part as boxes, with the mean time of the parts that are the same; edges that lie inside it."""
    from matplotlib.pyplot import Rectangle

    place = {id(node): i for i, node in enumerate(step.nodes)}
    where = {place[id(node)]: -i * (HEIGHT + GAP) for i, node in enumerate(group.first)}
    for node, mean in zip(group.first, group.mean(), strict=True):
        y = where[place[id(node)]]
        axes.add_patch(Rectangle((0, y), WIDTH, HEIGHT, facecolor="#eef3fb", edgecolor="#31538f"))
        axes.text(WIDTH / 2, y + HEIGHT / 2, "\n".join(label(mean)), ha="center", va="center", fontsize=8)
    for edge in step.edges:
        if edge.source in where and edge.target in where:
            skips = edge.target - edge.source > 1  # drawn beside the boxes between
            x = WIDTH * (0.97 if skips else 0.5)
            ends = (x, where[edge.target] + HEIGHT), (x, where[edge.source])
            arrow = {"arrowstyle": "->", "linestyle": "--" if edge.programmatic else "-", "color": "#31538f"}
            axes.annotate("", *ends, arrowprops={**arrow, "connectionstyle": f"arc3,rad={-0.5 * skips}"})
    axes.set_title(f"{group.name}{', mean times' * (len(group.parts) > 1)}", fontsize=10)
    axes.set(xlim=(-0.1, WIDTH + 0.1), ylim=(min(where.values()) - GAP, HEIGHT + 0.1))
    axes.axis("off")
    if any(edge.programmatic for edge in step.edges):
        said = "dashed: a programmatic edge, the node below\nmay begin before the one above has ended"
        axes.text(0, min(where.values()) - GAP * 0.9, said, fontsize=7, va="bottom")


def _bars(axes: Any, step: Step) -> None:
    """us of a step by operation, the largest on top."""
    found = by_operation(step.nodes)
    totals = {name: sum(node.us for node in nodes) for name, nodes in found.items()}
    names = sorted(totals, key=totals.__getitem__)
    bars = axes.barh(names, [totals[name] for name in names], color="#7a9bd1")
    shares = [f"{totals[n]:.1f} us, {100 * totals[n] / step.total_us:.0f} %, {len(found[n])} nodes" for n in names]
    axes.bar_label(bars, shares, padding=3, fontsize=8)
    axes.set_title("where the time of a step goes", fontsize=10)
    axes.set(xlabel="us a step")
    axes.margins(x=0.35)
    axes.spines[["top", "right"]].set_visible(False)

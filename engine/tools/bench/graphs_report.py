"""The results of `ostinato bench graphs` as tables, JSON and a plot. Touches no device."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .breakdown import TOLERANCE
from .graphs import Report, Row
from .report import stamp, stdout, writing

ARTICLE = {1: (100, 150), 4: (350, 450), 8: (600, 700), 16: (1000, 1100)}  # its example: samples/s without, with graphs
STYLES = {"off": ":", "layer": "--", "step": "-"}  # of lines, by graph mode
SAMPLE = {
    "encoder": "one sentence embedded, from token ids to the vector on the host; a batch is one call",
    "decoder": "one sentence as a prompt and {} generated tokens; a batch is decoded together",
}
METHOD = f"""\
A step is what the host launches repeatedly: a decoder's decode step, an encoder's pass over a batch. Times per step:
wall    host clock over many steps, launched as fast as possible, until all are done
host    host clock around the launches: Python, arguments, driver; it overlaps with the device's work
kernel  device events around a step of graphs that was queued while the device was busy, so it never waits for the
        host; one graph per step or one per layer, whichever was faster
idle    device events around the steps of wall, divided by their number, minus kernel: the device waits for launches,
        or kernels that started early hold up their predecessor
sum     kernel + idle (device clock) as a share of wall (host clock); more than {TOLERANCE:.0%} off is FAILED"""


def record(report: Report) -> dict[str, Any]:
    """All results, for JSON."""
    s = report.settings
    models = [{"model": n, "weights": report.weights[n], "tokens": report.tokens[n]} for n, _ in s.models]
    return {
        **stamp(report.machine),
        "models": models,
        "settings": {k: v for k, v in asdict(s).items() if k != "models"},
        "sample": {kind: text.format(s.new_tokens) for kind, text in SAMPLE.items()},
        "article": {str(batch): list(pair) for batch, pair in ARTICLE.items()},
        "method": METHOD,
        "rows": [asdict(row) for row in report.rows],
        "problems": report.problems(),
    }


def print_tables(report: Report) -> None:
    """Print the article's table for each model, then the breakdown of every row."""
    console = stdout()
    for name, _ in report.settings.models:
        rows = [r for r in report.rows if r.model == name]
        console.print(_speeds(report, rows))
        tokens = report.tokens[name]
        console.print(f"[not bold]sample: {SAMPLE[rows[0].kind].format(report.settings.new_tokens)}. "
                      f"{len(tokens)} sentences of {min(tokens)} to {max(tokens)} tokens, {sum(tokens)} in all.\n"
                      "speed-up: one graph per step against none; article: the example figures of its "
                      "table.")  # fmt: skip
    console.print(_breakdown(report))
    console.print(f"[not bold]{METHOD}")
    for problem in report.problems():
        console.print(f"[bold]FAILED[/]: {problem}")


def _table(title: str, heads: tuple[str, ...], left: tuple[int, ...]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i in left else "right", no_wrap=True)
    return table


def _speeds(report: Report, rows: list[Row]) -> Any:
    """Samples/s of one model by batch and graph mode, next to the article's."""
    by_mode = {(r.batch, r.graph): r for r in rows}
    modes = report.settings.graphs
    name = rows[0].model
    title = f"{name} ({report.weights[name]}) on {report.machine.get('device')}: samples/s and ms per sample"
    heads = ("batch", *(f"graph {m}" for m in modes), "speed-up", *(f"ms, {m}" for m in modes), "article: without",
             "with", "speed-up")  # fmt: skip
    table = _table(title, heads, ())
    for batch in report.settings.batches:
        found = [by_mode[batch, mode] for mode in modes]
        article = ARTICLE.get(batch)
        table.add_row(
            str(batch), *(f"{r.samples_per_s:.1f}" for r in found), _times(speedup(by_mode, batch)),
            *(f"{r.ms_per_sample:.3f}" for r in found),
            *((str(article[0]), str(article[1]), _times(article[1] / article[0])) if article else ("", "", "")),
        )  # fmt: skip
    return table


def speedup(rows: dict[tuple[int, str], Row], batch: int) -> float | None:
    """Samples/s with one graph per step over samples/s without graphs; None if either was not measured."""
    without, whole = rows.get((batch, "off")), rows.get((batch, "step"))
    return whole.samples_per_s / without.samples_per_s if without and whole else None


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _breakdown(report: Report) -> Any:
    times = ("wall us", "host us", "%", "kernel us", "%", "idle us", "%", "sum %")
    heads = ("model", "batch", "graph", "launches", *times)
    table = _table(f"where the time of a step goes, on {report.machine.get('device')}", heads, (0, 2))
    for r in report.rows:
        b = r.step
        table.add_row(
            r.model, str(r.batch), r.graph, str(r.launched), f"{b.wall_us:.1f}", f"{b.host_us:.1f}",
            f"{b.host_percent:.0f}", f"{b.kernel_us:.1f}", f"{b.kernel_percent:.0f}", f"{b.idle_us:.1f}",
            f"{b.idle_percent:.0f}", f"{b.sum_percent:.1f}" + (" FAILED" if b.problem else ""),
        )  # fmt: skip
    return table


def draw(report: Report, file: str) -> None:
    """Write the plot: .png, .svg or .pdf."""
    with writing(file):
        painted(report).savefig(file, dpi=200)


def painted(report: Report) -> Any:
    """A matplotlib figure. Left: speed-up over batch size, with the article's. Right: share of a step in which kernels
    run. One colour per model, one line style per graph mode."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    batches, modes = report.settings.batches, report.settings.graphs
    for i, (name, _) in enumerate(report.settings.models):
        rows = {(r.batch, r.graph): r for r in report.rows if r.model == name}
        found = [(b, ratio) for b in batches if (ratio := speedup(rows, b))]
        left.plot([b for b, _ in found], [ratio for _, ratio in found], marker="o", color=f"C{i}", label=name)
        for mode in modes:
            shares = [rows[b, mode].step.kernel_percent for b in batches]
            right.plot(batches, shares, STYLES[mode], marker="o", color=f"C{i}")
    left.plot(list(ARTICLE), [b / a for a, b in ARTICLE.values()], "k--", label="the article's example")
    left.set(title="speed-up by one graph per step", ylabel="samples/s with / without graphs", ylim=(0, None))
    right.set(title="kernels' share of the wall clock", ylabel="% of a step", ylim=(0, 110))
    for axes in (left, right):
        axes.set(xscale="log", xlabel="batch")
        axes.set_xticks(batches, map(str, batches))
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    lines = [Line2D([], [], color="grey", linestyle=STYLES[mode], label=f"graph {mode}") for mode in modes]
    right.legend(handles=lines, fontsize="small")
    figure.suptitle(report.machine.get("device"))
    return figure

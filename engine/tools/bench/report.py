"""The results of `ostinato bench decode` as tables, JSON and a plot. Touches no device."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from ...config import ModelConfig
from ...errors import RequestError
from ...report import console
from ..doctor import install_command
from .decode import Measurement, Report
from .operations import FORMULA, Operation

WIDTH = 160  # columns of a table when stdout is not a terminal
DRAWN = ("plot", "png")  # options whose file matplotlib writes
OUTPUTS = ("--json", "--plot", "--png", "--dot")  # options that name an output file


def check_outputs(json_file: str | None, plot_file: str | None, **others: str | None) -> None:
    """RequestError, before anything is measured, if a file cannot be written. others: option -> file."""
    for option, file in {"json": json_file, "plot": plot_file, **others}.items():
        if file is None:
            continue
        if not Path(file).absolute().parent.is_dir():
            raise RequestError(f"{option}: expected a file in a directory that exists, found {file}")
        if option in DRAWN and find_spec("matplotlib") is None:
            extra = f"install the extra plot: {install_command('plot')}"
            raise RequestError(f"{option}: matplotlib is not installed; {extra}")


def stamp(machine: dict[str, str]) -> dict[str, Any]:
    """The fields that every record begins with: date, command, version, machine."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command(sys.argv[1:]),
        "version": metadata.version("ostinato"),
        "python": platform.python_version(),
        "machine": machine,
    }


def command(words: list[str]) -> str:
    """The command line that reproduces the results, without its output files."""
    kept, rest = ["ostinato"], iter(words)
    for word in rest:
        option, equals, _ = word.partition("=")
        if option not in OUTPUTS:
            kept.append(word)
        elif not equals:
            next(rest, None)  # the file
    return shlex.join(kept)


def record(report: Report) -> dict[str, Any]:
    """All results, for JSON."""
    s = report.settings
    settings = {k: v for k, v in asdict(s).items() if k != "config"}
    return {
        **stamp(report.machine),
        "model": s.model,
        "weights": "checkpoint" if s.config is None else "random",
        "config": _config(report.config) if report.config else None,
        "settings": settings,
        "dtypes": report.dtypes,
        "load_s": report.load_s,
        "ceiling_gb_per_s": report.ceilings,
        "bytes": FORMULA,
        "rows": [asdict(row) for row in report.rows],
        "operations": [asdict(row) for row in report.operations],
    }


def _config(c: ModelConfig) -> dict[str, Any]:
    """The model's fields, with layers as runs of equal specs and their counts."""
    runs = [{"count": len(list(run)), **asdict(spec)} for spec, run in groupby(c.layers)]
    return {**{f.name: getattr(c, f.name) for f in fields(c)}, "layers": runs}


def write_json(found: dict[str, Any], file: str) -> None:
    """Write a record to a file. RequestError names the file if that fails."""
    with writing(file):
        Path(file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@contextmanager
def writing(file: str) -> Iterator[None]:
    """Turn an OSError inside into a RequestError that names the file: "disk full" alone does not."""
    try:
        yield
    except OSError as e:
        raise RequestError(f"{file}: cannot be written: {e.strerror or e}") from e


def keep(args: Any, found: Any, record: Callable[[Any], dict[str, Any]], draw: Callable[[Any, str], None]) -> None:
    """Write the files that a command's --json and --plot name."""
    if args.json:
        write_json(record(found), args.json)
    if args.plot:
        draw(found, args.plot)


def stdout() -> Any:
    """A rich console on stdout, as wide as the terminal, or WIDTH."""
    return console(WIDTH)


def print_tables(report: Report) -> None:
    """Print rows, operations and kernels on stdout."""
    out = stdout()
    out.print(_rows(report))
    out.print(f"[not bold]{FORMULA}\nms/step: single steps, by device events; wall: engine steps, by the host clock; "
              "tokens/s: from wall; graph MB: all prepared batch sizes, 1 to this one.")  # fmt: skip
    for line in _paths(report.rows):
        out.print(line)
    if report.operations:
        out.print(_operations(report.operations))
        out.print("Each kind is timed as a graph of its calls alone, with a cold L2 except for sample and advance: "
                  "the sum of the times is not the time of a step.")  # fmt: skip
        for line in _counts(report.operations):
            out.print(line)


def _rows(report: Report) -> Any:
    from rich.table import Table

    s, speeds = report.settings, {(r.backend, r.graph, r.batch): r.step_ms for r in report.rows}
    ceilings = ", ".join(f"{name} {rate:.0f} GB/s" for name, rate in report.ceilings.items())
    table = Table(title=f"{s.model} on {report.machine.get('device')}, prompt {s.prompt_len}, {s.max_tokens} steps; "
                  f"read ceiling {ceilings}")  # fmt: skip
    heads = ("backend", "batch", "graph", "ms/step", "p10..p90", "wall", "tokens/s", "MB/step", "GB/s", "% ceiling",
             "x off", "x cublas", "ttft ms", "graph MB")  # fmt: skip
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i in (0, 2) else "right", no_wrap=True)
    for r in report.rows:
        eager, cublas = speeds.get((r.backend, "off", r.batch)), speeds.get(("cublas", r.graph, r.batch))
        table.add_row(
            r.backend, str(r.batch), r.graph, f"{r.step_ms:.3f}", f"{r.p10_ms:.3f}..{r.p90_ms:.3f}", f"{r.wall_ms:.3f}",
            f"{r.tokens_per_s:.0f}", f"{r.bytes / 1e6:.1f}", f"{r.gb_per_s:.0f}", f"{r.percent:.1f}",
            _ratio(eager, r, r.graph != "off"), _ratio(cublas, r, r.backend != "cublas"), f"{r.ttft_ms:.1f}",
            f"{r.graph_bytes / 1e6:.1f}",
        )  # fmt: skip
    return table


def _ratio(other: float | None, row: Measurement, shown: bool) -> str:
    """Speed-up over another row."""
    return f"{other / row.step_ms:.2f}" if other is not None and shown else ""


def _operations(rows: list[Operation]) -> Any:
    from rich.table import Table

    table = Table(title="operations")
    heads = ("backend", "batch", "operation", "calls", "us/call", "us/step", "MB/call", "GB/s", "% ceiling", "kernels")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i in (0, 2, 9) else "right", no_wrap=i < 9)
    for r in rows:
        rate = ("", "") if r.gb_per_s is None or not r.bytes else (f"{r.gb_per_s:.0f}", f"{r.percent:.1f}")
        table.add_row(
            r.backend, str(r.batch), r.kind, str(r.calls), f"{r.us:.2f}", f"{r.us * r.calls:.1f}",
            f"{r.bytes / 1e6:.3f}", *rate, _names(r.kernels),
        )  # fmt: skip
    return table


def _paths(rows: list[Measurement]) -> list[str]:
    """Lines that name the kernels of each backend and graph mode; batch sizes with the same kernels share a line."""
    paths: dict[tuple[str, str, str], list[str]] = {}
    for r in rows:
        names = ", ".join(dict.fromkeys(name.split("<")[0] for name in r.kernels))
        paths.setdefault((r.backend, r.graph, names), []).append(str(r.batch))
    return [f"{backend}, graph {graph}, batch {', '.join(batches)}: launched {names}"
            for (backend, graph, names), batches in paths.items() if names]  # fmt: skip


def _counts(rows: list[Operation]) -> list[str]:
    """Lines that give the kernel launches per step, by backend and batch."""
    totals: Counter[tuple[str, int]] = Counter()
    for r in rows:
        totals[r.backend, r.batch] += sum(r.kernels.values())
    return [f"{backend}, batch {batch}: {n} launches per step" for (backend, batch), n in totals.items() if n]


def _names(kernels: dict[str, int]) -> str:
    """Kernel names without template arguments, with their launch counts."""
    totals: Counter[str] = Counter()
    for name, count in kernels.items():
        totals[name.split("<")[0]] += count
    return ", ".join(f"{name} x{count}" for name, count in totals.items())


def draw(report: Report, file: str) -> None:
    """Plot ms per step over batch size: a line per backend and graph mode, and the floor at the read ceiling."""
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name in dict.fromkeys((r.backend, r.graph) for r in report.rows):
        rows = sorted((r for r in report.rows if (r.backend, r.graph) == name), key=lambda r: r.batch)
        axes.plot([r.batch for r in rows], [r.step_ms for r in rows], marker="o", label=f"{name[0]}, graph {name[1]}")
    floors = {r.batch: r.bytes / report.ceilings[r.backend] / 1e6 for r in report.rows}
    batches = sorted(floors)
    axes.plot(batches, [floors[b] for b in batches], "k--", label="bytes / read ceiling")
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="ms per step")
    axes.set_xticks(batches, map(str, batches))
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{report.settings.model} on {report.machine.get('device')}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper")
    with writing(file):
        figure.savefig(file, dpi=150)
    pyplot.close(figure)

"""`ostinato bench check`: compares a run of `bench decode` with an earlier one on the same GPU model.

Clocks and memory of a GPU differ a little between machines and days. So the runs are compared by their shares of the
read ceiling, which each run measured: ratio = share now / share then.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...checks import integer, real
from ...errors import CheckpointError, RequestError
from ...report import console
from ...weights.files import read_json

BASELINES = Path("examples/results")  # in a checkout, from its root
SAME = ("device", "model", "weights", "prompt length", "steps", "quant")  # must be equal in both runs
WIDTH = 120  # columns of the table when stdout is not a terminal


class Key(NamedTuple):
    """A row of `bench decode`."""

    backend: str
    graph: str
    batch: int


class Cost(NamedTuple):
    """The cost of one step."""

    step_ms: float
    percent: float  # of the read ceiling
    bytes: int  # that a step must read
    dtype: str


@dataclass(frozen=True)
class Run:
    """A file of `ostinato bench decode --json`."""

    file: Path
    date: str
    made_by: dict[str, Any]  # name of SAME -> value
    rows: dict[Key, Cost]


class Compared(NamedTuple):
    """A row that both runs have."""

    key: Key
    then: Cost
    now: Cost

    @property
    def ratio(self) -> float:
        """Share of the read ceiling, now / then. Above 1: faster than the baseline."""
        return self.now.percent / self.then.percent


def read_run(file: Path) -> Run:
    """Read a run. RequestError names the file, and the key that is missing or out of range."""
    try:
        found = read_json(file)
    except CheckpointError as e:
        raise RequestError(str(e)) from e
    try:
        return _run(file, found)
    except (KeyError, TypeError, AttributeError) as e:
        what = f"found no key {e}" if isinstance(e, KeyError) else f"found another structure ({e})"
        raise RequestError(f"{file}: expected a file of `ostinato bench decode --json`, {what}") from e


def _run(file: Path, found: dict[str, Any]) -> Run:
    settings = found["settings"]
    values = (
        found["machine"]["device"], found["model"], found["weights"], settings["prompt_len"], settings["max_tokens"],
        settings.get("quant"),
    )  # fmt: skip
    rows = {}
    for i, row in enumerate(found["rows"]):
        where = f"{file}: rows[{i}]"
        key = Key(row["backend"], row["graph"], integer(f"{where}.batch", row["batch"], 1, 2**20))
        step_ms, percent = (real(f"{where}.{k}", row[k], 0, 1e9, open_low=True) for k in ("step_ms", "percent"))
        need = integer(f"{where}.bytes", row["bytes"], 1, 2**60)
        rows[key] = Cost(step_ms, percent, need, found["dtypes"][key.backend])
    if not rows:
        raise RequestError(f"{file}: expected rows, found none")
    return Run(file, found["date"], dict(zip(SAME, values, strict=True)), rows)


def baseline(run: Run, place: Path) -> Run:
    """The run in a file, or the newest comparable run in a folder.

    RequestError if there is none; for a file it names the differences."""
    if not place.is_dir():
        other = read_run(place)
        if different := list(_differences(run, other)):
            raise RequestError(f"{run.file}: cannot be compared with {place}: {'; '.join(different)}")
        return other
    found = [other for file in sorted(place.glob("*.json")) if (other := _candidate(file, run))]
    if not found:
        device, model = run.made_by["device"], run.made_by["model"]
        raise RequestError(f"{place}: expected a run of {model} on {device} like {run.file}, found none")
    return max(found, key=lambda other: other.date)


def _candidate(file: Path, run: Run) -> Run | None:
    """The run in a file, or None if it is not comparable: a folder of results also has other files."""
    try:
        other = read_run(file)
    except RequestError:
        return None
    return None if file.samefile(run.file) or list(_differences(run, other)) else other


def _differences(run: Run, other: Run) -> Iterator[str]:
    for name, now in run.made_by.items():
        if now != other.made_by[name]:
            yield f"{name}: expected {other.made_by[name]}, found {now}"
    shared = run.rows.keys() & other.rows.keys()
    if not shared:
        yield "rows: expected at least one common backend, graph mode and batch, found none"
    for key in sorted(shared):
        for name in ("dtype", "bytes"):
            then, now = getattr(other.rows[key], name), getattr(run.rows[key], name)
            if then != now:
                yield f"{name} of {key.backend}, graph {key.graph}, batch {key.batch}: expected {then}, found {now}"
                return


def compare(run: Run, base: Run) -> list[Compared]:
    """The rows that both runs have, in the order of the new run."""
    return [Compared(key, base.rows[key], now) for key, now in run.rows.items() if key in base.rows]


def slower(row: Compared, tolerance: float) -> bool:
    """Whether a row is slower than its baseline by more than `tolerance` percent."""
    return row.ratio < 1 - tolerance / 100


def add_command(commands: Any) -> None:
    """Add `check` to the subparsers of `ostinato bench`."""
    p = commands.add_parser(
        "check", help="a run against an earlier one", description="Compare a run of `bench decode` with a baseline."
    )
    p.add_argument("file", metavar="FILE.json", help="what `ostinato bench decode --json FILE.json` wrote")
    p.add_argument(
        "--baseline", default=str(BASELINES), metavar="PATH",
        help=f"a run on the same GPU, or a folder: its newest such run is used ({BASELINES})",
    )  # fmt: skip
    p.add_argument("--tolerance", type=float, default=3.0, metavar="X", help="allowed slowdown of a row in percent (3)")
    p.set_defaults(run=main)


def main(args: argparse.Namespace) -> int:
    """Print the table. Return 1 if a row is slower than the tolerance allows, else 0. RequestError: not comparable."""
    tolerance = real("tolerance", args.tolerance, 0, 100)
    run = read_run(Path(args.file))
    base = baseline(run, Path(args.baseline))
    rows = compare(run, base)
    print_table(run, base, rows, tolerance)
    return int(any(slower(row, tolerance) for row in rows))


def print_table(run: Run, base: Run, rows: list[Compared], tolerance: float) -> None:
    """Print the rows and the number of slower ones on stdout."""
    from rich.table import Table

    model, device = run.made_by["model"], run.made_by["device"]
    table = Table(title=f"{model} on {device}: {run.file} against {base.file} of {base.date[:10]}")
    heads = ("backend", "graph", "batch", "ms then", "ms now", "% ceiling then", "% now", "ratio", "")
    for i, name in enumerate(heads):
        table.add_column(name, justify="left" if i in (0, 1, 8) else "right", no_wrap=True)
    for row in rows:
        times = (f"{row.then.step_ms:.3f}", f"{row.now.step_ms:.3f}")
        percents = (f"{row.then.percent:.1f}", f"{row.now.percent:.1f}")
        verdict = "SLOWER" if slower(row, tolerance) else "faster" if row.ratio > 1 + tolerance / 100 else "same"
        table.add_row(
            row.key.backend, row.key.graph, str(row.key.batch), *times, *percents, f"{row.ratio:.3f}", verdict
        )
    out = console(WIDTH)
    out.print(table)
    failed = sum(slower(row, tolerance) for row in rows)
    left = len(base.rows.keys() - run.rows.keys())
    rest = f"; {left} rows of the baseline were not measured" if left else ""
    out.print(f"{failed} of {len(rows)} rows are slower by more than {tolerance:g} %{rest}")

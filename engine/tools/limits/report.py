"""The output of `ostinato doctor --graph-limits`: a table or a JSON list."""

from __future__ import annotations

from datetime import date
from typing import Any

from ...report import Reporter, console, print_json
from .article import ARTICLE
from .probe import Outcome, Verdict, agreement
from .runner import Report, run
from .table import PROBES

WIDTH = 170  # columns of the table when stdout is not a terminal
_SHOWN: dict[Verdict, str] = {
    "supported": "[green]yes",
    "refused": "[red]no",
    "wrong": "[red]wrong",
    "broken": "[red]broken",
    "not run": "[yellow]not run",
}


def records(report: Report) -> list[dict[str, Any]]:
    """One object per probe, in table order."""
    agrees = agreement(PROBES.values(), report.outcomes)
    return [
        {
            "feature": PROBES[o.probe].feature,
            "probe": o.probe,
            "asks": PROBES[o.probe].asks,
            "supported": o.supported,
            "verdict": o.verdict,
            "error": o.error or None,
            "error_text": o.text or None,
            "detail": o.detail or None,
            "article": PROBES[o.probe].says or None,
            "article_words": ARTICLE[PROBES[o.probe].feature].words or None,
            "agrees": agrees[o.probe],
            "machine": report.machine,
            "date": date.today().isoformat(),
        }
        for o in report.outcomes
    ]


def table(report: Report) -> Any:
    """A rich.table.Table: one section per row of the article, one line per probe."""
    from rich.table import Table

    machine = ", ".join(f"{k} {v}" if k != "device" else v for k, v in report.machine.items())
    shown = Table(title=f"What a CUDA graph can hold: {machine}", expand=True)
    columns = {"feature": None, "probe": 5, "here": None, "result": 8, "article": 4, "agrees": None}
    for head, ratio in columns.items():
        shown.add_column(head, ratio=ratio, overflow="fold", no_wrap=ratio is None)
    agrees, feature = agreement(PROBES.values(), report.outcomes), ""
    for o in report.outcomes:
        probe = PROBES[o.probe]
        first = probe.feature != feature
        if first and feature:
            shown.add_section()
        feature = probe.feature
        words = ARTICLE[feature].words or "(does not say)"
        agreed = {None: "–", True: "yes", False: "[red]no"}[agrees[o.probe]]
        answer = _SHOWN[o.verdict]
        shown.add_row(feature if first else "", probe.asks, answer, _result(o), words if first else "", agreed)
    return shown


def _result(o: Outcome) -> str:
    """Error and detail in one cell, with square brackets escaped."""
    from rich.markup import escape

    error = ": ".join(filter(None, (o.error, o.text)))
    return escape("; ".join(filter(None, (error, o.detail))))


def summary(report: Report) -> str:
    """The counts, in one line."""
    agrees = list(agreement(PROBES.values(), report.outcomes).values())
    counts = {verdict: sum(o.verdict == verdict for o in report.outcomes) for verdict in _SHOWN}
    parts = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    return f"{len(report.outcomes)} probes: {parts}. The article agrees with {agrees.count(True)} of them, " \
           f"disagrees with {agrees.count(False)}, says nothing of {agrees.count(None)}."  # fmt: skip


def main(as_json: bool) -> int:
    """Run every probe and print the report; return 0. DeviceError without a GPU."""
    reporter = Reporter(quiet=as_json)
    with reporter.bar("probes") as bar:
        names = list(PROBES)
        report = run(names, lambda name: bar(names.index(name), len(names)))
    if as_json:
        print_json(records(report), indent=1)
        return 0
    out = console(WIDTH)
    out.print(table(report))
    out.print(summary(report), highlight=False)
    return 0

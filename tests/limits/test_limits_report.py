"""The output of `doctor --graph-limits` for given outcomes."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from ostinato.cli import main as cli
from ostinato.tools import doctor
from ostinato.tools.limits import report, runner
from ostinato.tools.limits.probe import Outcome
from ostinato.tools.limits.table import PROBES

GPUS = doctor.driver().gpus
MACHINE = {"device": "Some GPU", "driver": "1.2.3"}

OUTCOMES = [
    Outcome("dynamic-parallelism", "not run", detail="libcudadevrt.a is not installed"),
    Outcome("fork-and-join", "supported", detail="5 kernels [each]"),
    Outcome("stream-query", "refused", "cudaErrorStreamCaptureUnsupported", "operation not permitted", "lost"),
    Outcome("pool-temporary", "supported"),
    Outcome("pool-temporary-is-kept", "wrong", detail="overwrote 1 of 4"),
    Outcome("host-function", "broken", detail="no answer within 30 s"),
]


def test_records() -> None:
    rows = report.records(runner.Report(MACHINE, OUTCOMES))
    assert [(r["probe"], r["supported"], r["agrees"]) for r in rows] == [
        ("dynamic-parallelism", None, None),
        ("fork-and-join", True, True),
        ("stream-query", False, False),  # "partly", and no other probe of its row
        ("pool-temporary", True, False),
        ("pool-temporary-is-kept", False, None),
        ("host-function", False, None),
    ]
    assert {"error": "cudaErrorStreamCaptureUnsupported", "error_text": "operation not permitted",
            "article": "partly", "feature": "runtime API", "machine": MACHINE}.items() <= rows[2].items()  # fmt: skip
    assert json.loads(json.dumps(rows)) == rows


def test_the_table_shows_everything() -> None:
    from rich.console import Console

    console = Console(width=400, file=io.StringIO())
    console.print(report.table(runner.Report(MACHINE, OUTCOMES)))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for o in OUTCOMES:
        line = next(line for line in shown.splitlines() if PROBES[o.probe].asks in line)
        assert all(part in line for part in (o.error, o.text, o.detail))
        assert (PROBES[o.probe].feature in line) == (o.probe != "pool-temporary-is-kept")  # once a feature
    assert "Some GPU, driver 1.2.3" in shown and "supported: events" not in shown
    assert report.summary(runner.Report(MACHINE, OUTCOMES)) == (
        "6 probes: 2 supported, 1 refused, 1 wrong, 1 broken, 1 not run. "
        "The article agrees with 1 of them, disagrees with 2, says nothing of 3.")  # fmt: skip


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_command(options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(names: list[str], progress: Any) -> runner.Report:
        for name in names:
            progress(name)
        return runner.Report(MACHINE, OUTCOMES)

    monkeypatch.setattr(report, "run", run)
    assert cli.main(["doctor", "--graph-limits", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    if options:
        assert [row["probe"] for row in json.loads(out)] == [o.probe for o in OUTCOMES]
    else:
        assert out.splitlines()[-1].startswith("6 probes: 2 supported")


@pytest.mark.skipif(bool(GPUS), reason="there is a GPU here")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_command_without_a_gpu(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--graph-limits", *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("ostinato: --graph-limits: backend cuda needs ")

"""`ostinato bench check`: slower rows fail, runs that do not compare are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostinato.cli import main as cli
from ostinato.errors import RequestError
from ostinato.tools.bench import check

RESULTS = Path(__file__).resolve().parents[1] / "examples" / "results"
Change = Callable[[dict[str, Any]], object]


def record(**more: Any) -> dict[str, Any]:
    """A file of `bench decode --json`: three rows of a card that reads 1000 GB/s."""
    times = [{"batch": b, "step_ms": 2.0 + b, "percent": 90.0 - b, "bytes": 10**9 + b} for b in (1, 4, 8)]
    rows = [{"backend": "cuda", "graph": "step", **time} for time in times]
    return {
        "date": "2026-11-28T10:00:00+00:00", "machine": {"device": "Some GPU"}, "model": "toy", "weights": "random",
        "settings": {"prompt_len": 128, "max_tokens": 128}, "dtypes": {"cuda": "bfloat16"}, "rows": rows, **more,
    }  # fmt: skip


def write(path: Path, found: Any) -> Path:
    path.write_text(json.dumps(found))
    return path


def scaled(percent: float, row: int = 1) -> Change:
    """One row's share of the ceiling times `percent` / 100."""

    def change(found: dict[str, Any]) -> None:
        found["rows"][row]["percent"] *= percent / 100

    return change


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit status, stdout and stderr of a check of a changed copy against the record itself."""
    write(tmp_path / "base.json", record())

    def run(change: Change, *options: str, baseline: str = "base.json") -> tuple[int, str, str]:
        found = record(date="2026-11-29T10:00:00+00:00")
        change(found)
        new = write(tmp_path / "new.json", found)
        status = cli.main(["bench", "check", str(new), "--baseline", str(tmp_path / baseline), *options])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize(
    ("change", "options", "status"),
    [
        pytest.param(lambda f: None, (), 0, id="the-same"),
        pytest.param(scaled(97.1), (), 0, id="within-3-percent"),
        pytest.param(scaled(96.9), (), 1, id="beyond-3-percent"),
        pytest.param(scaled(96.9), ("--tolerance", "5"), 0, id="within-a-wider-tolerance"),
        pytest.param(scaled(99.9), ("--tolerance", "0"), 1, id="no-tolerance"),
        pytest.param(scaled(120), (), 0, id="faster"),
        pytest.param(lambda f: f["rows"].pop(), (), 0, id="a-row-not-measured"),
        pytest.param(lambda f: f["rows"][0].update(step_ms=9.0), (), 0, id="a-slower-card-at-the-same-share"),
    ],
)
def test_exit_status(run: Any, change: Change, options: tuple[str, ...], status: int) -> None:
    found, out, err = run(change, *options)
    assert (found, err) == (status, "")
    assert ("SLOWER" in out) == (status == 1)


def test_the_table_says_both_sides(run: Any) -> None:
    _, out, _ = run(scaled(50))
    row = next(line for line in out.splitlines() if "SLOWER" in line)
    assert [word for word in row.split() if word[0].isalnum()] == [
        "cuda", "step", "4", "6.000", "6.000", "86.0", "43.0", "0.500", "SLOWER",
    ]  # fmt: skip
    assert "1 of 3 rows are slower by more than 3 %" in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(
            lambda f: f["machine"].update(device="Other"), "device: expected Some GPU, found Other", id="card"
        ),
        pytest.param(lambda f: f.update(model="larger"), "model: expected toy, found larger", id="model"),
        pytest.param(lambda f: f["settings"].update(prompt_len=9), "prompt length: expected 128, found 9", id="prompt"),
        pytest.param(lambda f: f["settings"].update(quant="q4_0"), "quant: expected None, found q4_0", id="quant"),
        pytest.param(lambda f: f["dtypes"].update(cuda="float16"), "dtype of cuda, graph step, batch 1", id="dtype"),
        pytest.param(lambda f: f["rows"][2].update(bytes=5), "bytes of cuda, graph step, batch 8", id="other-work"),
        pytest.param(
            lambda f: [r.update(graph="off") for r in f["rows"]],
            "at least one common backend",
            id="no-common-row",
        ),
        pytest.param(lambda f: f.pop("rows"), "found no key 'rows'", id="no-rows-key"),
        pytest.param(lambda f: f["rows"].clear(), "expected rows, found none", id="no-rows"),
        pytest.param(lambda f: f["rows"][1].update(percent=0), r"rows\[1\].percent", id="no-speed"),
        pytest.param(lambda f: f["rows"][1].update(percent=float("nan")), r"rows\[1\].percent", id="nan"),
        pytest.param(lambda f: f.update(machine=[]), "bench decode --json", id="not-of-bench-decode"),
    ],
)
def test_runs_that_do_not_compare_are_2_and_one_line(run: Any, change: Change, says: str) -> None:
    status, out, err = run(change)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(says, err) and "new.json" in err


def test_no_such_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["bench", "check", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_of_a_folder_the_newest_comparable_run_is_taken(run: Any, tmp_path: Path) -> None:
    write(tmp_path / "newer.json", record(date="2026-11-28T11:00:00+00:00"))
    write(tmp_path / "other-card.json", record(date="2026-12-01", machine={"device": "Other"}))
    write(tmp_path / "a-list.json", [1])
    _, out, _ = run(lambda f: None, baseline=".")
    assert "newer.json" in " ".join(out.split())


def test_a_folder_without_a_baseline(run: Any) -> None:
    status, _, err = run(lambda f: f["machine"].update(device="Other"), baseline=".")
    assert status == 2 and "expected a run of toy on Other" in err


@pytest.mark.parametrize("name", ["llama-3.1-8b.json", "smollm2-135m-h100.json"])
def test_a_committed_run_against_itself(name: str) -> None:
    found = check.read_run(RESULTS / name)
    rows = check.compare(found, check.baseline(found, RESULTS / name))
    assert len(rows) == len(found.rows) and {row.ratio for row in rows} == {1.0}


def test_a_run_is_not_its_own_baseline() -> None:
    with pytest.raises(RequestError, match="found none"):
        check.baseline(check.read_run(RESULTS / "llama-3.1-8b.json"), RESULTS)

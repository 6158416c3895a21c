"""`ostinato bench schedule` on a model of random weights small enough for NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from configs import flat

from ostinato.cli.main import main
from ostinato.errors import DeviceError, RequestError
from ostinato.run import load
from ostinato.tools.bench import schedule, synthetic
from ostinato.tools.bench.schedule import Report, Settings

TINY = flat(layers=1, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=80, max_len=2048, eps=1e-5, tied=True)
SMALL = {"backend": "numpy", "streams": 3, "prompt_len": 700, "shared": 300, "tail": 20, "repeats": 2}


@pytest.fixture(scope="module")
def report() -> Report:
    return schedule.schedule(Settings("tiny", TINY, **SMALL), load.choose)


def test_everything_is_measured(report: Report) -> None:
    assert report.running == 3 and "KV cache" in report.memory
    for found in (report.cold_ms, report.warm_ms, report.tail_ms, report.gap_ms, report.alone_ms, report.between_ms):
        assert len(found) == 2 and min(found) > 0
    assert 0 < report.step_ms < max(report.gap_ms)


def test_the_command_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(synthetic.SHAPES, "tiny", TINY)
    file = tmp_path / "found.json"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert main(["bench", "schedule", "--shape", "tiny", *options, "--json", str(file)]) == 0
    found, out = json.loads(file.read_text()), capsys.readouterr().out
    assert found["settings"]["prompt_len"] == 700 and len(found["gap_ms"]) == 2 and "config" not in found["settings"]
    for line in (
        "concurrent requests without max_tokens",
        "300 shared + 20, warm",
        "longest pause of a stream",
    ):
        assert line in out


def test_a_prompt_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(DeviceError, match="bench: expected space for a prompt of 3000 tokens"):
        schedule.schedule(Settings("tiny", TINY, **{**SMALL, "shared": 2980}), load.choose)


@pytest.mark.parametrize(("name", "value"), [("streams", 0), ("repeats", 0), ("backend", "gpu")])
def test_settings_are_checked(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        Settings("tiny", TINY, **{**SMALL, name: value})

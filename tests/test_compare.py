"""`ostinato compare`: sums against the textbook formulas, the windows of text, and a whole run on NumPy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import ostinato
from ostinato.cli import main as cli
from ostinato.tools import compare

LLAMA = str(Path(__file__).parent / "fixtures" / "llama")


def test_replayed_equals_eager(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--backends numpy --windows 2 --tokens 24 --decode 4 --json"
    assert cli.main(["compare", LLAMA, *options.split()]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    for graph in ("off", "layer", "step"):  # printed as soon as a row is measured
        line = rf"compare: numpy, graph {graph}: [\d.]+ ms per step, mean_kl 0, perplexity_ratio 1\n"
        assert re.search(line, err)
    assert [(r["backend"], r["graph"]) for r in report["rows"]] == [("numpy", g) for g in ("off", "layer", "step")]
    for row in report["rows"]:
        assert row["equals_eager"] is True
        assert (row["max_logit_diff"], row["same_top"], row["perplexity_ratio"]) == (0, 1, 1)
        assert row["tokens_per_s"] > 0 and 1 < row["perplexity"] < 1e6
        assert row["step_ms"] == pytest.approx(1e3 / row["tokens_per_s"])


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--backends numpy --graphs step --windows 0 --decode 4"
    assert cli.main(["compare", LLAMA, *options.split()]) == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out and re.search(r"numpy\W+step\W+[\d.]+", out)


def test_tally_is_the_textbook_formula() -> None:
    rng = np.random.default_rng(0)
    reference, logits = rng.normal(0, 3, (2, 100, 50)).astype(np.float32)
    ids = rng.integers(0, 50, 100)
    tally = compare.Tally()
    tally.add(reference, logits, ids)
    found = tally.record()
    p, q = (
        np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (reference, logits)
    )
    assert found["mean_kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert found["max_logit_diff"] == pytest.approx(np.abs(reference - logits).max())
    assert found["same_top"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    likely = np.array([(p[t, ids[t + 1]], q[t, ids[t + 1]]) for t in range(99)])
    assert found["perplexity"] == pytest.approx(np.exp(-np.log(likely[:, 1]).mean()))
    assert found["perplexity_ratio"] == pytest.approx(np.exp(np.log(likely[:, 0] / likely[:, 1]).mean()))


def test_windows_are_spread_over_the_text() -> None:
    with ostinato.LLM(LLAMA, backend="numpy", quiet=True) as llm:
        windows = compare.text_windows(llm.tokenizer, 3, 40)
        again = compare.text_windows(llm.tokenizer, 3, 40)
        text = llm.tokenizer.decode(windows[0].tolist())
    assert [len(w) for w in windows] == [40] * 3
    assert len({w.tobytes() for w in windows}) == 3
    assert all(np.array_equal(a, b) for a, b in zip(windows, again, strict=True))
    assert text.isprintable() or "\n" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"windows": -1}, "windows", id="windows"),
        pytest.param({"tokens": 1}, "tokens", id="tokens"),
        pytest.param({"decode": 1}, "decode", id="decode"),
        pytest.param({"batch": 17}, "batch", id="batch"),
        pytest.param({"backends": ()}, "backends", id="no-backends"),
        pytest.param({"graphs": ()}, "graphs", id="no-graphs"),
    ],
)
def test_settings_out_of_range(options: dict, says: str) -> None:
    with pytest.raises(ostinato.RequestError, match=says):
        compare.Settings(LLAMA, **options)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({}, "cuda, graph step: 0.250 ms per step", id="speed-only"),
        pytest.param(
            {"agreement": {"mean_kl": 2e-4, "perplexity_ratio": 1.0003}, "equals_eager": False},
            "cuda, graph step: 0.250 ms per step, mean_kl 0.0002, perplexity_ratio 1.0003, bits differ from graph off",
            id="other-bits",
        ),
    ],
)
def test_summary_of_a_row(row: dict, expected: str) -> None:
    assert compare._summary(compare.Row("cuda", "step", "some GPU", "bfloat16", 4000.0, 0.25, 1, **row)) == expected

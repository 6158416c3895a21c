"""Random changes of kernels: which tokens change, which kernels a change affects, which tests run."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import random_mutant_runs
from chosen_tests import KernelTest, choose
from harmless_changes import HARMLESS
from mutant_runs import DoesNotCompile, Survived
from random_mutant_runs import Outcome, judge, outcomes, run_random
from random_mutants import Change, changes, draw, reached

from ostinato.ops.device import KERNELS


def made(source: str) -> list[str]:
    """The source after each change."""
    return [c.apply(source) for c in changes("a.cu", source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("a = b + c;", ["a = b - c;"], id="operator"),
        pytest.param("a += b;", ["a -= b;"], id="assignment"),
        pytest.param("a = max(b, c);", ["a = min(b, c);"], id="function"),
        pytest.param("if (a <= b) c;", ["if (a < b) c;"], id="bound"),
        pytest.param("a = 7;", ["a = 8;", "a = 6;"], id="integer"),
        pytest.param("a = 0u;", ["a = 1u;"], id="zero"),
        pytest.param("a = 0xffu;", ["a = (0xffu >> 1);"], id="mask"),
        pytest.param("a = 0.f;", ["a = 1.f;"], id="no-float"),
        pytest.param("a = 1.5e-4f;", ["a = 0.f;", "a = (1.125f * 1.5e-4f);"], id="float"),
        pytest.param("__syncthreads();", ["(void)0;"], id="barrier"),
        pytest.param("cp_async_wait<DEPTH>();", ["(void)0;"], id="copies"),
        pytest.param("return grid_wait();", ["return (void)0;"], id="wait"),
        pytest.param("// a + 1\n#pragma unroll 4\n", [], id="text"),
        pytest.param("#define A \\\n    1 + 2\n", [], id="macro"),
        pytest.param('static_assert(a < 1, "a + 1");', [], id="static-assert"),
        pytest.param("__launch_bounds__(f(32) * 2, 1) a();", [], id="launch-bounds"),
        pytest.param("template <int N = 32>\n", [], id="template"),
        pytest.param("    prefetch_l2(a + 1);\n", [], id="prefetch"),
        pytest.param("grid_launch();", [], id="start-of-the-next"),
        pytest.param("float* a; a<b>(*c, &d, x1, v.x);", [], id="no-operators"),
    ],
)
def test_changes(source, expected):
    assert made(source) == expected


def test_draw_is_every_change_once_in_an_order_of_its_own():
    files = [p for p in KERNELS.iterdir() if p.suffix in (".cu", ".cuh") and p.name != "ptx.cuh"]
    drawn = list(draw(KERNELS, 1))
    assert len(set(drawn)) == len(drawn) == sum(len(list(changes(p.name, p.read_text()))) for p in files)
    assert drawn == list(draw(KERNELS, 1)) != list(draw(KERNELS, 2))
    assert [c.kind for c in drawn[:4]] == ["operator", "bound", "constant", "barrier"]


def change_of(file: str, text: str) -> Change:
    """The first change on the line with this text."""
    source = (KERNELS / file).read_text(encoding="utf-8")
    return next(c for c in changes(file, source) if text in source.splitlines()[c.line - 1])


PRODUCTS = {"decode_add", "decode_gate", "decode_gelu", "decode_qkv", "decode_store"}


@pytest.mark.parametrize(
    ("file", "text", "kernels"),
    [
        pytest.param("rope.cu", "int head = unit % (2 * kv_heads)", {"append"}, id="a-kernel"),
        pytest.param("rope.cu", "PAGE + position % PAGE", {"append", "rope_append"}, id="a-function"),
        pytest.param("epilogue.cuh", "int span = head_dim / 16", {"decode_qkv", "prefill_qkv"}, id="an-epilogue"),
        pytest.param("stream.cuh", "int OWN = F::CHUNK / 4", PRODUCTS, id="through-a-class"),
        pytest.param("sample.cuh", "ONE = 1099511627776.f", {"sample"}, id="a-number"),
    ],
)
def test_reached(file, text, kernels):
    assert {name for _, name in reached(KERNELS, change_of(file, text))} == kernels


A, B, C = ("a.cu", "a<bf16, 1>"), ("a.cu", "a<half, 1>"), ("b.cu", "b<bf16>")
TESTS = [
    KernelTest("f.py::test_slow[1]", 9, frozenset([A, B])),
    KernelTest("f.py::test_quick[1]", 0.1, frozenset([A])),
    KernelTest("f.py::test_quick[2]", 0.2, frozenset([A])),
    KernelTest("f.py::test_quick[3]", 0.3, frozenset([B])),
    KernelTest("g.py::test_other", 0.1, frozenset([C])),
]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        pytest.param(100, ["quick[1]", "quick[3]", "slow[1]", "quick[2]"], id="what-is-new-and-cheap-first"),
        pytest.param(4, ["quick[1]", "quick[3]", "quick[2]"], id="as-much-as-there-is-time-for"),
        pytest.param(0.1, ["quick[1]"], id="one-at-least"),
    ],
)
def test_choose(seconds, chosen):
    assert [t.id.split("test_")[1] for t in choose(TESTS, {("a.cu", "a")}, seconds)] == chosen


ROPE = change_of("rope.cu", "if (row >= rows) return;")
LAUNCHES = [KernelTest("tests/ops/test_rows.py::test_rope_append", 1, frozenset([("rope.cu", "rope_append<bf16>")]))]


def fail(error: Exception) -> str:
    raise error


@pytest.mark.parametrize(
    ("run", "same", "verdict"),
    [
        pytest.param(lambda: "test_rope", False, "caught", id="caught"),
        pytest.param(lambda: "", False, "survived", id="survived"),
        pytest.param(lambda: "", True, "equivalent", id="equivalent"),
        pytest.param(lambda: fail(DoesNotCompile("no")), False, "refused", id="refused"),
        pytest.param(lambda: fail(Survived("no test ran")), False, "survived", id="no-test"),
        pytest.param(lambda: fail(subprocess.TimeoutExpired("pytest", 1)), False, "survived", id="no-end"),
    ],
)
def test_judge(monkeypatch, tmp_path, run, same, verdict):
    """The copy of the tree differs from the original in one token."""
    seen = []

    def lay_out(target: Path) -> Path:
        return shutil.copytree(KERNELS, target / "kernels")

    def run_tests(target: Path, files: list[str], *more: str) -> str:
        seen.append((target / "kernels" / "rope.cu").read_text(encoding="utf-8"))
        return run()

    monkeypatch.setattr(random_mutant_runs, "lay_out", lay_out)
    monkeypatch.setattr(random_mutant_runs, "lend_cache", lambda target: None)
    monkeypatch.setattr(random_mutant_runs, "run_tests", run_tests)
    monkeypatch.setattr(random_mutant_runs, "same_code", lambda *_: same)
    outcome = judge(ROPE, tests=LAUNCHES, seconds=9)
    assert seen == [ROPE.apply((KERNELS / "rope.cu").read_text(encoding="utf-8"))]
    assert outcome.verdict == verdict and "rope.cu" in str(outcome) and ROPE.text in str(outcome)


@pytest.mark.parametrize("known", HARMLESS, ids=lambda h: f"{h.file}-{h.text}-{h.token}")
def test_harmless_changes_can_still_be_made(monkeypatch, known):
    source = (KERNELS / known.file).read_text(encoding="utf-8")
    found = [c for c in changes(known.file, source) if known.covers(c)]
    assert found and len({c.line for c in found}) == 1
    monkeypatch.setattr(random_mutant_runs, "run_tests", lambda *_: fail(AssertionError("no test is run")))
    assert judge(found[0], tests=LAUNCHES, seconds=9).verdict == "equivalent"


def test_refused_changes_are_made_up_for():
    drawn = list(islice(draw(KERNELS, 1), 9))
    judged = partial(lambda c: Outcome(c, "refused" if c in drawn[1:3] else "caught", ""))
    found = [o.change for o in outcomes(iter(drawn), 5, 1, judged)]
    assert found == [drawn[0], *drawn[3:7]]


@pytest.mark.parametrize(("survivors", "status"), [(1, 0), (2, 1)])
def test_at_least_95_of_100(monkeypatch, tmp_path, capsys, survivors, status):
    verdicts = iter(["survived"] * survivors + ["caught"] * (20 - survivors) + ["equivalent"] * 5)
    monkeypatch.setattr(random_mutant_runs, "survey", lambda *_: [])
    monkeypatch.setattr(random_mutant_runs, "judge", lambda change, tests, seconds: Outcome(change, next(verdicts), ""))
    assert run_random(25, 1, 1, 9, tmp_path / "report.json") == status
    assert f"{20 - survivors} of 25 changes caught, 5 equivalent, {survivors} survived" in capsys.readouterr().out
    assert '"verdict": "survived"' in (tmp_path / "report.json").read_text()

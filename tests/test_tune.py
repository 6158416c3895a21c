"""`ostinato tune`: the search on a made-up clock, whole runs, and that its shapes are what is launched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulator import EmulatedDevice

from ostinato import cli, descent, doctor, tune
from ostinato.bench.decode import Settings
from ostinato.config import ModelConfig
from ostinato.ops import tuned
from ostinato.ops.cuda import CudaOps
from ostinato.ops.shapes import DecodeShape, Launch, Shapes, decode_shape, shared_limit

SHAPE = DecodeShape(16, Launch(1, 4, 2, False), Launch(1, 4, 2, True))
FAST = DecodeShape(8, Launch(2, 3, 4, True), Launch(2, 2, 1, False))
A, B = (960, 576, 2), (576, 1536, 2)
TINY = ModelConfig(
    arch="decoder", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=80, max_len=1024, eps=1e-5,
    tied=True, dtype="float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache directory of the test's own."""
    monkeypatch.setenv("OSTINATO_CACHE", str(tmp_path))


# -- the search -------------------------------------------------------------------------------------------------------


def distance(shape: DecodeShape, goal: DecodeShape, part: str) -> float:
    """How many fields of one part differ, by how much."""
    launch, other = getattr(shape, part), getattr(goal, part)
    steps = sum(abs(getattr(launch, f) - getattr(other, f)) for f in ("tiles", "depth", "blocks", "staged"))
    return steps + abs(shape.warps - goal.warps)


@pytest.mark.parametrize("part", ["narrow", "wide"])
def test_descent_finds_the_fastest(part: str) -> None:
    goals = {A: FAST, B: replace(FAST, narrow=Launch(4, 8, 1, False))}

    def time(table: descent.Table) -> float:
        return 10 + sum(distance(table[key], goal, part) for key, goal in goals.items())

    found = descent.descend({A: SHAPE, B: SHAPE}, descent.axes(part), time)
    other = {"narrow": "wide", "wide": "narrow"}[part]
    for key, goal in goals.items():
        assert getattr(found[key], part) == getattr(goal, part)
        assert getattr(found[key], other) == getattr(SHAPE, other)
        assert found[key].warps == (goal.warps if part == "narrow" else SHAPE.warps)


@pytest.mark.parametrize(("ms", "taken"), [(0.998, False), (0.996, True)], ids=["below-the-gain", "beyond-it"])
def test_descent_takes_what_gains(ms: float, taken: bool) -> None:
    found = descent.descend({A: SHAPE}, [lambda key, shape: [FAST]], lambda table: ms if table[A] == FAST else 1.0)
    assert (found[A] == FAST) == taken


def test_descent_times_a_winner_again() -> None:
    times = iter([1.0, 0.5, 1.0, 1.0])  # the start, a lucky candidate, the same again, the start again
    found = descent.descend({A: SHAPE}, [lambda key, shape: [FAST]], lambda table: next(times))
    assert found == {A: SHAPE} and next(times, None) is None


def test_descent_ends_in_time_and_tells_what_it_took() -> None:
    clock, told = iter(range(100)), []
    slower = [replace(SHAPE, narrow=Launch(1, d, 2, False)) for d in (3, 2, 1)]

    def time(table: descent.Table) -> float:
        return float(1 + table[A].narrow.depth)

    found = descent.descend(
        {A: SHAPE}, [lambda key, shape: slower], time, lambda: next(clock) >= 3, lambda *what: told.append(what)
    )
    assert found == {A: slower[1]}
    assert told == [(A, slower[0], 4.0, 5.0), (A, slower[1], 3.0, 4.0)]


def test_axes_keep_the_warps_of_a_wide_launch() -> None:
    for axis in descent.axes("wide"):
        assert {(s.warps, s.narrow) for s in axis(A, SHAPE)} == {(SHAPE.warps, SHAPE.narrow)}
    assert {s.warps for axis in descent.axes("narrow") for s in axis((64, 128, 2), FAST)} == {4, 8}, "8 tiles of k"


@pytest.mark.parametrize(
    ("narrow", "itemsize", "expected"),
    [
        pytest.param(Launch(1, 4, 2, False), 2, True, id="fits"),
        pytest.param(Launch(4, 4, 2, False), 2, False, id="too-many-registers"),
        pytest.param(Launch(2, 8, 1, False), 4, False, id="registers-of-float32"),
        pytest.param(Launch(1, 4, 4, False), 2, False, id="cannot-launch"),
    ],
)
def test_plausible(narrow: Launch, itemsize: int, expected: bool) -> None:
    shape = replace(SHAPE, narrow=narrow)
    assert descent.plausible((960, 576, itemsize), shape, "narrow", shared_limit(90)) == expected


# -- on a device ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ops(compiler: str) -> Iterator[CudaOps]:
    """The backend on an emulated device that has launched nothing yet."""
    yield CudaOps(EmulatedDevice(), "bfloat16")


def product(ops: CudaOps) -> list[str]:
    """The kernels that a product with one row launches; it is right."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((32, 64), np.float32), rng.standard_normal((1, 64), np.float32).astype(ops.dtype)
    packed, out = ops.weight([weight]), ops.device.empty((1, 32), np.dtype(np.float32))
    ops.device.launches.clear()
    ops.linear(ops.device.upload(x), packed, out)
    exact = x.astype(np.float32) @ weight.astype(ops.dtype).astype(np.float32).T
    np.testing.assert_allclose(ops.device.read(out), exact, rtol=1e-4, atol=1e-4)
    return list(ops.device.launches)


def test_tuned_shapes_are_launched(ops: CudaOps) -> None:
    shape = DecodeShape(12, Launch(1, 3, 2, False), Launch(1, 3, 2, True))
    tuned.save(tuned.path(ops.device), ops.device, {(32, 64, 2): shape})
    assert product(ops) == ["decode_store<bf16, float, DIRECT, 12, 1, 1, 3, 2>"]


def test_shapes_may_be_given(ops: CudaOps) -> None:
    ops.shapes = Shapes({(32, 64, 2): SHAPE}, "given")
    assert product(ops) == ["decode_store<bf16, float, DIRECT, 16, 1, 1, 4, 2>"]


def test_doctor_says_which_shapes(ops: CudaOps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.load.choose", lambda backend, dtype, stored: (ops, ""))
    assert doctor.try_backend("cuda").endswith("launch shapes built in)")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("spilled", [0, 8], ids=["in-registers", "spilled"])
def test_a_whole_run(
    ops: CudaOps, spilled: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each step costs one, and less with two tiles for the head: that is found, kept and printed unless it spills."""
    head = (80, 64, 2)
    monkeypatch.setattr(EmulatedDevice, "local_bytes", lambda self, kernel: spilled * ("4, 2, 1, 2" in kernel.name))
    monkeypatch.setattr(descent, "TILES", (1, 2))
    monkeypatch.setattr(descent, "DEPTHS", (2,))
    monkeypatch.setattr(descent, "WARPS", (4,))
    monkeypatch.setattr(descent, "BLOCKS", (2,))
    monkeypatch.setattr(tune.Steps, "ms", lambda self, table, batches: 1 / table[head].narrow.tiles)
    asked = Settings("tiny", TINY, (1,), ("cuda",), ("step",), prompt_len=3, max_tokens=2)
    tuned.save(tuned.path(ops.device), ops.device, {A: FAST})
    found = tune.tune(asked, 1e6, lambda backend, dtype, stored: (ops, ""))
    assert found.matrices == {"qkv": (128, 64, 2), "o": (64, 64, 2), "gate_up": (192, 64, 2), "down": (64, 96, 2),
                              "head": head}  # fmt: skip
    best = replace(found.before[head], narrow=Launch(1 if spilled else 2, 2, 2, False))
    ms = 1.0 if spilled else 0.5
    assert found.after == {**found.before, head: best} and found.ms == {1: (1.0, ms)}
    assert tuned.load(found.file, ops.device) == {A: FAST, **found.after}, "what other models need is kept"
    tune.print_choice(found)
    captured = capsys.readouterr()
    line = f"    (80, 64, 2): DecodeShape(4, Launch({best.narrow.tiles}, 2, 2, False), Launch(1, 2, 2, True)),"
    assert line in captured.out.splitlines() and str(found.file) in captured.err
    lines = [text for text in captured.out.splitlines() if text.startswith("    (")]
    assert lines == sorted(lines, key=lambda text: [int(n) for n in text.split(")")[0].strip(" (").split(",")])
    written = json.loads(json.dumps(tune.record(found)))
    assert written["steps"] == [{"batch": 1, "before_ms": 1.0, "after_ms": ms}] and len(written["shapes"]) == 5


def test_a_step_is_timed(ops: CudaOps) -> None:
    """The step as it is captured, with the table that is asked for."""
    from ostinato.bench.decode import open_model

    asked = Settings("tiny", TINY, (1,), ("cuda",), ("step",), prompt_len=3, max_tokens=64)
    _, c, w = open_model(asked, "cuda", lambda backend, dtype, stored: (ops, ""))
    steps = tune.Steps(ops, c, w, asked)
    ops.device.launches.clear()
    table = {key: decode_shape(*key) for key in steps.keys.values()}
    table[80, 64, 2] = SHAPE
    assert steps.ms(table, [1]) > 0
    assert "decode_store<bf16, float, NORM, 16, 1, 1, 4, 2>" in ops.device.launches


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param([], "expected MODEL or --shape, found neither", id="nothing"),
        pytest.param(["x", "--shape", "llama-3.2-1b"], "found both", id="both"),
        pytest.param(["--shape", "gpt"], "shape: expected", id="unknown"),
        pytest.param(["--shape", "llama-3.2-1b", "--batch", "32"], "batch", id="batch"),
        pytest.param(["--shape", "llama-3.2-1b", "--seconds", "nan"], "seconds: expected", id="seconds"),
        pytest.param(["--shape", "llama-3.2-1b", "--json", "no/such/file"], "json: expected", id="json"),
    ],
)
def test_command_refuses(capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert cli.main(["tune", *args]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and not captured.out

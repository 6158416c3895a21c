"""`ostinato tune`: the search, its output, whole runs, and that the tuned shapes are launched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from configs import flat
from emulator import EmulatedDevice

from ostinato.cli import main as cli
from ostinato.ops import tuned
from ostinato.ops.base import PassKind
from ostinato.ops.cuda import CudaOps
from ostinato.ops.shapes import DECODE, DecodeShape, Launch, Shapes, decode_shape
from ostinato.tools import descent, doctor, tune
from ostinato.tools.bench.decode import Settings, open_model

SHAPE = DecodeShape(16, Launch(1, 4, 2, 2), Launch(1, 12, 1, 1, ring=True), Launch(1, 4, 2, 2, staged=True))
FAST = DecodeShape(8, Launch(2, 3, 4, 2, 4), Launch(2, 3, 4, 1, 8, staged=True), Launch(2, 10, 1, 1, 2, ring=True))
TWO_TILES = {"single": Launch(2, 2, 2, 2), "narrow": Launch(2, 2, 2, 2)}
A = 960, 576, 2
TINY = flat(
    layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=80, max_len=1024, eps=1e-5,
    tied=True, dtype="float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache directory for this test."""
    monkeypatch.setenv("OSTINATO_CACHE", str(tmp_path))


# -- what is searched and printed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        pytest.param((1, 4, 16), [("single", (1,), True), ("narrow", (4,), False), ("wide", (16,), False)], id="three"),
        pytest.param((9, 8, 2), [("narrow", (8, 2), True), ("wide", (9,), False)], id="two"),
        pytest.param((16,), [("wide", (16,), True)], id="one"),
    ],
)
def test_parts(batches: tuple[int, ...], expected: list[tuple]) -> None:
    assert tune.parts(batches) == [tune.Part(*values) for values in expected]


def test_parts_are_the_launches_of_a_shape() -> None:
    for name, numbers in tune.PARTS.items():
        assert [FAST.launch(rows) for rows in numbers] == [getattr(FAST, name)] * len(numbers)
    assert [rows for numbers in tune.PARTS.values() for rows in numbers] == list(range(1, 17))


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        pytest.param(
            SHAPE,
            "DecodeShape(16, Launch(1, 4, 2, 2), Launch(1, 12, 1, 1, ring=True), Launch(1, 4, 2, 2, staged=True))",
            id="one-block",
        ),
        pytest.param(
            replace(FAST, wide=replace(FAST.wide, staged=True)),
            "DecodeShape(8, Launch(2, 3, 4, 2, 4), Launch(2, 3, 4, 1, 8, staged=True), "
            "Launch(2, 10, 1, 1, 2, staged=True, ring=True))",
            id="clusters",
        ),
        *(pytest.param(shape, None, id=f"{n}x{k}") for (n, k, _), shape in DECODE.items()),
    ],
)
def test_code_is_the_shape(shape: DecodeShape, code: str | None) -> None:
    found = tune._code(shape)
    assert eval(found, {"DecodeShape": DecodeShape, "Launch": Launch}) == shape and code in (found, None)


# -- on a device ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ops(compiler: str) -> Iterator[CudaOps]:
    """The cuda backend on a new emulated device."""
    yield CudaOps(EmulatedDevice(), "bfloat16")


def asked(batches: tuple[int, ...], max_tokens: int = 2) -> Settings:
    """Settings to tune TINY."""
    return Settings("tiny", TINY, batches, ("cuda",), ("step",), prompt_len=3, max_tokens=max_tokens)


def steps_of(ops: CudaOps, settings: Settings) -> tune.Steps:
    """Steps of TINY to time."""
    _, c, w = open_model(settings, "cuda", lambda backend, dtype, stored: (ops, ""))
    return tune.Steps(ops, c, w, settings)


def product(ops: CudaOps) -> list[str]:
    """Check a GEMM with one row, and return the kernels that it launches."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((32, 64), np.float32), rng.standard_normal((1, 64), np.float32).astype(ops.dtype)
    packed, out = ops.weight([weight]), ops.device.empty((1, 32), np.dtype(np.float32))
    ops.device.launches.clear()
    ops.linear(ops.device.upload(x), packed, out, PassKind.DECODE)
    exact = x.astype(np.float32) @ weight.astype(ops.dtype).astype(np.float32).T
    np.testing.assert_allclose(ops.device.read(out), exact, rtol=1e-4, atol=1e-4)
    return list(ops.device.launches)


def test_tuned_shapes_are_launched(ops: CudaOps) -> None:
    shape = DecodeShape(12, Launch(1, 3, 2, 2), Launch(1, 4, 2, 2), Launch(1, 3, 2, 2, staged=True))
    tuned.save(tuned.path(ops.device), ops.device, {(32, 64, 2): shape})
    assert product(ops) == ["decode_store<bf16, float, DIRECT, Shape<12, 1, 1, 1, 3, 2, REGISTERS>>"]


def test_shapes_may_be_given(ops: CudaOps) -> None:
    single = Launch(1, 8, 1, 1, 2, staged=True, ring=True)
    ops.shapes = Shapes({(32, 64, 2): replace(SHAPE, single=single)}, "given")
    assert product(ops) == ["decode_store<bf16, float, STAGED, Shape<16, 2, 1, 1, 8, 1, RING>>"]


def test_doctor_says_which_shapes(ops: CudaOps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.run.load.choose", lambda backend, dtype, stored: (ops, ""))
    assert doctor.try_backend("cuda").endswith("launch shapes built in)")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("spilled", [0, 8], ids=["in-registers", "spilled"])
def test_a_whole_run(
    ops: CudaOps, spilled: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps cost 1, and less with two tiles for the head: the search finds, keeps and prints that, unless it spills."""
    head, two_tiles = (80, 64, 2), tuple(f"Shape<4, 1, 2, {rows}, 2, 2, REGISTERS>>" for rows in (1, 8))
    monkeypatch.setattr(EmulatedDevice, "local_bytes", lambda self, kernel: spilled * kernel.name.endswith(two_tiles))
    few = {"TILES": (1, 2), "DEPTHS": (2,), "WARPS": (4,), "BLOCKS": (2,), "SPLITS": (1,), "RING": (), "REGISTERS": ()}
    for name, values in few.items():
        monkeypatch.setattr(descent, name, values)
    monkeypatch.setattr(
        tune.Steps, "ms", lambda self, table, batches: sum(1 / table[head].launch(b).tiles for b in batches)
    )
    tuned.save(tuned.path(ops.device), ops.device, {A: FAST})
    found = tune.tune(asked((1, 2)), 1e6, lambda backend, dtype, stored: (ops, ""))
    assert found.matrices == {"qkv": (128, 64, 2), "o": (64, 64, 2), "gate_up": (192, 64, 2), "down": (64, 96, 2),
                              "head": head}  # fmt: skip
    ms, best = (1.0, found.before[head]) if spilled else (0.5, replace(found.before[head], **TWO_TILES))
    assert found.after == {**found.before, head: best} and found.ms == {1: (1.0, ms), 2: (1.0, ms)}
    assert tuned.load(found.file, ops.device) == {A: FAST, **found.after}, "what other models need is kept"
    tune.print_choice(found)
    captured = capsys.readouterr()
    launch = f"Launch({best.single.tiles}, 2, 2, 2)"
    line = f"    (80, 64, 2): DecodeShape(4, {launch}, {launch}, Launch(1, 2, 2, 2, staged=True)),"
    assert line in captured.out.splitlines() and str(found.file) in captured.err
    lines = [text for text in captured.out.splitlines() if text.startswith("    (")]
    assert lines == sorted(lines, key=lambda text: [int(n) for n in text.split(")")[0].strip(" (").split(",")])
    for part in ("single: batch 1", "narrow: batch 2"):
        assert f"tune: {part}, 500000 s at most" in captured.err
    written = json.loads(json.dumps(tune.record(found)))
    assert written["steps"] == [{"batch": b, "before_ms": 1.0, "after_ms": ms} for b in (1, 2)]
    assert len(written["shapes"]) == 5


def test_a_step_is_timed(ops: CudaOps) -> None:
    """The timed step is captured with the given table."""
    steps = steps_of(ops, asked((1,), max_tokens=64))
    ops.device.launches.clear()
    table = {key: decode_shape(*key) for key in steps.keys.values()}
    table[80, 64, 2] = SHAPE
    assert steps.ms(table, [1]) > 0
    assert "decode_store<bf16, float, DIRECT, Shape<16, 1, 1, 1, 4, 2, REGISTERS>>" in ops.device.launches


@pytest.mark.parametrize(("arch", "clusters"), [(89, False), (90, True)])
def test_clusters_where_there_are_some_and_warps_at_first(
    ops: CudaOps, arch: int, clusters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[tuple] = []
    steps = steps_of(ops, asked((1, 2)))
    monkeypatch.setattr(ops.device, "arch", arch)
    monkeypatch.setattr(tune, "axes", lambda part, **how: searched.append((part, how)) or ())
    monkeypatch.setattr(tune.Steps, "ms", lambda self, table, batches: 1.0)
    for part in tune.parts((1, 2)):
        assert steps.search({A: SHAPE}, part, 1.0) == {A: SHAPE}
    assert searched == [
        ("single", {"clusters": clusters, "warps": True}),
        ("narrow", {"clusters": clusters, "warps": False}),
    ]


def test_only_what_can_be_launched_is_tried(ops: CudaOps) -> None:
    """With four warps, four tiles and clusters of eight blocks are not tried."""
    steps, key = steps_of(ops, asked((1, 2))), (80, 64, 2)
    shape = DecodeShape(4, Launch(1, 2, 2, 2), Launch(1, 3, 2, 2), Launch(1, 2, 2, 2))

    def axis(key: descent.Key, shape: DecodeShape) -> list[DecodeShape]:
        return [replace(shape, narrow=Launch(t, 2, 2, 2, s)) for t in (1, 2, 4) for s in (1, 2, 4, 8)]

    others = steps._others(key, shape, axis, tune.Part("narrow", (2,), True))
    assert {(s.narrow.tiles, s.narrow.split) for s in others.values()} == {(t, s) for t in (1, 2) for s in (1, 2, 4)}


def test_plans_differ_by_what_is_launched(ops: CudaOps) -> None:
    """Plans differ by cluster size and blocks per SM, but not by fields without effect on so few rows of weights."""
    steps, key = steps_of(ops, asked((1,))), (80, 64, 2)

    def plan(**how: Any) -> tuple:
        shape = decode_shape(*key)
        return steps._plan(key, replace(shape, single=replace(Launch(1, 2, 2, 1), **how)), (1,))

    every = [plan(), plan(grid=2), plan(split=2), plan(split=2, grid=2), plan(ring=True), plan(blocks=1)]
    assert len(set(every)) == len(every) and plan(grid=2) == plan(grid=4)
    assert [cluster for *_, cluster in plan(split=2)] == [2]


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

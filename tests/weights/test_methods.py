"""Quantised safetensors: what a reader hands out is what the packer stored, and a whole model computes with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from packers import KINDS, write_directory, write_model

from ostinato.models.families import model_config
from ostinato.ops.numpy import NumpyOps
from ostinato.run.load import weights
from ostinato.weights import quantised
from ostinato.weights.checkpoint import open_checkpoint
from ostinato.weights.quantised import Quantised

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHAPES = {"even": (32, 64), "one word": (8, 32), "ragged blocks": (40, 80)}
NO_PLANES = {
    "gptq act-order",
    "gptq 8 bits act-order",
    "ct w4a16 actorder",
    "nf4",
    "nf4 double",
    "nf4 across rows",
    "fp4",
}
each = pytest.mark.parametrize("kind", KINDS)


def opened(folder: Path, kind: str, shape: tuple[int, int] = (32, 64)) -> tuple[Quantised, np.ndarray]:
    """The matrix "x.weight" of a checkpoint with nothing else, and the numbers that its packer stored."""
    w = np.random.default_rng(0).standard_normal(shape).astype("f4")
    w[3, 16:32] *= 5
    entries, expected = KINDS[kind].pack(w)
    write_directory(folder, KINDS[kind], {}, {f"x.{suffix}": a for suffix, a in entries.items()})
    with open_checkpoint(folder) as ck:
        assert (ck.names(), ck.config, ck.shape("x.weight")) == (["x.weight"], {}, shape)
        matrix = ck.quantised("x.weight")
        assert matrix is not None and ck.stored("x.weight") == matrix.kind and ck.dtype("x.weight") == np.float32
        assert ck.tensor("x.weight").tobytes() == matrix.numbers().tobytes()
        stored = sum(a.nbytes for s, a in entries.items() if s not in ("input_scale", "activation_scale"))
        assert matrix.nbytes == sum(span.nbytes for span in ck.spans("x.weight")) == stored
    assert matrix.kind.startswith(KINDS[kind].kind)
    return matrix, expected


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@each
def test_numbers_are_those_of_the_packer(tmp_path: Path, kind: str, shape: tuple[int, int]) -> None:
    matrix, expected = opened(tmp_path, kind, shape)
    found = matrix.numbers()
    assert found.dtype == np.float32 and found.shape == expected.shape == shape
    np.testing.assert_array_equal(found, expected)


@each
def test_planes_are_the_numbers(tmp_path: Path, kind: str) -> None:
    """By the formula written out, in float32; and their codes are what their name says."""
    matrix, expected = opened(tmp_path, kind, (40, 80))
    p = matrix.planes()
    assert (p is None) == (kind in NO_PLANES)
    if p is None:
        return
    most = {"u4": 15, "u5": 31, "u6": 63}.get(p.code)
    assert p.codes.dtype == (np.int8 if p.code == "s8" else np.uint8) and (most is None or p.codes.max() <= most)
    codes = p.codes.view("u1")[..., None] == np.arange(256) if p.code == "e4m3" else None
    values = p.codes.astype("f4") if codes is None else quantised.E4M3[codes.argmax(-1)]
    n, g = np.arange(40)[:, None], np.arange(80) // p.group
    zero = p.zero if p.zeros is None else p.zeros.astype("f4")[n, g]
    w = p.scales.astype("f4")[n // p.rows, g] * (values - zero)
    np.testing.assert_array_equal(w, expected)
    empty = matrix.planes(0, 0)
    assert empty is not None and (empty.code, empty.group, empty.scales.dtype) == (p.code, p.group, p.scales.dtype)
    assert (empty.zero, empty.zeros is None) == (p.zero, p.zeros is None)


SYMMETRIC = {"gptq": 8, "gptq v2 sym": 8, "gptq per row": 8, "ct w4a16": 8, "gptq 8 bits": 0, "ct w8a16": 0}


@pytest.mark.parametrize("kind", SYMMETRIC)
def test_a_symmetric_matrix_has_one_zero(tmp_path: Path, kind: str) -> None:
    p = opened(tmp_path, kind)[0].planes(0, 0)
    assert p is not None and p.zeros is None and p.zero == SYMMETRIC[kind]


@each
def test_some_rows_and_rows_in_another_order_are_those_rows(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, expected = opened(tmp_path, kind, (40, 80))
    monkeypatch.setattr(quantised, "CHUNK", 3 * 80)
    np.testing.assert_array_equal(matrix.numbers(), expected)
    for first, last in ((0, 16), (16, 40), (32, 33), (7, 12)):
        np.testing.assert_array_equal(matrix.numbers(first, last), expected[first:last])
    order = np.random.default_rng(1).permutation(40)
    taken = matrix.take(order)
    np.testing.assert_array_equal(taken.numbers(), expected[order])
    again = taken.take(np.array([5, 5, 39]))
    assert again.shape == (3, 80) and again.nbytes <= matrix.nbytes * 3 // 40 + 1
    np.testing.assert_array_equal(again.numbers(), expected[order][[5, 5, 39]])
    np.testing.assert_array_equal(again.numbers(1, 3), expected[order][[5, 39]])
    planes = again.planes(1, 2)
    assert planes is None or np.array_equal(planes.numbers(), expected[order][[5]])


def flat(path: Path) -> dict[str, np.ndarray]:
    """Every array that NumPy computes with."""
    with open_checkpoint(path) as ck:
        w = weights(NumpyOps(), ck, model_config(ck.config, {}, ck.source))
    found = {name: getattr(w, name) for name in ("embed", "norm", "head")}
    for i, layer in enumerate(w.layers):
        found |= {f"{i}.{name}": value for name, value in vars(layer).items() if value is not None}
    return found


@pytest.mark.parametrize("model", ["llama-sharded", "phi3"])
@each
def test_a_model_loads_as_its_numbers_do(tmp_path: Path, kind: str, model: str) -> None:
    """q, k, v and gate, up in one matrix or in several."""
    write_model(tmp_path / "stored", KINDS[kind], FIXTURES / model)
    with open_checkpoint(tmp_path / "stored") as ck:
        arrays = {name: np.array(ck.tensor(name)) for name in ck.names()}
        assert sum(ck.quantised(name) is not None for name in ck.names()) == (14 if model == "llama-sharded" else 8)
        write_directory(tmp_path / "plain", None, ck.config, arrays)
    found, expected = flat(tmp_path / "stored"), flat(tmp_path / "plain")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)

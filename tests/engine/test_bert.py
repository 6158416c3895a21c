"""BERT on NumPy and on the kernels: hidden states against transformers, for ragged batches and single texts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from emulator import EmulatedDevice
from products import cublas

from ostinato.config import ModelConfig
from ostinato.models import MODELS
from ostinato.models.families import model_config
from ostinato.models.weights import Weights
from ostinato.ops.base import Cache, Ops, PassKind, Step
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import Device
from ostinato.ops.numpy import NumpyOps
from ostinato.run.load import weights
from ostinato.sizes import PAGE
from ostinato.weights.checkpoint import open_checkpoint

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CHECKPOINTS = ["bert", "bert-masked"]
ERRORS = {"float32": 2e-5, "float16": 0.01, "bfloat16": 0.06}  # hidden states have a standard deviation of 1
PLAIN, TIMES = [0, 1, 2, 3], [2, 0, 3, 3, 1, 2, 0]  # indices of the four prompts


def load(name: str, ops: Ops) -> tuple[ModelConfig, Weights, dict[str, np.ndarray]]:
    """(configuration, weights, expected results of transformers)."""
    with open_checkpoint(FIXTURES / name) as ck:
        c = model_config(ck.config, ck.generation_config, ck.source)
        return c, weights(ops, ck, c), dict(np.load(FIXTURES / name / "expected.npz"))


def encode(ops: Ops, c: ModelConfig, w: Weights, texts: list[np.ndarray]) -> list[np.ndarray]:
    """Hidden states [n, D] of each text of n tokens; the rows of the texts are adjacent."""
    pages = [-(-len(ids) // PAGE) for ids in texts]
    table, taken = np.zeros((len(texts) + 1, max(pages)), np.int32), 1
    for i, n in enumerate(pages):
        table[i, :n], taken = np.arange(taken, taken + n), taken + n
    rows = [(t, i, p, len(ids)) for i, ids in enumerate(texts) for p, t in enumerate(ids)]
    fill = -len(rows) % PAGE
    state = np.array([*rows, *[(0, len(texts), 0, 1)] * fill], np.int32).T
    up = ops.device.upload
    s = Step(*(up(np.ascontiguousarray(line)) for line in state), table=up(table), last=up(np.zeros(0, np.int32)),
             kind=PassKind.ENCODER)  # fmt: skip
    b = ops.buffers(c, s.kind, len(rows) + fill, 0)
    nothing = np.full((taken, c.sizes.kv_heads, PAGE, c.sizes.head_dim), np.nan, ops.dtype)
    for part in MODELS[c.arch].parts(ops, c, w, b, s, [Cache(up(nothing), up(nothing))]):
        part()
    x, bounds = ops.device.read(b.x), np.cumsum([0, *map(len, texts)])
    assert np.isfinite(x).all()  # padding rows too
    return [x[a:z] for a, z in pairwise(bounds)]


def check(ops: Ops, name: str, order: list[int], error: float) -> None:
    c, w, known = load(name, ops)
    for i, found in zip(order, encode(ops, c, w, [known[f"prompt_{i}"] for i in order]), strict=True):
        np.testing.assert_allclose(found, known[f"hidden_{i}"], atol=error, rtol=0)


@pytest.mark.parametrize("order", [PLAIN, TIMES, [0], [3]], ids=str)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_hidden_states_on_numpy(name: str, order: list[int]) -> None:
    check(NumpyOps(), name, order, 1e-5)


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("ops", [CudaOps, cublas])
def test_hidden_states_by_kernels(device: Device, ops: Callable[..., Ops], name: str, dtype: str) -> None:
    check(ops(device, dtype), name, TIMES, ERRORS[dtype])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_has_the_same_bits_alone_and_in_any_batch(device: Device, dtype: str) -> None:
    ops = CudaOps(device, dtype)
    c, w, known = load("bert", ops)
    texts = [known[f"prompt_{i}"] for i in range(4)]
    alone = [encode(ops, c, w, [ids])[0] for ids in texts]
    for i, found in zip(TIMES, encode(ops, c, w, [texts[i] for i in TIMES]), strict=True):
        np.testing.assert_array_equal(found, alone[i])


def test_every_schedule_gives_the_same_bits(shuffled: EmulatedDevice) -> None:
    check(CudaOps(shuffled, "float16"), "bert-masked", [2, 1, 0], ERRORS["float16"])

"""Batch invariance: a sequence's logits have the same bits alone and in any batch, in every graph mode.

Two planted mistakes, GEMMs whose order of sums depends on the number of rows, show that the tests can fail.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from configs import changed
from small import LLAMA, events, sequence

from ostinato.config import EngineConfig, ModelConfig
from ostinato.errors import DeviceError
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import Device
from ostinato.ops.gpu import CupyDevice
from ostinato.ops.shapes import DecodeShape, Shapes
from ostinato.run.load import weights
from ostinato.run.runner import Runner
from ostinato.tools.bench.synthetic import checkpoint, shape

NEEDLE, TOKENS = list(range(50, 120)), 6
SMALL = changed(LLAMA, layers=1, vocab=256, hidden=192, ffn=64, heads=4, kv_heads=2, head_dim=16, max_len=512)
MORE_WARPS = {4: 8, 8: 12, 12: 16}


class OtherOrder(Shapes):
    """Launch shapes with a different number of warps, that is, of K parts."""

    def decode(self, n: int, k: int, form: int | str) -> DecodeShape:
        shape = super().decode(n, k, form)
        return replace(shape, warps=MORE_WARPS[shape.warps])


class Fickle(CudaOps):
    """A planted mistake: the LM head sums in a different order if there is more than one row."""

    def norm_head(self, c, w, b, s):
        usual = self.shapes
        if len(s.last) > 1:
            self.shapes = OtherOrder(usual.tuned, usual.source, usual.arch)
        super().norm_head(c, w, b, s)
        self.shapes = usual


def needle_logits(on: Runner, prompts: list[list[int]]) -> np.ndarray:
    """Logits [TOKENS, V] of the sequence with prompt NEEDLE, generated together with the others."""
    batch = [sequence(p, TOKENS, logprobs=0) for p in prompts]
    wanted = batch[prompts.index(NEEDLE)]
    return np.stack([np.array(e.logits) for e in events(on, batch) if e.seq is wanted])


def batches_that_differ(ops: CudaOps, c: ModelConfig, graph: str, batches: int) -> int:
    """Number of random batches of up to 16 in which the needle's logits differ from those alone."""
    w = weights(ops, checkpoint(c, ops.device, ops.dtype), c)
    on = Runner(ops, c, w, EngineConfig(backend=ops.name, graph=graph, max_batch=16, max_len=c.max_len))
    alone, rng, differ = needle_logits(on, [NEEDLE]), np.random.default_rng(0), 0
    for _ in range(batches):
        others = [rng.integers(0, c.vocab, rng.integers(1, 200)).tolist() for _ in range(rng.integers(1, 16))]
        prompts = [*others, NEEDLE]
        rng.shuffle(prompts)
        differ += not np.array_equal(needle_logits(on, prompts), alone)
    return differ


BACKENDS = [pytest.param(CudaOps, True, id="cuda"), pytest.param(Fickle, False, id="planted")]


@pytest.mark.parametrize(("backend", "invariant"), BACKENDS)
def test_a_needle_in_a_few_batches(device: Device, backend: type[CudaOps], invariant: bool) -> None:
    differ = batches_that_differ(backend(device, "bfloat16"), SMALL, "step", 2)
    assert (differ == 0) == invariant, f"{differ} of 2 batches differ"


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["step", "off"])
@pytest.mark.parametrize(("backend", "invariant"), BACKENDS)
def test_a_needle_in_fifty_batches_of_a_real_shape(backend: type[CudaOps], invariant: bool, graph: str) -> None:
    try:
        device = CupyDevice()
    except DeviceError as e:
        pytest.skip(str(e))
    c = changed(shape("smollm2-135m"), layers=6, max_len=512)
    differ = batches_that_differ(backend(device, "bfloat16"), c, graph, 50)
    assert (differ == 0) == invariant, f"{differ} of 50 batches differ"

"""A sequence's logits have the same bits alone and in any batch: on a GPU, with the shapes of a real model.

The inverse too: with cuBLAS they do not, which shows that the test would notice.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small import sequence

from ostinato.bench.synthetic import checkpoint, shape
from ostinato.config import EngineConfig
from ostinato.errors import DeviceError
from ostinato.load import weights
from ostinato.loop import Loop
from ostinato.ops.cublas import CublasOps
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import CupyDevice
from ostinato.runner import Runner

NEEDLE, TOKENS, BATCHES = list(range(50, 120)), 8, 50


def needle_logits(on: Runner, prompts: list[list[int]]) -> np.ndarray:
    """[TOKENS, V] of the sequence whose prompt is NEEDLE, generated together with the others."""
    batch = [sequence(p, TOKENS, logprobs=0) for p in prompts]
    wanted = batch[prompts.index(NEEDLE)]
    return np.stack([np.array(e.logits) for e in Loop(on).run(batch) if e.seq is wanted])


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["step", "off"])
@pytest.mark.parametrize(("backend", "invariant"), [(CudaOps, True), (CublasOps, False)], ids=["cuda", "cublas"])
def test_a_needle_in_fifty_batches(backend, invariant: bool, graph: str) -> None:
    try:
        device = CupyDevice()
    except DeviceError as e:
        pytest.skip(str(e))
    c, ops = replace(shape("smollm2-135m"), layers=6, max_len=512), backend(device, "bfloat16")
    w = weights(ops, checkpoint(c, device, ops.dtype), c)
    on = Runner(ops, c, w, EngineConfig(backend=ops.name, graph=graph, max_batch=16, max_len=512))
    alone, rng, differ = needle_logits(on, [NEEDLE]), np.random.default_rng(0), 0
    for _ in range(BATCHES):
        others = [rng.integers(0, c.vocab, rng.integers(1, 300)).tolist() for _ in range(rng.integers(1, 16))]
        prompts = [*others, NEEDLE]
        rng.shuffle(prompts)
        differ += not np.array_equal(needle_logits(on, prompts), alone)
    assert (differ == 0) == invariant, f"{differ} of {BATCHES} batches differ"

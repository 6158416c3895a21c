"""Which step of a model is looked at: of a decoder one decode step, of an encoder one pass. Called by command.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from ..bench.decode import Choose, Settings, open_model
from ..bench.session import Session
from ..cache import pages_of
from ..config import EngineConfig, ModelConfig
from ..encoder import Encoder
from ..graph import Program
from ..ops.base import PAGE, Ops
from .step import Step
from .timing import look

Begin = Callable[[], None]


def open_step(s: Settings, backend: str, choose: Choose) -> tuple[Step, dict[str, str]]:
    """The step of `s` opened up, and what is known of the machine: of a decoder a decode step in the middle of its
    steps, of an encoder a pass over texts of prompt_len tokens."""
    ops, c, w = open_model(s, backend, choose)
    program, begin = (_decode_step if c.causal else _pass)(s, ops, c, w)
    print(f"inspect: {ops.name} on {ops.device.name}: timing every node", file=sys.stderr, flush=True)
    step = look(ops.device, program, w, begin)
    (batch,), (graph,) = s.batches, s.graphs
    step.about = {
        "model": s.model, "backend": ops.name, "device": ops.device.name, "graph": graph, "batch": batch,
        "dtype": ops.dtype.name, "context": s.prompt_len + s.max_tokens // 2 * c.causal,
        "captured": ops.device.stream is not None,
    }  # fmt: skip
    return step, ops.device.about()


def _decode_step(s: Settings, ops: Ops, c: ModelConfig, w: SimpleNamespace) -> tuple[Program, Begin]:
    """A decode step, and what makes the next one that in the middle of the session."""
    (batch,), (graph,) = s.batches, s.graphs
    session = Session(ops, c, w, graph, s.load(batch))
    session.prefill()
    session.restart()
    middle = s.max_tokens // 2
    for _ in range(middle):  # their keys and values are what the step looks at
        session.runner.decode()
    return session.runner.current.program, lambda: session.restart(middle)


def _pass(s: Settings, ops: Ops, c: ModelConfig, w: SimpleNamespace) -> tuple[Program, Begin]:
    """A pass over a batch of random texts, and what sets them."""
    (batch,), (graph,) = s.batches, s.graphs
    texts = np.random.default_rng(s.seed).integers(0, c.vocab, (batch, s.prompt_len)).tolist()
    rows = batch * pages_of(s.prompt_len) * PAGE
    encoder = Encoder(ops, c, w, EngineConfig(ops.name, graph, prefill_rows=rows, max_len=s.prompt_len))
    encoder.start(texts)
    return encoder.current.program, lambda: encoder.start(texts)

"""A batch of sequences with random prompts on its own runner and engine, and the clocks that measure its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ...config import EngineConfig, ModelConfig, SamplingParams
from ...models.weights import Weights
from ...ops.base import Ops
from ...run.cache import pages_of
from ...run.engine import Engine
from ...run.runner import Row, Runner
from ...run.sequence import Event, Request
from ...sizes import PAGE


@dataclass(frozen=True)
class Load:
    """The work to decode: `batch` sequences of equal length."""

    batch: int
    prompt_len: int  # tokens before the first step
    max_tokens: int  # steps
    seed: int = 0  # of the prompts, which are random tokens

    @property
    def context(self) -> float:
        """Mean number of tokens that a sequence attends to."""
        return self.prompt_len + (self.max_tokens + 1) / 2


class Session:
    """A Runner for exactly this load, with its graphs captured. RequestError if the sequences are too long.

    prompts: `batch` prompts of at most prompt_len tokens; None = random ones of exactly that length."""

    def __init__(
        self,
        ops: Ops,
        c: ModelConfig,
        w: Weights,
        graph: str,
        load: Load,
        prompts: list[list[int]] | None = None,
    ) -> None:
        self.load, self.device = load, ops.device
        length = load.prompt_len + load.max_tokens + 1
        cache = load.batch * pages_of(length) * PAGE
        e = EngineConfig(ops.name, graph, max_batch=load.batch, max_len=length, cache_tokens=cache, seed=load.seed,
                         prefix_cache=False)  # fmt: skip
        self.runner = Runner(ops, c, w, e)
        self._engine = Engine(self.runner)
        rng = np.random.default_rng(load.seed)
        self._prompts = prompts or rng.integers(0, c.vocab, (load.batch, load.prompt_len)).tolist()
        self.rows: list[Row] = []  # of the first step; after `prefill`

    def serve(self) -> tuple[float, float]:
        """Generate as LLM does: (ms until all sequences have a first token, ms per later step), by the host clock."""
        began = first = time.perf_counter()
        tokens = 0
        for events in self.run():
            tokens += len(events)
            if first == began and tokens >= self.load.batch:
                first = time.perf_counter()
        last = time.perf_counter()
        return (first - began) * 1e3, (last - first) * 1e3 / self.load.max_tokens

    def run(self, prompts: list[list[int]] | None = None) -> Iterator[list[Event]]:
        """Complete this load's prompts, or other prompts that are not longer; yield the events of each step."""
        handles = [self._engine.add(request) for request in self.requests(prompts)]
        while not all(handle.ended for handle in handles):
            yield self._engine.step()

    def prefill(self) -> None:
        """Prefill the prompts and keep their pages. `serve` and `run` cannot be called afterwards."""
        handles = [self._engine.add(request) for request in self.requests()]
        sequences = [seq for handle in handles for seq in handle.sequences]
        while not all(seq.tokens for seq in sequences):
            self._engine.step()
        for seq in sequences:
            self.runner.table.grow(seq.slot, seq.request.longest)  # for steps that are launched without the engine
        self.rows = [Row(seq.slot, seq.tokens[-1], len(seq.prompt)) for seq in sequences]

    def restart(self, ahead: int = 0) -> None:
        """Set the next step: step number `ahead` after the prompts, counted from 0. Call after `prefill`."""
        self.runner.set_rows([replace(row, position=row.position + ahead) for row in self.rows])

    def step_times(self) -> list[float]:
        """ms of every step, by events between them. All steps are launched without waiting."""
        self.restart()
        self.device.synchronize()
        events = [self.device.record_event()]
        for _ in range(self.load.max_tokens):
            events.append(self.runner.decode().done)
        return [self.device.elapsed(a, b) for a, b in pairwise(events)]

    def requests(self, prompts: list[list[int]] | None = None) -> list[Request]:
        """Greedy requests of fixed length for this load's prompts or other prompts, without detokenizing."""
        params, tokens = SamplingParams(ignore_eos=True), self.load.max_tokens + 1  # prefill gives one token
        return [Request(prompt, params, self.load.seed, tokens) for prompt in prompts or self._prompts]

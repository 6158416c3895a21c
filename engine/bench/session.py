"""A batch of sequences with random prompts on a runner of their own, and the clocks to measure its steps with."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..cache import pages_of
from ..config import EngineConfig, ModelConfig, SamplingParams
from ..loop import Loop
from ..models.weights import Weights
from ..ops.base import PAGE, Ops
from ..runner import Row, Runner
from ..scheduler import Scheduler, Sequence


@dataclass(frozen=True)
class Load:
    """What is decoded: `batch` sequences, all in step."""

    batch: int
    prompt_len: int  # tokens before the first step
    max_tokens: int  # steps
    seed: int = 0  # of the prompts, which are random tokens

    @property
    def context(self) -> float:
        """Tokens that a sequence attends to in the middle of its steps."""
        return self.prompt_len + (self.max_tokens + 1) / 2


class Session:
    """A Runner for exactly this load, graphs captured. RequestError if the model cannot take sequences so long.

    prompts: `batch` of at most prompt_len tokens; None = random ones of exactly that length."""

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
        e = EngineConfig(ops.name, graph, max_batch=load.batch, max_len=length, cache_tokens=cache, seed=load.seed)
        self.runner = Runner(ops, c, w, e)
        rng = np.random.default_rng(load.seed)
        self._prompts = prompts or rng.integers(0, c.vocab, (load.batch, load.prompt_len)).tolist()
        self.rows: list[Row] = []  # of the first step; after `prefill`

    def serve(self) -> tuple[float, float]:
        """(ms to the first token of all sequences, ms a step after it) by the clock on the wall, as LLM decodes."""
        began = first = time.perf_counter()
        for i, _ in enumerate(Loop(self.runner).run(self.sequences()), 1):
            if i == self.load.batch:
                first = time.perf_counter()
        last = time.perf_counter()
        return (first - began) * 1e3, (last - first) * 1e3 / self.load.max_tokens

    def prefill(self) -> None:
        """Run the prompts; their pages are kept from now on, so `serve` no longer can be called."""
        runner = self.runner
        scheduler = Scheduler(runner.slots, runner.prefill_rows, runner.table)
        for seq in self.sequences():
            scheduler.add(seq)
        runner.admit(scheduler.admit())
        while chunks := scheduler.prefill():
            tokens, _ = runner.prefill(chunks)
            scheduler.filled(chunks)
            ended = [chunk.seq for chunk in chunks if chunk.ends]
            for seq, token in zip(ended, tokens.tolist(), strict=True):
                self.rows.append(Row(seq.slot, token, len(seq.prompt)))

    def restart(self, ahead: int = 0) -> None:
        """The next step is the first one again, or the one `ahead` of it. After `prefill`."""
        self.runner.start([replace(row, position=row.position + ahead) for row in self.rows])

    def step_times(self) -> list[float]:
        """ms of every single step from the first on, by marks between them, all steps being launched at once."""
        self.restart()
        self.device.synchronize()
        marks = [self.device.mark()]
        for _ in range(self.load.max_tokens):
            marks.append(self.runner.decode().done)
        return [self.device.elapsed(a, b) for a, b in pairwise(marks)]

    def sequences(self, prompts: list[list[int]] | None = None) -> list[Sequence]:
        """New sequences of this load, or of other prompts no longer than its own: greedy, until their length."""
        params, tokens = SamplingParams(ignore_eos=True), self.load.max_tokens + 1  # the prompt's last row gives one
        return [Sequence(prompt, params, self.load.seed, tokens, ()) for prompt in prompts or self._prompts]

"""Host time of a decode step at batch 16: scheduling, text and stop search, on a runner that computes nothing.

    python tests/host_time.py [MODEL]     MODEL provides the tokenizer; prints us per step, the best of five runs

Measures CPU time of this process, which other processes disturb less than wall time.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from ostinato import SamplingParams
from ostinato.run.cache import PageTable
from ostinato.run.engine import Engine
from ostinato.run.sequence import Request
from ostinato.text.output_text import Text
from ostinato.text.stop_search import StopSearch
from ostinato.text.tokenizer import Tokenizer
from ostinato.weights.checkpoint import open_checkpoint
from ostinato.weights.fetch import resolve

BATCH, STEPS = 16, 1000
STOPS = {
    "no stop text": (),
    "two stop texts": ("zzzz", "\n\nUser:"),
    "20,000 stop texts": tuple(map(str, range(20_000))),
}


class Ticket:
    """A step whose tokens are already known."""

    def __init__(self, tokens: np.ndarray) -> None:
        self._tokens = tokens

    def tokens(self) -> np.ndarray:
        """[rows] int32"""
        return self._tokens


class NoRunner:
    """The part of Runner that Batch needs; returns random tokens whose text has no digits."""

    max_batch, prefill_rows, max_len, window = BATCH, 2048, 4096, 0
    swap = prefix = None

    def __init__(self, tokens: np.ndarray) -> None:
        self.table = PageTable(BATCH, self.max_len, 1 + BATCH * self.max_len // 64)
        self._tokens, self._step, self._rows = tokens, 0, 0

    def set_sampling(self, sequences: Any) -> None:
        """Nothing."""

    def set_rows(self, rows: Any) -> None:
        """Keep the number of rows."""
        self._rows = len(rows)

    def prefill(self, chunks: Any) -> Ticket:
        """One token a prompt."""
        return Ticket(np.full(sum(chunk.ends for chunk in chunks), self._tokens[0, 0]))

    def decode(self) -> Ticket:
        """The next row of tokens."""
        self._step += 1
        return Ticket(self._tokens[self._step % len(self._tokens), : self._rows])


def measure(t: Tokenizer, tokens: np.ndarray, stop: tuple[str, ...]) -> float:
    """us per step."""
    engine: Any = Engine(NoRunner(tokens))  # pyright: ignore[reportArgumentType]
    params, search = SamplingParams(ignore_eos=True), StopSearch(stop) if stop else None
    request = Request([1, 2, 3], params, 0, STEPS, text=lambda: Text(t.incremental(), search))
    handles = [engine.add(request, listen=True) for _ in range(BATCH)]
    engine.step()
    began = time.process_time()
    engine.wait(handles[0], end=True)
    return (time.process_time() - began) / STEPS * 1e6


def main(model: str) -> None:
    """Measure and print."""
    with open_checkpoint(resolve(model)) as ck:
        t = Tokenizer.from_checkpoint(ck)
    plain = [i for i in range(t.vocab_size) if i not in t.control and not any(c.isdigit() for c in t.decode([i]))]
    tokens = np.random.default_rng(0).choice(np.array(plain, np.int32), (4096, BATCH))
    for name, stop in STOPS.items():
        print(f"{name:20} {min(measure(t, tokens, stop) for _ in range(5)):6.1f} us a step of {BATCH}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")

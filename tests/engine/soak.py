"""Random requests at random moments, in caches that are too small for them: every answer must be what it is alone.

    python tests/engine/soak.py --seconds 600                          NumPy, a random model of one layer
    python tests/engine/soak.py --backend cuda --model smollm2-135m     on a GPU

`make soak`. A round has its own runner: pages, host memory, rows of a pass, prefix cache, look-ahead and graphs are
drawn by its seed, which is printed, and `--seed N --rounds 1` repeats it. In it, requests that share prefixes, salts
and keys arrive, are aborted, or come to their deadline; the prefix cache is flushed and logits are asked for.
Ends with 1 if an answer differs, a page or a place in host memory is missing, or memory grows from round to round.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from ostinato.config import EngineConfig, SamplingParams, Scheduling
from ostinato.run.engine import Engine
from ostinato.run.handle import Handle
from ostinato.run.runner import Runner
from ostinato.run.sequence import Request

Make = Callable[..., Runner]  # options of EngineConfig -> a runner of always the same model
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5},
    {"temperature": 0.8, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"presence_penalty": 1.5, "logprobs": 2},
]


@dataclass
class Load:
    """The requests that rounds draw from, and what each gives alone."""

    make: Make
    requests: list[Request]
    _alone: dict[int, list[tuple[list[int], list | None]]] = field(default_factory=dict)
    _runner: Runner | None = None

    @staticmethod
    def of(make: Make, vocab: int, count: int, longest: int, tokens: int, seed: int) -> Load:
        """Prompts of at most `longest` tokens, three prefixes of which are shared; at most `tokens` generated."""
        rng = np.random.default_rng(seed)
        prefixes = [rng.integers(0, vocab, n).tolist() for n in (0, longest // 3, longest * 2 // 3)]
        made = []
        for i in range(count):
            tail = rng.integers(0, vocab, rng.integers(1, longest // 3)).tolist()
            params = SamplingParams(**KINDS[i % len(KINDS)], n=int(rng.choice([1, 1, 1, 3])))
            stops = tuple(rng.integers(0, vocab, 2).tolist()) if rng.random() < 0.3 else ()
            prompt = [*prefixes[int(rng.integers(3))], *tail]
            made.append(Request(prompt, params, i, int(rng.integers(1, tokens)), stops))
        return Load(make, made)

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return max(r.longest for r in self.requests)

    def alone(self, number: int) -> list[tuple[list[int], list | None]]:
        """Tokens and logprobs of each completion, without a prefix cache, company, or a step ahead."""
        if number not in self._alone:
            self._runner = self._runner or self.make(max_batch=1, max_len=self.longest, prefix_cache=False)
            engine = Engine(self._runner, lookahead=False)
            handle = engine.add(self.requests[number])
            engine.wait(handle, end=True)
            self._alone[number] = [(seq.tokens, seq.logprobs) for seq in handle.sequences]
        return self._alone[number]


class Round:
    """One runner and engine, with options drawn by the seed, and a clock of its own."""

    def __init__(self, load: Load, seed: int, graphs: tuple[str, ...] = ("off",), **options: Any) -> None:
        """options: in place of those that are drawn."""
        rng = self.rng = np.random.default_rng(seed)
        pages = -(-load.longest // 64)
        self.load, self.now, self.seen = load, 0.0, Counter[str]()
        drawn = {
            "max_batch": int(rng.integers(2, 7)),
            "cache_tokens": 64 * (pages + int(rng.integers(0, pages + 2))),
            "swap_gb": float(rng.choice([0, 5e-5, 1, 1])),
            "prefix_cache": bool(rng.random() < 0.8),
            "prefill_rows": int(rng.choice([64, 128, 512])),
            "graph": str(rng.choice(graphs)),
        }
        self.runner = load.make(max_len=load.longest, **{**drawn, **options})
        self.greedy = bool(rng.random() < 0.7)  # sequences begin as if nobody grew: so pages run out often
        self.engine = Engine(self.runner, lookahead=bool(rng.random() < 0.8), now=lambda: self.now)
        self._running: list[tuple[Handle, int]] = []

    def run(self, events: int) -> list[str]:
        """So many events; what was wrong."""
        if not self.greedy:
            return self._run(events)
        with mock.patch("ostinato.run.scheduler._grows", lambda seq: False):
            return self._run(events)

    def _run(self, events: int) -> list[str]:
        wrong: list[str] = []
        for _ in range(events):
            self._event()
            wrong += self._ended()
        while self._running:
            self._step(50)
            wrong += self._ended()
        table, swap = self.runner.table, self.runner.swap
        if table.free != table.pages - 1 or not self.engine.batch.idle:
            wrong.append(f"{table.pages - 1 - table.free} pages are missing")
        if swap is not None and swap.free != swap.places:
            wrong.append(f"{swap.places - swap.free} places are missing")
        counters = self.engine.counters
        self.seen.update({"preempted": counters.preempted, "swapped": counters.swapped, "replayed": counters.replayed})
        self.seen.update({"prompt": counters.prompt_tokens, "cached": counters.cached_tokens})
        return wrong

    def _event(self) -> None:
        rng = self.rng
        kind = rng.choice(["add", "step", "abort", "flush", "logits"], p=[0.5, 0.35, 0.1, 0.03, 0.02])
        if kind == "add":
            self._add(int(rng.integers(len(self.load.requests))))
        elif kind == "abort" and self._running:
            self.engine.abort(self._running[int(rng.integers(len(self._running)))][0])
        elif kind == "flush":
            self.engine.flush()
        elif kind == "logits":
            self.engine.logits(self.load.requests[0].ids[:70])
        self._step(int(rng.integers(0, 12)))

    def _add(self, number: int) -> None:
        rng = self.rng
        schedule = Scheduling(
            priority=int(rng.integers(-1, 2)),
            timeout=float(rng.integers(1, 60)) if rng.random() < 0.1 else None,
            key=str(rng.choice(["", "a", "b"])),
            cache_salt=str(rng.choice(["", "", "salt"])),
        )
        self._running.append((self.engine.add(replace(self.load.requests[number], schedule=schedule)), number))

    def _step(self, count: int) -> None:
        for _ in range(count):
            self.now += 0.1
            self.engine.step()

    def _ended(self) -> list[str]:
        """Check those that have ended."""
        wrong = []
        for handle, number in [entry for entry in self._running if entry[0].ended]:
            self._running.remove((handle, number))
            for seq, (tokens, logprobs) in zip(handle.sequences, self.load.alone(number), strict=True):
                reason = str(seq.finish_reason)
                self.seen[reason] += 1
                whole = reason in ("stop", "length")
                same = seq.tokens == (tokens if whole else tokens[: len(seq.tokens)])
                if logprobs is not None:
                    same = same and (seq.logprobs or []) == logprobs[: len(seq.tokens)]
                if reason == "error" or not same:
                    wrong.append(f"request {number}: expected {tokens}, found {seq.tokens}, {reason} {seq.error or ''}")
        return wrong


def small(backend: str) -> tuple[Make, int, dict[str, int]]:
    """A random model of one layer, its vocabulary, and sizes of a load for it."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # run as a program, it finds its own folder only
    from configs import changed
    from emulator import EmulatedDevice
    from small import LLAMA, runner

    from ostinato.ops.cuda import CudaOps

    if backend == "numpy":
        c = changed(LLAMA, layers=1, hidden=24, heads=3, kv_heads=1, head_dim=8, ffn=24)
        return (lambda **options: runner(c, **options)), c.vocab, {"count": 16, "longest": 150, "tokens": 100}
    c = changed(LLAMA, layers=1, vocab=64, hidden=32, ffn=16, heads=2, kv_heads=1, head_dim=16)
    device = EmulatedDevice()

    def make(**options: Any) -> Runner:
        return runner(c, CudaOps(device, "bfloat16"), **options)

    return make, c.vocab, {"count": 6, "longest": 130, "tokens": 12}


def loaded(model: str, backend: str) -> tuple[Make, int, dict[str, int]]:
    """A real model, or with "shape:NAME" random weights of its shape; as `small`."""
    from ostinato.models.families import model_config
    from ostinato.run.load import choose, weights
    from ostinato.tools.bench.synthetic import checkpoint, shape
    from ostinato.weights.checkpoint import open_checkpoint
    from ostinato.weights.fetch import resolve

    if model.startswith("shape:"):
        c = shape(model.removeprefix("shape:"))
        ops, _ = choose(backend, "auto", c.dtype)
        w = weights(ops, checkpoint(c, ops.device, ops.dtype), c, 2048)
    else:
        with open_checkpoint(resolve(model)) as ck:
            c = model_config(ck.config, ck.generation_config, ck.source)
            ops, _ = choose(backend, "auto", c.dtype)
            w = weights(ops, ck, c, 2048)

    def make(**options: Any) -> Runner:
        return Runner(ops, c, w, EngineConfig(backend=backend, **options))

    return make, c.vocab, {"count": 24, "longest": 600, "tokens": 150}


def main() -> int:
    """Rounds until the time is over; the exit status."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--seconds", type=float, default=600)
    p.add_argument("--rounds", type=int, default=1 << 30)
    p.add_argument("--events", type=int, default=300, help="events of a round")
    p.add_argument("--seed", type=int, default=0, help="of the first round; the next ones count on")
    p.add_argument("--backend", choices=("numpy", "emulated", "cuda"), default="numpy")
    p.add_argument("--model", help="as for ostinato generate, or shape:llama-3.2-1b; default: a small random one")
    args = p.parse_args()
    make, vocab, sizes = loaded(args.model, args.backend) if args.model else small(args.backend)
    load, total = Load.of(make, vocab, **sizes, seed=0), Counter[str]()
    graphs = ("step", "layer", "off") if args.backend == "cuda" else ("off",)
    began, first_memory, memory, done = time.monotonic(), 0, 0, 0
    while done < args.rounds and time.monotonic() - began < args.seconds:
        seed = args.seed + done
        one = Round(load, seed, graphs)
        wrong = one.run(args.events)
        done += 1
        total += one.seen
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        first_memory = first_memory or (memory if done >= 20 else 0)  # by then every kind of round has been
        print(f"seed {seed}: {dict(sorted(one.seen.items()))}, at most {memory} MB", flush=True)
        for line in wrong:
            print(f"seed {seed}: {line}", flush=True)
        if wrong:
            return 1
    print(f"{done} rounds of {args.events} events in {time.monotonic() - began:.0f} s, all answers as alone: "
          f"{dict(sorted(total.items()))}")  # fmt: skip
    if first_memory and memory > first_memory * 1.1 + 20:
        print(f"memory has grown from {first_memory} to {memory} MB")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

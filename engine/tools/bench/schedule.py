"""`ostinato bench schedule`: how requests affect one another, by the host clock: number of concurrent requests, gain of
the prefix cache, and the longest pause of running streams during the prefill of a long prompt.

One thread runs the engine, as in LLM. A token's time is the return of the step that produced it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ...checks import choice, integer
from ...config import EngineConfig, ModelConfig, SamplingParams
from ...errors import DeviceError
from ...models.weights import Weights
from ...ops.base import Ops
from ...report import say
from ...run import load as loading
from ...run.engine import Engine
from ...run.handle import Handle
from ...run.runner import Runner
from ...run.sequence import Request
from .decode import Choose, load_model, tidy


@dataclass(frozen=True)
class Settings:
    """What to measure. RequestError names the first field that is out of range."""

    model: str  # a checkpoint, or a name for `config`
    config: ModelConfig | None = None  # use random weights of this shape
    backend: str = "cuda"
    graph: str = "step"
    dtype: str = "auto"
    streams: int = 16  # number of streams that decode during the long prompt, and of requests without max_tokens
    prompt_len: int = 8192  # tokens of the long prompt
    shared: int = 4096  # tokens of the shared prefix
    tail: int = 64  # tokens after the prefix
    repeats: int = 5
    gpu_memory: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choice("backend", self.backend, ("cuda", "cublas", "numpy"))
        choice("graph", self.graph, ("off", "layer", "step"))
        integer("streams", self.streams, 1, 255)
        for name in ("prompt_len", "shared", "tail"):
            integer(name, getattr(self, name), 1, 2**20)
        integer("repeats", self.repeats, 1, 1000)


@dataclass
class Report:
    """What was measured, and on what. Times in ms."""

    settings: Settings
    machine: dict[str, str] = field(default_factory=dict)
    memory: str = ""  # the memory plan
    running: int = 0  # concurrent requests without max_tokens, of `streams`
    cold_ms: list[float] = field(default_factory=list)  # TTFT of shared + tail, nothing cached
    warm_ms: list[float] = field(default_factory=list)  # TTFT of shared + tail, prefix cached
    tail_ms: list[float] = field(default_factory=list)  # TTFT of the tail alone
    step_ms: float = 0.0  # median time between two tokens of a stream, without the long prompt
    gap_ms: list[float] = field(default_factory=list)  # longest time between two tokens of any stream during the prompt
    alone_ms: list[float] = field(default_factory=list)  # TTFT of the long prompt, without streams
    between_ms: list[float] = field(default_factory=list)  # TTFT of the long prompt, with the streams running


def schedule(s: Settings, choose: Choose = loading.choose) -> Report:
    """Measure everything; progress goes to stderr."""
    report = Report(s)
    ops, c, w, _ = load_model(s.model, s.config, lambda c: choose(s.backend, s.dtype, c.dtype)[0], s.seed)
    report.machine = ops.device.about()
    bench = _Bench(s, report, ops, c, w)
    for part in (bench.open_ended, bench.prefixes, bench.long_prompts):
        part()
    bench.close()
    return report


class _Bench:
    """One runner for all measurements, with one slot more than streams, for the long prompt."""

    def __init__(self, s: Settings, report: Report, ops: Ops, c: ModelConfig, w: Weights) -> None:
        self.s, self.report, self._ops, self.c = s, report, ops, c
        self._rng = np.random.default_rng(s.seed)
        e = EngineConfig(s.backend, s.graph, max_batch=s.streams + 1, gpu_memory=s.gpu_memory)
        runner = Runner(ops, c, w, e)
        report.memory = runner.memory.line()
        say("bench", report.memory)
        self.engine = Engine(runner)

    def close(self) -> None:
        """Free the device's memory."""
        self.engine.close()
        tidy(self._ops.device)

    def open_ended(self) -> None:
        """Count the concurrent requests that may grow to the model's maximum length."""
        handles = [self._add(128, None) for _ in range(self.s.streams)]
        self._until(lambda: all(h.sequences[0].tokens for h in handles) or self._stuck(handles))
        self.report.running = sum(h.sequences[0].slot >= 0 for h in handles)
        self._end(handles)
        say("bench", f"{self.report.running} of {self.s.streams} requests without max_tokens run concurrently")

    def prefixes(self) -> None:
        """TTFT of prompts with a shared prefix, cold and warm."""
        s, r = self.s, self.report
        self._first_ms(self._ids(s.shared + s.tail))  # warm-up: compiles kernels
        for _ in range(s.repeats):
            prefix = self._ids(s.shared)
            self.engine.flush()
            r.tail_ms.append(self._first_ms(self._ids(s.tail)))
            r.cold_ms.append(self._first_ms([*prefix, *self._ids(s.tail)]))
            r.warm_ms.append(self._first_ms([*prefix, *self._ids(s.tail)], cached=s.shared // 64 * 64))
        cold, warm, tail = map(statistics.median, (r.cold_ms, r.warm_ms, r.tail_ms))
        say("bench", f"{s.shared} tokens shared: first token after {cold:.2f} ms cold, {warm:.2f} warm, "
                     f"{tail:.2f} for the tail alone")  # fmt: skip

    def long_prompts(self) -> None:
        """Times between tokens of running streams during the prefill of a long prompt."""
        s, r = self.s, self.report
        for _ in range(s.repeats):
            self.engine.flush()
            r.alone_ms.append(self._first_ms(self._ids(s.prompt_len)))
        streams = [self._add(128, 1 << 14) for _ in range(s.streams)]
        self._until(lambda: all(len(h.sequences[0].tokens) > 8 for h in streams))
        r.step_ms = statistics.median(self._gaps(streams, lambda: len(streams[0].sequences[0].tokens) > 72))
        for _ in range(s.repeats):
            self.engine.flush()
            began, handle = time.perf_counter(), self._add(s.prompt_len, 1)
            r.gap_ms.append(max(self._gaps(streams, lambda handle=handle: handle.ended)))
            r.between_ms.append((time.perf_counter() - began) * 1e3)
            self._gaps(streams, self._after(streams[0], 16))
        self._end(streams)
        alone, between = statistics.median(r.alone_ms), statistics.median(r.between_ms)
        say("bench", f"a prompt of {s.prompt_len} tokens: longest gap of a stream {max(r.gap_ms):.2f} ms, "
                     f"of a step {r.step_ms:.2f}; first token after {between:.1f} ms, alone {alone:.1f}")  # fmt: skip

    def _ids(self, count: int) -> list[int]:
        return self._rng.integers(0, self.c.vocab, count).tolist()

    def _add(self, prompt: int | list[int], tokens: int | None) -> Handle:
        """Add a greedy request with random tokens. tokens=None: as many as the model and the KV cache allow."""
        ids = self._ids(prompt) if isinstance(prompt, int) else prompt
        runner = self.engine.batch.runner
        most = min(runner.max_len, runner.memory.tokens) - len(ids)
        if most < 1:
            raise DeviceError(f"bench: expected space for a prompt of {len(ids)} tokens, found a KV cache of "
                              f"{runner.memory.tokens} tokens and max_len {runner.max_len}")  # fmt: skip
        params = SamplingParams(ignore_eos=True)
        return self.engine.add(Request(ids, params, 0, most if tokens is None else min(tokens, most)))

    def _first_ms(self, ids: list[int], cached: int | None = None) -> float:
        """TTFT of a prompt that runs alone, in ms. cached: number of tokens that must come from the prefix cache."""
        began = time.perf_counter()
        handle = self._add(ids, 1)
        self._until(lambda: handle.ended)
        taken = (time.perf_counter() - began) * 1e3
        found = handle.sequences[0].cached
        if cached is not None and found != cached and self.engine.batch.runner.prefix is not None:
            raise DeviceError(f"bench: expected {cached} tokens in the prefix cache, found {found}")
        return taken

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.engine.step()

    def _stuck(self, handles: list[Handle]) -> bool:
        """Whether running requests have many tokens, so that the others will not start."""
        return max(len(h.sequences[0].tokens) for h in handles) > 32

    def _gaps(self, streams: list[Handle], done: Callable[[], bool]) -> list[float]:
        """ms between tokens of all streams, until done()."""
        times: dict[Handle, list[float]] = {h: [time.perf_counter()] for h in streams}
        of = {h.sequences[0]: h for h in streams}
        while not done():
            events = self.engine.step()
            now = time.perf_counter()
            for event in events:
                if event.seq in of:
                    times[of[event.seq]].append(now)
        return [(b - a) * 1e3 for stamps in times.values() for a, b in pairwise(stamps)]

    def _after(self, handle: Handle, tokens: int) -> Callable[[], bool]:
        until = len(handle.sequences[0].tokens) + tokens
        return lambda: len(handle.sequences[0].tokens) >= until

    def _end(self, handles: list[Handle]) -> None:
        self.engine.abort(*handles)
        self.engine.step()

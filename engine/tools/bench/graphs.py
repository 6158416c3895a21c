"""`ostinato bench graphs`: samples/s without graphs, with one graph per layer and with one graph per step.

    encoder   a sample is one sentence, from token ids to its embedding on the host; a batch is one call of B sentences
    decoder   a sample is one sentence as a prompt and `new_tokens` generated tokens; a batch decodes B together

Tokenizing is not measured. Every batch size and graph mode runs over the same sentences. breakdown.py splits the time
of one step: a decoder's decode step, or an encoder's pass over B sentences.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ...checks import choice, integer
from ...config import EngineConfig, ModelConfig
from ...errors import RequestError
from ...graph.capture import CaptureReport
from ...models.weights import Weights
from ...ops.base import Ops
from ...report import say
from ...run import load as loading
from ...run.cache import pages_of
from ...run.encoder import Encoder
from ...sizes import PAGE
from ...text.tokenizer import Tokenizer
from . import breakdown, samples
from .ceiling import Reader
from .decode import Choose, load_model, prove, tidy
from .session import Load, Session

MODES = ("off", "layer", "step")


@dataclass(frozen=True)
class Settings:
    """What to measure. RequestError names the first field that is out of range."""

    models: tuple[tuple[str, ModelConfig | None], ...]  # (checkpoint, None), or (name, shape of random weights)
    batches: tuple[int, ...] = (1, 4, 8, 16)
    backend: str = "cuda"
    graphs: tuple[str, ...] = MODES
    new_tokens: int = 32  # that a decoder generates per sentence; the first one comes from prefill
    dtype: str = "auto"
    repeats: int = 3  # passes over the sentences, after a warm-up with the first batch
    sentences: int = 64  # use the first ones of samples.sentences
    read_bytes: int | None = None  # size of the buffer whose reading keeps the device busy while steps are queued

    def __post_init__(self) -> None:
        integer("new_tokens", self.new_tokens, 2, 2**20)
        integer("repeats", self.repeats, 1, 1000)
        integer("sentences", self.sentences, 1, len(samples.sentences()))
        choice("backend", self.backend, ("cuda", "cublas", "numpy"))
        for batch in self.batches:
            integer("batch", batch, 1, min(16, self.sentences))
        for graph in self.graphs:
            choice("graph", graph, MODES)
        if not (self.models and self.batches and self.graphs):
            raise RequestError("model, batch, graph: expected at least one of each, found none")


@dataclass
class Row:
    """One model at one batch size in one graph mode."""

    model: str
    kind: str  # "encoder" or "decoder"
    batch: int
    graph: str
    samples_per_s: float
    ms_per_sample: float  # 1000 / samples_per_s
    ms_per_batch: float  # until a batch is done: the latency of a sample
    launched: int  # host launches per step: kernels, or graphs if captured
    graphs: int  # captured, for all prepared batch sizes
    graph_bytes: int  # device memory of these graphs
    step: breakdown.Breakdown


@dataclass
class Report:
    """What was measured, and on what."""

    settings: Settings
    machine: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)  # model -> "bfloat16, random"
    tokens: dict[str, list[int]] = field(default_factory=dict)  # model -> length of every sentence
    rows: list[Row] = field(default_factory=list)

    def problems(self) -> list[str]:
        """The rows whose breakdown does not add up, with the reason."""
        return [f"{r.model}, batch {r.batch}, graph {r.graph}: {r.step.problem}" for r in self.rows if r.step.problem]


class Work(Protocol):
    """A model prepared for one batch size and graph mode."""

    captured: CaptureReport
    programs: int  # captured step sizes
    steps: int  # that may follow a begin()

    def run(self, first: int | None = None) -> None:
        """Run all sentences once, or only the `first` ones."""

    def prepare(self) -> None:
        """Called once before begin and step; run is not called after it."""

    def begin(self, ahead: int = 0) -> None:
        """Set the next step: step number `ahead`, counted from 0."""

    def step(self) -> object:
        """Launch one step; does not wait."""


@dataclass(frozen=True)
class Subject:
    """A model with its weights on a backend, and the token ids of the sentences."""

    name: str
    ops: Ops
    c: ModelConfig
    w: Weights
    ids: list[list[int]]
    s: Settings

    @property
    def kind(self) -> str:
        """ "encoder" or "decoder": which definition of a sample applies."""
        return "decoder" if self.c.causal else "encoder"

    def work(self, graph: str, batch: int) -> Work:
        """Prepare the model for one batch size and graph mode."""
        return (Decoding if self.c.causal else Embedding)(self, graph, batch)


class Decoding:
    """Work of a decoder: sentences are prompts."""

    def __init__(self, subject: Subject, graph: str, batch: int) -> None:
        self._ids, self.steps = subject.ids, subject.s.new_tokens - 1
        load = Load(batch, max(map(len, self._ids)), self.steps)
        self._session = Session(subject.ops, subject.c, subject.w, graph, load, self._ids[:batch])
        runner = self._session.runner
        self.captured, self.programs = runner.steps_captured, len(runner.buckets)
        self.prepare, self.begin, self.step = self._session.prefill, self._session.restart, runner.decode

    def run(self, first: int | None = None) -> None:
        """Run what LLM.generate runs."""
        for _ in self._session.run(self._ids[:first]):
            pass


class Embedding:
    """Work of an encoder: sentences are texts to embed."""

    steps = 32

    def __init__(self, subject: Subject, graph: str, batch: int) -> None:
        ids = subject.ids
        self._calls = [ids[i : i + batch] for i in range(0, len(ids), batch)]
        longest = max(map(len, ids))
        rows = batch * pages_of(longest) * PAGE
        e = EngineConfig(subject.ops.name, graph, prefill_rows=rows, max_len=longest)
        self._encoder = Encoder(subject.ops, subject.c, subject.w, e)
        self.captured, self.programs = self._encoder.captured, len(self._encoder.buckets)
        self.step = self._encoder.launch

    def run(self, first: int | None = None) -> None:
        """Run what LLM.embed runs, one batch per call."""
        for call in self._calls[: None if first is None else 1]:
            self._encoder.embed(call)

    def prepare(self) -> None:
        """An encoder needs no preparation."""

    def begin(self, ahead: int = 0) -> None:
        """Set the texts of the first call; every step is the same."""
        self._encoder.set_texts(self._calls[0])


def graphs(s: Settings, choose: Choose = loading.choose) -> Report:
    """Measure every combination; progress goes to stderr. CaptureError or DeviceError if a path did not run."""
    report = Report(s)
    texts = samples.sentences()[: s.sentences]
    for name, config in s.models:
        ops, c, w, ids = load_model(
            name, config, lambda c: choose(s.backend, s.dtype, c.dtype)[0],
            also=lambda ck: list(map(Tokenizer.from_checkpoint(ck).encode, texts)),
        )  # fmt: skip
        subject = Subject(name, ops, c, w, ids or samples.made_up_ids(texts, c.vocab, around=0 if c.causal else 2), s)
        device, report.machine = ops.device, ops.device.about()
        report.weights[name] = f"{ops.dtype.name}, {'checkpoint' if config is None else 'random'}"
        report.tokens[name] = [len(i) for i in subject.ids]
        for row in _rows(subject):
            say("bench", f"{name}, batch {row.batch}, graph {row.graph}: {row.samples_per_s:.1f} samples/s")
            report.rows.append(row)
        del ops, w, subject  # they must be gone before the next model's are made
        tidy(device)
    return report


def _rows(subject: Subject) -> Iterator[Row]:
    """Measure all rows of one model."""
    device, s = subject.ops.device, subject.s
    reader = Reader(device, s.read_bytes)
    for batch in s.batches:
        kernel = None
        if device.is_gpu:  # on a CPU a launch is the work itself: the device never waits
            kernel = min(_kernel_us(subject, graph, batch, reader) for graph in ("step", "layer"))
        for graph in s.graphs:
            tidy(device)
            yield _measure(subject, graph, batch, kernel)


def _kernel_us(subject: Subject, graph: str, batch: int, reader: Reader) -> float:
    """Device time of the middle step, in us."""
    work = subject.work(graph, batch)
    work.prepare()
    found = breakdown.kernel_us(subject.ops.device, partial(work.begin, work.steps // 2), work.step, reader)
    tidy(subject.ops.device)
    return found


def _measure(subject: Subject, graph: str, batch: int, kernel: float | None) -> Row:
    """Measure one row. kernel: us per step; None if the device never waits for the host."""
    ops, s, count = subject.ops, subject.s, len(subject.ids)
    launches = ops.device.launches
    before = Counter(launches)
    work = subject.work(graph, batch)
    recorded = launches - before
    work.run(first=batch)  # warm-up
    seconds = statistics.median(_seconds(work) for _ in range(s.repeats))
    work.prepare()
    before = Counter(launches)
    wall, host, span = breakdown.live(ops.device, work.begin, work.step, work.steps)
    stepped = launches - before
    made, parts = work.captured, 1 if graph == "step" else subject.c.layer_count + 2
    prove(ops, graph, recorded, stepped, made, work.programs * parts)
    launched = parts if graph != "off" else stepped.total() // (breakdown.REPEATS * work.steps)
    return Row(
        subject.name, subject.kind, batch, graph, count / seconds, seconds * 1e3 / count,
        seconds * 1e3 / -(-count // batch), launched, made.graphs, made.bytes,
        breakdown.account(wall, host, span, kernel),
    )  # fmt: skip


def _seconds(work: Work) -> float:
    """Seconds of one pass over the sentences."""
    began = time.perf_counter()
    work.run()
    return time.perf_counter() - began

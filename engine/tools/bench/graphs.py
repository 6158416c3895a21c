"""`ostinato bench graphs`: samples a second without graphs, with a graph a layer and with one for the whole step.

    encoder   a sample is one sentence from token ids to its embedding on the host; a batch of B is one call of B
    decoder   a sample is one sentence as a prompt and `new_tokens` tokens generated after it; B are decoded at once

Tokenizing is not part of it. Every batch size and graph mode runs over the same sentences; breakdown.py says where the
time of a step goes: of a decoder's decode step, of an encoder's pass over B sentences.
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
    """What to measure; RequestError names the first field that is out of range."""

    models: tuple[tuple[str, ModelConfig | None], ...]  # a checkpoint, or a name and a shape for random weights
    batches: tuple[int, ...] = (1, 4, 8, 16)
    backend: str = "cuda"
    graphs: tuple[str, ...] = MODES
    new_tokens: int = 32  # generated after each sentence by a decoder, the first of them by its prompt
    dtype: str = "auto"
    repeats: int = 3  # passes over the sentences, after one over the first batch
    sentences: int = 64  # of samples.sentences, the first ones
    read_bytes: int | None = None  # of the buffer that keeps the device busy while steps are queued

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
    ms_per_batch: float  # until a batch is done: what a sample waits
    launched: int  # by the host for a step: kernels without graphs, else graphs
    graphs: int  # recorded, for all batch sizes prepared
    graph_bytes: int  # device memory they hold
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
    programs: int  # steps that were prepared for recording
    steps: int  # that may follow a begin()

    def run(self, first: int | None = None) -> None:
        """All sentences once, or only the first ones."""

    def prepare(self) -> None:
        """From now on only begin and step are called."""

    def begin(self, ahead: int = 0) -> None:
        """The next step is the first, or the one `ahead` of it."""

    def step(self) -> object:
        """Launch one step; does not wait."""


@dataclass(frozen=True)
class Subject:
    """A model with its weights on a backend, and the sentences as it reads them."""

    name: str
    ops: Ops
    c: ModelConfig
    w: Weights
    ids: list[list[int]]
    s: Settings

    @property
    def kind(self) -> str:
        """Which of the two definitions of a sample holds."""
        return "decoder" if self.c.causal else "encoder"

    def work(self, graph: str, batch: int) -> Work:
        """Prepared for one batch size and graph mode."""
        return (Decoding if self.c.causal else Embedding)(self, graph, batch)


class Decoding:
    """Sentences as prompts."""

    def __init__(self, subject: Subject, graph: str, batch: int) -> None:
        self._ids, self.steps = subject.ids, subject.s.new_tokens - 1
        load = Load(batch, max(map(len, self._ids)), self.steps)
        self._session = Session(subject.ops, subject.c, subject.w, graph, load, self._ids[:batch])
        runner = self._session.runner
        self.captured, self.programs = runner.steps_captured, len(runner.buckets)
        self.prepare, self.begin, self.step = self._session.prefill, self._session.restart, runner.decode

    def run(self, first: int | None = None) -> None:
        """What LLM.generate runs."""
        for _ in self._session.run(self._ids[:first]):
            pass


class Embedding:
    """Sentences as texts."""

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
        """What LLM.embed runs, a batch a call."""
        for call in self._calls[: None if first is None else 1]:
            self._encoder.embed(call)

    def prepare(self) -> None:
        """Nothing."""

    def begin(self, ahead: int = 0) -> None:
        """Set the texts of the first call."""
        self._encoder.set_texts(self._calls[0])


def graphs(s: Settings, choose: Choose = loading.choose) -> Report:
    """Measure every combination; says on stderr what it is at. CaptureError or DeviceError if a path was not built."""
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
    """All rows of one model."""
    device, s = subject.ops.device, subject.s
    reader = Reader(device, s.read_bytes)
    for batch in s.batches:
        kernel = None
        if device.is_gpu:  # else it works while it is launched, and never waits
            kernel = min(_kernel_us(subject, graph, batch, reader) for graph in ("step", "layer"))
        for graph in s.graphs:
            tidy(device)
            yield _measure(subject, graph, batch, kernel)


def _kernel_us(subject: Subject, graph: str, batch: int, reader: Reader) -> float:
    """Device time of the middle step."""
    work = subject.work(graph, batch)
    work.prepare()
    found = breakdown.kernel_us(subject.ops.device, partial(work.begin, work.steps // 2), work.step, reader)
    tidy(subject.ops.device)
    return found


def _measure(subject: Subject, graph: str, batch: int, kernel: float | None) -> Row:
    """One row. kernel: us a step, None if the device never waits."""
    ops, s, count = subject.ops, subject.s, len(subject.ids)
    launches = ops.device.launches
    before = Counter(launches)
    work = subject.work(graph, batch)
    recorded = launches - before
    work.run(first=batch)  # does not count
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
    """Of one pass over the sentences."""
    began = time.perf_counter()
    work.run()
    return time.perf_counter() - began

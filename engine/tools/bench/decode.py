"""`ostinato bench decode`: the decode step of one model over batch sizes, backends and graph modes.

Weights are created or loaded once per backend. Every row is measured twice: by device events around single steps, and
by the host clock around the engine's steps. A row that did not run the requested path is an error.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...checks import choice, integer
from ...config import ModelConfig
from ...errors import CaptureError, DeviceError, RequestError
from ...graph.capture import CaptureReport
from ...models.families import model_config
from ...models.weights import Weights
from ...ops.base import Ops
from ...ops.device import Device
from ...report import say
from ...run import load as loading
from ...weights.checkpoint import Checkpoint, open_checkpoint
from ...weights.fetch import resolve
from . import synthetic
from .ceiling import Reader
from .operations import Operation, operations, step_bytes
from .quantised import mix_of
from .session import Load, Session

PERCENTILES = (10, 50, 90)
Choose = Callable[[str, str, str], tuple[Ops, str]]


@dataclass(frozen=True)
class Settings:
    """What to measure. RequestError names the first field that is out of range."""

    model: str  # a checkpoint, or a name for `config`
    config: ModelConfig | None = None  # use random weights of this shape
    batches: tuple[int, ...] = (1, 4, 8, 16)
    backends: tuple[str, ...] = ("cuda", "cublas")
    graphs: tuple[str, ...] = ("off", "layer", "step")
    prompt_len: int = 128
    max_tokens: int = 128  # steps to measure, from token prompt_len + 1 on
    dtype: str = "auto"
    operations: bool = True  # also time each kind of operation
    repeats: int = 3  # passes over the steps, after one warm-up pass
    seed: int = 0
    quant: str = ""  # how random weights are quantised: a name of quantised.MIXES
    read_bytes: int | None = None  # size of the buffer that the read ceiling is measured on

    def __post_init__(self) -> None:
        for name, low, high in (("prompt_len", 1, 2**20), ("max_tokens", 2, 2**20), ("repeats", 1, 1000)):
            integer(name, getattr(self, name), low, high)
        for batch in self.batches:
            integer("batch", batch, 1, 16)
        for backend in self.backends:
            choice("backend", backend, ("cuda", "cublas", "numpy"))
        for graph in self.graphs:
            choice("graph", graph, ("off", "layer", "step"))
        if self.quant and self.config is None:
            raise RequestError(f"quant: expected random weights (--shape), found {self.model}")
        if self.quant:
            mix_of(self.quant)
        if not (self.batches and self.backends and self.graphs):
            raise RequestError("batch, backend, graph: expected at least one of each, found none")

    def load(self, batch: int) -> Load:
        """The work of one row."""
        return Load(batch, self.prompt_len, self.max_tokens, self.seed)


@dataclass
class Measurement:
    """One row: one backend and graph mode at one batch size."""

    backend: str
    graph: str
    batch: int
    step_ms: float  # median of single steps, by device events
    p10_ms: float
    p90_ms: float
    wall_ms: float  # mean time of an engine step, by the host clock
    tokens_per_s: float  # of all sequences together, from wall_ms
    bytes: int  # that a step must read
    gb_per_s: float  # bytes / step_ms
    percent: float  # of the read ceiling
    ttft_ms: float  # until every sequence has its first token
    graphs: int  # captured, for all prepared batch sizes
    graph_bytes: int  # device memory of these graphs
    capture_s: float
    kernels: dict[str, int]  # kernel -> launches while the step was captured, or run if not captured


@dataclass
class Report:
    """What was measured, and on what."""

    settings: Settings
    config: ModelConfig | None = None
    machine: dict[str, str] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)  # of a backend's weights and activations
    load_s: dict[str, float] = field(default_factory=dict)  # to make or load a backend's weights
    ceilings: dict[str, float] = field(default_factory=dict)  # GB/s, by backend
    rows: list[Measurement] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)


def decode(s: Settings, choose: Choose = loading.choose) -> Report:
    """Measure every combination; says on stderr what it is at. CaptureError or DeviceError if a path was not built."""
    report = Report(s)
    for backend in s.backends:
        began = time.perf_counter()
        ops, c, w = open_model(s, backend, choose)
        ops.device.synchronize()
        report.config, report.machine = c, ops.device.about()
        report.dtypes[backend], report.load_s[backend] = ops.dtype.name, time.perf_counter() - began
        _backend(report, ops, c, w)
        device = ops.device
        del ops, w  # they must be gone before the next backend's are made
        tidy(device)
    return report


def tidy(device: Device) -> None:
    """Free unused memory. Sessions are reference cycles, so this collects garbage first."""
    gc.collect()
    device.trim()


def open_model(s: Settings, backend: str, choose: Choose) -> tuple[Ops, ModelConfig, Weights]:
    """A backend with the model's weights."""
    ops, c, w, _ = load_model(s.model, s.config, lambda c: _choose(s, c, backend, choose), s.seed, quant=s.quant)
    return ops, c, w


def load_model(
    model: str,
    config: ModelConfig | None,
    choose: Callable[[ModelConfig], Ops],
    seed: int = 0,
    also: Callable[[Checkpoint], Any] = lambda ck: None,
    quant: str = "",
) -> tuple[Ops, ModelConfig, Weights, Any]:
    """(ops, config, weights, also(checkpoint)). With `config` the weights are random, and the last item is None."""
    if config is not None:
        ops = choose(config)
        ck = synthetic.checkpoint(config, ops.device, ops.dtype, seed, mix_of(quant) if quant else None)
        return ops, config, loading.weights(ops, ck, config), None
    with open_checkpoint(resolve(model, progress=True)) as ck:
        c = model_config(ck.config, ck.generation_config, ck.source)
        ops = choose(c)
        return ops, c, loading.weights(ops, ck, c), also(ck)


def _choose(s: Settings, c: ModelConfig, backend: str, choose: Choose) -> Ops:
    """The backend. RequestError if the model cannot take sequences of this length."""
    if s.prompt_len + s.max_tokens >= c.max_len:
        raise RequestError(f"prompt_len + max_tokens: expected fewer than the model's maximum of {c.max_len}, "
                           f"found {s.prompt_len} + {s.max_tokens}")  # fmt: skip
    return choose(backend, s.dtype, c.dtype)[0]


def _backend(report: Report, ops: Ops, c: ModelConfig, w: Weights) -> None:
    """Measure all rows of one backend."""
    s = report.settings
    reader = Reader(ops.device, s.read_bytes)
    ceiling = report.ceilings[ops.name] = reader.ceiling()
    say(
        "bench",
        f"{ops.name} on {ops.device.name}: weights after {report.load_s[ops.name]:.1f} s, reads {ceiling:.0f} GB/s",
    )
    for batch in s.batches:
        for graph in s.graphs:
            row = measure(ops, c, w, graph, s.load(batch), s.repeats, ceiling)
            report.rows.append(row)
            tidy(ops.device)
            say(
                "bench",
                f"{ops.name}, batch {batch}, graph {graph}: {row.step_ms:.3f} ms a step, {row.percent:.0f} % of that",
            )
        if s.operations:
            report.operations += operations(ops, c, w, s.load(batch), reader, ceiling)
            tidy(ops.device)


def measure(ops: Ops, c: ModelConfig, w: Weights, graph: str, load: Load, repeats: int, ceiling: float) -> Measurement:
    """Measure one row. ceiling: GB/s."""
    launches = ops.device.launches
    before = Counter(launches)
    session = Session(ops, c, w, graph, load)
    recorded = launches - before  # empty without graphs
    served = [session.serve() for _ in range(repeats + 1)][1:]
    session.prefill()
    before = Counter(launches)
    steps = [ms for _ in range(repeats) for ms in session.step_times()]
    stepped = launches - before  # empty with CUDA graphs
    made = session.runner.steps_captured
    parts = 1 if graph == "step" else c.layer_count + 2
    prove(ops, graph, recorded, stepped, made, len(session.runner.buckets) * parts)
    p10, median, p90 = np.percentile(steps, PERCENTILES).tolist()
    ttft, wall = (statistics.median(column) for column in zip(*served, strict=True))
    need = step_bytes(c, ops.dtype.itemsize, load, w)
    rate = need / median / 1e6
    return Measurement(
        ops.name, graph, load.batch, median, p10, p90, wall, load.batch * 1e3 / wall, need, rate, 100 * rate / ceiling,
        ttft, made.graphs, made.bytes, made.seconds, dict(recorded + stepped),
    )  # fmt: skip


def prove(
    ops: Ops, graph: str, recorded: Counter[str], stepped: Counter[str], made: CaptureReport, graphs: int
) -> None:
    """CaptureError unless this mode's graphs were captured and replayed; DeviceError unless the backend's GEMMs ran.

    recorded, stepped: kernels launched during capture, and in the steps. graphs: expected for all batch sizes."""
    expected = 0 if graph == "off" else graphs
    if made.graphs != expected:
        raise CaptureError(f"graph {graph}: expected {expected} captured graphs, found {made.graphs}")
    if expected and stepped and ops.device.is_gpu:
        raise CaptureError(f"graph {graph}: expected steps that replay it, found launches of {', '.join(stepped)}")
    if not ops.device.multiprocessors:
        return
    launched = recorded + stepped
    ours = any(n.startswith(("decode_", "prefill_")) for n in launched)
    found = {"cuda": ours, "cublas": "cublasGemmEx" in launched}
    if found != {name: name == ops.name for name in found}:
        wanted = {"cuda": "decode_* or prefill_* and no cublasGemmEx", "cublas": "cublasGemmEx, no decode_*, prefill_*"}
        raise DeviceError(f"backend {ops.name}, graph {graph}: expected launches of {wanted[ops.name]}, "
                          f"found {', '.join(launched) or 'none'}")  # fmt: skip

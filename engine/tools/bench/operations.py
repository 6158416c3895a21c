"""Time of each operation of a decode step, and the bytes that it must read.

The operations of one step are recorded while it runs. All calls of one kind (one per layer) are then captured as a
graph of their own, and its replays are timed. Such a chain is not the step, in which every operation overlaps with its
predecessor: the times show what is slow, but their sum is not the time of a step.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...config import ModelConfig
from ...graph.capture import CaptureReport, Part, program
from ...models.weights import Weights
from ...ops.base import Ops
from ...ops.observer import OpsObserver
from .ceiling import Reader
from .session import Load, Session

# Methods of Ops.
NAMES = ("embed_tokens", "norm_qkv", "attend", "linear_add", "norm_gate_up", "norm_head", "sample", "advance")
IN_CACHE = ("sample", "advance")  # their input was just written by the previous operation: timed with a warm L2
REPEATS, MANY = 20, 33
SEEN = 0.5  # us beyond the launch, below which no rate is given
FORMULA = (
    "bytes per step = weights of all layers and the head once, plus for each sequence one row of the embedding and the "
    "KV cache of prompt + (steps + 1) / 2 tokens (at most the window); activations are not counted"
)


@dataclass(frozen=True)
class Call:
    """One operation of a step, and the kernels it launched."""

    kind: str  # "norm_qkv", "linear_add o"
    name: str  # the method of Ops
    args: tuple
    kwargs: dict
    launched: Counter[str]


@dataclass(frozen=True)
class Operation:
    """One kind of operation in a step of `batch` sequences."""

    backend: str
    batch: int
    kind: str
    calls: int  # per step
    us: float  # per call
    bytes: int  # that a call must read
    gb_per_s: float | None  # None: the call takes less than SEEN beyond its launch
    percent: float | None  # of the read ceiling
    kernels: dict[str, int]  # kernel -> launches per step


def bytes_read(c: ModelConfig, itemsize: int, load: Load, w: Weights | None = None) -> dict[str, int]:
    """Bytes that one call of each kind must read, averaged over layers; see FORMULA.

    w: the weights, some of which may be quantised; without it all take itemsize bytes a number."""
    of, norm = c.sizes, 4 * c.hidden
    extra = 4 * of.qkv * of.qkv_bias + 8 * of.head_dim * of.qk_norm
    seen = sum(min(load.context, spec.window or load.context) for spec in c.layers) / c.layer_count

    def matrix(name: str, numbers: int) -> int:
        owners = (w,) if name in ("embed", "head") else w.layers if w else ()
        stored = [getattr(getattr(owner, name), "stored_bytes", 0) for owner in owners if owner]
        sizes = [size or numbers * itemsize for size in stored]
        return round(sum(sizes) / len(sizes)) if sizes else numbers * itemsize

    return {
        "embed_tokens": load.batch * matrix("embed", c.vocab * c.hidden) // c.vocab,
        "norm_qkv": matrix("qkv", of.qkv * c.hidden) + norm + extra,
        "attend": round(load.batch * seen * 2 * of.kv_heads * of.head_dim * itemsize),
        "linear_add o": matrix("o", c.hidden * of.heads * of.head_dim),
        "norm_gate_up": matrix("gate_up", 2 * of.ffn * c.hidden) + norm,
        "linear_add down": matrix("down", c.hidden * of.ffn),
        "norm_head": matrix("head", c.vocab * c.hidden) + norm,
        "sample": load.batch * c.vocab * 4,
        "advance": 0,
    }


def step_bytes(c: ModelConfig, itemsize: int, load: Load, w: Weights | None = None) -> int:
    """Bytes that a step must read on average, by FORMULA."""
    each = bytes_read(c, itemsize, load, w)
    once = each["embed_tokens"] + each["norm_head"]
    in_layer = sum(n for kind, n in each.items() if kind not in ("embed_tokens", "norm_head", *IN_CACHE))
    return once + c.layer_count * in_layer


def operations(ops: Ops, c: ModelConfig, w: Weights, load: Load, reader: Reader, ceiling: float) -> list[Operation]:
    """Measure each kind of operation at the middle step of a load. ceiling: GB/s."""
    session, calls, middle = middle_step(ops, c, w, load)
    kinds: dict[str, list[Call]] = {}
    for call in calls:
        kinds.setdefault(call.kind, []).append(call)
    launch = _launch_ms(ops, kinds["advance"][0], reader)
    expected = bytes_read(c, ops.dtype.itemsize, load, w)
    found = []
    for kind, chain in kinds.items():
        session.restart(middle)
        ms = chain_ms(ops, chain, None if kind in IN_CACHE else reader)
        us = max(ms - launch, 0) * 1e3 / len(chain)
        rate = expected[kind] / us / 1e3 if us >= SEEN else None
        percent = None if rate is None else 100 * rate / ceiling
        kernels = dict(sum((call.launched for call in chain), Counter()))  # asdict would not copy a Counter correctly
        row = Operation(ops.name, load.batch, kind, len(chain), us, expected[kind], rate, percent, kernels)
        found.append(row)
    return found


class _Recorder(OpsObserver):
    """Runs every operation, and records those of NAMES."""

    def __init__(self, ops: Ops, w: Weights) -> None:
        super().__init__(ops)
        self._launches = ops.device.launches
        self._matrices = {id(getattr(layer, part)): part for layer in w.layers for part in ("o", "down")}
        self.calls: list[Call] = []

    def around(self, name: str, operation: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        before = Counter(self._launches)
        found = operation(*args, **kwargs)
        if name in NAMES:
            kind = f"{name} {self._matrices[id(args[1])]}" if name == "linear_add" else name
            self.calls.append(Call(kind, name, args, kwargs, self._launches - before))
        return found


def middle_step(ops: Ops, c: ModelConfig, w: Weights, load: Load) -> tuple[Session, list[Call], int]:
    """(session, operations of its middle step, number of that step). Timing restarts the session at that step."""
    recorder: Any = _Recorder(ops, w)
    session, middle = Session(recorder, c, w, "off", load), load.max_tokens // 2
    session.prefill()
    session.restart()
    for _ in range(middle):
        session.runner.decode()
    recorder.calls.clear()
    session.runner.decode()
    session.runner.synchronize()
    return session, recorder.calls, middle


def chain_ms(ops: Ops, calls: list[Call], reader: Reader | None) -> float:
    """Median ms of the calls, captured as one graph. reader: evicts L2 before every replay."""

    def parts(over: Any) -> Iterator[Part]:
        for call in calls:
            yield call.kind, partial(getattr(over, call.name), *call.args, **call.kwargs)

    chain = program(ops.device, ops, parts, "step", f"operation {calls[0].kind}", CaptureReport())
    events = []
    for _ in range(REPEATS):
        if reader:
            reader.read()
        first = ops.device.record_event()
        chain.run()
        events.append((first, ops.device.record_event()))
    return statistics.median(ops.device.elapsed(a, b) for a, b in events)


def _launch_ms(ops: Ops, shortest: Call, reader: Reader) -> float:
    """Cost of a graph launch in ms: a graph of one short call, minus the time of a call in a long chain."""
    one, many = (chain_ms(ops, [shortest] * n, None) for n in (1, MANY))
    return max(0.0, one - (many - one) / (MANY - 1))

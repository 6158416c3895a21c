"""Where the time of a decode step goes, operation by operation, and the bytes each of them must read.

The operations of one step are noted while it runs. All calls of a kind, one for every layer, then become one graph of
their own, whose replays are timed. Such a chain is not the step: there, every operation starts while the one before it
ends. So the times say what is slow, and their sum differs from a step.
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

# As Ops has them.
NAMES = ("embed_tokens", "norm_qkv", "attend", "linear_add", "norm_gate_up", "norm_head", "sample", "advance")
IN_CACHE = ("sample", "advance")  # read what the operation before has just written
REPEATS, MANY = 20, 33
SEEN = 0.5  # us
FORMULA = (
    "bytes a step = weights of all layers and of the head once, one row of the embedding for each sequence, and keys "
    "and values of prompt + (steps + 1) / 2 tokens (at most the window) for each sequence; activations are not counted"
)


@dataclass(frozen=True)
class Call:
    """One operation of a step, and the kernels it launched."""

    kind: str  # "norm_qkv", "linear_add o"
    name: str  # of the method of Ops
    args: tuple
    kwargs: dict
    launched: Counter[str]


@dataclass(frozen=True)
class Operation:
    """One kind of operation in a step of `batch` sequences."""

    backend: str
    batch: int
    kind: str
    calls: int  # in a step
    us: float  # a call
    bytes: int  # that a call must read
    gb_per_s: float | None  # None: it takes too little beyond its launch, less than SEEN, to have a rate
    percent: float | None  # of the ceiling
    kernels: dict[str, int]  # name -> launches in a step


def bytes_read(c: ModelConfig, itemsize: int, load: Load, w: Weights | None = None) -> dict[str, int]:
    """Bytes that one call of each kind of operation must read, on average over layers; those of a step: FORMULA.

    w: the weights, where some may be quantised; else all take itemsize bytes a number."""
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
    """Bytes that a step must read on average, as FORMULA says."""
    each = bytes_read(c, itemsize, load, w)
    once = each["embed_tokens"] + each["norm_head"]
    in_layer = sum(n for kind, n in each.items() if kind not in ("embed_tokens", "norm_head", *IN_CACHE))
    return once + c.layer_count * in_layer


def operations(ops: Ops, c: ModelConfig, w: Weights, load: Load, reader: Reader, ceiling: float) -> list[Operation]:
    """Measure each kind of operation in the middle step of a load. ceiling: GB/s."""
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
        kernels = dict(sum((call.launched for call in chain), Counter()))  # a Counter would not become JSON
        row = Operation(ops.name, load.batch, kind, len(chain), us, expected[kind], rate, percent, kernels)
        found.append(row)
    return found


class _Noted(OpsObserver):
    """Runs every operation, and notes those of NAMES."""

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
    """The operations of the middle step, and a session whose cache and rows are as they were before it."""
    noted: Any = _Noted(ops, w)
    session, middle = Session(noted, c, w, "off", load), load.max_tokens // 2
    session.prefill()
    session.restart()
    for _ in range(middle):
        session.runner.decode()
    noted.calls.clear()
    session.runner.decode()
    session.runner.synchronize()
    return session, noted.calls, middle


def chain_ms(ops: Ops, calls: list[Call], reader: Reader | None) -> float:
    """Median time of the calls one after the other, as one graph; reader: first push everything out of the cache."""

    def parts(over: Any) -> Iterator[Part]:
        for call in calls:
            yield call.kind, partial(getattr(over, call.name), *call.args, **call.kwargs)

    chain = program(ops.device, ops, parts, "step", f"operation {calls[0].kind}", CaptureReport())
    marks = []
    for _ in range(REPEATS):
        if reader:
            reader.read()
        first = ops.device.mark()
        chain.run()
        marks.append((first, ops.device.mark()))
    return statistics.median(ops.device.elapsed(a, b) for a, b in marks)


def _launch_ms(ops: Ops, shortest: Call, reader: Reader) -> float:
    """What a graph costs beyond its operations: one of the shortest, less a call in a long chain of them."""
    one, many = (chain_ms(ops, [shortest] * n, None) for n in (1, MANY))
    return max(0.0, one - (many - one) / (MANY - 1))

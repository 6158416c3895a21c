"""`ostinato tune`: chooses the launch shapes of the decode GEMMs by timing the whole decode step on this GPU.

descent.py is the search; ops/tuned.py writes the file. Timing single kernels would mislead, because in the step every
kernel starts while its predecessor ends. So every shape is timed inside the step.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time as clock
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError, RequestError
from ..ops.device import Device
from ..ops.shapes import DecodeShape, Key, Launch, Shapes, decode_shape, rule
from ..report import console, say
from .descent import Axis, Table, axes, descend
from .options import add, chosen_model, numbers

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..models.weights import Weights
    from .bench.decode import Choose, Settings

OPERATIONS = {
    "norm_qkv": "qkv", "linear_add o": "o", "norm_gate_up": "gate_up", "linear_add down": "down", "norm_head": "head",
}  # fmt: skip
PARTS = {"single": range(1, 2), "narrow": range(2, 9), "wide": range(9, 17)}  # launch of DecodeShape -> its R


def add_command(commands: Any) -> None:
    """Add `tune` to the subparsers of `ostinato`."""
    p = commands.add_parser("tune", help="fit the kernels to this GPU", description="Choose launch shapes by timing.")
    add(p, "model", "--shape")
    p.add_argument("--batch", type=numbers, default=(1, 4, 16), metavar="N,N", help="sequences (1,4,16)")
    p.add_argument("--seconds", type=float, default=120, metavar="S", help="search time, after loading (120)")
    add(p, "--dtype")
    p.add_argument("--quant", default="", metavar="KIND", help="random weights quantised, as for bench decode")
    p.add_argument("--json", metavar="FILE", help="also write the choice and the times to a file")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune, write the result to the user's cache, print it; return the exit status."""
    from .bench.decode import Settings
    from .bench.report import check_outputs, write_json

    name, config = chosen_model(args)
    if not 0 <= args.seconds < inf:
        raise RequestError(f"seconds: expected 0 or more, found {args.seconds}")
    settings = Settings(name, config, args.batch, ("cuda",), ("step",), dtype=args.dtype, quant=args.quant)
    check_outputs(args.json, None)
    found = tune(settings, args.seconds)
    print_choice(found)
    if args.json:
        write_json(record(found), args.json)
    return 0


class _Plan(Device):
    """A device that records launches without compiling kernels."""

    def __init__(self, device: Device) -> None:
        self.name, self.arch, self.multiprocessors = device.name, device.arch, device.multiprocessors
        self.planned: list[tuple] = []  # (file, name), grid, block, shared, cluster

    def kernel(self, file: str, name: str) -> tuple[str, str]:
        return file, name

    def clusters(self, kernel: Any, block: Any, shared: int, cluster: int) -> int:
        return sys.maxsize  # the true number needs a compiled kernel; plans still differ in their cluster size

    def launch(self, kernel, grid, block, args, shared=0, dependent=False, cluster=1):
        self.planned.append((kernel, grid, block, shared, cluster))


@dataclass(frozen=True)
class Part:
    """One of the three launches of every matrix. The launches are tuned one after the other."""

    name: str  # key of PARTS: a field of DecodeShape
    batches: tuple[int, ...]  # batch sizes at which it is timed
    first: bool  # only the first search may change the number of K parts, which all launches share


def parts(batches: Iterable[int]) -> list[Part]:
    """The launches that these batch sizes use, in search order."""
    found: list[Part] = []
    for name, rows in PARTS.items():
        if mine := tuple(b for b in batches if b in rows):
            found.append(Part(name, mine, first=not found))
    return found


class Steps:
    """Decode steps of one model at several batch sizes, timed with any table of shapes."""

    def __init__(self, ops: Any, c: ModelConfig, w: Weights, s: Settings) -> None:
        from ..ops.shapes import shared_limit
        from .bench.operations import middle_step

        self._ops, self._shared = ops, shared_limit(ops.device.arch)
        self._steps = {batch: middle_step(ops, c, w, s.load(batch)) for batch in s.batches}
        self.keys: dict[str, Key] = {}  # "down" -> key; "down u6 g16 nested" where layers differ
        self._uses: dict[Key, list[tuple[str, int]]] = {}  # kinds of operations on it, and which call of the kind
        for kind, name in OPERATIONS.items():
            matrices = [w.head] if name == "head" else [getattr(layer, name) for layer in w.layers]
            forms = list(dict.fromkeys(part.form.key for m in matrices for part in m.segments))
            for i, m in enumerate(matrices):
                for part in m.segments:
                    key = m.n if len(m.segments) == 1 else part.tiles * 16, m.k, part.form.key
                    label = name if len(forms) == 1 else f"{name} {part.form.key}"
                    if key not in self._uses or label not in self.keys:
                        self._uses.setdefault(key, []).append((kind, i))
                    self.keys.setdefault(label, key)

    def ms(self, table: Table, batches: Iterable[int]) -> float:
        """Median ms of a captured step with these shapes, summed over the batch sizes."""
        from .bench.operations import chain_ms

        self._ops.shapes, total = Shapes(table, "being tuned", self._ops.device.arch), 0.0
        for batch in batches:
            session, calls, middle = self._steps[batch]
            session.restart(middle)
            total += chain_ms(self._ops, calls, None)
        return total

    def search(self, start: Table, part: Part, seconds: float) -> Table:
        """Find the best table for one launch. Compiles the kernels of the first round in parallel beforehand."""
        end = clock.perf_counter() + seconds
        every = axes(part.name, clusters=self._ops.device.arch >= 90, warps=part.first)

        def over() -> bool:
            return clock.perf_counter() >= end

        def limited(axis: Axis) -> Axis:
            return lambda key, shape: self._usable(key, shape, axis, part, over)

        def time(table: Table) -> float:
            try:
                return self.ms(table, part.batches)
            except DeviceError as e:
                say("tune", f"skipped: {e}")
                return inf

        say("tune", f"{part.name}: batch {', '.join(map(str, part.batches))}, {seconds:.0f} s at most")
        plans = [plan for key, s in start.items() for axis in every for plan in self._others(key, s, axis, part)]
        say(
            "tune",
            f"{part.name}: compiled {self._compile(plans, over)} kernels, {end - clock.perf_counter():.0f} s left",
        )
        return descend(start, [limited(axis) for axis in every], time, over, _taken)

    def _usable(
        self, key: Key, shape: DecodeShape, axis: Axis, part: Part, over: Callable[[], bool]
    ) -> list[DecodeShape]:
        """The shapes of _others whose kernels do not spill registers; none once over()."""
        others = self._others(key, shape, axis, part)
        self._compile(others, over)
        return [] if over() else [other for plan, other in others.items() if not self._spills(plan)]

    def _others(self, key: Key, shape: DecodeShape, axis: Axis, part: Part) -> dict[tuple, DecodeShape]:
        """Plan -> shape, for the neighbours along an axis that are launchable and launch differently from `shape`."""
        found: dict[tuple, DecodeShape] = {}
        for other in axis(key, shape):
            if not other.refusal(key, self._shared):
                found.setdefault(self._plan(key, other, part.batches), other)
        found.pop(self._plan(key, shape, part.batches), None)
        return found

    def _spills(self, plan: tuple) -> bool:
        device = self._ops.device
        return any(device.local_bytes(device.kernel(*k)) for k, *_ in plan if k[0] == "linear_decode.cu")

    def _plan(self, key: Key, shape: DecodeShape, batches: Iterable[int]) -> tuple:
        """The launches of the operations on a matrix with this shape."""
        ops = copy.copy(self._ops)
        ops.device = plan = _Plan(self._ops.device)
        ops.shapes = Shapes({key: shape}, "", self._ops.device.arch)
        for batch in batches:
            for kind, i in self._uses[key]:
                call = [call for call in self._steps[batch][1] if call.kind == kind][i]
                getattr(ops, call.name)(*call.args, **call.kwargs)
        return tuple(plan.planned)

    def _compile(self, plans: Iterable[tuple], over: Callable[[], bool]) -> int:
        """Compile the kernels of the plans in parallel until over(); return their number."""
        device = self._ops.device
        names = list(dict.fromkeys(kernel for plan in plans for kernel, *_ in plan))
        with ThreadPoolExecutor(os.cpu_count() if device.is_gpu else 1) as pool:
            list(pool.map(lambda name: over() or device.kernel(*name), names))
        return len(names)


# -- the command ------------------------------------------------------------------------------------------------------


@dataclass
class Choice:
    """The result of tuning a model."""

    settings: Settings
    device: str
    file: Path
    matrices: dict[str, Key]  # name -> key
    before: Table
    after: Table
    ms: dict[int, tuple[float, float]] = field(default_factory=dict)  # batch -> ms per step (before, after)


def tune(s: Settings, seconds: float, choose: Choose | None = None) -> Choice:
    """Search for `seconds`, divided equally among the launches in use, and write the file of this GPU."""
    from ..ops import tuned
    from ..run.load import choose as usual
    from .bench.decode import open_model

    ops, c, w = open_model(s, "cuda", choose or usual)
    device: Any = ops.device
    file = tuned.path(device)
    known = tuned.load(file, device)  # a damaged file must fail before the search
    steps = Steps(ops, c, w, s)
    keys = list(dict.fromkeys(steps.keys.values()))
    before = {key: known.get(key) or decode_shape(*key, ops.device.arch) for key in keys}
    by_rule = {key: rule(*key) for key in keys}
    steps.ms(before, s.batches)  # warm-up of clocks and caches
    best = min((by_rule, before), key=lambda table: steps.ms(table, s.batches)) if by_rule != before else before
    every = parts(s.batches)
    for part in every:
        best = steps.search(best, part, seconds / len(every))
    found = Choice(s, device.name, file, steps.keys, before, best)
    found.ms = {b: (steps.ms(before, [b]), steps.ms(best, [b])) for b in s.batches}
    tuned.save(file, device, {**known, **best})
    return found


def record(found: Choice) -> dict[str, Any]:
    """All results, for JSON."""
    tables = {"before": found.before, "after": found.after}
    shapes = [{"matrix": name, "n": key[0], "k": key[1], "form": key[2],
               **{when: asdict(table[key]) for when, table in tables.items()}}
              for name, key in found.matrices.items()]  # fmt: skip
    times = [{"batch": b, "before_ms": before, "after_ms": after} for b, (before, after) in found.ms.items()]
    return {"model": found.settings.model, "device": found.device, "file": str(found.file), "shapes": shapes,
            "steps": times}  # fmt: skip


def print_choice(found: Choice) -> None:
    """Print tables, and lines for DECODE of ops/shapes.py, on stdout."""
    from rich.table import Table as Columns

    shapes = Columns("matrix", "N x K", "before", "after", title=f"{found.settings.model} on {found.device}")
    for name, key in found.matrices.items():
        before, after = _code(found.before[key]), _code(found.after[key])
        shapes.add_row(name, f"{key[0]} x {key[1]}", before, "the same" if after == before else after)
    times = Columns("batch", "ms before", "ms after", "x")
    for batch, (before, after) in found.ms.items():
        times.add_row(str(batch), f"{before:.4f}", f"{after:.4f}", f"{before / after:.3f}")
    console(160).print(shapes, times)
    for key, shape in sorted(found.after.items()):
        print(f"    {key}: {_code(shape)},")
    say("tune", f"written to {found.file}; this GPU uses it from now on")


def _code(shape: DecodeShape) -> str:
    """A shape as source code of shapes.py, in one line."""
    return f"DecodeShape({shape.warps}, {', '.join(map(_launch, (shape.single, shape.narrow, shape.wide)))})"


def _launch(v: Launch) -> str:
    numbers = [v.tiles, v.depth, v.blocks, v.grid, *([v.split] if v.split != 1 else [])]
    switches = [f"{name}=True" for name in ("staged", "ring", "once") if getattr(v, name)]
    return f"Launch({', '.join([*map(str, numbers), *switches])})"


def _taken(key: Key, shape: DecodeShape, new: float, old: float) -> None:
    say("tune", f"{new:.4f} ms instead of {old:.4f}: {key}: {_code(shape)}")

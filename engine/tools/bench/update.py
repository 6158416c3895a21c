"""`ostinato bench update`: what it costs to change a graph for every token, against not having to.

Two batches are decoded in turn, a step of one and a step of the other, by one executable graph whose kernels are given
other arrays each time: node by node, from a graph kept ready, or from one captured anew. The engine's own way beside
it changes nothing: what differs between two steps is in arrays. Every way has to give the same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DeviceError, RequestError
from ...graph.cuda_graph import CudaGraph
from ...ops.device import Device
from ...run.runner import DecodeBucket
from .session import Load, Session

if TYPE_CHECKING:
    from .decode import Choose, Settings

REPEATS = 5  # timed passes of each way; the median counts


@dataclass
class Side:
    """One of the two batches: the step that decodes it, and where it begins."""

    bucket: DecodeBucket
    start: np.ndarray  # [5, rows] int32: what the step's state is before the first token
    graph: Any  # CudaGraph of the step
    kernels: list[tuple[Any, Any]]  # (node, parameters) of its kernels


class Way:
    """How a step of one side is prepared and launched. The engine's own: there is nothing to prepare."""

    name = "no update: values in device memory"

    def __init__(self, sides: tuple[Side, Side]) -> None:
        self.sides = sides

    def capture(self, side: Side) -> Any:
        """The graph that `change` takes."""
        return side.graph

    def change(self, side: Side, graph: Any) -> None:
        """Make the next launch one of this side."""

    def launch(self, side: Side) -> None:
        """Run the step; does not wait."""
        side.bucket.program.run()


class _Changed(Way):
    """One executable graph for both sides, made of the first one's."""

    def __init__(self, sides: tuple[Side, Side]) -> None:
        super().__init__(sides)
        self.executable = sides[0].graph.executable()

    def launch(self, side: Side) -> None:
        self.executable.launch()


class SetParams(_Changed):
    """Node by node, every kernel of every layer."""

    name = "cuGraphExecKernelNodeSetParams, every kernel"

    def change(self, side: Side, graph: Any) -> None:
        for (node, _), (_, parameters) in zip(self.sides[0].kernels, side.kernels, strict=True):
            self.executable.set(node, parameters)


class Update(_Changed):
    """All at once, from a graph with the other parameters that is kept ready."""

    name = "cuGraphExecUpdate, from a graph kept ready"

    def change(self, side: Side, graph: Any) -> None:
        self.executable.update(graph)


class Recapture(Update):
    """All at once, from a graph captured for this step."""

    name = "captured again, cuGraphExecUpdate"

    def capture(self, side: Side) -> Any:
        return side.graph.again(side.bucket.program.eager)


class Instantiate(Recapture):
    """A new executable graph for every step."""

    name = "captured again, cuGraphInstantiate"

    def change(self, side: Side, graph: Any) -> None:
        self.executable = graph.executable()


WAYS = (Way, SetParams, Update, Recapture, Instantiate)


@dataclass(frozen=True)
class Cost:
    """What a way costs a step."""

    way: str
    capture_us: float  # of the host, in capturing the step again
    change_us: float  # in changing the executable graph
    launch_us: float
    wall_ms: float  # from the first launch until the device is done, by the number of steps

    @property
    def host_us(self) -> float:
        """All of the host's time."""
        return self.capture_us + self.change_us + self.launch_us


@dataclass
class Report:
    """What was measured."""

    model: str
    batch: int
    steps: int
    kernels: int  # of a step
    backend: str
    machine: dict[str, str]
    rows: list[Cost]


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(s: Settings, backend: str, choose: Choose) -> Report:
    """All ways on one model, `max_tokens` steps each. DeviceError if one of them gives other tokens than the engine's.

    RequestError for a backend without CUDA graphs."""
    from .decode import open_model

    ops, c, w = open_model(s, backend, choose)
    if not ops.device.is_gpu:
        raise RequestError(f"backend: expected one with CUDA graphs, cuda or cublas, found {ops.name}")
    (batch,) = s.batches
    session = Session(ops, c, w, "off", Load(2 * batch, s.prompt_len, s.max_tokens, s.seed))
    session.prefill()
    sides = one_side(session, 0, batch), one_side(session, batch, 2 * batch)
    rows = compare(ops.device, sides, s.max_tokens)
    return Report(s.model, batch, s.max_tokens, len(sides[0].kernels), ops.name, ops.device.about(), rows)


def one_side(session: Session, first: int, last: int) -> Side:
    """A step of its own, captured, for some of the sequences of a session."""
    runner, count = session.runner, last - first
    bucket = runner.prepare_steps(count, runner.decode_buffers(count), "step")
    rows = [(row.token, row.slot, row.position, row.position + 1, 0) for row in session.rows[first:last]]
    graph = CudaGraph.of(runner.device, (bucket.program.graphs or [])[0])
    return Side(bucket, np.array(rows, np.int32).T.copy(), graph, graph.parameters())


def compare(device: Device, sides: tuple[Side, Side], steps: int) -> list[Cost]:
    """Tokens and cost of every way. DeviceError if tokens differ, RequestError if the sides' would not."""
    expected = end = None
    found = []
    for kind in WAYS:
        way = kind(sides)
        tokens = _tokens(device, way, steps)
        if expected is None or end is None:
            expected, end = tokens, _states(device, sides)
            if np.array_equal(tokens[0 : steps - steps % 2 : 2], tokens[1::2]):
                raise RequestError("seed: expected one for which the two batches go on differently, "
                                   f"found the same {steps // 2} tokens")  # fmt: skip
        _same(way, "tokens", expected, tokens)
        found.append(_cost(device, way, steps))
        _same(way, "the state after the timed steps", end, _states(device, sides))
    return found


def _same(way: Way, what: str, expected: np.ndarray, found: np.ndarray) -> None:
    if not np.array_equal(expected, found):
        wanted, got = (array.ravel()[:8].tolist() for array in (expected, found))
        raise DeviceError(f"{way.name}: expected {what} to be those without an update, {wanted}, found {got}")


def _tokens(device: Device, way: Way, steps: int) -> np.ndarray:
    """[steps, rows] int32, of the sides in turn."""
    _begin(device, way.sides)
    tokens = []
    for k in range(steps):
        side = way.sides[k % 2]
        way.change(side, way.capture(side))
        device.write(side.bucket.tokens, np.full(side.start.shape[1], -1, np.int32))  # what a step of the other leaves
        way.launch(side)
        tokens.append(device.read(side.bucket.tokens))
    return np.array(tokens)


def _cost(device: Device, way: Way, steps: int) -> Cost:
    """Medians over passes that do not wait between steps."""
    passes = []
    for _ in range(REPEATS):
        _begin(device, way.sides)
        device.synchronize()
        clock = time.perf_counter
        capture = change = launch = 0.0
        began = clock()
        for k in range(steps):
            side, a = way.sides[k % 2], clock()
            graph = way.capture(side)
            b = clock()
            way.change(side, graph)
            c = clock()
            way.launch(side)
            capture, change, launch = capture + b - a, change + c - b, launch + clock() - c
        device.synchronize()
        wall = clock() - began
        passes.append([1e6 * t / steps for t in (capture, change, launch, wall / 1e3)])
    return Cost(way.name, *(statistics.median(column) for column in zip(*passes, strict=True)))


def _begin(device: Device, sides: tuple[Side, Side]) -> None:
    for side in sides:
        device.write(side.bucket.state, side.start)


def _states(device: Device, sides: tuple[Side, Side]) -> np.ndarray:
    """[2, 5, rows] int32: where the sides stand, their last tokens included."""
    return np.array([device.read(side.bucket.state) for side in sides])


# -- the command ------------------------------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Add `update` to the subparsers of `ostinato bench`."""
    p = commands.add_parser("update", help="changing a graph for every token", description="What graph updates cost.")
    p.add_argument("model", metavar="MODEL", nargs="?", help="a model, as for generate (default: --shape smollm2-135m)")
    p.add_argument("--shape", metavar="NAME", help="random weights: smollm2-135m, llama-3.2-1b or llama-3.1-8b")
    p.add_argument("--batch", type=int, default=1, metavar="N", help="sequences of each of the two batches (1)")
    p.add_argument("--backend", choices=("cuda", "cublas"), default="cuda", help="default: cuda")
    p.add_argument("--prompt-len", type=int, default=128, metavar="N", help="tokens before the first step (128)")
    p.add_argument("--max-tokens", type=int, default=128, metavar="N", help="steps that are measured (128)")
    p.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto", help="default: auto")
    p.add_argument("--json", metavar="FILE", help="write everything to a file")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the file; the exit status."""
    from ...run import load
    from .decode import Settings
    from .options import chosen_model
    from .report import check_outputs, stamp, write_json

    if args.model is None and args.shape is None:
        args.shape = "smollm2-135m"
    name, config = chosen_model(args)
    settings = Settings(name, config, (args.batch,), prompt_len=args.prompt_len, max_tokens=args.max_tokens,
                        dtype=args.dtype)  # fmt: skip
    check_outputs(args.json, None)
    found = measure(settings, args.backend, load.choose)
    print_table(found)
    if args.json:
        write_json({**stamp(found.machine), **asdict(found)}, args.json)
    return 0


def print_table(report: Report) -> None:
    """The ways beside one another, on stdout."""
    from rich.table import Table

    from .report import stdout

    table = Table(title=f"{report.model} on {report.machine['device']}, {report.backend}, batch {report.batch}, "
                        f"{report.steps} steps, {report.kernels} kernels each")  # fmt: skip
    heads = ("way", "host us/step", "capture", "change", "launch", "ms/step", "x")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for row in report.rows:
        parts = (row.host_us, row.capture_us, row.change_us, row.launch_us)
        times = row.wall_ms / report.rows[0].wall_ms
        table.add_row(row.way, *(f"{us:.1f}" for us in parts), f"{row.wall_ms:.3f}", f"{times:.2f}")
    console = stdout()
    console.print(table)
    console.print("host us: in Python, through cuda-bindings. Two batches in turn, a step of each: with an update, one "
                  "executable graph\nthat is given the other's arrays; every way gave the same tokens.")  # fmt: skip

"""`ostinato bench update`: the cost of updating a graph for every token, against values in device memory.

Two batches decode in turn, one step each, through one executable graph whose kernels get the other batch's arrays every
time: node by node, from a prepared graph, or from a new capture. The engine's method, measured beside them, updates
nothing, because all values that change between steps are in arrays. Every method must give the same tokens.
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
from ..options import add, chosen_model
from .session import Load, Session

if TYPE_CHECKING:
    from .decode import Choose, Settings

REPEATS = 5  # timed passes per method; the median counts


@dataclass
class Side:
    """One of the two batches: its decode step and its initial state."""

    bucket: DecodeBucket
    start: np.ndarray  # [5, rows] int32: the step's state before the first token
    graph: Any  # CudaGraph of the step
    kernels: list[tuple[Any, Any]]  # (node, parameters) of its kernels


class Method:
    """How a step is prepared and launched. This class is the engine's method: nothing to prepare."""

    name = "no update: values in device memory"

    def __init__(self, sides: tuple[Side, Side]) -> None:
        self.sides = sides

    def capture(self, side: Side) -> Any:
        """The graph to pass to `change`."""
        return side.graph

    def change(self, side: Side, graph: Any) -> None:
        """Make the next launch run this side."""

    def launch(self, side: Side) -> None:
        """Run the step; does not wait."""
        side.bucket.program.run()


class _SharedExecutable(Method):
    """One executable graph for both sides, instantiated from the first side's graph."""

    def __init__(self, sides: tuple[Side, Side]) -> None:
        super().__init__(sides)
        self.executable = sides[0].graph.executable()

    def launch(self, side: Side) -> None:
        self.executable.launch()


class SetParams(_SharedExecutable):
    """Set the parameters of every kernel node."""

    name = "cuGraphExecKernelNodeSetParams, every kernel"

    def change(self, side: Side, graph: Any) -> None:
        for (node, _), (_, parameters) in zip(self.sides[0].kernels, side.kernels, strict=True):
            self.executable.set(node, parameters)


class Update(_SharedExecutable):
    """Update the whole graph from a prepared one."""

    name = "cuGraphExecUpdate, from a graph kept ready"

    def change(self, side: Side, graph: Any) -> None:
        self.executable.update(graph)


class Recapture(Update):
    """Update the whole graph from a new capture of this step."""

    name = "captured again, cuGraphExecUpdate"

    def capture(self, side: Side) -> Any:
        return side.graph.again(side.bucket.program.eager)


class Instantiate(Recapture):
    """Capture and instantiate a new graph for every step."""

    name = "captured again, cuGraphInstantiate"

    def change(self, side: Side, graph: Any) -> None:
        self.executable = graph.executable()


METHODS = (Method, SetParams, Update, Recapture, Instantiate)


@dataclass(frozen=True)
class Cost:
    """Cost of one method per step."""

    way: str  # name of the method
    capture_us: float  # host time to capture the step again
    change_us: float  # host time to update the executable graph
    launch_us: float  # host time to launch it
    wall_ms: float  # from the first launch until the device is done, divided by the number of steps

    @property
    def host_us(self) -> float:
        """Total host time."""
        return self.capture_us + self.change_us + self.launch_us


@dataclass
class Report:
    """What was measured."""

    model: str
    batch: int
    steps: int
    kernels: int  # per step
    backend: str
    machine: dict[str, str]
    rows: list[Cost]


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(s: Settings, backend: str, choose: Choose) -> Report:
    """Measure all methods on one model, `max_tokens` steps each.

    DeviceError if a method's tokens differ from the engine's. RequestError for a backend without CUDA graphs."""
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
    """Capture a decode step for sequences first to last - 1 of a session."""
    runner, count = session.runner, last - first
    bucket = runner.prepare_steps(count, runner.decode_buffers(count), "step")
    rows = [(row.token, row.slot, row.position, row.position + 1, 0) for row in session.rows[first:last]]
    graph = CudaGraph.of(runner.device, (bucket.program.graphs or [])[0])
    return Side(bucket, np.array(rows, np.int32).T.copy(), graph, graph.parameters())


def compare(device: Device, sides: tuple[Side, Side], steps: int) -> list[Cost]:
    """Check the tokens of every method and measure its cost.

    DeviceError if two methods' tokens differ. RequestError if both sides have the same tokens, which proves nothing."""
    expected = end = None
    found = []
    for kind in METHODS:
        method = kind(sides)
        tokens = _tokens(device, method, steps)
        if expected is None or end is None:
            expected, end = tokens, _states(device, sides)
            if np.array_equal(tokens[0 : steps - steps % 2 : 2], tokens[1::2]):
                raise RequestError("seed: expected one for which the two batches go on differently, "
                                   f"found the same {steps // 2} tokens")  # fmt: skip
        _same(method, "tokens", expected, tokens)
        found.append(_cost(device, method, steps))
        _same(method, "the state after the timed steps", end, _states(device, sides))
    return found


def _same(method: Method, what: str, expected: np.ndarray, found: np.ndarray) -> None:
    if not np.array_equal(expected, found):
        wanted, got = (array.ravel()[:8].tolist() for array in (expected, found))
        raise DeviceError(f"{method.name}: expected {what} to be those without an update, {wanted}, found {got}")


def _tokens(device: Device, method: Method, steps: int) -> np.ndarray:
    """[steps, rows] int32: the tokens of both sides in turn."""
    _begin(device, method.sides)
    tokens = []
    for k in range(steps):
        side = method.sides[k % 2]
        method.change(side, method.capture(side))
        # A launch that still runs the other side would leave the -1 here.
        device.write(side.bucket.tokens, np.full(side.start.shape[1], -1, np.int32))
        method.launch(side)
        tokens.append(device.read(side.bucket.tokens))
    return np.array(tokens)


def _cost(device: Device, method: Method, steps: int) -> Cost:
    """Medians over passes that do not wait between steps."""
    passes = []
    for _ in range(REPEATS):
        _begin(device, method.sides)
        device.synchronize()
        clock = time.perf_counter
        capture = change = launch = 0.0
        began = clock()
        for k in range(steps):
            side, a = method.sides[k % 2], clock()
            graph = method.capture(side)
            b = clock()
            method.change(side, graph)
            c = clock()
            method.launch(side)
            capture, change, launch = capture + b - a, change + c - b, launch + clock() - c
        device.synchronize()
        wall = clock() - began
        passes.append([1e6 * t / steps for t in (capture, change, launch, wall / 1e3)])
    return Cost(method.name, *(statistics.median(column) for column in zip(*passes, strict=True)))


def _begin(device: Device, sides: tuple[Side, Side]) -> None:
    for side in sides:
        device.write(side.bucket.state, side.start)


def _states(device: Device, sides: tuple[Side, Side]) -> np.ndarray:
    """[2, 5, rows] int32: the state of both sides, last tokens included."""
    return np.array([device.read(side.bucket.state) for side in sides])


# -- the command ------------------------------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Add `update` to the subparsers of `ostinato bench`."""
    p = commands.add_parser("update", help="graph updates for every token", description="Measure graph updates.")
    p.add_argument("model", metavar="MODEL", nargs="?", help="a model, as for generate (default: --shape smollm2-135m)")
    add(p, "--shape")
    p.add_argument("--batch", type=int, default=1, metavar="N", help="sequences in each of the two batches (1)")
    p.add_argument("--backend", choices=("cuda", "cublas"), default="cuda", help="default: cuda")
    add(p, "--prompt-len", "--max-tokens", "--dtype", "--json")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the file; return the exit status."""
    from ...run import load
    from .decode import Settings
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
    """Print all methods as a table on stdout."""
    from rich.table import Table

    from .report import stdout

    table = Table(title=f"{report.model} on {report.machine['device']}, {report.backend}, batch {report.batch}, "
                        f"{report.steps} steps, {report.kernels} kernels each")  # fmt: skip
    heads = ("method", "host us/step", "capture", "change", "launch", "ms/step", "x")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for row in report.rows:
        parts = (row.host_us, row.capture_us, row.change_us, row.launch_us)
        times = row.wall_ms / report.rows[0].wall_ms
        table.add_row(row.way, *(f"{us:.1f}" for us in parts), f"{row.wall_ms:.3f}", f"{times:.2f}")
    console = stdout()
    console.print(table)
    console.print("host us: in Python, through cuda-bindings. Two batches alternate, one step each. An update gives"
                  "\none executable graph the other's arrays. Every method gave the same tokens.")  # fmt: skip

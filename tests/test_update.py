"""`ostinato bench update` on NumPy, with fake graphs that replay a side's recording."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_bench import LLAMA, TINY

from ostinato.cli import main as cli
from ostinato.errors import DeviceError, RequestError
from ostinato.ops.numpy import NumpyOps
from ostinato.run import load
from ostinato.tools import doctor
from ostinato.tools.bench import synthetic, update
from ostinato.tools.bench.session import Load, Session

STEPS = 6


class FakeGraph:
    """A fake CudaGraph of one side's step."""

    def __init__(self, run: Any, works: str) -> None:
        self.run, self.works = run, works

    def executable(self) -> FakeExecutable:
        return FakeExecutable(self)

    def again(self, run: Any) -> FakeGraph:
        return FakeGraph(run, self.works)


class FakeExecutable:
    """Runs the side whose parameters it has. works: the update methods that take effect; others are ignored."""

    def __init__(self, graph: FakeGraph) -> None:
        self.run, self.works = graph.run, graph.works

    def set(self, node: Any, parameters: Any) -> None:
        if "set" in self.works:
            self.run = parameters

    def update(self, graph: FakeGraph) -> None:
        if "update" in self.works:
            self.run = graph.run

    def launch(self) -> None:
        self.run()


def sides(works: str = "set update", alike: bool = False) -> tuple[Any, tuple[update.Side, update.Side]]:
    """Two batches of two sequences on NumPy, or one batch twice."""
    ops = NumpyOps()
    w = load.weights(ops, synthetic.checkpoint(TINY, ops.device, ops.dtype), TINY)
    session = Session(ops, TINY, w, "off", Load(4, 9, STEPS))
    session.prefill()
    found = []
    for rows in (session.rows[:2], session.rows[:2] if alike else session.rows[2:]):
        bucket = session.runner.prepare_steps(2, session.runner.decode_buffers(2), "step")
        start = np.array([(r.token, r.slot, r.position, r.position + 1, 0) for r in rows], np.int32).T.copy()
        graph = FakeGraph(bucket.program.run, works)
        found.append(update.Side(bucket, start, graph, [("node", bucket.program.run)]))
    return ops.device, (found[0], found[1])


def test_every_method_gives_the_engines_tokens() -> None:
    device, both = sides()
    rows = update.compare(device, both, STEPS)
    assert [row.way for row in rows] == [method.name for method in update.METHODS]
    for row in rows:
        assert row.host_us == pytest.approx(row.capture_us + row.change_us + row.launch_us)
        assert row.launch_us > 0 and row.wall_ms * 1e3 >= row.launch_us


@pytest.mark.parametrize(
    ("works", "way"),
    [
        pytest.param("update", "cuGraphExecKernelNodeSetParams, every kernel", id="set-forgotten"),
        pytest.param("set", "cuGraphExecUpdate, from a graph kept ready", id="update-forgotten"),
    ],
)
def test_an_update_that_changes_nothing_is_found(works: str, way: str) -> None:
    device, both = sides(works)
    with pytest.raises(DeviceError, match=f"{way}: expected tokens to be those without an update"):
        update.compare(device, both, STEPS)


def test_two_batches_with_equal_tokens_prove_nothing() -> None:
    device, both = sides(alike=True)
    with pytest.raises(RequestError, match="seed: expected one for which the two batches go on differently"):
        update.compare(device, both, STEPS)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [update.Cost("one", 0, 0, 1.5, 0.25), update.Cost("other", 2000, 30, 1.5, 1.0)]
    update.print_table(update.Report("m", 1, 8, 154, "cuda", {"device": "d"}, rows))
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "m on d, cuda, batch 1, 8 steps, 154 kernels each" in out
    assert "one 1.5 0.0 0.0 1.5 0.250 1.00 other 2031.5 2000.0 30.0 1.5 1.000 4.00" in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param([LLAMA, "--shape", "smollm2-135m"], "found both", id="both"),
        pytest.param(["--batch", "17"], "batch: expected an integer in [1, 16], found 17", id="batch"),
        pytest.param(["--backend", "numpy"], "--backend", id="no-graphs"),
        pytest.param(["--json", "no/such/file.json"], "json: expected a file in a directory", id="json"),
        pytest.param([LLAMA], "prompt_len + max_tokens: expected fewer than the model's", id="too-long"),
    ],
)
def test_command_refuses(capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert cli.main(["bench", "update", *args]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.skipif(bool(doctor.driver().gpus), reason="there is a GPU")
def test_command_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "update", LLAMA, "--prompt-len", "5", "--max-tokens", "4"]) == 2
    assert "backend cuda needs" in capsys.readouterr().err

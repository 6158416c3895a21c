"""Captured graphs on a GPU: messages of failed captures, reading and timing a graph, updates, NVTX ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_bench import TINY

from ostinato.config import EngineConfig
from ostinato.errors import CaptureError, DeviceError
from ostinato.graph import nvtx
from ostinato.graph.capture import CaptureReport, program
from ostinato.graph.cuda_graph import CudaGraph
from ostinato.ops.cuda import CudaOps
from ostinato.ops.gpu import CupyDevice
from ostinato.run import load
from ostinato.run.engine import Engine
from ostinato.run.runner import Runner
from ostinato.tools.bench import synthetic, update
from ostinato.tools.bench.decode import Settings
from ostinato.tools.bench.session import Load, Session
from ostinato.tools.inspect.command import open_step
from ostinato.tools.inspect.timing import balanced

pytestmark = pytest.mark.gpu
F32 = np.dtype(np.float32)


@pytest.fixture(scope="module")
def gpu() -> CupyDevice:
    try:
        return CupyDevice()
    except DeviceError as e:
        pytest.skip(str(e))


def _swallowed(gpu: Any) -> None:
    try:
        gpu.stream.synchronize()
    except Exception:
        return
    raise AssertionError("a capture should refuse to wait")


def _launch(gpu: Any, grid: int = 1, block: int = 256, shared: int = 0) -> None:
    kernel, x = gpu.kernel("synthetic.cu", "fill_random<float>"), gpu.spare
    gpu.launch(kernel, (grid,), (block,), [x, np.uint64(x.size), np.uint32(1), np.float32(1)], shared)


def _forked(gpu: Any) -> None:
    gpu.other.wait_event(gpu.stream.record())
    with gpu.other:
        gpu.spare.fill(1)


BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "allocation": (lambda gpu: gpu.empty((1000,), F32), "it allocates 4000 bytes of device memory"),
    "wait": (lambda gpu: gpu.synchronize(), "operation not permitted when stream is capturing"),
    "swallowed-wait": (_swallowed, "it made a call that a capture forbids"),
    "swallowed-query": (lambda gpu: gpu.stream.done, "it made a call that a capture forbids"),
    "read": (lambda gpu: gpu.read(gpu.spare), "D2H transfers are disallowed"),
    "write": (lambda gpu: gpu.write(gpu.spare, np.ones(64, np.float32)), "H2D transfers are disallowed"),
    "no-blocks": (lambda gpu: _launch(gpu, grid=0), r"launch of fill_random<float> with grid \(0,\)"),
    "threads": (lambda gpu: _launch(gpu, block=2048), r"launch of fill_random<float> .* block \(2048,\)"),
    "shared-memory": (lambda gpu: _launch(gpu, shared=300_000), "INVALID_VALUE"),
    "no-such-kernel": (lambda gpu: gpu.kernel("norm.cu", "no_such<bf16>"), "no_such"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("scope", ["step", "layer"])
def test_a_failed_capture_names_layer_operation_and_cause(gpu: Any, fault: str, scope: str) -> None:
    gpu.spare, gpu.page = gpu.upload(np.ones(64, np.float32)), np.ones(64, np.float32)
    gpu.other = gpu._cupy.cuda.Stream(non_blocking=True)
    breaks, says = BROKEN[fault]
    calls: list[int] = []

    def attend() -> None:
        calls.append(1)
        _launch(gpu)
        if len(calls) == 5:  # three layers of warm-up, then the second layer of the capture
            breaks(gpu)

    ops: Any = SimpleNamespace(norm=lambda: _launch(gpu), attend=attend)

    def parts(to: Any) -> Iterator[Any]:
        for i in range(3):
            yield f"layer {i}", lambda: (to.norm(), to.attend(), to.norm())

    with pytest.raises(CaptureError, match=rf"(?s)^here, layer 1, operation attend: cannot be captured: .*{says}"):
        program(gpu, ops, parts, scope, "here", CaptureReport())
    gpu.synchronize()
    assert not gpu.stream.is_capturing()
    step = program(gpu, ops, parts, scope, "here", CaptureReport())  # the device still works
    step.run()
    gpu.synchronize()
    assert [call.nodes for graph in step.graphs or [] for call in graph.calls] == [1] * 9


def test_work_that_is_not_joined_fails_when_the_capture_ends(gpu: Any) -> None:
    gpu.spare, gpu.other = gpu.upload(np.ones(64, np.float32)), gpu._cupy.cuda.Stream(non_blocking=True)
    ops: Any = SimpleNamespace(fork=lambda: _forked(gpu) if gpu.stream.is_capturing() else _launch(gpu))
    with pytest.raises(CaptureError, match=r"here, at the end of the capture: cannot be captured: .*unjoined"):
        program(gpu, ops, lambda to: [("layer 0", to.fork)], "step", "here", CaptureReport())
    gpu.synchronize()


@pytest.mark.parametrize("graph", ["step", "layer"])
@pytest.mark.parametrize(("shape", "batch", "backend"), [("smollm2-135m", 1, "cuda"), ("smollm2-135m", 16, "cublas")])
def test_the_nodes_of_a_step_add_up_to_its_replay(gpu: Any, graph: str, shape: str, batch: int, backend: str) -> None:
    config = synthetic.shape(shape)
    asked = Settings(shape, config, (batch,), graphs=(graph,), max_tokens=32)
    step, _ = open_step(asked, backend, load.choose)
    assert balanced(step), f"{step.total_us:.1f} us in nodes, {step.replay_us:.1f} us a replay"
    assert step.graphs == (1 if graph == "step" else config.layer_count + 2)
    assert len(step.edges) == len(step.nodes) - step.graphs and step.bytes > 0
    assert {node.part for node in step.nodes} == {"embed", "head", *(f"layer {i}" for i in range(config.layer_count))}
    kernels = [node for node in step.nodes if node.kind == "kernel"]
    assert all(node.grid and node.block and node.registers for node in kernels)
    if backend == "cuda":
        assert len(kernels) == len(step.nodes) and gpu.arch >= 90 and all(edge.programmatic for edge in step.edges)
        assert step.nodes[0].name == "embed_packed<bf16>" and step.nodes[-1].name == "advance"


def test_updated_graphs_give_the_right_tokens(gpu: Any) -> None:
    found = update.measure(Settings("tiny", TINY, (2,), prompt_len=9, max_tokens=12), "cuda", load.choose)
    assert len(found.rows) == len(update.METHODS) and found.kernels > 10
    assert found.rows[0].capture_us < found.rows[3].capture_us and all(row.launch_us > 0 for row in found.rows)


def test_without_its_update_a_graph_gives_the_other_tokens(gpu: Any) -> None:
    ops = CudaOps(gpu, "float32")
    w = load.weights(ops, synthetic.checkpoint(TINY, gpu, ops.dtype), TINY)
    session = Session(ops, TINY, w, "off", Load(2, 9, 12))
    session.prefill()
    sides = update.one_side(session, 0, 1), update.one_side(session, 1, 2)
    right = update._tokens(gpu, update.SetParams(sides), 12)

    class Forgets(update.SetParams):
        def change(self, side: Any, graph: Any) -> None:
            pass

    assert not np.array_equal(update._tokens(gpu, Forgets(sides), 12), right)
    facts = CudaGraph.of(gpu, (sides[0].bucket.program.graphs or [])[0]).read().nodes
    assert len(facts) == len(sides[0].kernels)


@pytest.mark.parametrize("graph", ["off", "layer", "step"])
def test_ranges_stand_around_steps_that_give_the_same_tokens(
    gpu: Any, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    push, pop = nvtx._library()
    monkeypatch.setattr(nvtx, "_library", lambda: (lambda name: (names.append(name), push(name)), pop))
    ops = CudaOps(gpu, "float32")
    w = load.weights(ops, synthetic.checkpoint(TINY, gpu, ops.dtype), TINY)
    plain = Session(ops, TINY, w, graph, Load(1, 9, 4))
    expected = [event.token for events in plain.run() for event in events]
    runner = Runner(ops, TINY, w, EngineConfig("cuda", graph, max_batch=1, max_len=64, nvtx=True))
    names.clear()
    engine = Engine(runner)
    handle = engine.add(plain.requests()[0], listen=True)
    assert [event.token for event in engine.wait(handle, end=True)] == expected
    wanted = {"off": {"embed", "layer 0", "norm_qkv", "head"}, "layer": {"graph layer, bucket 1, layer 1"},
              "step": {"graph step, bucket 1"}}  # fmt: skip
    assert wanted[graph] <= set(names)

"""Capture and replay: replays equal eager runs, and a failed capture names the operation."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small import MODELS, complete, logits, prompts, runner, sequence

from ostinato.errors import CaptureError
from ostinato.graph import capture as graph
from ostinato.graph.capture import Call, CaptureReport, Recording, program
from ostinato.models import decoder
from ostinato.ops.device import HostDevice
from ostinato.ops.numpy import NumpyOps
from ostinato.run.passes import Piece
from ostinato.run.runner import Row, Runner

PARTS = decoder.parts


def decoded(on: Runner, rows: int, steps: int) -> list[np.ndarray]:
    """Tokens and logits of a few steps of `rows` sequences from position 0; working memory is poisoned before."""
    for slot in range(rows):
        on.table.allocate(slot, 64)
    on.set_rows([Row(slot, 3 + slot, 0) for slot in range(rows)])
    got = []
    for _ in range(steps):
        on._current.logits[...] = np.nan
        ticket = on.decode()
        got += [ticket.tokens(), ticket.logits()]
    for slot in range(rows):
        on.table.release(slot)
    return got


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scope", ["layer", "step"])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 6])
def test_replay_equals_eager_bit_for_bit_at_full_and_padded_buckets(name: str, scope: str, rows: int) -> None:
    eager, recorded = (runner(MODELS[name], graph=g, max_batch=6) for g in ("off", scope))
    for a, b in zip(decoded(eager, rows, 6), decoded(recorded, rows, 6), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("scope", "graphs"), [("off", 0), ("layer", 3 * (1 + 3 + 1)), ("step", 3)])
def test_one_graph_a_step_or_a_part_and_bucket(scope: str, graphs: int) -> None:
    on = runner(graph=scope, max_batch=3)
    assert on.buckets == (1, 2, 3) and on.steps_captured.graphs == graphs
    assert (on.steps_captured.seconds > 0) == (scope != "off")


@pytest.mark.parametrize(("scope", "graphs"), [("off", 0), ("layer", 16 * (1 + 3)), ("step", 16)])
def test_one_graph_a_pass_or_a_part_of_it_for_prompts_of_few_rows(scope: str, graphs: int) -> None:
    on, few = runner(graph=scope), runner(graph=scope, prefill_rows=128)
    assert [*on.prompts.sizes] == [*range(32, 513, 32)] and [*few.prompts.sizes] == [32, 64, 96, 128]
    assert (on.prompts.captured.graphs, few.prompts.captured.graphs) == (graphs, graphs / 4)
    assert on.captured.graphs == on.steps_captured.graphs + graphs


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scope", ["layer", "step"])
@pytest.mark.parametrize("length", [1, 64, 65, 400, 511])
def test_prompts_that_are_replayed_have_the_bits_of_eager_ones(name: str, scope: str, length: int) -> None:
    """The same prompt twice, with another one in between that must not affect it."""
    eager, recorded = (runner(MODELS[name], graph=g) for g in ("off", scope))
    ids = np.random.default_rng(length).integers(0, 131, length).tolist()
    expected = logits(eager, ids)
    for again in (ids, ids[::-1], ids):
        np.testing.assert_array_equal(logits(recorded, again), expected if again is ids else logits(eager, again))


@pytest.mark.parametrize(("lengths", "listed"), [([1], 0), ([200, 2], 0), ([200, 100], 1)])
def test_recorded_prompts_list_no_operations_anew(
    lengths: list[int], listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of 32, 256 and 352 rows; the last is too large to be recorded."""
    monkeypatch.setattr("ostinato.run.prefill.RECORDED", 256)
    on, calls = runner(), []
    monkeypatch.setattr(on.model, "parts", lambda *given: calls.append(1) or PARTS(*given))
    on.prompts.run([Piece(slot, [1] * n) for slot, n in enumerate(lengths)])
    assert len(calls) == listed


@pytest.mark.parametrize("scope", ["off", "layer", "step"])
def test_the_same_tokens_by_every_scope(scope: str) -> None:
    sequences = [sequence(p, 12, temperature=0.8, top_p=0.9, seed=i) for i, p in enumerate(prompts(7))]
    assert complete(runner(graph=scope), sequences) == complete(runner(graph="off"), [_again(s) for s in sequences])


def _again(seq: Any) -> Any:
    return sequence(seq.prompt, seq.max_tokens, seed=seq.seed, temperature=0.8, top_p=0.9)


def _frozen(ops: Any, c: Any, w: Any, b: Any, s: Any, caches: Any) -> Any:
    """A planted mistake: the token ids are copied when the operations are recorded."""
    _, *others = PARTS(ops, c, w, b, s, caches)
    yield lambda: ops.embed_tokens(replace(s, ids=s.ids.copy()), w.embed, b, w.layers[0].attn_norm)
    yield from others


@pytest.mark.parametrize("scope", ["layer", "step"])
def test_a_value_frozen_at_capture_fails_the_comparison(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "parts", _frozen)
    eager, recorded = (decoded(runner(graph=g), 2, 3) for g in ("off", scope))
    with pytest.raises(AssertionError, match="not equal"):
        for a, b in zip(eager, recorded, strict=True):
            np.testing.assert_array_equal(a, b)
    monkeypatch.undo()
    for a, b in zip(eager, decoded(runner(graph="off"), 2, 3), strict=True):
        np.testing.assert_array_equal(a, b)  # eagerly the mistake does not show


def test_recording_notes_and_runs_only_under_a_capture() -> None:
    done: list[int] = []
    ops = SimpleNamespace(name="x", work=done.append)
    for run, expected in ((False, []), (True, [1])):
        recording = Recording(ops, run)  # pyright: ignore[reportArgumentType]
        recording.part = "layer 0"
        recording.work(1)
        assert done == expected and recording.name == "x"
        assert recording.take() == [Call("layer 0", "work", (1,), {})] and recording.calls == []


class FakeStream:
    """Records the calls of a capture on a stream, and counts the nodes that operations add."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.added, self.spoilt, self.forked = 0, False, False

    def nodes(self) -> int:
        if self.spoilt:
            raise CaptureError("spoilt")
        return self.added

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.log.append("left")

    def begin_capture(self) -> None:
        assert not gc.isenabled()
        self.added = 0
        self.log.append("begin")

    def end_capture(self) -> Any:
        self.log.append("end")
        if self.forked:
            raise RuntimeError("capturing stream has unjoined work")
        return SimpleNamespace(upload=lambda s: self.log.append("upload"), launch=lambda s: self.log.append("launch"))


class FakeGpu(HostDevice):
    def __init__(self) -> None:
        self.stream = FakeStream()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    monkeypatch.setattr(graph, "_allocation_guard", lambda: nullcontext)
    monkeypatch.setattr(graph, "_counter", lambda stream: stream.nodes)
    return gpu


def test_a_stream_is_warmed_captured_and_uploaded(gpu: FakeGpu) -> None:
    ran: list[str] = []
    ops = SimpleNamespace(norm=lambda: ran.append("norm"))
    report = CaptureReport()
    step = program(gpu, ops, lambda to: [("a", to.norm), ("b", to.norm)], "layer", "test", report)  # pyright: ignore
    assert gpu.stream.log == ["begin", "end", "left", "upload"] * 2 and report.graphs == 2
    assert ran == ["norm"] * 4  # warm-up, then capture
    step.run()
    assert gpu.stream.log[-2:] == ["launch"] * 2 and len(ran) == 4


def test_a_call_knows_its_part_and_its_nodes(gpu: FakeGpu) -> None:
    def add(nodes: int) -> None:
        gpu.stream.added += nodes

    ops = SimpleNamespace(norm=lambda: add(1), product=lambda: add(2), nothing=lambda: None)
    parts = lambda to: [(f"layer {i}", lambda: (to.norm(), to.nothing(), to.product())) for i in range(2)]  # noqa: E731
    (one,) = program(gpu, ops, parts, "step", "test", CaptureReport()).graphs or ()  # pyright: ignore
    layer = [("norm", 1), ("nothing", 0), ("product", 2)]
    assert [(c.part, c.name, c.nodes) for c in one.calls] == [(f"layer {i}", *c) for i in range(2) for c in layer]


def test_a_failure_at_the_end_of_a_capture_names_no_operation(gpu: FakeGpu) -> None:
    gpu.stream.forked = True
    ops = SimpleNamespace(norm=lambda: None)
    with pytest.raises(CaptureError, match=r"test, at the end of the capture: cannot be captured: .*unjoined work"):
        program(gpu, ops, lambda to: [("layer 0", to.norm)], "step", "test", CaptureReport())  # pyright: ignore


def _allocates() -> None:
    raise MemoryError("it allocates 512 bytes of device memory")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        pytest.param(
            {"attend": _allocates}, "layer 1, operation attend: cannot be captured: it allocates", id="raises"
        ),
        pytest.param({"attend": "spoils"}, "layer 1, operation attend: cannot be captured: spoilt", id="in-silence"),
        pytest.param({"between": _allocates}, "layer 1, after operation norm: cannot be .*allocates", id="between"),
        pytest.param({"first": _allocates}, "layer 1, before its first operation: .*allocates", id="before-the-first"),
    ],
)
def test_what_fails_while_capturing_is_named_and_the_stream_left_in_order(
    gpu: FakeGpu, broken: dict[str, Any], says: str
) -> None:
    calls: list[str] = []

    def run(name: str) -> None:
        calls.append(name)
        fails = broken.get(name) if calls.count(name) == 4 else None  # the second layer, after a warm-up of both
        if fails == "spoils":
            gpu.stream.spoilt = True
        elif fails:
            fails()

    ops = SimpleNamespace(norm=lambda: run("norm"), attend=lambda: run("attend"))

    def layer(to: Any) -> None:
        run("first")
        to.norm()
        run("between")
        to.attend()

    with pytest.raises(CaptureError, match=f"bucket 4, {says}"):
        parts = lambda to: [(f"layer {i}", lambda: layer(to)) for i in range(2)]  # noqa: E731
        program(gpu, ops, parts, "step", "bucket 4", CaptureReport())  # pyright: ignore
    assert gpu.stream.log == ["begin", "end", "left"] and gc.isenabled()


def test_an_operation_that_does_not_exist_is_a_capture_error() -> None:
    with pytest.raises(CaptureError, match=r"bucket 1, head, .*no attribute 'norm_haed'"):
        program(
            HostDevice(), NumpyOps(), lambda to: [("head", lambda: to.norm_haed())], "step", "bucket 1", CaptureReport()
        )


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("lost", [False, True], ids=["ends", "cannot-be-ended"])
def test_a_capture_is_ended_once_and_the_first_error_raised(error: BaseException, lost: bool) -> None:
    ended, told = [], []

    def run() -> None:
        raise error

    def end() -> str:
        ended.append("end")
        if lost:
            raise RuntimeError("capture invalidated")
        return "graph"

    with pytest.raises(type(error)) as caught:
        graph.captured(run, end, lambda e, made: told.append((e, made)))
    assert (caught.value, ended, told) == (error, ["end"], [(error, None if lost else "graph")])

"""NVTX ranges: their nesting, and that there are none unless requested."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from small import runner

from ostinato.errors import RequestError
from ostinato.graph import capture as graph
from ostinato.graph import nvtx
from ostinato.graph.capture import CaptureReport
from ostinato.ops.device import HostDevice
from ostinato.ops.numpy import NumpyOps


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A log: names of opened ranges, "/" for a closed one, operations in capitals."""
    log: list[str] = []
    monkeypatch.setattr(nvtx, "_library", lambda: (log.append, lambda: log.append("/")))
    return log


def program(scope: str, log: list[str]) -> graph.Program:
    """A program of two parts with two operations each, in ranges."""
    device: Any = SimpleNamespace(is_gpu=True, name="GPU")
    ranges = nvtx.Ranges(device)
    ops: Any = SimpleNamespace(norm=lambda: log.append("NORM"), attend=lambda: log.append("ATTEND"), name="x")

    def layer(to: Any) -> None:
        to.norm()
        to.attend()

    def parts(to: Any) -> list[graph.Part]:
        return [(f"layer {i}", lambda: layer(to)) for i in range(2)]

    assert ranges.ops(ops).name == "x"
    made = ranges.program(HostDevice(), ranges.ops(ops), parts, scope, "graph, bucket 1", CaptureReport())
    log.clear()
    return made


OPERATIONS = ["norm", "NORM", "/", "attend", "ATTEND", "/"]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        pytest.param("off", ["layer 0", *OPERATIONS, "/", "layer 1", *OPERATIONS, "/"], id="eager"),
        pytest.param(
            "layer",
            ["graph, bucket 1, layer 0", *OPERATIONS, "/", "graph, bucket 1, layer 1", *OPERATIONS, "/"],
            id="a-graph-a-part",
        ),
        pytest.param("step", ["graph, bucket 1", *OPERATIONS * 2, "/"], id="one-graph"),
    ],
)
def test_nesting_of_ranges(scope: str, expected: list[str], log: list[str]) -> None:
    program(scope, log).run()
    assert log == expected


def test_a_range_is_closed_by_an_error(log: list[str]) -> None:
    def fails() -> None:
        raise ValueError("broken")

    device: Any = SimpleNamespace(is_gpu=True, name="GPU")
    ops: Any = SimpleNamespace(work=fails)
    with pytest.raises(ValueError, match="broken"):
        nvtx.Ranges(device).ops(ops).work()
    assert log == ["work", "/"]


def test_without_nvtx_nothing_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvtx, "_library", lambda: pytest.fail("nobody asked for ranges"))
    on = runner()
    assert type(on.ops) is NumpyOps and on._program is graph.program
    assert all(type(g) is graph.Graph for g in on.current.program.graphs or [])


def test_a_device_that_no_profiler_looks_at_is_refused() -> None:
    with pytest.raises(RequestError, match=r"nvtx: expected a backend on a GPU, .* found CPU"):
        runner(nvtx=True)
